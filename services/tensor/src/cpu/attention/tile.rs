//! One tile of 64 keys against all queries of a unit.
#![allow(
    clippy::needless_range_loop,
    reason = "rows and vectors of a register tile are numbered alike in several arrays"
)]

use crate::cpu::element::Element;
use crate::cpu::exp::exp_to_high;
use crate::cpu::simd::{LANES, Pair, Simd};
use crate::kv::{BLOCK_ROWS, LINE};

/// Blocks of a tile; a block's keys are one vector's lanes.
pub const TILE_BLOCKS: usize = 4;

/// Bytes of a cache line.
const LINE_BYTES: usize = 64;

/// Keys between two looks at the maximum.
const TILE: usize = TILE_BLOCKS * BLOCK_ROWS;

const _: () = assert!(BLOCK_ROWS == LANES);

/// Sizes of a unit.
#[derive(Clone, Copy)]
pub struct Shape {
    /// Half of head_dim.
    pub half: usize,
    /// Elements of a stored value.
    pub value_cols: usize,
    /// Queries of a row.
    pub group: usize,
    /// Queries, row by row.
    pub queries: usize,
}

/// Keys and values of 64 positions, and what the queries have gathered so far.
pub struct Tile<'a, V> {
    /// Sizes.
    pub shape: Shape,
    /// Multiplies every score.
    pub scale: f32,
    /// The first key's position.
    pub start: usize,
    /// The first row's position.
    pub first_position: usize,
    /// `[queries][half]`.
    pub pairs: &'a [Pair],
    /// `[queries]`.
    pub maxima: &'a mut [f32],
    /// `[queries][LANES]`.
    pub totals: &'a mut [f32],
    /// `[queries][value_cols]`.
    pub sums: &'a mut [f32],
    /// The blocks' values, `[BLOCK_ROWS][value_cols]` each.
    pub values: [*const V; TILE_BLOCKS],
    /// Keys and values of the tile after this one, to be fetched meanwhile.
    pub next: [*const V; TILE_BLOCKS],
}

impl<V: Element> Tile<'_, V> {
    /// Takes in the tile's keys, as far as each query reaches.
    ///
    /// # Safety
    /// `keys` must point to keys of `half` pairs, `values` to the values of the same blocks.
    #[inline(always)]
    pub unsafe fn run<S: Simd, K: Element>(&mut self, s: S, keys: [*const K; TILE_BLOCKS]) {
        let queries = self.shape.queries;
        let mut query = self.first_query();
        while query < queries {
            // SAFETY: by the caller's promise, for as many queries as are left.
            query += unsafe {
                match queries - query {
                    4.. if S::WIDE => self.queries::<S, K, 4>(s, &keys, query),
                    2.. => self.queries::<S, K, 2>(s, &keys, query),
                    _ => self.queries::<S, K, 1>(s, &keys, query),
                }
            };
        }
    }

    /// The first query that reaches the tile.
    #[inline(always)]
    fn first_query(&self) -> usize {
        self.start.saturating_sub(self.first_position) * self.shape.group
    }

    /// `R` queries from `first` on; returns `R`.
    #[inline(always)]
    unsafe fn queries<S: Simd, K: Element, const R: usize>(
        &mut self,
        s: S,
        keys: &[*const K; TILE_BLOCKS],
        first: usize,
    ) -> usize {
        // Keys that each query reaches, at least one.
        let mut reach = [TILE; R];
        for (r, reach) in reach.iter_mut().enumerate() {
            let position = self.first_position + (first + r) / self.shape.group;
            *reach = (position + 1 - self.start).min(TILE);
        }
        // SAFETY: by the caller's promise; `first + R` queries exist.
        let scores = unsafe { self.scores::<S, K, R>(s, keys, first) };
        let mut weights = [[0.0; TILE]; R];
        for r in 0..R {
            self.weigh(s, first + r, reach[r], scores[r], &mut weights[r]);
        }
        // All queries reach the first one's keys; the few beyond are taken query by query.
        // SAFETY: as above.
        unsafe {
            self.accumulate::<S, R>(s, first, 0..reach[0], &weights);
            for r in 1..R {
                if reach[r] > reach[0] {
                    self.accumulate::<S, 1>(s, first + r, reach[0]..reach[r], &[weights[r]]);
                }
            }
        }
        R
    }

    /// Σ q·k of all 64 keys, reached or not.
    #[inline(always)]
    unsafe fn scores<S: Simd, K: Element, const R: usize>(
        &self,
        s: S,
        keys: &[*const K; TILE_BLOCKS],
        first: usize,
    ) -> [[S::F32; TILE_BLOCKS]; R] {
        let mut scores = [[s.splat(0.0); TILE_BLOCKS]; R];
        // SAFETY: by the caller's promise.
        unsafe {
            if S::WIDE || R == 1 {
                // The tile's first queries fetch the next tile.
                scores = if first == self.first_query() {
                    self.dot::<S, K, R, 4, true>(s, *keys, first)
                } else {
                    self.dot::<S, K, R, 4, false>(s, *keys, first)
                };
            } else {
                for half in 0..2 {
                    let keys = [keys[2 * half], keys[2 * half + 1]];
                    let sums = self.dot::<S, K, R, 2, false>(s, keys, first);
                    for r in 0..R {
                        scores[r][2 * half] = sums[r][0];
                        scores[r][2 * half + 1] = sums[r][1];
                    }
                }
            }
        }
        scores
    }

    /// The scores of `N` blocks, side by side in registers; with `AHEAD` the next tile is fetched meanwhile.
    #[inline(always)]
    unsafe fn dot<S: Simd, K: Element, const R: usize, const N: usize, const AHEAD: bool>(
        &self,
        s: S,
        keys: [*const K; N],
        first: usize,
    ) -> [[S::F32; N]; R] {
        let half = self.shape.half;
        let pairs = self.pairs[first * half..][..R * half].as_ptr();
        let mut sums = [[s.splat(0.0); N]; R];
        for j in 0..half {
            if AHEAD {
                // Per pair of elements, 16 keys and 16 values take this many lines.
                let lines = size_of::<V>();
                for n in 0..N {
                    let next = self.next[n].cast::<u8>().wrapping_add(j * lines * LINE_BYTES);
                    for line in 0..lines {
                        s.prefetch(next.wrapping_add(line * LINE_BYTES));
                    }
                }
            }
            for n in 0..N {
                // SAFETY: every block has `half` rows of 16 pairs; there are `R · half` query pairs.
                unsafe {
                    let keys = K::load_keys(s, keys[n].add(j * 2 * LANES));
                    for r in 0..R {
                        sums[r][n] = K::dot(s, sums[r][n], &*pairs.add(r * half + j), keys);
                    }
                }
            }
        }
        sums
    }

    /// One query's exp(score − maximum), and what that does to its sums so far.
    #[inline(always)]
    fn weigh<S: Simd>(
        &mut self,
        s: S,
        query: usize,
        reach: usize,
        scores: [S::F32; TILE_BLOCKS],
        weights: &mut [f32; TILE],
    ) {
        let (scale, below) = (s.splat(self.scale), s.splat(f32::NEG_INFINITY));
        let mut scores = scores;
        let mut top = below;
        for (block, score) in scores.iter_mut().enumerate() {
            *score = s.mul(*score, scale);
            if reach < TILE {
                *score = s.first(reach.saturating_sub(block * LANES), *score, below);
            }
            top = s.max(*score, top);
        }
        let (top, before) = (s.reduce_max(top), self.maxima[query]);
        let total = &mut self.totals[query * LANES..][..LANES];
        let mut lanes = s.load_f32(total, 0);
        let max = if top > before { top } else { before };
        if max != before {
            let factor = exp_to_high(s, s.splat(before - max));
            lanes = s.mul(lanes, factor);
            let cols = self.shape.value_cols;
            let sums = &mut self.sums[query * cols..][..cols];
            for at in (0..cols).step_by(LANES) {
                s.store_f32(s.mul(s.load_f32(sums, at), factor), sums, at);
            }
            self.maxima[query] = max;
        }
        let max = s.splat(max);
        for (block, score) in scores.into_iter().enumerate() {
            // A masked score gives exactly +0.
            let weight = exp_to_high(s, s.sub(score, max));
            lanes = s.add(lanes, weight);
            s.store_f32(weight, weights, block * LANES);
        }
        s.store_f32(lanes, total, 0);
    }

    /// Adds weight · value of `keys` to the sums of `R` queries.
    #[inline(always)]
    unsafe fn accumulate<S: Simd, const R: usize>(
        &mut self,
        s: S,
        first: usize,
        keys: std::ops::Range<usize>,
        weights: &[[f32; TILE]; R],
    ) {
        let lines = self.shape.value_cols / LINE;
        let mut line = 0;
        while line < lines {
            let (start, end) = (keys.start, keys.end);
            // SAFETY: by the caller's promise, for lines of a value.
            line += unsafe {
                match lines - line {
                    4.. if S::WIDE && R < 4 => self.lines::<S, R, 4, 8>(s, first, start..end, weights, line),
                    2.. if S::WIDE || R == 1 => self.lines::<S, R, 2, 4>(s, first, start..end, weights, line),
                    _ => self.lines::<S, R, 1, 2>(s, first, start..end, weights, line),
                }
            };
        }
    }

    /// `L` lines from `line` on, in `N` = 2 · `L` vectors a query; returns `L`.
    #[inline(always)]
    unsafe fn lines<S: Simd, const R: usize, const L: usize, const N: usize>(
        &mut self,
        s: S,
        first: usize,
        keys: std::ops::Range<usize>,
        weights: &[[f32; TILE]; R],
        line: usize,
    ) -> usize {
        let cols = self.shape.value_cols;
        let mut sums = [[s.splat(0.0); N]; R];
        for r in 0..R {
            for n in 0..N {
                sums[r][n] = s.load_f32(self.sums, (first + r) * cols + line * LINE + n * LANES);
            }
        }
        let mut key = keys.start;
        while key < keys.end {
            // SAFETY: a block has 16 values of `cols` elements.
            let mut from =
                unsafe { self.values[key / BLOCK_ROWS].add(key % BLOCK_ROWS * cols + line * LINE) };
            let end = keys.end.min((key / BLOCK_ROWS + 1) * BLOCK_ROWS);
            while key < end {
                for l in 0..L {
                    // SAFETY: as above.
                    let [a, b] = unsafe { V::load_values(s, from.add(l * LINE)) };
                    for r in 0..R {
                        // SAFETY: `keys` end within the tile.
                        let weight = s.splat(unsafe { *weights[r].get_unchecked(key) });
                        sums[r][2 * l] = s.fma(weight, a, sums[r][2 * l]);
                        sums[r][2 * l + 1] = s.fma(weight, b, sums[r][2 * l + 1]);
                    }
                }
                from = from.wrapping_add(cols);
                key += 1;
            }
        }
        for r in 0..R {
            for n in 0..N {
                s.store_f32(sums[r][n], self.sums, (first + r) * cols + line * LINE + n * LANES);
            }
        }
        L
    }
}
