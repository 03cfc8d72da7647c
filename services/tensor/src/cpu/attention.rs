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
#![allow(unsafe_code, reason = "kernels read keys and values through pointers, threads write disjoint heads")]

use std::ops::Range;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};

use self::correct::Turn;
use self::tile::{Shape, TILE_BLOCKS, Tile};
use super::Cpu;
use super::disjoint::Disjoint;
use super::element::Element;
use super::simd::{Kernel, LANES, Pair, Simd, dispatch};
use crate::kv::{BLOCK_ROWS, Layout};
use crate::{AttnSpan, RopeTables};

mod correct;
mod tile;

/// Queries that share tiles: enough to use a tile well, few enough to stay in the cache beside it.
const QUERIES: usize = 24;

/// One layer's attention, checked.
pub struct Work<'a> {
    /// The rows and their blocks.
    pub spans: &'a [AttnSpan<'a>],
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
    keys: Vec<f32>,
}

impl Work<'_> {
    /// Reads queries from `qkv` (rows Q|K|V), keys and values from `pool`; writes rows of all heads to `out`.
    pub fn run<E: Element>(&self, cpu: &Cpu, qkv: &[E], pool: &[E], out: &mut [E]) {
        let out = Disjoint::new(out);
        let units: usize = self.spans.iter().map(|span| self.units(span)).sum();
        let next = AtomicUsize::new(0);
        let job = |thread: usize| {
            let mut scratch = cpu.scratch[thread].lock().unwrap_or_else(PoisonError::into_inner);
            let all = Units { work: self, qkv, pool, out: &out, next: &next, scratch: &mut scratch };
            dispatch(cpu.isa(), all);
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

    fn units(&self, span: &AttnSpan<'_>) -> usize {
        self.layout.spec.kv_heads * span.rows.div_ceil(self.unit_rows())
    }
}

/// One thread's part: units until none is left.
struct Units<'a, E> {
    work: &'a Work<'a>,
    qkv: &'a [E],
    pool: &'a [E],
    out: &'a Disjoint<'a, E>,
    next: &'a AtomicUsize,
    scratch: &'a mut Scratch,
}

impl<E: Element> Kernel for Units<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
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
            let (head, chunk) = ((ticket - first) / chunks, chunks - 1 - (ticket - first) % chunks);
            let mut start = chunk * work.unit_rows();
            let end = span.rows.min(start + work.unit_rows());
            while start < end {
                let table = span.row_tables[start];
                let same = span.row_tables[start..end].iter().take_while(|other| **other == table).count();
                self.rows(s, span, head, start..start + same);
                start += same;
            }
        }
    }
}

impl<E: Element> Units<'_, E> {
    /// All queries of one KV head in neighbouring rows that have one rope table.
    #[inline(always)]
    fn rows<S: Simd>(&mut self, s: S, span: &AttnSpan<'_>, kv_head: usize, rows: Range<usize>) {
        let work = self.work;
        let spec = &work.layout.spec;
        let half = spec.head_dim / 2;
        let queries = rows.len() * work.group();
        let last_block = (span.first_position + rows.end - 1) / BLOCK_ROWS;
        let table = span.row_tables[rows.start];
        let corrected = span.block_tables[..=last_block].iter().any(|other| *other != table);

        self.scratch.start(queries, spec.value_cols());
        self.load_queries(s, span, kv_head, rows.clone(), corrected);
        let Scratch { pairs, maxima, totals, sums, keys } = &mut *self.scratch;
        // Where a tile's blocks are; those that no query reaches are stood for by the last, their scores masked.
        let place = |first_block: usize| -> [*const E; TILE_BLOCKS] {
            std::array::from_fn(|i| {
                let block = span.blocks[last_block.min(first_block + i)];
                self.pool[work.layout.head(work.layer, block, kv_head)].as_ptr()
            })
        };
        let mut stored = place(0);
        for first_block in (0..=last_block).step_by(TILE_BLOCKS) {
            let next = place(first_block + TILE_BLOCKS);
            let mut tile = Tile {
                shape: Shape { half, value_cols: spec.value_cols(), group: work.group(), queries },
                scale: work.scale,
                start: first_block * BLOCK_ROWS,
                first_position: span.first_position + rows.start,
                pairs,
                maxima,
                totals,
                sums,
                // SAFETY: a head's part of a block holds its keys, then its values.
                values: stored.map(|keys| unsafe { keys.add(spec.key_elements()) }),
                next,
            };
            if corrected {
                let tables = &span.block_tables[first_block..=last_block.min(first_block + TILE_BLOCKS - 1)];
                let turn = Turn { tables: work.tables, first_block, from: tables, to: table };
                // SAFETY: `stored` points to whole keys of blocks, and a corrected tile is as large.
                unsafe { tile.run::<S, f32>(s, turn.tile(s, stored, half, keys)) };
            } else {
                // SAFETY: as above.
                unsafe { tile.run::<S, E>(s, stored) };
            }
            stored = next;
        }
        self.store(s, span, kv_head, rows);
    }

    /// Fills `pairs` with the rows' queries.
    #[inline(always)]
    fn load_queries<S: Simd>(
        &mut self,
        s: S,
        span: &AttnSpan<'_>,
        kv_head: usize,
        rows: Range<usize>,
        corrected: bool,
    ) {
        let group = self.work.group();
        let spec = &self.work.layout.spec;
        let (dim, cols) = (spec.head_dim, (self.work.heads + 2 * spec.kv_heads) * spec.head_dim);
        let queries = rows.len() * group;
        let pairs = &mut self.scratch.pairs;
        pairs.resize(queries * dim / 2, [0.0; 2]);
        for (query, pairs) in (0..queries).zip(pairs.chunks_exact_mut(dim / 2)) {
            let row = span.first_row + rows.start + query / group;
            let first = row * cols + (kv_head * group + query % group) * dim;
            let (a, b) = self.qkv[first..first + dim].split_at(dim / 2);
            let elements = pairs.iter_mut().zip(a.iter().zip(b));
            if corrected {
                elements.for_each(|(pair, (a, b))| *pair = f32::pair(s, a.widen(), b.widen()));
            } else {
                elements.for_each(|(pair, (a, b))| *pair = E::pair(s, a.widen(), b.widen()));
            }
        }
    }

    /// Writes the rows' outputs.
    #[inline(always)]
    fn store<S: Simd>(&self, s: S, span: &AttnSpan<'_>, kv_head: usize, rows: Range<usize>) {
        let group = self.work.group();
        let spec = &self.work.layout.spec;
        let (dim, cols) = (spec.head_dim, self.work.heads * spec.head_dim);
        for query in 0..rows.len() * group {
            let row = span.first_row + rows.start + query / group;
            let first = row * cols + (kv_head * group + query % group) * dim;
            // SAFETY: rows of spans are distinct, and so are the units that rows and KV heads are cut into.
            let out = unsafe { self.out.part(first..first + dim) };
            let total = s.reduce_add(s.load_f32(&self.scratch.totals, query * LANES));
            let share = s.splat(1.0 / total);
            let sums = &self.scratch.sums[query * spec.value_cols()..][..spec.value_cols()];
            for at in (0..dim).step_by(LANES) {
                E::store(s, s.mul(s.load_f32(sums, at), share), out, at);
            }
        }
    }
}

impl Scratch {
    /// No key seen yet.
    fn start(&mut self, queries: usize, value_cols: usize) {
        let reset = |values: &mut Vec<f32>, len, value| {
            values.clear();
            values.resize(len, value);
        };
        reset(&mut self.maxima, queries, f32::NEG_INFINITY);
        reset(&mut self.totals, queries * LANES, 0.0);
        reset(&mut self.sums, queries * value_cols, 0.0);
    }
}
