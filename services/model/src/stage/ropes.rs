//! Rope tables, and which row uses which.

use asterism_tensor::{AttnSpan, BLOCK_ROWS, Device, RopeTable, RopeTables};

use super::{Batch, Span, StageInfo};
use crate::ModelError;
use crate::rope;

/// The tables of ids 0 … `ids` − 1.
#[derive(Debug)]
pub(super) struct Ropes {
    tables: RopeTables,
    ids: usize,
}

/// A span's place among the rows, and the tables it uses.
#[derive(Debug)]
pub(super) struct PlacedSpan<'a> {
    first_row: usize,
    first_position: usize,
    prompt_rows: usize,
    blocks: &'a [u32],
    /// One a row.
    row_tables: Vec<u16>,
    /// One a block: the table its keys are stored with.
    block_tables: Vec<u16>,
}

impl PlacedSpan<'_> {
    pub fn as_attention(&self) -> AttnSpan<'_> {
        AttnSpan {
            first_row: self.first_row,
            rows: self.row_tables.len(),
            first_position: self.first_position,
            prompt_rows: self.prompt_rows,
            blocks: self.blocks,
            row_tables: &self.row_tables,
            block_tables: &self.block_tables,
        }
    }

    /// Whether a row reads keys that were stored with another table than its own.
    pub fn crosses_tables(&self) -> bool {
        let own = self.row_tables.first();
        self.row_tables.iter().chain(&self.block_tables).any(|table| Some(table) != own)
    }
}

impl Ropes {
    /// The tables that every sequence needs; on a card, whose memory is taken once, all that any may need.
    pub fn new(device: &Device, info: &StageInfo) -> Result<Self, ModelError> {
        let ids = match device {
            Device::Cpu(_) => 1,
            Device::Cuda(_) => rope::alpha_id(&info.spec.rope, info.max_context) + 1,
        };
        Ok(Self { tables: tables(device, info, ids)?, ids })
    }

    pub fn tables(&self) -> &RopeTables {
        &self.tables
    }

    /// The spans of a batch that was checked, with the table of each row and block; makes the tables that are missing.
    pub fn place<'a>(
        &mut self,
        device: &Device,
        batch: &Batch<'a>,
        info: &StageInfo,
    ) -> Result<Vec<PlacedSpan<'a>>, ModelError> {
        let mut first_row = 0;
        let mut ids = self.ids;
        let mut placed = Vec::with_capacity(batch.spans.len());
        for span in batch.spans {
            let blocks = span.blocks.get(..span.end().div_ceil(BLOCK_ROWS)).unwrap_or_default();
            let (row_tables, block_tables) = tables_of(span, blocks.len(), info);
            ids = ids.max(row_tables.last().map_or(0, |&id| usize::from(id) + 1));
            let rows = row_tables.len();
            let first_position = span.first_position;
            let prompt_rows = span.prompt_rows();
            placed.push(PlacedSpan {
                first_row,
                first_position,
                prompt_rows,
                blocks,
                row_tables,
                block_tables,
            });
            first_row += rows;
        }
        if ids > self.ids {
            *self = Self { tables: tables(device, info, ids)?, ids };
        }
        Ok(placed)
    }
}

/// The table of each row and of each block of a span.
fn tables_of(span: &Span<'_>, blocks: usize, info: &StageInfo) -> (Vec<u16>, Vec<u16>) {
    let rope = &info.spec.rope;
    if rope::rope_length(span.end() - 1, span.prompt_len) <= rope.base_length {
        return (vec![0; span.token_ids.len()], vec![0; blocks]);
    }
    let table = |position| rope::alpha_id(rope, rope::rope_length(position, span.prompt_len)) as u16;
    let rows = (span.first_position..span.end()).map(table).collect();
    // The α changes at multiples of the base length only, so a block's first row tells for all of it.
    (rows, (0..blocks).map(|block| table(block * BLOCK_ROWS)).collect())
}

/// The tables of ids 0 … `ids` − 1, each as long as the longest sequence that may use the last.
fn tables(device: &Device, info: &StageInfo, ids: usize) -> Result<RopeTables, ModelError> {
    let (rope, head_dim) = (&info.spec.rope, info.spec.head_dim);
    let rows = rope::table_rows(rope, ids - 1, info.max_context);
    let mut tables = Vec::with_capacity(ids);
    for id in 0..ids {
        let (cos, sin) = rope::cos_sin(rope, head_dim, id, rows);
        tables.push(RopeTable::new(head_dim / 2, cos, sin)?);
    }
    Ok(device.rope_tables(tables)?)
}
