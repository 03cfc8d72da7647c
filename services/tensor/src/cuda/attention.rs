//! Attention over paged keys and values: three kernels, among which the plan divides a step's rows.

use std::sync::Arc;

use crate::cuda::Cuda;
use crate::cuda::attention::prefill::{Drawn, Prefill, PrefillWork};
use crate::cuda::card::Card;
use crate::cuda::kv::TiledHead;
use crate::cuda::on_demand::OnDemand;
use crate::cuda::rows::CudaRows;
use crate::{Attention, KvPool, KvSpec, KvType, Tensor, TensorError};

pub mod decode;
pub mod general;
pub mod plan;
pub mod prefill;

/// Kernels of attention.
#[derive(Debug, Default)]
pub struct Kernels {
    general: OnDemand<KvType, general::Kernels>,
    tiled: OnDemand<TiledHead, TiledKernels>,
}

/// What attends a pool.
#[derive(Debug)]
pub struct Pool {
    general: Arc<general::Kernels>,
    /// Where its blocks are tiled.
    pub tiled: Option<TiledPool>,
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
    /// What a pool needs besides its memory, compiled for its types.
    pub fn pool(&self, card: &Arc<Card>, spec: &KvSpec, blocks: usize) -> Result<Pool, TensorError> {
        let general = self.general.get(spec.kv_type, || general::Kernels::new(card, spec.kv_type))?;
        let tiled = |head: TiledHead| -> Result<TiledPool, TensorError> {
            let compile = || {
                Ok(TiledKernels {
                    decode: decode::Kernels::new(card, head)?,
                    prefill: Prefill::new(card, head)?,
                })
            };
            let kernels = self.tiled.get(head, compile)?;
            let scratch = decode::Scratch::new(card, spec, blocks)?;
            Ok(TiledPool { kernels, scratch, drawn: Drawn::new(card)? })
        };
        Ok(Pool { general, tiled: TiledHead::of(spec).map(tiled).transpose()? })
    }
}

/// What attention over tiled blocks is compiled out of and with.
#[cfg(test)]
pub fn builds(capability: (u32, u32), head: TiledHead) -> Vec<crate::cuda::compile::Build> {
    let decode = decode::builds(capability, head);
    decode.into_iter().chain([prefill::build(capability == (9, 0), head)]).collect()
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
        let (plan, pool) = (*placed.plan(), &kv.card()?.attention);
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
            pool.general.run(self.card(), &work, tables, rows)?;
        }
        let Some(TiledPool { kernels, scratch, drawn }) = &pool.tiled else { return Ok(()) };
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
