//! Sequences of a bench, and the steps that they take through a stage.

use std::fmt;
use std::ops::ControlFlow;
use std::str::FromStr;

use asterism_model::stage::{Batch, Input, Span};
use asterism_model::{ModelError, Stage};
use asterism_tensor::{BLOCK_ROWS, EvidenceRequest, EvidenceRoom, Processors};

use crate::bench::evidence::Evidence;

/// The most rows that want evidence: as a shard has it.
pub const EVIDENCE_ROWS: usize = 128;
/// The best ids of a row, and the penalty on what occurred: what TeleChat's sampling asks for.
const TOP_K: usize = 5 + 8;
const REPETITION: f32 = 1.02;

/// A stage at work.
#[derive(Debug)]
pub struct Steps {
    stage: Stage,
    evidence: Evidence,
}

/// A sequence of the bench: its tokens and its blocks.
#[derive(Debug)]
pub struct Sequence {
    ids: Vec<u32>,
    blocks: Vec<u32>,
}

/// Equal prompts, written `4x2048`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prompts {
    /// How many.
    pub sequences: usize,
    /// Tokens of each.
    pub tokens: usize,
}

impl Steps {
    /// Takes memory for the evidence.
    pub fn new(stage: Stage) -> Result<Self, ModelError> {
        let info = stage.info();
        let (rows, vocab) = (info.evidence_rows, info.spec.vocab);
        let room = EvidenceRoom { rows, vocab, top_k: TOP_K, ids: info.max_context };
        let evidence = Evidence::new(stage.device(), room)?;
        Ok(Self { stage, evidence })
    }

    /// The stage.
    pub fn stage(&self) -> &Stage {
        &self.stage
    }

    /// The evidence of one row of each sequence. Waits for the step.
    pub fn evidence(&mut self, sequences: &[Sequence]) -> Result<(), ModelError> {
        let top_k = TOP_K.min(self.stage.info().spec.vocab);
        let mut requests = Vec::with_capacity(sequences.len());
        for (row, sequence) in sequences.iter().enumerate() {
            let ids = &sequence.ids[..];
            let prompt_len = ids.len();
            let processors = Processors { repetition: REPETITION, ids, prompt_len, ..Processors::NONE };
            let (temperature, logprobs) = (None, None);
            requests.push(EvidenceRequest { row, slot: row, processors, top_k, temperature, logprobs });
        }
        self.evidence.of(&self.stage, &requests).map(drop)
    }

    /// Sequences of random tokens in blocks of their own; `None` if the pool is too small for them.
    pub fn sequences(&self, Prompts { sequences, tokens }: Prompts) -> Option<Vec<Sequence>> {
        let info = self.stage.info();
        let each = tokens.div_ceil(BLOCK_ROWS) as u32;
        if tokens == 0 || sequences * each as usize > info.kv_blocks {
            return None;
        }
        let mut state = 1u64;
        let mut id = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 33) % info.spec.vocab as u64) as u32
        };
        let sequence = |index: u32| Sequence {
            ids: (0..tokens).map(|_| id()).collect(),
            blocks: (index * each..(index + 1) * each).collect(),
        };
        Some((0..sequences as u32).map(sequence).collect())
    }

    /// Reads the first `tokens` tokens of all sequences as prompts, as many rows a step as there may be, and waits.
    pub fn read(&mut self, sequences: &[Sequence], tokens: usize) -> Result<(), ModelError> {
        let most = self.stage.info().max_rows;
        let last = [tokens.saturating_sub(1)];
        let mut spans = Vec::new();
        let mut room = most;
        for sequence in sequences {
            let mut start = 0;
            while start < tokens {
                let end = tokens.min(start + room);
                spans.push(Span {
                    first_position: start,
                    token_ids: &sequence.ids[start..end],
                    blocks: &sequence.blocks,
                    prompt_len: tokens,
                    evidence: if end == tokens { &last } else { &[] },
                });
                room -= end - start;
                start = end;
                if room == 0 || spans.len() == EVIDENCE_ROWS {
                    self.run(&spans)?;
                    spans.clear();
                    room = most;
                }
            }
        }
        if !spans.is_empty() {
            self.run(&spans)?;
        }
        Ok(self.stage.device().synchronize()?)
    }

    /// One row of each sequence, at `position`, as it was drawn.
    pub fn step(&mut self, sequences: &[Sequence], position: usize) -> Result<(), ModelError> {
        let evidence = [position];
        let spans: Vec<Span<'_>> = sequences
            .iter()
            .map(|sequence| Span {
                first_position: position,
                token_ids: &sequence.ids[position..position + 1],
                blocks: &sequence.blocks,
                prompt_len: position,
                evidence: &evidence,
            })
            .collect();
        self.run(&spans)
    }

    fn run(&mut self, spans: &[Span<'_>]) -> Result<(), ModelError> {
        let go_on = &mut |_| ControlFlow::Continue(());
        self.stage.forward(&Batch { spans }, Input::Tokens, go_on).map(drop)
    }
}

impl FromStr for Prompts {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once(['x', '×']);
        let sizes = parts.and_then(|(n, tokens)| Some((n.trim().parse().ok()?, tokens.trim().parse().ok()?)));
        match sizes {
            Some((sequences @ 1.., tokens @ 1..)) => Ok(Self { sequences, tokens }),
            _ => Err(format!("{text:?} are no prompts (write 4x2048)")),
        }
    }
}

impl fmt::Display for Prompts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.sequences, self.tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_are_written_as_they_are_read() {
        let prompts = Prompts { sequences: 4, tokens: 2048 };
        assert_eq!("4x2048".parse(), Ok(prompts));
        assert_eq!(prompts.to_string(), "4x2048");
        for text in ["", "4", "x", "0x5", "5x0", "ax2", "-1x3"] {
            assert!(text.parse::<Prompts>().is_err(), "{text:?}");
        }
    }
}
