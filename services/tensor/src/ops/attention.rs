//! Attention, and what its spans must be.

use half::bf16;

use super::by_dtype;
use crate::cpu::attention::Work;
use crate::error::{check_below, check_eq, check_type};
use crate::{Device, Dtype, KvPool, RopeTables, Rows, Tensor, TensorError};

/// One sequence's consecutive rows within a step.
#[derive(Clone, Copy, Debug)]
pub struct AttnSpan<'a> {
    /// The first row in the step's tensors. Spans come in ascending order of rows and do not overlap.
    pub first_row: usize,
    /// How many rows, at least 1.
    pub rows: usize,
    /// The first row's position in its sequence.
    pub first_position: usize,
    /// How many rows, from the first on, are of the prompt. The others were drawn, one at a time; a device whose
    /// kernels differ for the two keeps each row's kind when a sequence is computed again.
    pub prompt_rows: usize,
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
    pub rows: &'a Rows,
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
        let &Attention { kv, layer, rows, tables, scale } = attention;
        let heads = check_qkv(op, qkv, rows, kv, layer)?;
        check_eq(op, "the output's columns", out.cols(), heads * kv.spec().head_dim)?;
        check_type(op, "the output", out.dtype(), qkv.dtype())?;
        out.set_rows(qkv.rows())?;
        let cpu = match self {
            Device::Cpu(cpu) => cpu,
            Device::Cuda(cuda) => return cuda.attention(qkv, attention, heads, out),
        };
        let work = Work { spans: &rows.spans, tables, layout: kv.layout(), layer, heads, scale };
        by_dtype!(qkv.dtype(), E => {
            work.run::<E>(cpu, qkv.elements()?, kv.elements()?, out.elements_mut()?);
        });
        Ok(())
    }
}

/// Checks rows Q|K|V against the pool and returns the number of query heads.
pub(super) fn check_qkv(
    op: &'static str,
    qkv: &Tensor,
    rows: &Rows,
    kv: &KvPool,
    layer: usize,
) -> Result<usize, TensorError> {
    let spec = kv.spec();
    if rows.used() > qkv.rows() {
        return Err(TensorError::OutOfRange { op, what: "row", index: rows.used() - 1, limit: qkv.rows() });
    }
    check_type(op, "the input", qkv.dtype(), spec.compute.dtype())?;
    check_below(op, "layer", layer, spec.layers)?;
    check_eq(op, "columns beyond whole heads", qkv.cols() % spec.head_dim, 0)?;
    let heads = (qkv.cols() / spec.head_dim).saturating_sub(2 * spec.kv_heads);
    check_below(op, "head", 0, heads)?;
    check_eq(op, "query heads beyond whole groups", heads % spec.kv_heads.max(1), 0)?;
    Ok(heads)
}
