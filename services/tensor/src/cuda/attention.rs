//! Attention over paged keys and values: three kernels, among which the plan divides a step's rows.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::cuda::Cuda;
use crate::cuda::attention::prefill::{Drawn, Prefill, PrefillWork};
use crate::cuda::card::Card;
use crate::cuda::kv::KvLayout;
use crate::cuda::rows::CudaRows;
use crate::{Attention, KvPool, KvSpec, Tensor, TensorError};

pub mod decode;
pub mod general;
pub mod plan;
pub mod prefill;

/// Kernels of attention.
#[derive(Debug)]
pub struct Kernels {
    general: general::Kernels,
    /// By head_dim, as pools needed them.
    tiled: Mutex<HashMap<usize, Arc<TiledKernels>>>,
}

/// Kernels for tiled blocks of heads of one size.
#[derive(Debug)]
pub struct TiledKernels {
    decode: decode::Kernels,
    prefill: Prefill,
}

/// What a pool of tiled blocks has besides its memory.
#[derive(Debug)]
pub struct TiledPool {
    kernels: Arc<TiledKernels>,
    scratch: decode::Scratch,
    drawn: Drawn,
}

/// One layer's attention, as kernels take it: addresses on the card, shapes that were checked.
pub struct Work<'a> {
    /// Rows Q|K|V of `stride` elements, the queries rotated.
    pub qkv: u64,
    pub stride: usize,
    /// `[rows][heads][head_dim]`.
    pub out: u64,
    pub kv: &'a KvPool,
    /// The layer's keys and values.
    pub layer: u64,
    /// Query heads.
    pub heads: usize,
    /// Multiplies every score.
    pub scale: f32,
    pub rows: &'a CudaRows,
}

impl Kernels {
    /// Compiles those that every pool may need.
    pub fn new(card: &Arc<Card>) -> Result<Kernels, TensorError> {
        Ok(Kernels { general: general::Kernels::new(card)?, tiled: Mutex::default() })
    }

    /// What a pool needs besides its memory; `None` if its blocks are not tiled.
    pub fn pool(
        &self,
        card: &Arc<Card>,
        spec: &KvSpec,
        blocks: usize,
    ) -> Result<Option<TiledPool>, TensorError> {
        if KvLayout::of(spec).tile == 0 {
            return Ok(None);
        }
        let mut tiled = self.tiled.lock().unwrap_or_else(PoisonError::into_inner);
        let kernels = match tiled.get(&spec.head_dim) {
            Some(kernels) => Arc::clone(kernels),
            None => {
                let Some(prefill) = Prefill::new(card, spec)? else { return Ok(None) };
                let decode = decode::Kernels::new(card, spec.head_dim)?;
                let kernels = Arc::new(TiledKernels { decode, prefill });
                tiled.insert(spec.head_dim, Arc::clone(&kernels));
                kernels
            }
        };
        let scratch = decode::Scratch::new(card, spec, blocks)?;
        Ok(Some(TiledPool { kernels, scratch, drawn: Drawn::new(card)? }))
    }
}

/// What attention over tiled blocks is compiled out of and with.
#[cfg(test)]
pub fn builds(capability: (u32, u32), head_dim: usize) -> Vec<crate::cuda::compile::Build> {
    let decode = decode::builds(capability, head_dim);
    decode.into_iter().chain([prefill::build(capability == (9, 0), head_dim)]).collect()
}

impl TiledPool {
    /// Partial results of decode rows there is memory for.
    pub fn partials(&self) -> usize {
        self.scratch.partials()
    }
}

impl Cuda {
    /// `heads`: of queries.
    pub(crate) fn attention(
        &self,
        qkv: &Tensor,
        attention: &Attention<'_>,
        heads: usize,
        out: &mut Tensor,
    ) -> Result<(), TensorError> {
        let &Attention { kv, layer, rows, tables, scale } = attention;
        let placed = rows.card.as_deref().ok_or(TensorError::OtherDevice)?;
        let plan = *placed.plan();
        let work = Work {
            qkv: qkv.address()?,
            stride: qkv.cols(),
            out: out.address()?,
            kv,
            layer: kv.layer_address(layer)?,
            heads,
            scale,
            rows: placed,
        };
        // Without tiles the launches are those of any step of as many rows, so that they may be recorded.
        if plan.generals > 0 {
            let rows = if plan.tiles > 0 { plan.generals } else { qkv.rows().min(rows.room.rows) };
            self.attention.general.run(self.card(), &work, tables, rows)?;
        }
        let Some(TiledPool { kernels, scratch, drawn }) = kv.tiled() else { return Ok(()) };
        if plan.tiles > 0 {
            let (tiles, blocks) = (placed.tiles(), placed.words());
            let (tile_count, keys) = (plan.tiles, plan.tile_keys);
            let work = PrefillWork { qkv, kv: (kv, layer), tiles, tile_count, keys, blocks, scale };
            kernels.prefill.launch(self.card(), &work, drawn, out)?;
        }
        if plan.units > 0 || plan.tiles == 0 {
            kernels.decode.run(self.card(), &work, scratch)?;
        }
        Ok(())
    }
}
