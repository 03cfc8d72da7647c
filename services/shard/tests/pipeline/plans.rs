//! Spans as a planner would make them.

use asterism_proto::list::unpack;
use asterism_proto::shard::v1::{Evidence, SequenceStart, Setting, Span, TokenBias};

/// The best id of a row.
pub fn best(evidence: &Evidence) -> u32 {
    unpack(&evidence.ids).expect("whole numbers")[0]
}

/// Processors that do nothing.
pub fn off(id: u64) -> Setting {
    Setting { id, repetition_penalty: 1.0, ..Setting::default() }
}

/// Processors and evidence of every kind.
pub fn all_on(id: u64) -> Setting {
    Setting {
        bias: vec![TokenBias { token_id: 17, bias: 0.75 }, TokenBias { token_id: 3, bias: -2.0 }],
        repetition_penalty: 1.3,
        presence_penalty: 0.25,
        frequency_penalty: 0.125,
        temperature: Some(0.7),
        logprobs: Some(4),
        ..off(id)
    }
}

/// A sequence as the planner has it: its ids so far, its blocks, how far it has been fed.
#[derive(Clone, Debug)]
pub struct Talk {
    pub id: u64,
    pub ids: Vec<u32>,
    pub prompt_len: u32,
    pub blocks: Vec<u32>,
    pub setting: Setting,
    pub fed: usize,
}

impl Talk {
    /// A prompt of `len` ids, with room for 48 positions in blocks of its own.
    pub fn new(id: u64, len: u32, setting: Setting) -> Self {
        let first = id as u32 * 3;
        Self {
            id,
            ids: (0..len).map(|i| 4 + (i * 37 + id as u32 * 11) % 500).collect(),
            prompt_len: len,
            blocks: vec![first + 1, first, first + 2],
            setting,
            fed: 0,
        }
    }

    /// The next `rows` ids, with evidence of the last of them if nothing is left after it.
    pub fn span(&mut self, rows: usize) -> Span {
        let (from, to) = (self.fed, self.ids.len().min(self.fed + rows));
        self.fed = to;
        let start = SequenceStart {
            prompt_len: self.prompt_len,
            setting: Some(self.setting.clone()),
            prior_ids: Vec::new(),
        };
        Span {
            sequence: self.id,
            first_position: from as u32,
            token_ids: self.ids[from..to].to_vec(),
            table_offset: 0,
            blocks: if from == 0 { self.blocks.clone() } else { Vec::new() },
            evidence_positions: if to == self.ids.len() { vec![to as u32 - 1] } else { Vec::new() },
            top_k: 8,
            setting_id: self.setting.id,
            start: (from == 0).then_some(start),
        }
    }

    /// The whole prompt.
    pub fn prompt(&mut self) -> Span {
        self.span(usize::MAX / 2)
    }

    /// Appends a token.
    pub fn say(&mut self, id: u32) {
        self.ids.push(id);
    }
}
