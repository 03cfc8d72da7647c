//! Attention, and what its spans must be.

use half::bf16;

use super::by_dtype;
use crate::cpu::attention::Work;
use crate::error::{check_below, check_eq, check_type};
use crate::kv::BLOCK_ROWS;
use crate::{Device, Dtype, KvPool, RopeTables, Tensor, TensorError};

/// One sequence's consecutive rows within a step.
#[derive(Clone, Copy, Debug)]
pub struct AttnSpan<'a> {
    /// The first row in the step's tensors. Spans come in ascending order of rows and do not overlap.
    pub first_row: usize,
    /// How many rows, at least 1.
    pub rows: usize,
    /// The first row's position in its sequence.
    pub first_position: usize,
    /// The sequence's blocks from position 0 on, as far as the last row at least.
    pub blocks: &'a [u32],
    /// The rope table of each row.
    pub row_tables: &'a [u16],
    /// The rope table that each block's keys are stored with, as far as the last row's block at least.
    pub block_tables: &'a [u16],
}

/// One layer's attention.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// Where keys and values are, those of this step included.
    pub kv: &'a KvPool,
    /// The layer within the pool.
    pub layer: usize,
    /// The step's rows.
    pub spans: &'a [AttnSpan<'a>],
    /// Cos and sin, for keys that were stored with another table than a row has.
    pub tables: &'a RopeTables,
    /// Multiplies every score: 1 / √head_dim.
    pub scale: f32,
}

impl Device {
    /// out ← softmax(q · keys · scale) · values for every row and query head, over its own and all earlier
    /// positions. `qkv` has rotated queries in its first columns; query head h reads KV head h / group. Rows of
    /// `out` that no span names hold what they held.
    pub fn attention(
        &self,
        qkv: &Tensor,
        attention: &Attention<'_>,
        out: &mut Tensor,
    ) -> Result<(), TensorError> {
        let op = "attention";
        let &Attention { kv, layer, spans, tables, scale } = attention;
        let heads = check_qkv(op, qkv, kv, layer)?;
        check_spans(op, spans, qkv.rows(), kv, tables)?;
        check_eq(op, "the output's columns", out.cols(), heads * kv.spec().head_dim)?;
        check_type(op, "the output", out.dtype(), qkv.dtype())?;
        out.set_rows(qkv.rows())?;
        let Device::Cpu(cpu) = self;
        let work = Work { spans, tables, layout: kv.layout(), layer, heads, scale };
        by_dtype!(qkv.dtype(), E => {
            work.run::<E>(cpu, qkv.elements(), kv.elements(), out.elements_mut());
        });
        Ok(())
    }
}

/// Checks rows Q|K|V against the pool and returns the number of query heads.
pub(super) fn check_qkv(
    op: &'static str,
    qkv: &Tensor,
    kv: &KvPool,
    layer: usize,
) -> Result<usize, TensorError> {
    let spec = kv.spec();
    check_type(op, "the input", qkv.dtype(), spec.dtype())?;
    check_below(op, "layer", layer, spec.layers)?;
    check_eq(op, "columns beyond whole heads", qkv.cols() % spec.head_dim, 0)?;
    let heads = (qkv.cols() / spec.head_dim).saturating_sub(2 * spec.kv_heads);
    check_below(op, "head", 0, heads)?;
    check_eq(op, "query heads beyond whole groups", heads % spec.kv_heads.max(1), 0)?;
    Ok(heads)
}

/// Checks that spans name rows, positions, blocks and tables that exist.
pub(super) fn check_spans(
    op: &'static str,
    spans: &[AttnSpan<'_>],
    rows: usize,
    kv: &KvPool,
    tables: &RopeTables,
) -> Result<(), TensorError> {
    check_eq(op, "half of a rope table's head", tables.half(), kv.spec().head_dim / 2)?;
    let mut taken = 0;
    for span in spans {
        if span.first_row < taken || span.rows == 0 {
            return Err(TensorError::Setting {
                op,
                what: "spans",
                rule: "in ascending order, of 1 row or more",
            });
        }
        taken = span.first_row.saturating_add(span.rows);
        check_below(op, "row", taken - 1, rows)?;
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
    }
    Ok(())
}
