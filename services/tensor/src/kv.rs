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
//! A card has layouts of its own ([`crate::cuda::kv`]) of the same size. The processor keeps keys and values in the type
//! of its activations, a card in any [`KvType`].

use std::ops::Range;

use bytemuck::Pod;
use half::bf16;

use crate::cpu::kv;
use crate::cuda;
use crate::cuda::kv::CardPool;
use crate::error::{TensorError, check_below};
use crate::storage::Storage;
use crate::{Compute, KvType};

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
    /// The type of the activations that keys and values come from, and that attention gives.
    pub compute: Compute,
    /// The type that keys and values rest in.
    pub kv_type: KvType,
}

/// Keys and values of all layers of a stage, in blocks.
#[derive(Debug)]
pub struct KvPool {
    layout: Layout,
    storage: Storage,
    card: Option<Box<CardPool>>,
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

    /// Bytes of one head's keys and values in a block: all that rests of them, as every size of a pool follows from it.
    pub(crate) fn head_bytes(&self) -> usize {
        let rows = self.head_dim.saturating_add(self.value_cols()).saturating_mul(BLOCK_ROWS);
        rows.saturating_mul(self.kv_type.dtype().bytes())
    }

    /// Bytes of one layer of a block.
    fn block_bytes(&self) -> usize {
        self.head_bytes().saturating_mul(self.kv_heads)
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
        let KvSpec { compute, kv_type, .. } = spec;
        if kv_type != KvType::of(compute) {
            return Err(TensorError::KvType { device: "the processor", kv_type, compute });
        }
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
        Ok(KvPool { layout: Layout { spec, blocks }, storage: storage(bytes)?, card: None })
    }

    /// The same pool with what a card has beside its memory.
    pub(crate) fn with_card(self, card: CardPool) -> KvPool {
        KvPool { card: Some(Box::new(card)), ..self }
    }

    /// What a card has beside its memory.
    pub(crate) fn card(&self) -> Result<&CardPool, TensorError> {
        self.card.as_deref().ok_or(TensorError::OtherDevice)
    }

    /// Bytes of one block over all layers.
    pub fn bytes_per_block(spec: &KvSpec) -> usize {
        spec.block_bytes().saturating_mul(spec.layers)
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
        if let Storage::Card(memory) = &self.storage {
            let start = place.layer * blocks + place.block as usize;
            let start = start * spec.block_bytes() + place.head * spec.head_bytes();
            return cuda::kv::read(spec, place.row, memory, start);
        }
        let range = self.layout.head(place.layer, place.block, place.head);
        Ok(match spec.kv_type {
            KvType::F32 => kv::read(spec, place.row, &self.elements::<f32>()?[range]),
            KvType::Bf16 => kv::read(spec, place.row, &self.elements::<bf16>()?[range]),
        })
    }

    pub(crate) fn layout(&self) -> Layout {
        self.layout
    }

    pub(crate) fn elements<E: Pod>(&self) -> Result<&[E], TensorError> {
        debug_assert_eq!(size_of::<E>(), self.spec().kv_type.dtype().bytes());
        self.storage.elements()
    }

    pub(crate) fn elements_mut<E: Pod>(&mut self) -> Result<&mut [E], TensorError> {
        debug_assert_eq!(size_of::<E>(), self.spec().kv_type.dtype().bytes());
        self.storage.elements_mut()
    }

    /// The address of layer `layer`, where a card computes.
    pub(crate) fn layer_address(&self, layer: usize) -> Result<u64, TensorError> {
        let before = layer * self.layout.blocks * self.spec().block_bytes();
        Ok(self.storage.card()?.address() + before as u64)
    }
}
