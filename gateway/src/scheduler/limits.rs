//! What the stages and the queue have room for, and what a request gets that does not fit.

use std::time::Duration;

use asterism_proto::Failure;

use super::{NewSequence, SequenceId};

/// Rows of KV in a block.
pub const BLOCK_ROWS: u32 = 16;

/// When a full queue may be tried again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What all stages of a pipeline have room for: the least of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// P.
    pub stages: u32,
    /// Blocks of KV, of [`BLOCK_ROWS`] rows each.
    pub blocks: u32,
    /// The most rows of a step.
    pub rows: u32,
    /// The most evidence rows of a step.
    pub evidence_rows: u32,
    /// Raw rows of logits that the last stage can keep.
    pub logits_slots: u32,
    /// F, the most steps with rows in flight.
    pub steps_in_flight: u32,
    /// The longest sequence, prompt and answer together, in tokens.
    pub max_context: u32,
    /// How their rows differ.
    pub row_kinds: RowKinds,
}

/// What a row's numbers depend on beside the ids up to it: rows that agree in all of it have the same bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RowKinds {
    /// Each doubling past this length of a sequence changes the rope of its rows; 0: nothing does.
    pub rope_base_length: u32,
    /// Whether rows of prompts and rows of answers have kernels of their own.
    pub have_classes: bool,
}

/// How much may wait for admission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueLimits {
    /// Sequences.
    pub requests: u32,
    /// Tokens, prompts and answers together. An empty queue takes any sequence that could run.
    pub tokens: u64,
}

/// Why a sequence is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is nothing to compute.
    #[error("the prompt has no tokens")]
    EmptyPrompt,
    /// Not even one token was asked for.
    #[error("max_tokens is 0")]
    NoTokens,
    /// It could not run even alone.
    #[error(
        "{prompt} prompt tokens and an answer of up to {max_tokens} are more than the context of {context}"
    )]
    TooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens of the answer.
        max_tokens: u32,
        /// The limit, in tokens.
        context: u32,
    },
    /// Too many wait.
    #[error("{waiting} requests are waiting, as many as may")]
    QueueFull {
        /// Sequences in the queue.
        waiting: u32,
    },
    /// Too much waits.
    #[error("{waiting} tokens are waiting; with {tokens} more the queue would pass its limit of {limit}")]
    QueueTokens {
        /// Tokens in the queue.
        waiting: u64,
        /// Tokens of the refused sequence.
        tokens: u64,
        /// The limit.
        limit: u64,
    },
    /// The id is taken.
    #[error("sequence {sequence} exists already")]
    Duplicate {
        /// The id.
        sequence: SequenceId,
    },
}

impl Limits {
    /// The longest prompt and answer together, in tokens: `max_context` or the pool, the smaller.
    pub fn context(&self) -> u32 {
        self.max_context.min(self.blocks.saturating_mul(BLOCK_ROWS))
    }

    /// Whether a sequence could run if it were alone.
    pub(super) fn check(&self, sequence: &NewSequence) -> Result<(), Refusal> {
        if sequence.prompt.is_empty() {
            return Err(Refusal::EmptyPrompt);
        }
        if sequence.max_tokens == 0 {
            return Err(Refusal::NoTokens);
        }
        let context = self.context();
        if tokens(sequence) > u64::from(context) {
            let (prompt, max_tokens) = (sequence.prompt.len(), sequence.max_tokens);
            return Err(Refusal::TooLong { prompt, max_tokens, context });
        }
        Ok(())
    }
}

impl NewSequence {
    /// Blocks for its first `known` positions, and one more if its answer may need that. (Its last token is never fed.)
    pub(super) fn room(&self, known: u32) -> u32 {
        let most = (self.prompt.len() as u32).saturating_add(self.max_tokens) - 1;
        let blocks = known.div_ceil(BLOCK_ROWS);
        blocks + u32::from(most.div_ceil(BLOCK_ROWS) > blocks)
    }
}

/// Prompt and whole answer.
pub(super) fn tokens(sequence: &NewSequence) -> u64 {
    sequence.prompt.len() as u64 + u64::from(sequence.max_tokens)
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let message = refusal.to_string();
        match refusal {
            Refusal::EmptyPrompt => Failure::invalid("prompt", message),
            Refusal::NoTokens => Failure::invalid("stopping.max_tokens", message),
            Refusal::TooLong { prompt, context, .. } if prompt as u64 >= u64::from(context) => {
                Failure::invalid("prompt", message)
            }
            Refusal::TooLong { .. } => Failure::invalid("stopping.max_tokens", message),
            Refusal::QueueFull { .. } | Refusal::QueueTokens { .. } => {
                Failure::exhausted(message, RETRY_AFTER)
            }
            Refusal::Duplicate { .. } => Failure::new(asterism_proto::Reason::Conflict, message),
        }
    }
}
