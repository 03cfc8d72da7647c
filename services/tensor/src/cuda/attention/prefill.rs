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
use crate::cuda::compile::Theme;
use crate::cuda::elementwise::int;
use crate::cuda::kv::{KvLayout, TiledHead};
use crate::cuda::launch::{Arg, Grid, Kernel};
use crate::cuda::memory::DeviceMemory;
use crate::kv::BLOCK_ROWS;
use crate::{Dtype, KvPool, Tensor, TensorError};

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
    /// Keys that they read, those of a span once.
    pub keys: usize,
    /// i32: block tables.
    pub blocks: u64,
    /// Multiplies every score; above 0.
    pub scale: f32,
}

/// Items (a tile and a head) of the launch at work that blocks have drawn, an u32 on the card. A launch that ends has set
/// it to 0 again, so it may be recorded, and replayed; one that the driver refuses has drawn nothing. It serves the
/// launches of one pool, which follow one another.
#[derive(Debug)]
pub struct Drawn(DeviceMemory);

impl Drawn {
    /// At 0.
    pub fn new(card: &Arc<Card>) -> Result<Drawn, TensorError> {
        Ok(Drawn(DeviceMemory::zeroed(card.context(), size_of::<u32>())?))
    }
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
    fn shared_bytes(self, head: TiledHead) -> usize {
        let (query, kept) = (head.dim * Dtype::Bf16.bytes(), head.row_bytes());
        match self {
            Method::Warpgroup => {
                ATOM_BYTES + TILE_ROWS * query + 2 * WARPGROUP_STAGES * WARPGROUP_KEYS * kept
            }
            Method::Warp => 2 * WARP_STAGES * WARP_KEYS * kept,
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

/// Query heads of a set, where a set is not of all of them: the greatest of these whose keys and values rest in the L2
/// cache together, or the last.
const SET_HEADS: [usize; 2] = [16, 8];

/// Query heads whose items the warpgroup kernel takes before those of others, in whole groups.
///
/// Over all heads the longest items can come first, so that the last of a launch are short: 512 rows of 64 heads go at
/// 242 TFLOP/s, and at 213 in sets of 16 or 8. But where the keys and values in use (`keys` positions of
/// `position_bytes` a KV head) are more than the L2 cache holds, every tile fetches its own again, unless a set brings
/// several tiles of a head together: 4 prompts of 2,048 rows go at 457, and at 497 and 498 in sets of 16 and 8. Longer
/// prompts alone are much the same either way (558, 552 and 548 for 4,096 rows). All on an H200, with heads of 128.
fn set_heads(keys: usize, position_bytes: usize, l2_bytes: usize, (heads, group): (usize, usize)) -> usize {
    let whole = |most: usize| ((most / group).max(1) * group).min(heads);
    let rests = |set: &usize| keys.saturating_mul(position_bytes).saturating_mul(set / group) <= l2_bytes;
    let [.., least] = SET_HEADS;
    let sets = [heads].into_iter().chain(SET_HEADS).map(whole);
    sets.into_iter().find(rests).unwrap_or(whole(least))
}

/// What the kernel for such heads is compiled out of, on Hopper or elsewhere, and with.
#[cfg(test)]
pub fn build(hopper: bool, head: TiledHead) -> crate::cuda::compile::Build {
    let (theme, ..) = Method::of(hopper, head.dim).kernel();
    (theme, head.defines().to_vec())
}

impl Prefill {
    /// Compiles the kernel.
    pub fn new(card: &Card, head: TiledHead) -> Result<Prefill, TensorError> {
        let method = Method::of(card.is_hopper(), head.dim);
        let (theme, entry, _) = method.kernel();
        let module = card.kernels(theme, &head.defines())?;
        let shared = int(method.shared_bytes(head))?.cast_unsigned();
        let kernel = module.kernel(entry)?.with_shared(shared)?;
        Ok(Prefill { kernel, method })
    }

    /// out ← attention of the rows of all tiles; other rows of `out` hold what they held. `drawn`: the pool's.
    pub fn launch(
        &self,
        card: &Card,
        work: &PrefillWork<'_>,
        drawn: &Drawn,
        out: &mut Tensor,
    ) -> Result<(), TensorError> {
        let &PrefillWork { qkv, kv: (kv, layer), tiles, tile_count, keys, blocks, scale } = work;
        let spec = kv.spec();
        if scale.is_nan() || scale <= 0.0 {
            return Err(TensorError::Setting { op: "attention", what: "the scale", rule: "above 0" });
        }
        let head_count = out.cols() / spec.head_dim;
        let group_heads = head_count / spec.kv_heads;
        let (heads, group, count) = (int(head_count)?, int(group_heads)?, int(tile_count)?);
        let (from, to) = (kv.layer_address(layer)?, out.address()?);
        let head_bytes = KvLayout::of(spec).head_bytes;
        let items = tile_count * head_count;
        int(items)?; // as the kernels count them
        let scale = (f64::from(scale) * LOG2_E) as f32; // weights are powers of 2
        let grid_blocks = self.method.blocks(items, card.multiprocessors() as usize);
        let (_, _, threads) = self.method.kernel();
        let grid = Grid::line(int(grid_blocks)?.cast_unsigned(), threads);
        match self.method {
            Method::Warpgroup => {
                let queries = query_map(qkv)?;
                let position_bytes = head_bytes as usize / BLOCK_ROWS;
                let set = int(set_heads(keys, position_bytes, card.l2_bytes(), (head_count, group_heads)))?;
                let drawn = drawn.0.address();
                let arguments = [
                    Arg::of(&queries),
                    Arg::of(&from),
                    Arg::of(&tiles),
                    Arg::of(&count),
                    Arg::of(&blocks),
                    Arg::of(&heads),
                    Arg::of(&group),
                    Arg::of(&to),
                    Arg::of(&scale),
                    Arg::of(&set),
                    Arg::of(&drawn),
                ];
                // SAFETY: the kernel's arguments; rows and blocks were checked when they were placed, shapes by the
                // operation. No block is without an item, and launches that draw from one counter share a stream.
                unsafe { card.launch(&self.kernel, grid, &arguments) }
            }
            Method::Warp => {
                let (queries, stride) = (qkv.address()?, int(qkv.cols())?);
                let arguments = [
                    Arg::of(&queries),
                    Arg::of(&stride),
                    Arg::of(&from),
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
    use crate::KvType;

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
        let head = |dim| TiledHead { dim, kv_type: KvType::Bf16 };
        assert_eq!(Method::Warpgroup.shared_bytes(head(128)), 230_400);
        assert!(Method::Warpgroup.shared_bytes(head(128)) + BARRIERS <= HOPPER_SHARED);
        for head in (64..=160).step_by(16).map(head) {
            assert!(Method::Warp.shared_bytes(head) <= LEAST_SHARED, "{head:?}");
        }
    }

    #[test]
    fn sets_are_of_all_heads_until_these_do_not_rest_in_the_cache() {
        let (l2, multi_head) = (50 << 20, (64, 1));
        let position_bytes = 2 * 128 * Dtype::Bf16.bytes();
        let set = |keys, heads| set_heads(keys, position_bytes, l2, heads);
        assert_eq!(set(512, multi_head), 64);
        assert_eq!(set(2048, multi_head), 16);
        assert_eq!(set(4096, multi_head), 16);
        assert_eq!(set(4 * 2048, multi_head), 8);
        assert_eq!(set(usize::MAX, multi_head), 8);
        // Exactly all of it, and a position more.
        assert_eq!(set(1600, multi_head), 64);
        assert_eq!(set(1601, multi_head), 16);
        // Groups need less, and stay whole.
        assert_eq!(set(4096, (64, 8)), 64);
        assert_eq!(set(64 * 1024, (64, 8)), 8);
        assert_eq!(set(1 << 20, (64, 16)), 16);
        assert_eq!(set(1 << 20, (60, 5)), 5);
        assert_eq!(set(1 << 20, (24, 24)), 24);
        assert_eq!(set(1 << 20, (4, 1)), 4);
    }

    #[test]
    fn blocks_cover_the_items() {
        assert_eq!(Method::Warpgroup.blocks(1024, 132), 132);
        assert_eq!(Method::Warpgroup.blocks(5, 132), 5);
        assert_eq!(Method::Warp.blocks(1024, 132), 1024);
        assert_eq!(Method::Warp.blocks(0, 132), 0);
    }
}
