//! Attention of rows that were drawn, over tiled blocks of bf16: units of a row's keys, one warp each.
#![allow(unsafe_code, reason = "launches kernels")]

use std::f64::consts::LOG2_E;
use std::sync::Arc;

use super::Work;
use super::plan::{LEAF_KEYS, MOST_PARTIALS};
use crate::cuda::card::Card;
use crate::cuda::compile::{Define, Theme};
use crate::cuda::elementwise::int;
use crate::cuda::kv::{KvLayout, TiledHead};
use crate::cuda::launch::{Arg, Grid, Kernel};
use crate::cuda::memory::DeviceMemory;
use crate::kv::BLOCK_ROWS;
use crate::{KvSpec, TensorError};

/// Query heads that share what a warp loads.
const SHARED_HEADS: usize = 8;

/// Query heads there is memory for partial results of, or as many as there are KV heads.
const MOST_HEADS: usize = 128;

/// Rows up to which the deeper rings are better: their few units are short.
const FEW_ROWS: usize = 2;

/// The most warps of a block, which have all of a multiprocessor's registers.
const MOST_WARPS: usize = 8;

/// The fewest stages that hide a load, and more than are of use.
const LEAST_STAGES: usize = 3;
const MOST_STAGES: usize = 6;

/// Lanes of a warp.
const LANES: usize = 32;

/// What a barrier takes in shared memory.
const BARRIER_BYTES: usize = 8;

/// How a block's shared memory is dealt to its warps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rings {
    warps: usize,
    /// Blocks of keys and values that a warp has on their way or reads.
    stages: usize,
}

/// The kernels for heads of one size.
#[derive(Debug)]
pub struct Kernels {
    many: Compiled,
    few: Compiled,
}

/// The kernels of one kind of ring, for groups of one query head and of several.
#[derive(Debug)]
struct Compiled {
    rings: Rings,
    single: Kernel,
    grouped: Kernel,
}

/// Memory of one pool's launches, which follow one another.
#[derive(Debug)]
pub struct Scratch {
    memory: DeviceMemory,
    sizes: Sizes,
}

/// What a scratch has room for: partial results, query heads of each, and subtrees that a warp can put aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sizes {
    partials: usize,
    heads: usize,
    head_dim: usize,
    levels: usize,
}

/// `DecodeWork` of the kernels.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct DecodeWork {
    qkv: u64,
    out: u64,
    kv: u64,
    counts: u64,
    units: u64,
    words: u64,
    partials: u64,
    sums: u64,
    arrived: u64,
    held: u64,
    head_bytes: u64,
    stride: i32,
    heads: i32,
    kv_heads: i32,
    group: i32,
    chunks: i32,
    levels: i32,
    scale: f32,
    spare: i32,
}

// === impl Rings ===

impl Rings {
    /// As many warps as there is shared memory for, then as many stages.
    fn many(head: TiledHead, shared: usize) -> Rings {
        let all = shared / Rings::stage_bytes(head);
        let warps = (all / LEAST_STAGES).clamp(1, MOST_WARPS);
        Rings { warps, stages: (all / warps).clamp(2, MOST_STAGES) }
    }

    /// The same with a warp less and a stage more, where there is memory for that.
    fn few(head: TiledHead, shared: usize) -> Rings {
        let many = Rings::many(head, shared);
        let few = Rings { warps: many.warps - 1, stages: many.stages + 1 };
        if few.warps > 0 && few.stages <= MOST_STAGES && few.bytes(head) <= shared { few } else { many }
    }

    /// A block's keys and values of one head, and its barrier.
    fn stage_bytes(head: TiledHead) -> usize {
        2 * BLOCK_ROWS * head.row_bytes() + BARRIER_BYTES
    }

    /// Shared memory of a thread block.
    fn bytes(self, head: TiledHead) -> usize {
        self.warps * self.stages * Rings::stage_bytes(head)
    }

    fn defines(self, head: TiledHead) -> Vec<Define> {
        let rings = [("WARPS", self.warps as u32), ("STAGES", self.stages as u32)];
        head.defines().into_iter().chain(rings).collect()
    }
}

/// What the kernels for such heads are compiled out of and with, on cards of this compute capability.
#[cfg(test)]
pub fn builds(capability: (u32, u32), head: TiledHead) -> [crate::cuda::compile::Build; 2] {
    let shared = shared_bytes(capability);
    let rings = [Rings::many(head, shared), Rings::few(head, shared)];
    rings.map(|rings| (Theme::AttentionDecode, rings.defines(head)))
}

// === impl Kernels ===

impl Kernels {
    /// Compiles them.
    pub fn new(card: &Card, head: TiledHead) -> Result<Kernels, TensorError> {
        let shared = shared_bytes(card.capability());
        let compile = |rings: Rings| -> Result<Compiled, TensorError> {
            let module = card.kernels(Theme::AttentionDecode, &rings.defines(head))?;
            let bytes = int(rings.bytes(head))?.cast_unsigned();
            let kernel = |name: &str| module.kernel(name)?.with_shared(bytes);
            Ok(Compiled {
                rings,
                single: kernel("attention_decode_single_bf16")?,
                grouped: kernel("attention_decode_grouped_bf16")?,
            })
        };
        Ok(Kernels { many: compile(Rings::many(head, shared))?, few: compile(Rings::few(head, shared))? })
    }

    /// Attends all rows that have units.
    pub fn run(&self, card: &Card, work: &Work<'_>, scratch: &Scratch) -> Result<(), TensorError> {
        let spec = work.kv.spec();
        let group = work.heads / spec.kv_heads;
        if work.heads > scratch.sizes.heads {
            return Err(TensorError::Setting {
                op: "attention",
                what: "the number of query heads",
                rule: "at most 128, or that of KV heads",
            });
        }
        let compiled = if work.rows.plan().unit_rows <= FEW_ROWS { &self.few } else { &self.many };
        let kernel = if group == 1 { &compiled.single } else { &compiled.grouped };
        let [partials, sums, arrived, held] = scratch.areas();
        let argument = DecodeWork {
            qkv: work.qkv,
            out: work.out,
            kv: work.layer,
            counts: work.rows.counts(),
            units: work.rows.units(),
            words: work.rows.words(),
            partials,
            sums,
            arrived,
            held,
            head_bytes: KvLayout::of(spec).head_bytes,
            stride: int(work.stride)?,
            heads: int(work.heads)?,
            kv_heads: int(spec.kv_heads)?,
            group: int(group)?,
            chunks: int(group.div_ceil(SHARED_HEADS))?,
            levels: int(scratch.sizes.levels)?,
            // Weights are powers of 2.
            scale: (f64::from(work.scale) * LOG2_E) as f32,
            spare: 0,
        };
        let grid = Grid::line(card.multiprocessors(), int(compiled.rings.warps * LANES)?.cast_unsigned());
        // SAFETY: the kernel's argument; rows and blocks were checked when they were placed, shapes by the operation.
        unsafe { card.launch(kernel, grid, &[Arg::of(&argument)]) }
    }
}

// === impl Scratch ===

impl Scratch {
    /// Memory for a pool of `pool_blocks` blocks.
    pub fn new(card: &Arc<Card>, spec: &KvSpec, pool_blocks: usize) -> Result<Scratch, TensorError> {
        // Rows that share no blocks never need more: half a partial result for every leaf, one more for every row.
        let partials = (pool_blocks / 4).clamp(32, MOST_PARTIALS);
        let sizes = Sizes {
            partials,
            heads: spec.kv_heads.max(MOST_HEADS),
            head_dim: spec.head_dim,
            levels: levels(pool_blocks),
        };
        let warps = card.multiprocessors() as usize * MOST_WARPS;
        let memory = DeviceMemory::zeroed(card.context(), sizes.bytes(warps))?;
        Ok(Scratch { memory, sizes })
    }

    /// Partial results there is room for.
    pub fn partials(&self) -> usize {
        self.sizes.partials
    }

    /// Addresses of partial outputs, their sums, how many have arrived, and what is put aside.
    fn areas(&self) -> [u64; 4] {
        let start = self.memory.address();
        [0, self.sizes.sums_at(), self.sizes.arrived_at(), self.sizes.held_at()].map(|at| start + at as u64)
    }
}

// === impl Sizes ===

impl Sizes {
    fn sums_at(&self) -> usize {
        self.partials * self.heads * self.head_dim * size_of::<f32>()
    }

    fn arrived_at(&self) -> usize {
        self.sums_at() + self.partials * self.heads * size_of::<[f32; 2]>()
    }

    fn held_at(&self) -> usize {
        (self.arrived_at() + self.partials * self.heads * size_of::<u32>()).next_multiple_of(256)
    }

    /// A subtree in a warp's registers: for two queries a lane has two dims of every sixteen, and two sums.
    fn held_bytes(&self) -> usize {
        2 * 2 * (self.head_dim / 16 + 1) * LANES * size_of::<f32>()
    }

    fn bytes(&self, warps: usize) -> usize {
        self.held_at() + warps * self.levels * self.held_bytes()
    }
}

/// Shared memory that a thread block may have.
fn shared_bytes(capability: (u32, u32)) -> usize {
    match capability {
        (8, 0 | 7) => 163 * 1024,
        (9..=11, _) => 227 * 1024,
        _ => 99 * 1024,
    }
}

/// Subtrees that must be put aside while the longest unit is summed up; the smallest waits in registers.
fn levels(pool_blocks: usize) -> usize {
    let leaves = (pool_blocks * BLOCK_ROWS).div_ceil(LEAF_KEYS).max(1);
    (leaves.next_power_of_two().trailing_zeros() as usize).saturating_sub(1).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::KvType;

    const CARDS: [(u32, u32); 4] = [(9, 0), (8, 0), (8, 6), (8, 9)];

    fn head(dim: usize) -> TiledHead {
        TiledHead { dim, kv_type: KvType::Bf16 }
    }

    #[test]
    fn rings_fit_every_card() {
        for shared in CARDS.map(shared_bytes) {
            for head in (64..=160).step_by(16).map(head) {
                for rings in [Rings::many(head, shared), Rings::few(head, shared)] {
                    assert!(rings.bytes(head) <= shared, "{rings:?} {head:?}");
                    assert!((LEAST_STAGES..=MOST_STAGES).contains(&rings.stages), "{rings:?} {head:?}");
                    assert!((1..=MOST_WARPS).contains(&rings.warps));
                }
            }
        }
        assert_eq!(Rings::many(head(128), shared_bytes((9, 0))), Rings { warps: 8, stages: 3 });
        assert_eq!(Rings::few(head(128), shared_bytes((9, 0))), Rings { warps: 7, stages: 4 });
    }

    #[test]
    fn every_subtree_of_the_longest_unit_has_its_place() {
        for pool_blocks in [1, 8, 9, 16, 17, 64, 65, 4096, 5000] {
            // Leaf by leaf, as the kernel counts: a subtree waits at the level of the lowest bit that is not set.
            let leaves = (pool_blocks * BLOCK_ROWS).div_ceil(LEAF_KEYS);
            let highest =
                (0..leaves.saturating_sub(1)).map(|done: usize| done.trailing_ones() as usize).max();
            assert!(highest.is_none_or(|level| level <= levels(pool_blocks)), "{pool_blocks}");
        }
    }
}
