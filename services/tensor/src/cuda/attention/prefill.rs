//! Attention of prompt rows: tiles of up to [`TILE_ROWS`] rows of a span, over tiled blocks of bf16.
//!
//! Hopper has a kernel of its own for the commonest heads, all other cards and heads share one. Which one computes
//! follows from the card and the head alone, and in both a row's bits follow from that row alone: keys are taken in
//! tiles at absolute positions, and what a row does not see adds exactly nothing.
#![allow(unsafe_code, reason = "launches kernels")]

use std::f64::consts::LOG2_E;
use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::sys;

use crate::cuda::card::{Card, check};
use crate::cuda::compile::{Define, Theme};
use crate::cuda::elementwise::int;
use crate::cuda::kv::KvLayout;
use crate::cuda::launch::{Arg, Grid, Kernel};
use crate::{Dtype, KvPool, KvSpec, Tensor, TensorError};

/// The most rows of a tile.
pub const TILE_ROWS: usize = 128;

/// The kernel of a pool's heads on a card.
#[derive(Debug)]
pub struct Prefill {
    kernel: Kernel,
    method: Method,
}

/// A layer's prompt rows. Tiles and blocks are arrays on the card.
#[derive(Clone, Copy, Debug)]
pub struct PrefillWork<'a> {
    /// Rows Q|K|V with rotated queries.
    pub qkv: &'a Tensor,
    /// Keys and values, those of this step included, and the layer within.
    pub kv: (&'a KvPool, usize),
    /// `[tiles]` of four i32: first row, rows (1 to [`TILE_ROWS`]), the first row's position, and where in `blocks`
    /// its sequence's block table begins. Longest first (by their last position), so that the last are short.
    pub tiles: u64,
    /// How many there are.
    pub tile_count: usize,
    /// i32: block tables.
    pub blocks: u64,
    /// Multiplies every score; above 0.
    pub scale: f32,
}

/// How tiles are multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    /// Warpgroups and bulk copies: Hopper, head sizes 64 and 128.
    Warpgroup,
    /// Warps, on every card.
    Warp,
}

/// Keys that the warpgroup kernel takes at a time, and how many such tiles of keys and of values it has memory for.
const WARPGROUP_KEYS: usize = 128;
const WARPGROUP_STAGES: usize = 3;
/// A swizzled atom, to which its memory is aligned.
const ATOM_BYTES: usize = 1024;
/// Keys that the warp kernel takes at a time, and stages of keys and values.
const WARP_KEYS: usize = 64;
const WARP_STAGES: usize = 2;

impl Method {
    fn of(hopper: bool, head_dim: usize) -> Method {
        if hopper && matches!(head_dim, 64 | 128) { Method::Warpgroup } else { Method::Warp }
    }

    /// Its file, its entry point, and the threads of a block.
    fn kernel(self) -> (Theme, &'static str, u32) {
        match self {
            Method::Warpgroup => (Theme::AttentionPrefill, "attention_prefill_bf16", 384),
            Method::Warp => (Theme::AttentionPrefillMma, "attention_prefill_mma_bf16", 256),
        }
    }

    /// Shared memory of a block, as its kernel lays it out.
    fn shared_bytes(self, head_dim: usize) -> usize {
        let row = head_dim * Dtype::Bf16.bytes();
        match self {
            Method::Warpgroup => ATOM_BYTES + (TILE_ROWS + 2 * WARPGROUP_STAGES * WARPGROUP_KEYS) * row,
            Method::Warp => 2 * WARP_STAGES * WARP_KEYS * row,
        }
    }

    /// Blocks for so many items (a tile and a head): one each, or as many as run at once, which take turns.
    fn blocks(self, items: usize, multiprocessors: usize) -> usize {
        match self {
            Method::Warpgroup => items.min(multiprocessors),
            Method::Warp => items,
        }
    }
}

/// What the kernel for heads of `head_dim` elements is compiled out of, on Hopper or elsewhere, and with.
#[cfg(test)]
pub fn build(hopper: bool, head_dim: usize) -> crate::cuda::compile::Build {
    let (theme, ..) = Method::of(hopper, head_dim).kernel();
    (theme, defines(head_dim))
}

fn defines(head_dim: usize) -> Vec<Define> {
    vec![("HEAD_DIM", head_dim as u32)]
}

impl Prefill {
    /// Compiles the kernel for the heads of a pool; `None` if its blocks are not tiled.
    pub fn new(card: &Arc<Card>, spec: &KvSpec) -> Result<Option<Prefill>, TensorError> {
        if KvLayout::of(spec).tile == 0 {
            return Ok(None);
        }
        let method = Method::of(card.is_hopper(), spec.head_dim);
        let (theme, entry, _) = method.kernel();
        let module = card.kernels(theme, &defines(spec.head_dim))?;
        let shared = int(method.shared_bytes(spec.head_dim))?.cast_unsigned();
        let kernel = module.kernel(entry)?.with_shared(shared)?;
        Ok(Some(Prefill { kernel, method }))
    }

    /// out ← attention of the rows of all tiles; other rows of `out` hold what they held.
    pub fn launch(&self, card: &Card, work: &PrefillWork<'_>, out: &mut Tensor) -> Result<(), TensorError> {
        let &PrefillWork { qkv, kv: (kv, layer), tiles, tile_count, blocks, scale } = work;
        let spec = kv.spec();
        if scale.is_nan() || scale <= 0.0 {
            return Err(TensorError::Setting { op: "attention", what: "the scale", rule: "above 0" });
        }
        let head_count = out.cols() / spec.head_dim;
        let (heads, group, count) = (int(head_count)?, int(head_count / spec.kv_heads)?, int(tile_count)?);
        let (keys, to) = (kv.layer_address(layer)?, out.address()?);
        let scale = (f64::from(scale) * LOG2_E) as f32; // weights are powers of 2
        let grid_blocks = self.method.blocks(tile_count * head_count, card.multiprocessors() as usize);
        let (_, _, threads) = self.method.kernel();
        let grid = Grid::line(int(grid_blocks)?.cast_unsigned(), threads);
        match self.method {
            Method::Warpgroup => {
                let queries = query_map(qkv)?;
                let arguments = [
                    Arg::of(&queries),
                    Arg::of(&keys),
                    Arg::of(&tiles),
                    Arg::of(&count),
                    Arg::of(&blocks),
                    Arg::of(&heads),
                    Arg::of(&group),
                    Arg::of(&to),
                    Arg::of(&scale),
                ];
                // SAFETY: the kernel's arguments; rows and blocks were checked when they were placed, shapes by the
                // operation.
                unsafe { card.launch(&self.kernel, grid, &arguments) }
            }
            Method::Warp => {
                let (from, stride) = (qkv.address()?, int(qkv.cols())?);
                let head_bytes = KvLayout::of(spec).head_bytes;
                let arguments = [
                    Arg::of(&from),
                    Arg::of(&stride),
                    Arg::of(&keys),
                    Arg::of(&head_bytes),
                    Arg::of(&tiles),
                    Arg::of(&blocks),
                    Arg::of(&heads),
                    Arg::of(&group),
                    Arg::of(&to),
                    Arg::of(&scale),
                ];
                // SAFETY: as above.
                unsafe { card.launch(&self.kernel, grid, &arguments) }
            }
        }
    }
}

/// Describes all rows of `qkv` for copies of [`TILE_ROWS`] rows of 64 columns, swizzled as products read them; rows
/// beyond the last are copied as zeros.
fn query_map(qkv: &Tensor) -> Result<sys::CUtensorMap, TensorError> {
    let mut map = sys::CUtensorMap { opaque: [0; 16] };
    let sizes = [qkv.cols() as u64, qkv.capacity() as u64];
    let (stride, copied, step) = ([qkv.row_bytes() as u64], [64, TILE_ROWS as u32], [1, 1]);
    // SAFETY: the arrays have one entry a dimension, the strides one less; the map is written, not kept.
    let encoded = unsafe {
        sys::cuTensorMapEncodeTiled(
            &mut map,
            sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            2,
            qkv.address()? as *mut c_void,
            sizes.as_ptr(),
            stride.as_ptr(),
            copied.as_ptr(),
            step.as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    };
    check("cuTensorMapEncodeTiled", encoded.result())?;
    Ok(map)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Shared memory that a block may have: of Hopper, and the least of all cards (8.6 and 8.9).
    const HOPPER_SHARED: usize = 227 * 1024;
    const LEAST_SHARED: usize = 99 * 1024;
    /// What the warpgroup kernel's barriers take beside, with alignment.
    const BARRIERS: usize = 1024;

    #[test]
    fn a_card_and_a_head_size_have_one_method() {
        for head_dim in (64..=160).step_by(16) {
            assert_eq!(Method::of(false, head_dim), Method::Warp);
            let wide = head_dim == 64 || head_dim == 128;
            assert_eq!(Method::of(true, head_dim) == Method::Warpgroup, wide, "{head_dim}");
        }
    }

    #[test]
    fn memory_suffices_on_every_card() {
        assert_eq!(Method::Warpgroup.shared_bytes(128), 230_400);
        assert!(Method::Warpgroup.shared_bytes(128) + BARRIERS <= HOPPER_SHARED);
        for head_dim in (64..=160).step_by(16) {
            assert!(Method::Warp.shared_bytes(head_dim) <= LEAST_SHARED, "{head_dim}");
        }
    }

    #[test]
    fn blocks_cover_the_items() {
        assert_eq!(Method::Warpgroup.blocks(1024, 132), 132);
        assert_eq!(Method::Warpgroup.blocks(5, 132), 5);
        assert_eq!(Method::Warp.blocks(1024, 132), 1024);
        assert_eq!(Method::Warp.blocks(0, 132), 0);
    }
}
