//! What a stage is asked to compute at once.

use asterism_tensor::{BLOCK_ROWS, Staged};

use super::StageInfo;
use crate::error::BatchError;

/// The rows of one step: the spans' rows, one after the other.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// One span a sequence.
    pub spans: &'a [Span<'a>],
}

/// Consecutive rows of one sequence.
#[derive(Clone, Copy, Debug)]
pub struct Span<'a> {
    /// Position of the first row.
    pub first_position: usize,
    /// One id a row.
    pub token_ids: &'a [u32],
    /// The sequence's whole block table, up to the span's last position at least.
    pub blocks: &'a [u32],
    /// Tokens of the sequence's prompt; they share one rope.
    pub prompt_len: usize,
    /// Positions of this span whose logits are wanted, ascending.
    pub evidence: &'a [usize],
}

/// What the rows start from.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// The spans' token ids: on the first stage.
    Tokens,
    /// The residual stream `[rows, hidden]` of the stage before, row-major, little-endian, in the compute type.
    Hidden(&'a [u8]),
    /// The same, staged on its way to the device.
    Staged(&'a Staged),
}

/// What a step left behind on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// The residual stream of all rows, for [`super::Stage::read_hidden`].
    Hidden {
        /// Rows of it.
        rows: usize,
    },
    /// Raw logits of the evidence rows in the order of spans and positions, in [`super::Stage::logits`].
    Logits {
        /// Rows of it.
        rows: usize,
    },
}

impl Batch<'_> {
    /// Rows of all spans.
    pub fn rows(&self) -> usize {
        self.spans.iter().map(|span| span.token_ids.len()).sum()
    }

    /// Evidence rows of all spans.
    pub fn evidence_rows(&self) -> usize {
        self.spans.iter().map(|span| span.evidence.len()).sum()
    }

    /// Whether no row is of a prompt.
    pub(super) fn is_decode(&self) -> bool {
        self.spans.iter().all(|span| span.prompt_rows() == 0)
    }

    /// Checks everything that comes from outside against what the stage has.
    pub(super) fn check(&self, info: &StageInfo, input: &Input<'_>) -> Result<(), BatchError> {
        let rows = self.rows();
        if rows == 0 || self.spans.iter().any(|span| span.token_ids.is_empty()) {
            return Err(BatchError::Empty);
        }
        if rows > info.max_rows {
            return Err(BatchError::TooManyRows { rows, most: info.max_rows });
        }
        let evidence = self.evidence_rows();
        if info.is_last() && evidence > info.evidence_rows {
            return Err(BatchError::TooMuchEvidence { rows: evidence, most: info.evidence_rows });
        }
        match input {
            Input::Tokens if info.is_first() => {}
            Input::Hidden(bytes) if !info.is_first() => check_input(bytes.len(), rows * info.row_bytes())?,
            Input::Staged(staged) if !info.is_first() => {
                check_input(staged.bytes(), rows * info.row_bytes())?
            }
            _ => return Err(BatchError::InputKind),
        }
        for (index, span) in self.spans.iter().enumerate() {
            span.check(index, info)?;
        }
        let blocks = self.spans.iter().map(|span| span.end().div_ceil(BLOCK_ROWS)).sum();
        let most = info.table_entries();
        if blocks > most {
            return Err(BatchError::TooManyBlocks { blocks, most });
        }
        Ok(())
    }
}

fn check_input(found: usize, expected: usize) -> Result<(), BatchError> {
    if found == expected { Ok(()) } else { Err(BatchError::Input { found, expected }) }
}

impl Span<'_> {
    /// One past the position of the last row.
    pub fn end(&self) -> usize {
        self.first_position.saturating_add(self.token_ids.len())
    }

    /// How many of the rows, from the first on, are of the prompt.
    pub(super) fn prompt_rows(&self) -> usize {
        self.prompt_len.saturating_sub(self.first_position).min(self.token_ids.len())
    }

    fn check(&self, index: usize, info: &StageInfo) -> Result<(), BatchError> {
        let span = index;
        if let Some(&id) = self.token_ids.iter().find(|id| **id as usize >= info.spec.vocab) {
            return Err(BatchError::TokenId { span, id, vocab: info.spec.vocab });
        }
        let positions = self.end().max(self.prompt_len);
        if positions > info.max_context {
            return Err(BatchError::Position { span, position: positions - 1, context: info.max_context });
        }
        let blocks = self.end().div_ceil(BLOCK_ROWS);
        let Some(table) = self.blocks.get(..blocks) else {
            return Err(BatchError::BlockTable { span, blocks: self.blocks.len(), positions: self.end() });
        };
        if let Some(&block) = table.iter().find(|block| **block as usize >= info.kv_blocks) {
            return Err(BatchError::Block { span, block, blocks: info.kv_blocks });
        }
        let mut from = self.first_position;
        for &position in self.evidence {
            if position < from || position >= self.end() {
                return Err(BatchError::Evidence { span, position });
            }
            from = position + 1;
        }
        Ok(())
    }
}
