//! How one multiplication is cut: panels over threads, rows into tiles, K into blocks.
#![allow(unsafe_code, reason = "kernels take pointers, for which this computes the places")]

use std::ops::Range;

use half::bf16;

use crate::cpu::disjoint::Disjoint;
use crate::cpu::isa::Isa;
use crate::cpu::matrix::{PANEL, PackedMatrix};
use crate::cpu::pool::Worker;
use crate::cpu::simd::dispatch;

use super::finish::{Block, Finish};
use super::kernel::{Kernels, Place, Prefetch, ROWS, Tile, kernels};
use super::prepare::{Order, Prepared};

/// K of one block: its part of a panel and of a tile's rows stays in L2 while the tiles pass over it.
pub const K_BLOCK: usize = 4096;

/// Bytes of activations that stay in L2 while a thread's panels pass by.
const ROW_BLOCK: usize = 768 << 10;

/// But no block has fewer tiles: reading the weights again for each must stay cheap.
const LEAST_TILES: usize = 16;

/// Tiles that a thread keeps accumulators for at once, where K has several blocks.
const TILES: usize = 8;

/// How far ahead in its stream of weights a lone tile prefetches, in bytes. Best of 1 to 16 KiB where it was measured: Zen 5, and
/// Intel with AMX, of which some machines do as well with 3 KiB and others lose a tenth by it.
const AHEAD: usize = 8 << 10;

/// What all threads of one multiplication share.
pub struct Plan<'a> {
    tiles: usize,
    /// Rows of a tile; the first `longer` tiles have one more.
    height: usize,
    longer: usize,
    x: Prepared,
    matrix: &'a PackedMatrix,
    isa: Isa,
    kernels: Kernels,
    sink: Sink<'a>,
}

/// Where outputs go, and what they are multiplied with.
pub struct Sink<'a> {
    pub out: Target<'a>,
    pub scale: f32,
}

/// Output rows that threads write at once, each its own columns.
pub enum Target<'a> {
    F32(Disjoint<'a, f32>),
    Bf16(Disjoint<'a, bf16>),
}

/// Tiles that pass over one panel.
struct Pass {
    tiles: Range<usize>,
    weights: *const u8,
    /// The panel that the thread reads next.
    next: Option<*const u8>,
    /// The panel's first output column.
    column: usize,
}

/// What a tile prefetches.
struct Fetch {
    lines: Prefetch,
    from: *const u8,
    halving: u32,
}

/// A tile's or several tiles' accumulators, `[rows, PANEL]`.
#[repr(align(64))]
struct Accumulators([f32; TILES * ROWS * PANEL]);

impl<'a> Plan<'a> {
    /// Spreads `rows`, at least one, evenly over as few tiles as the kernels allow: 12 as 6 + 6, not 8 + 4.
    pub fn new(rows: usize, x: Prepared, matrix: &'a PackedMatrix, isa: Isa, sink: Sink<'a>) -> Plan<'a> {
        let kernels = kernels(isa, matrix.stored(), Order::of(matrix.compute(), isa));
        let tiles = rows.div_ceil(kernels.rows());
        Plan { tiles, height: rows / tiles, longer: rows % tiles, x, matrix, isa, kernels, sink }
    }

    /// One thread's panels. All rows pass over each, so that its weights come from memory once, or blocks of
    /// rows that fit in L2 where there are very many.
    pub fn run(&self, worker: Worker<'_>) {
        let panels = worker.share(self.matrix.panels());
        let bytes = self.x.stride() * self.kernels.rows() * self.tiles;
        let blocks = bytes.div_ceil(ROW_BLOCK).min(self.tiles / LEAST_TILES).max(1);
        let mut accumulators = Accumulators([0.0; _]);
        for block in 0..blocks {
            let tiles = block * self.tiles / blocks..(block + 1) * self.tiles / blocks;
            for index in panels.clone() {
                let pass = Pass {
                    tiles: tiles.clone(),
                    weights: self.matrix.panel(index).as_ptr(),
                    next: (index + 1 < panels.end).then(|| self.matrix.panel(index + 1).as_ptr()),
                    column: index * PANEL,
                };
                self.pass(&pass, &mut accumulators);
            }
        }
    }

    /// A tile's outputs are finished at once where K is a single block, else with those of several tiles.
    fn pass(&self, pass: &Pass, accumulators: &mut Accumulators) {
        let inputs = self.matrix.inputs();
        let group = if inputs <= K_BLOCK { 1 } else { TILES };
        for first in pass.tiles.clone().step_by(group) {
            let end = pass.tiles.end.min(first + group);
            for k in (0..inputs).step_by(K_BLOCK) {
                for tile in first..end {
                    let slot = (self.row(tile) - self.row(first)) * PANEL;
                    self.multiply(tile, pass, k, accumulators.0[slot..].as_mut_ptr());
                }
            }
            self.finish(self.row(first)..self.row(end), pass, accumulators);
        }
    }

    /// The first row of `tile`.
    fn row(&self, tile: usize) -> usize {
        tile * self.height + tile.min(self.longer)
    }

    /// One tile, one panel, one block of K.
    fn multiply(&self, tile: usize, pass: &Pass, k: usize, accumulators: *mut f32) {
        let (row, rows) = (self.row(tile), self.height + usize::from(tile < self.longer));
        let fetch = self.fetch(tile - pass.tiles.start, pass);
        let block = k * PANEL * self.matrix.stored().bytes();
        let (place, stride) = self.place(row, pass.column);
        let tile = Tile {
            x: self.x.at(row, k),
            x_stride: self.x.stride(),
            weights: pass.weights.wrapping_add(block),
            inputs: K_BLOCK.min(self.matrix.inputs() - k),
            accumulators,
            first: k == 0,
            ahead: fetch.from.wrapping_add(block),
            halving: fetch.halving,
            place,
            stride,
        };
        // SAFETY: the kernels were chosen for an available instruction set and for this kind of weights and
        // activations. From `k`, which is even, on, `x` has `rows` rows of `inputs` elements (padded to an
        // even number where they are pairs) and the panel as many rows of weights; the accumulators have
        // `rows` rows.
        unsafe { self.kernels.multiply(rows, fetch.lines)(&tile) }
    }

    /// What the pass' `nth` tile fetches. A lone tile runs ahead in its own stream, unless it has but one row
    /// of pairs: that the hardware does best. Of several tiles, which dwell on one panel, the first fetch the
    /// next, each a part, and with fewer lines at a time where there are enough of them.
    fn fetch(&self, nth: usize, pass: &Pass) -> Fetch {
        if self.tiles == 1 {
            let lines = if self.height == 1 && self.kernels.dp { Prefetch::None } else { Prefetch::All };
            return Fetch { lines, from: pass.weights.wrapping_add(AHEAD), halving: 0 };
        }
        let lines = 2 * PANEL * self.matrix.stored().bytes() / 64;
        let halving = u32::from(self.tiles >= 2 * lines);
        match pass.next {
            Some(next) if self.tiles >= lines && nth < lines << halving => {
                let pairs = self.matrix.inputs().min(K_BLOCK).div_ceil(2);
                let from = next.wrapping_add(nth * (pairs >> halving) * 64);
                Fetch { lines: Prefetch::One, from, halving }
            }
            Some(next) if self.tiles < lines && nth == 0 => {
                Fetch { lines: Prefetch::All, from: next, halving }
            }
            _ => Fetch { lines: Prefetch::None, from: pass.weights, halving },
        }
    }

    /// Writes `rows` of one panel's outputs.
    fn finish(&self, rows: Range<usize>, pass: &Pass, accumulators: &Accumulators) {
        let accumulators = &accumulators.0.as_chunks().0[..rows.len()];
        let bias = self.matrix.panel_bias(pass.column / PANEL);
        let columns = PANEL.min(self.matrix.outputs() - pass.column);
        let (place, stride) = self.place(rows.start, pass.column);
        let scale = self.sink.scale;
        // Rows and columns lie within the output, whose length the caller has checked, and this panel's columns
        // are this thread's alone.
        match place {
            Place::F32(start) => {
                let out = Block { start, stride, columns };
                // SAFETY: as said above.
                dispatch(self.isa, unsafe { Finish::new(accumulators, bias, scale, out) });
            }
            Place::Bf16(start) => {
                let out = Block { start, stride, columns };
                // SAFETY: as said above.
                dispatch(self.isa, unsafe { Finish::new(accumulators, bias, scale, out) });
            }
        }
    }

    /// The output at `row` and `column`, and the number of outputs from one row to the next.
    fn place(&self, row: usize, column: usize) -> (Place, usize) {
        let outputs = self.matrix.outputs();
        let at = row * outputs + column;
        let place = match &self.sink.out {
            Target::F32(out) => Place::F32(out.as_mut_ptr().wrapping_add(at)),
            Target::Bf16(out) => Place::Bf16(out.as_mut_ptr().wrapping_add(at)),
        };
        (place, outputs)
    }
}

impl Target<'_> {
    /// The number of outputs.
    pub fn len(&self) -> usize {
        match self {
            Target::F32(out) => out.len(),
            Target::Bf16(out) => out.len(),
        }
    }
}
