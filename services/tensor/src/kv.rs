//! Paged keys and values.
//!
//! On the CPU a pool holds, for every layer, `blocks` blocks of [`BLOCK_ROWS`] positions. Within a layer and block each
//! KV head has its keys, then its values, so that attention reads both as streams:
//! - keys lie transposed, pair by pair: for j in 0..h (h = head_dim / 2) the elements j and j + h, which rope
//!   turns together, of all 16 positions. In bf16 a 32-bit lane holds a position's pair, element j above; in
//!   f32 sixteen elements j come before sixteen elements j + h.
//! - values lie by position, each padded with zeros to a multiple of 32 elements. In bf16 a 32-bit lane i of
//!   such a line holds elements i (below) and i + 16 (above).
//!
//! Memory is zero at first, and on the CPU physical only once written, so a large pool costs nothing until used.
//! A card has layouts of its own ([`crate::cuda::kv`]) of the same size.

use std::ops::Range;

use bytemuck::Pod;
use half::bf16;

use crate::cpu::kv;
use crate::cuda;
use crate::cuda::attention::TiledPool;
use crate::error::{TensorError, check_below};
use crate::storage::Storage;
use crate::{Compute, Dtype};

/// Positions in a block.
pub const BLOCK_ROWS: usize = 16;

/// The widest head that attention takes.
pub const MAX_HEAD_DIM: usize = 256;

/// Elements in a line of values.
pub(crate) const LINE: usize = 32;

/// What a pool's size follows from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvSpec {
    /// Layers of the stage.
    pub layers: usize,
    /// Key and value heads of a layer.
    pub kv_heads: usize,
    /// Elements of a head: even, at most [`MAX_HEAD_DIM`].
    pub head_dim: usize,
    /// Keys and values have the type of the activations.
    pub compute: Compute,
}

/// Keys and values of all layers of a stage, in blocks.
#[derive(Debug)]
pub struct KvPool {
    layout: Layout,
    storage: Storage,
    tiled: Option<Box<TiledPool>>,
}

/// One position of one head in a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvPlace {
    /// The layer, from 0 within the stage.
    pub layer: usize,
    /// The block.
    pub block: u32,
    /// The position within the block.
    pub row: usize,
    /// The KV head.
    pub head: usize,
}

/// Where things lie in a pool.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    pub(crate) spec: KvSpec,
    pub(crate) blocks: usize,
}

// === impl KvSpec ===

impl KvSpec {
    /// The element type.
    pub fn dtype(&self) -> Dtype {
        self.compute.dtype()
    }

    /// Elements of a position's value in memory.
    pub(crate) fn value_cols(&self) -> usize {
        self.head_dim.checked_next_multiple_of(LINE).unwrap_or(usize::MAX)
    }

    /// Elements of one head's keys in a block.
    pub(crate) fn key_elements(&self) -> usize {
        BLOCK_ROWS * self.head_dim
    }

    /// Elements of one head's keys and values in a block.
    pub(crate) fn head_elements(&self) -> usize {
        self.key_elements() + BLOCK_ROWS * self.value_cols()
    }

    /// Elements of one layer of a block.
    fn block_elements(&self) -> usize {
        self.kv_heads * self.head_elements()
    }
}

// === impl Layout ===

impl Layout {
    /// The elements of one head's part of one layer of a block.
    pub(crate) fn head(&self, layer: usize, block: u32, head: usize) -> Range<usize> {
        let start = (layer * self.blocks + block as usize) * self.spec.block_elements();
        let start = start + head * self.spec.head_elements();
        start..start + self.spec.head_elements()
    }
}

// === impl KvPool ===

impl KvPool {
    /// A pool of the host's memory.
    pub(crate) fn new(spec: KvSpec, blocks: usize) -> Result<KvPool, TensorError> {
        KvPool::with(spec, blocks, Storage::host)
    }

    /// A pool in memory that `storage` gives, by its size in bytes.
    pub(crate) fn with(
        spec: KvSpec,
        blocks: usize,
        storage: impl FnOnce(usize) -> Result<Storage, TensorError>,
    ) -> Result<KvPool, TensorError> {
        let even = spec.head_dim.is_multiple_of(2);
        if !even || spec.head_dim == 0 || spec.head_dim > MAX_HEAD_DIM {
            return Err(TensorError::Setting {
                op: "kv pool",
                what: "head_dim",
                rule: "even and from 2 to 256",
            });
        }
        if spec.kv_heads == 0 {
            return Err(TensorError::Setting { op: "kv pool", what: "kv_heads", rule: "1 or more" });
        }
        let bytes = blocks.saturating_mul(KvPool::bytes_per_block(&spec));
        Ok(KvPool { layout: Layout { spec, blocks }, storage: storage(bytes)?, tiled: None })
    }

    /// The same pool with what attention over tiled blocks needs.
    pub(crate) fn with_tiled(self, tiled: Option<TiledPool>) -> KvPool {
        KvPool { tiled: tiled.map(Box::new), ..self }
    }

    /// What attention over tiled blocks needs, where a card has these.
    pub(crate) fn tiled(&self) -> Option<&TiledPool> {
        self.tiled.as_deref()
    }

    /// Bytes of one block over all layers.
    pub fn bytes_per_block(spec: &KvSpec) -> usize {
        let rows = spec.head_dim.saturating_add(spec.value_cols()).saturating_mul(BLOCK_ROWS);
        let head = rows.saturating_mul(spec.dtype().bytes());
        head.saturating_mul(spec.kv_heads).saturating_mul(spec.layers)
    }

    /// What it was made for.
    pub fn spec(&self) -> &KvSpec {
        &self.layout.spec
    }

    /// The number of blocks.
    pub fn blocks(&self) -> usize {
        self.layout.blocks
    }

    /// Key and value of one position and head, `[head_dim]` each.
    pub fn read(&self, place: KvPlace) -> Result<(Vec<f32>, Vec<f32>), TensorError> {
        let Layout { spec, blocks } = &self.layout;
        check_below("kv read", "layer", place.layer, spec.layers)?;
        check_below("kv read", "block", place.block as usize, *blocks)?;
        check_below("kv read", "row", place.row, BLOCK_ROWS)?;
        check_below("kv read", "head", place.head, spec.kv_heads)?;
        let range = self.layout.head(place.layer, place.block, place.head);
        if let Storage::Card(memory) = &self.storage {
            return cuda::kv::read(spec, place.row, memory, range.start * spec.dtype().bytes());
        }
        Ok(match spec.compute {
            Compute::F32 => kv::read(spec, place.row, &self.elements::<f32>()?[range]),
            Compute::Bf16 => kv::read(spec, place.row, &self.elements::<bf16>()?[range]),
        })
    }

    pub(crate) fn layout(&self) -> Layout {
        self.layout
    }

    pub(crate) fn elements<E: Pod>(&self) -> Result<&[E], TensorError> {
        debug_assert_eq!(size_of::<E>(), self.spec().dtype().bytes());
        self.storage.elements()
    }

    pub(crate) fn elements_mut<E: Pod>(&mut self) -> Result<&mut [E], TensorError> {
        debug_assert_eq!(size_of::<E>(), self.spec().dtype().bytes());
        self.storage.elements_mut()
    }

    /// The address of layer `layer`, where a card computes.
    pub(crate) fn layer_address(&self, layer: usize) -> Result<u64, TensorError> {
        let elements = layer * self.layout.blocks * self.spec().block_elements();
        Ok(self.storage.card()?.address() + (elements * self.spec().dtype().bytes()) as u64)
    }
}
