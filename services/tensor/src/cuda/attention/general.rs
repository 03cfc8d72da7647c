//! Attention of rows of any kind: of any types, blocks that are not tiled, keys that must be corrected.
#![allow(unsafe_code, reason = "launches kernels")]

use super::Work;
use crate::cuda::card::Card;
use crate::cuda::compile::Theme;
use crate::cuda::elementwise::int;
use crate::cuda::kv::{self, KvLayout};
use crate::cuda::launch::{Arg, Grid, Kernel};
use crate::{Compute, KvType, RopeTables, TensorError};

/// Threads of a block, as in the kernels.
const THREADS: u32 = 256;

/// Query heads that share what a block loads, where a group has several.
const GROUPED_HEADS: usize = 4;

/// Kernels of this theme for one type of keys and values: by the type of activations, for groups of one query head and of
/// several.
#[derive(Debug)]
pub struct Kernels {
    single_f32: Kernel,
    grouped_f32: Kernel,
    single_bf16: Kernel,
    grouped_bf16: Kernel,
}

/// `GeneralWork` of the kernels.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct GeneralWork {
    qkv: u64,
    out: u64,
    kv: u64,
    counts: u64,
    generals: u64,
    words: u64,
    tables: u64,
    layout: KvLayout,
    stride: i32,
    heads: i32,
    group: i32,
    positions: i32,
    scale: f32,
    spare: i32,
}

impl Kernels {
    /// Compiles them for the card.
    pub fn new(card: &Card, kv_type: KvType) -> Result<Kernels, TensorError> {
        let module = card.kernels(Theme::Attention, &[kv::define(kv_type)])?;
        Ok(Kernels {
            single_f32: module.kernel("attention_general_single_f32")?,
            grouped_f32: module.kernel("attention_general_grouped_f32")?,
            single_bf16: module.kernel("attention_general_single_bf16")?,
            grouped_bf16: module.kernel("attention_general_grouped_bf16")?,
        })
    }

    /// Attends all rows of this kind, of which there are `rows` at most.
    pub fn run(
        &self,
        card: &Card,
        work: &Work<'_>,
        tables: &RopeTables,
        rows: usize,
    ) -> Result<(), TensorError> {
        let spec = work.kv.spec();
        let group = work.heads / spec.kv_heads;
        let (kernel, heads) = match (spec.compute, group) {
            (Compute::F32, 1) => (&self.single_f32, 1),
            (Compute::F32, _) => (&self.grouped_f32, GROUPED_HEADS),
            (Compute::Bf16, 1) => (&self.single_bf16, 1),
            (Compute::Bf16, _) => (&self.grouped_bf16, GROUPED_HEADS),
        };
        let pieces = spec.kv_heads * group.div_ceil(heads);
        let grid =
            Grid { blocks: [int(rows)?.cast_unsigned(), int(pieces)?.cast_unsigned(), 1], threads: THREADS };
        let argument = GeneralWork {
            qkv: work.qkv,
            out: work.out,
            kv: work.layer,
            counts: work.rows.counts(),
            generals: work.rows.generals(),
            words: work.rows.words(),
            tables: tables.address()?,
            layout: KvLayout::of(spec),
            stride: int(work.stride)?,
            heads: int(work.heads)?,
            group: int(group)?,
            positions: int(tables.positions())?,
            scale: work.scale,
            spare: 0,
        };
        // SAFETY: the kernel's argument; rows, blocks and tables were checked when they were placed, shapes by the
        // operation.
        unsafe { card.launch(kernel, grid, &[Arg::of(&argument)]) }
    }
}
