//! What is done to each element by itself: addition, SiLU·up, embedding lookup, copies of rows.
#![allow(unsafe_code, reason = "threads write disjoint parts")]

use half::{bf16, f16};

use super::Cpu;
use super::bf16::{round, widen};
use super::disjoint::Disjoint;
use super::element::Element;
use super::exp::exp;
use super::simd::{Kernel, LANES, Simd};

/// Columns that one thread takes at a time: a multiple of the lanes.
const PIECE: usize = 1024;

/// x ← round(x + y).
pub fn add<E: Element>(cpu: &Cpu, x: &mut [E], y: &[E]) {
    let len = x.len();
    let x = Disjoint::new(x);
    cpu.split(len.div_ceil(PIECE), PIECE, &|pieces| {
        let range = pieces.start * PIECE..len.min(pieces.end * PIECE);
        // SAFETY: shares of pieces do not overlap.
        let x = unsafe { x.part(range.clone()) };
        E::dispatch(cpu.isa(), Add { x, y: &y[range] });
    });
}

struct Add<'a, E> {
    x: &'a mut [E],
    y: &'a [E],
}

impl<E: Element> Kernel for Add<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for at in (0..self.y.len()).step_by(LANES) {
            E::store(s, s.add(E::load(s, self.x, at), E::load(s, self.y, at)), self.x, at);
        }
    }
}

/// out ← round(g / (1 + exp(−g)) · u) for rows g|u of `gate_up` `[rows, 2 · cols]`.
pub fn silu_mul<E: Element>(cpu: &Cpu, gate_up: &[E], out: &mut [E], cols: usize) {
    if cols == 0 {
        return;
    }
    let pieces = cols.div_ceil(PIECE);
    let rows = out.len() / cols;
    let out = Disjoint::new(out);
    // A division and an exp an element: as dear as eight additions.
    cpu.split(rows * pieces, 8 * PIECE.min(cols), &|share| {
        for item in share {
            let (row, first) = (item / pieces, item % pieces * PIECE);
            let end = cols.min(first + PIECE);
            // SAFETY: items are different pieces of different rows.
            let out = unsafe { out.part(row * cols + first..row * cols + end) };
            let gate = &gate_up[2 * row * cols + first..2 * row * cols + end];
            let up = &gate_up[(2 * row + 1) * cols + first..(2 * row + 1) * cols + end];
            E::dispatch(cpu.isa(), SiluMul { gate, up, out });
        }
    });
}

struct SiluMul<'a, E> {
    gate: &'a [E],
    up: &'a [E],
    out: &'a mut [E],
}

impl<E: Element> Kernel for SiluMul<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for at in (0..self.out.len()).step_by(LANES) {
            let gate = E::load(s, self.gate, at);
            let below = s.add(s.splat(1.0), exp(s, s.sub(s.splat(0.0), gate)));
            E::store(s, s.mul(s.div(gate, below), E::load(s, self.up, at)), self.out, at);
        }
    }
}

/// A stored embedding element, of any type.
pub trait Stored: Copy + Sync {
    /// Its value.
    fn value(self) -> f32;
}

impl Stored for f32 {
    fn value(self) -> f32 {
        self
    }
}

impl Stored for bf16 {
    fn value(self) -> f32 {
        widen(self.to_bits())
    }
}

impl Stored for f16 {
    fn value(self) -> f32 {
        self.to_f32()
    }
}

/// An activation that a value can be rounded to.
pub trait Rounded: Send {
    /// The nearest.
    fn rounded(value: f32) -> Self;
}

impl Rounded for f32 {
    fn rounded(value: f32) -> f32 {
        value
    }
}

impl Rounded for bf16 {
    fn rounded(value: f32) -> bf16 {
        bf16::from_bits(round(value))
    }
}

/// Row i of `out` ← round(row `ids[i]` of `table` · scale); ids are checked.
pub fn embed<T: Stored, E: Rounded>(cpu: &Cpu, ids: &[u32], table: &[T], scale: f32, out: &mut [E]) {
    let cols = out.len() / ids.len().max(1);
    let out = Disjoint::new(out);
    cpu.split(ids.len(), cols, &|rows| {
        for row in rows {
            // SAFETY: shares of rows do not overlap.
            let to = unsafe { out.part(row * cols..(row + 1) * cols) };
            for (to, from) in to.iter_mut().zip(&table[ids[row] as usize * cols..]) {
                *to = E::rounded(from.value() * scale);
            }
        }
    });
}

/// Row i of `out` ← row `indices[i]` of `x`; indices are checked.
pub fn gather_rows<E: Copy>(x: &[E], indices: &[u32], out: &mut [E], cols: usize) {
    for (&index, to) in indices.iter().zip(out.chunks_exact_mut(cols.max(1))) {
        to.copy_from_slice(&x[index as usize * cols..][..cols]);
    }
}
