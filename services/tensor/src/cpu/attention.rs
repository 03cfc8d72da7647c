//! Causal attention over paged keys and values: chunks of prompts and decode rows alike.
//!
//! The specification, for each query (a row and head) by itself, whatever it is computed beside:
//! - keys come in tiles of 64 at absolute positions from 0, to the query's own position;
//! - score = (Σ q·k) · scale, the sum over pairs j, j + h in ascending j by fused multiply-adds;
//! - a tile's greatest score raises the running maximum m; the sums so far are multiplied by exp(m_old − m);
//! - p = exp(score − m); sixteen lanes by position mod 16 sum p; each output element takes p·v by fused
//!   multiply-adds in ascending position;
//! - out = round(o · (1 / Σ p)), the lanes folded as everywhere.
//!
//! Keys beyond the query are scored −∞ and their values are not touched: they may be anything. Where keys were
//! stored with another rope table than the query's row has, they are turned by the difference when read.
//!
//! Queries of one KV head whose keys are the same share each tile while it is in the cache. Threads take such
//! units of work as they come; a query is never divided.
#![allow(unsafe_code, reason = "threads write disjoint heads")]

use std::marker::PhantomData;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};

use self::correct::Turn;
use self::tile::{Shape, State, TILE_BLOCKS, Tile};
use super::Cpu;
use super::disjoint::Disjoint;
use super::element::Element;
use super::isa::Isa;
use super::simd::{Kernel, LANES, Pair, Simd};
use crate::RopeTables;
use crate::kv::{BLOCK_ROWS, Layout};
use crate::rows::PlacedSpan;

mod correct;
mod tile;

/// Queries that share tiles: enough to use a tile well, few enough to stay in the cache beside it.
const QUERIES: usize = 24;

/// One layer's attention, checked.
pub struct Work<'a> {
    /// The rows and their blocks.
    pub spans: &'a [PlacedSpan],
    /// Cos and sin, for keys stored with another table.
    pub tables: &'a RopeTables,
    /// Where keys and values lie.
    pub layout: Layout,
    /// The layer within the pool.
    pub layer: usize,
    /// Query heads.
    pub heads: usize,
    /// Multiplies every score.
    pub scale: f32,
}

/// A thread's memory for one unit of work, kept between calls.
#[derive(Debug, Default)]
pub struct Scratch {
    /// `[queries][half]`.
    pairs: Vec<Pair>,
    /// `[queries]`: the greatest score so far.
    maxima: Vec<f32>,
    /// `[queries][LANES]`: Σ p.
    totals: Vec<f32>,
    /// `[queries][value_cols]`: Σ p·v.
    sums: Vec<f32>,
    /// A corrected tile of keys `[blocks][half][2][LANES]`.
    turned: Vec<f32>,
}

impl Work<'_> {
    /// Reads queries from `qkv` (rows Q|K|V), keys and values from `pool`; writes rows of all heads to `out`.
    pub fn run<E: Element>(&self, cpu: &Cpu, qkv: &[E], pool: &[E], out: &mut [E]) {
        let out = Disjoint::new(out);
        let units: usize = self.spans.iter().map(|span| self.units(span)).sum();
        let next = AtomicUsize::new(0);
        let job = |thread: usize| {
            let mut scratch = cpu.scratch[thread].lock().unwrap_or_else(PoisonError::into_inner);
            let isa = cpu.isa();
            Units { isa, work: self, qkv, pool, out: &out, next: &next, scratch: &mut scratch }.run();
        };
        if units == 1 {
            job(0);
        } else {
            cpu.pool().run(&|worker| job(worker.index()));
        }
    }

    /// Query heads of a KV head.
    fn group(&self) -> usize {
        self.heads / self.layout.spec.kv_heads
    }

    /// Rows of a unit.
    fn unit_rows(&self) -> usize {
        (QUERIES / self.group()).max(1)
    }

    fn units(&self, span: &PlacedSpan) -> usize {
        self.layout.spec.kv_heads * span.rows.div_ceil(self.unit_rows())
    }
}

/// One thread's part: units until none is left.
struct Units<'a, E> {
    isa: Isa,
    work: &'a Work<'a>,
    qkv: &'a [E],
    pool: &'a [E],
    out: &'a Disjoint<'a, E>,
    next: &'a AtomicUsize,
    scratch: &'a mut Scratch,
}

/// Queries of one KV head in neighbouring rows of a span that have one rope table.
#[derive(Clone, Copy)]
struct Unit<'a> {
    span: &'a PlacedSpan,
    kv_head: usize,
    /// The first row within the span.
    start: usize,
    rows: usize,
}

impl<E: Element> Units<'_, E> {
    fn run(&mut self) {
        let work = self.work;
        let mut first = 0;
        let mut spans = work.spans.iter();
        let mut current = spans.next();
        loop {
            // Tickets ascend, so a thread passes over the spans once.
            let ticket = self.next.fetch_add(1, Ordering::Relaxed);
            let span = loop {
                let Some(span) = current else { return };
                if ticket < first + work.units(span) {
                    break span;
                }
                first += work.units(span);
                current = spans.next();
            };
            // The last rows have the most keys: they come first, so that threads end together.
            let chunks = span.rows.div_ceil(work.unit_rows());
            let (kv_head, chunk) = ((ticket - first) / chunks, chunks - 1 - (ticket - first) % chunks);
            let mut start = chunk * work.unit_rows();
            let end = span.rows.min(start + work.unit_rows());
            while start < end {
                let table = span.row_tables[start];
                let rows = span.row_tables[start..end].iter().take_while(|other| **other == table).count();
                self.unit(Unit { span, kv_head, start, rows });
                start += rows;
            }
        }
    }

    /// All tiles of a unit.
    fn unit(&mut self, unit: Unit<'_>) {
        let (work, Unit { span, start, rows, .. }) = (self.work, unit);
        let spec = &work.layout.spec;
        let half = spec.head_dim / 2;
        let shape =
            Shape { half, value_cols: spec.value_cols(), group: work.group(), queries: rows * work.group() };
        let last_block = (span.first_position + start + rows - 1) / BLOCK_ROWS;
        let table = span.row_tables[start];
        let corrected = span.block_tables[..=last_block].iter().any(|other| *other != table);

        self.scratch.start(&shape);
        self.load_queries(unit, corrected);
        let Scratch { pairs, maxima, totals, sums, turned } = &mut *self.scratch;
        // Blocks that no query reaches are stood for by the last: their scores are masked.
        let parts = |first_block: usize| -> [&[E]; TILE_BLOCKS] {
            std::array::from_fn(|i| {
                let block = span.blocks[last_block.min(first_block + i)];
                &self.pool[work.layout.head(work.layer, block, unit.kv_head)]
            })
        };
        let mut stored = parts(0);
        for first_block in (0..=last_block).step_by(TILE_BLOCKS) {
            let next = parts(first_block + TILE_BLOCKS);
            let keys = stored.map(|part| &part[..spec.key_elements()]);
            let state = State { pairs, maxima, totals, sums };
            let tile = Tile {
                shape,
                scale: work.scale,
                start: first_block * BLOCK_ROWS,
                first_position: span.first_position + start,
                state,
                keys,
                values: stored.map(|part| &part[spec.key_elements()..]),
                next,
            };
            if corrected {
                let from = std::array::from_fn(|i| span.block_tables[last_block.min(first_block + i)]);
                let keys = Turn { tables: work.tables, first_block, keys, from, to: table, half };
                let keys = keys.run(self.isa, turned);
                E::dispatch(self.isa, tile.with_keys(keys));
            } else {
                E::dispatch(self.isa, tile);
            }
            stored = next;
        }
        self.store(unit);
    }

    /// Fills `pairs` with the unit's queries.
    fn load_queries(&mut self, unit: Unit<'_>, corrected: bool) {
        let Unit { span, kv_head, start, rows } = unit;
        let group = self.work.group();
        let spec = &self.work.layout.spec;
        let (dim, cols) = (spec.head_dim, (self.work.heads + 2 * spec.kv_heads) * spec.head_dim);
        let pairs = &mut self.scratch.pairs;
        pairs.resize(rows * group * dim / 2, [0.0; 2]);
        for (query, pairs) in pairs.chunks_exact_mut(dim / 2).enumerate() {
            let row = span.first_row + start + query / group;
            let first = row * cols + (kv_head * group + query % group) * dim;
            let query = self.qkv[first..first + dim].split_at(dim / 2);
            if corrected {
                f32::dispatch(self.isa, Pairs::<E, f32> { query, pairs, keys: PhantomData });
            } else {
                E::dispatch(self.isa, Pairs::<E, E> { query, pairs, keys: PhantomData });
            }
        }
    }

    /// Writes the unit's outputs.
    fn store(&self, unit: Unit<'_>) {
        let Unit { span, kv_head, start, rows } = unit;
        let group = self.work.group();
        let spec = &self.work.layout.spec;
        let (dim, cols) = (spec.head_dim, self.work.heads * spec.head_dim);
        for query in 0..rows * group {
            let row = span.first_row + start + query / group;
            let first = row * cols + (kv_head * group + query % group) * dim;
            // SAFETY: rows of spans are distinct, and so are the units that rows and KV heads are cut into.
            let out = unsafe { self.out.part(first..first + dim) };
            let totals = &self.scratch.totals[query * LANES..][..LANES];
            let sums = &self.scratch.sums[query * spec.value_cols()..][..spec.value_cols()];
            E::dispatch(self.isa, Divide { totals, sums, out });
        }
    }
}

/// One query's elements j and j + h side by side, as the keys they meet want them.
struct Pairs<'a, E, K> {
    query: (&'a [E], &'a [E]),
    pairs: &'a mut [Pair],
    keys: PhantomData<K>,
}

impl<E: Element, K: Element> Kernel for Pairs<'_, E, K> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (pair, (a, b)) in self.pairs.iter_mut().zip(self.query.0.iter().zip(self.query.1)) {
            *pair = K::pair(s, a.widen(), b.widen());
        }
    }
}

/// One query's output: its sums over its total.
struct Divide<'a, E> {
    totals: &'a [f32],
    sums: &'a [f32],
    out: &'a mut [E],
}

impl<E: Element> Kernel for Divide<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let share = s.splat(1.0 / s.reduce_add(s.load_f32(self.totals, 0)));
        for at in (0..self.out.len()).step_by(LANES) {
            E::store(s, s.mul(s.load_f32(self.sums, at), share), self.out, at);
        }
    }
}

impl Scratch {
    /// No key seen yet.
    fn start(&mut self, shape: &Shape) {
        let reset = |values: &mut Vec<f32>, len, value| {
            values.clear();
            values.resize(len, value);
        };
        reset(&mut self.maxima, shape.queries, f32::NEG_INFINITY);
        reset(&mut self.totals, shape.queries * LANES, 0.0);
        reset(&mut self.sums, shape.queries * shape.value_cols, 0.0);
    }
}
