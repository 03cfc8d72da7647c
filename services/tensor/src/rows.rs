//! The rows of a step: where they are in their sequences and in the KV pool, and lists of row numbers and ids.

use crate::cuda::rows::CudaRows;
use crate::cuda::upload::Upload;
use crate::error::{check_below, check_eq};
use crate::kv::BLOCK_ROWS;
use crate::{AttnSpan, KvPool, RopeTables, TensorError};

/// What [`Rows`] have memory for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowsRoom {
    /// The most rows of a step, padding included.
    pub rows: usize,
    /// The most entries of all spans' block tables together.
    pub blocks: usize,
}

/// Where the rows of a step are. Placed once a step ([`crate::Device::place`]), read by every layer.
#[derive(Debug)]
pub struct Rows {
    pub(crate) room: RowsRoom,
    pub(crate) used: usize,
    pub(crate) spans: Vec<PlacedSpan>,
    /// The same on a card, where one computes.
    pub(crate) card: Option<Box<CudaRows>>,
}

/// A checked span, as [`Rows`] keep it. The fields are those of [`AttnSpan`].
#[derive(Clone, Debug, Default)]
pub(crate) struct PlacedSpan {
    pub first_row: usize,
    pub rows: usize,
    pub first_position: usize,
    pub prompt_rows: usize,
    pub blocks: Vec<u32>,
    pub row_tables: Vec<u16>,
    pub block_tables: Vec<u16>,
}

/// A list of token ids or of row numbers, on the device.
#[derive(Debug)]
pub struct Indices {
    pub(crate) capacity: usize,
    pub(crate) host: Vec<u32>,
    /// The same on a card, where one computes.
    pub(crate) card: Option<Upload>,
}

// === impl Rows ===

impl Rows {
    pub(crate) fn new(room: RowsRoom, card: Option<Box<CudaRows>>) -> Rows {
        Rows { room, used: 0, spans: Vec::new(), card }
    }

    /// Rows in use, up to the end of the last span.
    pub fn used(&self) -> usize {
        self.used
    }

    /// Takes over spans that were checked.
    pub(crate) fn keep(&mut self, spans: &[AttnSpan<'_>]) {
        self.spans.resize_with(spans.len(), PlacedSpan::default);
        self.used = 0;
        for (placed, span) in self.spans.iter_mut().zip(spans) {
            let blocks = (span.first_position + span.rows).div_ceil(BLOCK_ROWS);
            placed.first_row = span.first_row;
            placed.rows = span.rows;
            placed.first_position = span.first_position;
            placed.prompt_rows = span.prompt_rows;
            fill(&mut placed.blocks, &span.blocks[..blocks]);
            fill(&mut placed.row_tables, span.row_tables);
            fill(&mut placed.block_tables, &span.block_tables[..blocks]);
            self.used = span.first_row + span.rows;
        }
    }
}

fn fill<T: Copy>(to: &mut Vec<T>, from: &[T]) {
    to.clear();
    to.extend_from_slice(from);
}

/// Checks that spans name rows, positions, blocks and tables that exist.
pub(crate) fn check_spans(
    spans: &[AttnSpan<'_>],
    room: RowsRoom,
    kv: &KvPool,
    tables: &RopeTables,
) -> Result<(), TensorError> {
    let op = "place";
    check_eq(op, "half of a rope table's head", tables.half(), kv.spec().head_dim / 2)?;
    let (mut taken, mut blocks) = (0, 0);
    for span in spans {
        if span.first_row < taken || span.rows == 0 || span.prompt_rows > span.rows {
            return Err(TensorError::Setting {
                op,
                what: "spans",
                rule: "in ascending order, of 1 row or more, of the prompt at most all",
            });
        }
        taken = span.first_row.saturating_add(span.rows);
        check_below(op, "row", taken - 1, room.rows)?;
        let last = span.first_position.saturating_add(span.rows - 1);
        check_below(op, "position", last, tables.positions())?;
        check_eq(op, "a span's row tables", span.row_tables.len(), span.rows)?;
        let last_block = last / BLOCK_ROWS;
        check_below(op, "a span's last block", last_block, span.blocks.len())?;
        check_below(op, "a span's last block table", last_block, span.block_tables.len())?;
        for &block in &span.blocks[..=last_block] {
            check_below(op, "block", block as usize, kv.blocks())?;
        }
        for &table in span.row_tables.iter().chain(&span.block_tables[..=last_block]) {
            check_below(op, "rope table", usize::from(table), tables.count())?;
        }
        blocks += last_block + 1;
        check_below(op, "block table entry", blocks - 1, room.blocks)?;
    }
    Ok(())
}

// === impl Indices ===

impl Indices {
    /// How many are in use.
    pub fn len(&self) -> usize {
        self.host.len()
    }

    /// Whether none is in use.
    pub fn is_empty(&self) -> bool {
        self.host.is_empty()
    }

    /// Those in use.
    pub fn values(&self) -> &[u32] {
        &self.host
    }

    /// Where they are on the card.
    pub(crate) fn address(&self) -> Result<u64, TensorError> {
        self.card.as_ref().map(Upload::address).ok_or(TensorError::OtherDevice)
    }
}
