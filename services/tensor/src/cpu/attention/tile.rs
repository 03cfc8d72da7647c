//! One tile of 64 keys against all queries of a unit.
#![allow(unsafe_code, reason = "reads keys and values through pointers")]
#![allow(
    clippy::needless_range_loop,
    reason = "rows and vectors of a register tile are numbered alike in several arrays"
)]

use std::ops::Range;

use crate::cpu::element::Element;
use crate::cpu::exp::exp_to_high;
use crate::cpu::simd::{Kernel, LANES, Pair, Simd};
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

/// The queries of a unit, and what they have gathered so far.
pub struct State<'a> {
    /// `[queries][half]`.
    pub pairs: &'a [Pair],
    /// `[queries]`: the greatest score.
    pub maxima: &'a mut [f32],
    /// `[queries][LANES]`: Σ p.
    pub totals: &'a mut [f32],
    /// `[queries][value_cols]`: Σ p·v.
    pub sums: &'a mut [f32],
}

/// Keys and values of 64 positions, for a unit's queries to take in as far as they reach.
pub struct Tile<'a, K, V> {
    /// Sizes.
    pub shape: Shape,
    /// Multiplies every score.
    pub scale: f32,
    /// The first key's position.
    pub start: usize,
    /// The first row's position.
    pub first_position: usize,
    /// The queries.
    pub state: State<'a>,
    /// The blocks' keys, `[half]` pairs of elements of 16 keys each.
    pub keys: [&'a [K]; TILE_BLOCKS],
    /// The blocks' values, `[BLOCK_ROWS][value_cols]` each.
    pub values: [&'a [V]; TILE_BLOCKS],
    /// Keys and values of the tile after this one, to be fetched meanwhile.
    pub next: [&'a [V]; TILE_BLOCKS],
}

impl<'a, K, V> Tile<'a, K, V> {
    /// The same tile with its keys in another type.
    pub fn with_keys<L>(self, keys: [&'a [L]; TILE_BLOCKS]) -> Tile<'a, L, V> {
        let Tile { shape, scale, start, first_position, state, keys: _, values, next } = self;
        Tile { shape, scale, start, first_position, state, keys, values, next }
    }
}

impl<K: Element, V: Element> Kernel for Tile<'_, K, V> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let Shape { half, value_cols, queries, .. } = self.shape;
        // What the pointers below rely on.
        assert!(self.state.pairs.len() >= queries * half);
        assert!(self.keys.iter().all(|keys| keys.len() >= half * 2 * LANES));
        assert!(self.values.iter().all(|values| values.len() >= BLOCK_ROWS * value_cols));
        let mut query = self.first_query();
        while query < queries {
            query += match queries - query {
                4.. if S::ROWS == 4 => self.queries::<S, 4>(s, query),
                2.. if S::ROWS == 2 => self.queries::<S, 2>(s, query),
                _ => self.queries::<S, 1>(s, query),
            };
        }
    }
}

impl<K: Element, V: Element> Tile<'_, K, V> {
    /// The first query that reaches the tile.
    #[inline(always)]
    fn first_query(&self) -> usize {
        self.start.saturating_sub(self.first_position) * self.shape.group
    }

    /// `R` queries from `first` on; returns `R`.
    #[inline(always)]
    fn queries<S: Simd, const R: usize>(&mut self, s: S, first: usize) -> usize {
        // Keys that each query reaches, at least one.
        let mut reach = [TILE; R];
        for (r, reach) in reach.iter_mut().enumerate() {
            let position = self.first_position + (first + r) / self.shape.group;
            *reach = (position + 1 - self.start).min(TILE);
        }
        let scores = self.scores::<S, R>(s, first);
        let mut weights = [[0.0; TILE]; R];
        for r in 0..R {
            self.weigh(s, first + r, reach[r], scores[r], &mut weights[r]);
        }
        // All queries reach the first one's keys; the few beyond are taken query by query.
        self.accumulate::<S, R>(s, first, 0..reach[0], &weights);
        for r in 1..R {
            if reach[r] > reach[0] {
                self.accumulate::<S, 1>(s, first + r, reach[0]..reach[r], &[weights[r]]);
            }
        }
        R
    }

    /// Σ q·k of all 64 keys, reached or not.
    #[inline(always)]
    fn scores<S: Simd, const R: usize>(&self, s: S, first: usize) -> [[S::F32; TILE_BLOCKS]; R] {
        if S::ROWS == 4 || R == 1 {
            // The tile's first queries fetch the next tile.
            return if first == self.first_query() {
                self.dot::<S, R, TILE_BLOCKS, true>(s, first, 0)
            } else {
                self.dot::<S, R, TILE_BLOCKS, false>(s, first, 0)
            };
        }
        let mut scores = [[s.splat(0.0); TILE_BLOCKS]; R];
        for block in [0, 2] {
            let sums = self.dot::<S, R, 2, false>(s, first, block);
            for r in 0..R {
                scores[r][block] = sums[r][0];
                scores[r][block + 1] = sums[r][1];
            }
        }
        scores
    }

    /// The scores of `N` blocks from `block` on, side by side in registers; with `AHEAD` the next tile is
    /// fetched meanwhile.
    #[inline(always)]
    fn dot<S: Simd, const R: usize, const N: usize, const AHEAD: bool>(
        &self,
        s: S,
        first: usize,
        block: usize,
    ) -> [[S::F32; N]; R] {
        let half = self.shape.half;
        let pairs = self.state.pairs[first * half..][..R * half].as_ptr();
        let mut keys = [std::ptr::null(); N];
        for n in 0..N {
            keys[n] = self.keys[block + n].as_ptr();
        }
        let mut sums = [[s.splat(0.0); N]; R];
        for j in 0..half {
            if AHEAD {
                // Per pair of elements, 16 keys and 16 values take this many lines.
                let lines = size_of::<V>();
                for n in 0..N {
                    let next = self.next[n].as_ptr().cast::<u8>().wrapping_add(j * lines * LINE_BYTES);
                    for line in 0..lines {
                        s.prefetch(next.wrapping_add(line * LINE_BYTES));
                    }
                }
            }
            for n in 0..N {
                // SAFETY: `run` has seen that every block has `half` rows of 16 pairs; there are `R · half`
                // query pairs.
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
        let (top, before) = (s.reduce_max(top), self.state.maxima[query]);
        let total = &mut self.state.totals[query * LANES..][..LANES];
        let mut lanes = s.load_f32(total, 0);
        let max = if top > before { top } else { before };
        if max != before {
            let factor = exp_to_high(s, s.splat(before - max));
            lanes = s.mul(lanes, factor);
            let cols = self.shape.value_cols;
            let sums = &mut self.state.sums[query * cols..][..cols];
            for at in (0..cols).step_by(LANES) {
                s.store_f32(s.mul(s.load_f32(sums, at), factor), sums, at);
            }
            self.state.maxima[query] = max;
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
    fn accumulate<S: Simd, const R: usize>(
        &mut self,
        s: S,
        first: usize,
        keys: Range<usize>,
        weights: &[[f32; TILE]; R],
    ) {
        let lines = self.shape.value_cols / LINE;
        let mut line = 0;
        while line < lines {
            let keys = keys.clone();
            line += match lines - line {
                2.. if S::ROWS == 4 || R == 1 => self.lines::<S, R, 2, 4>(s, first, keys, weights, line),
                _ => self.lines::<S, R, 1, 2>(s, first, keys, weights, line),
            };
        }
    }

    /// `L` lines from `line` on, in `N` = 2 · `L` vectors a query; returns `L`.
    #[inline(always)]
    fn lines<S: Simd, const R: usize, const L: usize, const N: usize>(
        &mut self,
        s: S,
        first: usize,
        keys: Range<usize>,
        weights: &[[f32; TILE]; R],
        line: usize,
    ) -> usize {
        let cols = self.shape.value_cols;
        let place = |r: usize, n: usize| (first + r) * cols + line * LINE + n * LANES;
        let mut sums = [[s.splat(0.0); N]; R];
        for r in 0..R {
            for n in 0..N {
                sums[r][n] = s.load_f32(self.state.sums, place(r, n));
            }
        }
        let mut key = keys.start;
        while key < keys.end {
            let end = keys.end.min((key / BLOCK_ROWS + 1) * BLOCK_ROWS);
            let values = self.values[key / BLOCK_ROWS].as_ptr();
            let mut from = values.wrapping_add(key % BLOCK_ROWS * cols + line * LINE);
            while key < end {
                for l in 0..L {
                    // SAFETY: `run` has seen that a block has 16 values of `cols` elements.
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
                s.store_f32(sums[r][n], self.state.sums, place(r, n));
            }
        }
        L
    }
}
