//! Rotates queries and keys by their positions, and puts keys and values into their blocks.
//!
//! Every product, sum and difference is one IEEE operation, the result is rounded to the activations' type.
//! Threads share the heads, not the rows, so that they write different memory whatever the block tables say.
#![allow(unsafe_code, reason = "threads write disjoint heads")]

use std::ops::Range;

use super::Cpu;
use super::disjoint::Disjoint;
use super::kv::{Placed, write};
use super::simd::{Kernel, LANES, Simd};
use crate::kv::{BLOCK_ROWS, KvPool, MAX_HEAD_DIM};
use crate::rows::PlacedSpan;
use crate::{RopeTables, TensorError};

/// One layer's rotation and KV write, checked.
pub struct RopeKvWrite<'a> {
    /// What to do.
    pub spans: &'a [PlacedSpan],
    /// Cos and sin.
    pub tables: &'a RopeTables,
    /// The layer within the pool.
    pub layer: usize,
    /// Query heads.
    pub heads: usize,
}

impl RopeKvWrite<'_> {
    /// Rotates the queries in `qkv` (rows Q|K|V) in place, writes rotated keys and values into `kv`.
    pub fn run<E: Placed>(&self, cpu: &Cpu, qkv: &mut [E], kv: &mut KvPool) -> Result<(), TensorError> {
        let spec = *kv.spec();
        let cols = (self.heads + 2 * spec.kv_heads) * spec.head_dim;
        let group = self.heads / spec.kv_heads.max(1);
        let rows: usize = self.spans.iter().map(|span| span.rows).sum();
        let layout = kv.layout();
        let qkv = Disjoint::new(qkv);
        let pool = Disjoint::new(kv.elements_mut()?);
        cpu.split(spec.kv_heads, rows * (group + 2) * spec.head_dim, &|heads| {
            E::dispatch(
                cpu.isa(),
                Heads { work: self, layout: &layout, cols, group, heads, qkv: &qkv, pool: &pool },
            );
        });
        Ok(())
    }
}

struct Heads<'a, E> {
    work: &'a RopeKvWrite<'a>,
    layout: &'a crate::kv::Layout,
    cols: usize,
    /// Query heads of a KV head.
    group: usize,
    /// KV heads of this thread.
    heads: Range<usize>,
    qkv: &'a Disjoint<'a, E>,
    pool: &'a Disjoint<'a, E>,
}

impl<E: Placed> Kernel for Heads<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let RopeKvWrite { spans, tables, layer, heads } = *self.work;
        let spec = &self.layout.spec;
        let dim = spec.head_dim;
        let mut rotated = [E::zeroed(); MAX_HEAD_DIM];
        for span in spans {
            for index in 0..span.rows {
                let position = span.first_position + index;
                let row = (span.first_row + index) * self.cols;
                let block = position / BLOCK_ROWS;
                let query_turn = tables.table(span.row_tables[index]).row(position);
                let key_turn = tables.table(span.block_tables[block]).row(position);
                for kv_head in self.heads.clone() {
                    let first = row + kv_head * self.group * dim;
                    // SAFETY: the query heads of this thread's KV heads, which no other thread has.
                    let queries = unsafe { self.qkv.part(first..first + self.group * dim) };
                    for query in queries.chunks_exact_mut(dim) {
                        rotate(s, query, query_turn);
                    }
                    let key = row + (heads + kv_head) * dim;
                    let value = key + spec.kv_heads * dim;
                    // SAFETY: keys, values and parts of blocks belong to KV heads, and this is this thread's.
                    let (key, value, block) = unsafe {
                        (
                            self.qkv.part(key..key + dim),
                            self.qkv.part(value..value + dim),
                            self.pool.part(self.layout.head(layer, span.blocks[block], kv_head)),
                        )
                    };
                    rotated[..dim].copy_from_slice(key);
                    rotate(s, &mut rotated[..dim], key_turn);
                    let (a, b) = rotated[..dim].split_at(dim / 2);
                    write(s, spec, position % BLOCK_ROWS, [a, b], value, block);
                }
            }
        }
    }
}

/// Turns the halves of `x` by (cos, sin).
#[inline(always)]
fn rotate<S: Simd, E: Placed>(s: S, x: &mut [E], (cos, sin): (&[f32], &[f32])) {
    let (x_a, x_b) = x.split_at_mut(x.len() / 2);
    for at in (0..x_a.len()).step_by(LANES) {
        let (a, b) = (E::load(s, x_a, at), E::load(s, x_b, at));
        let (cos, sin) = (s.load_f32(cos, at), s.load_f32(sin, at));
        E::store(s, s.sub(s.mul(a, cos), s.mul(b, sin)), x_a, at);
        E::store(s, s.add(s.mul(b, cos), s.mul(a, sin)), x_b, at);
    }
}
