//! Rotates queries and keys, and puts keys and values into their blocks.
#![allow(unsafe_code, reason = "launches kernels")]

use crate::cuda::Cuda;
use crate::cuda::card::Card;
use crate::cuda::compile::Theme;
use crate::cuda::elementwise::{blocks, int};
use crate::cuda::kv::{self, KvLayout};
use crate::cuda::launch::{Arg, Grid, Kernel};
use crate::{Compute, KvPool, KvType, RopeTables, Rows, Tensor, TensorError};

/// Kernels of this theme for one type of keys and values, by the type of activations.
#[derive(Debug)]
pub struct Kernels {
    /// Of tiled blocks, which are bf16.
    tiled_bf16: Option<Kernel>,
    /// Of all blocks.
    plain_bf16: Kernel,
    plain_f32: Kernel,
}

/// `RopeWork` of the kernels.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct RopeWork {
    qkv: u64,
    position: u64,
    block: u64,
    row_table: u64,
    key_table: u64,
    tables: u64,
    kv: u64,
    layout: KvLayout,
    heads: i32,
    positions: i32,
}

// As the kernels have it.
const _: () = assert!(size_of::<RopeWork>() == 88);

/// Threads of a block, as in the kernels.
const THREADS: usize = 128;

/// Pairs that a thread turns in tiled blocks.
const CHUNK: usize = 8;

impl Kernels {
    /// Compiles them for the card.
    pub fn new(card: &Card, kv_type: KvType) -> Result<Kernels, TensorError> {
        let module = card.kernels(Theme::Rope, &[kv::define(kv_type)])?;
        let tiled = || module.kernel("rope_kv_write_tiled_bf16");
        Ok(Kernels {
            tiled_bf16: (kv_type == KvType::Bf16).then(tiled).transpose()?,
            plain_bf16: module.kernel("rope_kv_write_bf16")?,
            plain_f32: module.kernel("rope_kv_write_f32")?,
        })
    }
}

impl Cuda {
    /// `layer` of the pool; `heads`: of queries.
    pub(crate) fn rope_kv_write(
        &self,
        qkv: &mut Tensor,
        rows: &Rows,
        tables: &RopeTables,
        (kv, layer): (&mut KvPool, usize),
        heads: usize,
    ) -> Result<(), TensorError> {
        let placed = rows.card.as_deref().ok_or(TensorError::OtherDevice)?;
        let layout = KvLayout::of(kv.spec());
        let (spec, kernels) = (kv.spec(), &kv.card()?.rope);
        let (kernel, step) = match (&kernels.tiled_bf16, spec.compute) {
            (Some(tiled), Compute::Bf16) if layout.tile != 0 => (tiled, CHUNK),
            (_, Compute::Bf16) => (&kernels.plain_bf16, 1),
            (_, Compute::F32) => (&kernels.plain_f32, 1),
        };
        // Padding rows take part too, without effect, so that a recorded launch fits any step of as many rows.
        let tasks = (heads + spec.kv_heads) * (spec.head_dim / 2 / step);
        let grid = Grid {
            blocks: [blocks(qkv.rows().min(rows.room.rows))?, blocks(tasks.div_ceil(THREADS))?, 1],
            threads: blocks(THREADS)?,
        };
        let work = RopeWork {
            qkv: qkv.address()?,
            position: placed.position(),
            block: placed.block(),
            row_table: placed.row_table(),
            key_table: placed.key_table(),
            tables: tables.address()?,
            kv: kv.layer_address(layer)?,
            layout,
            heads: int(heads)?,
            positions: int(tables.positions())?,
        };
        // SAFETY: the kernel's argument; rows, blocks and tables were checked when they were placed, shapes just now.
        unsafe { self.card().launch(kernel, grid, &[Arg::of(&work)]) }
    }
}
