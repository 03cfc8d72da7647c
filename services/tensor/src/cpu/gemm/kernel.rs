//! What a kernel is given, and which kernel serves what.

use half::bf16;

use crate::Dtype;
use crate::cpu::isa::Isa;
use crate::cpu::matrix::PANEL;

use super::prepare::Order;
use super::scalar;
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};

/// The most rows that a tile of any kernel has.
pub const ROWS: usize = 10;

/// Rows × one panel × a block of K.
pub struct Tile {
    /// The first row's activations at the block's start: f32, or swapped bf16 pairs.
    pub x: *const u8,
    /// Bytes from one row to the next.
    pub x_stride: usize,
    /// The panel at the block's start.
    pub weights: *const u8,
    /// K of the block. Pairs of activations are padded with zero where it is odd, f32 rows are not.
    pub inputs: usize,
    /// `[rows, PANEL]`, aligned to 64 bytes.
    pub accumulators: *mut f32,
    /// Whether this is the first block: accumulators start at zero, not from memory.
    pub first: bool,
    /// Where prefetching of weights begins.
    pub ahead: *const u8,
    /// 1 where [`Prefetch::One`] means one line for two pairs.
    pub halving: u32,
    /// The tile's first output: what will be written is fetched while it is computed.
    pub place: Place,
    /// Outputs from one row to the next.
    pub stride: usize,
}

/// How many cache lines a tile prefetches per pair of K.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefetch {
    /// None.
    None,
    /// One.
    One,
    /// As many as it reads.
    All,
}

/// A place among the outputs.
#[derive(Clone, Copy)]
pub enum Place {
    /// As they are.
    F32(*mut f32),
    /// Rounded to bf16.
    Bf16(*mut bf16),
}

/// Adds a tile's products to its accumulators.
pub type Multiply = unsafe fn(&Tile);

/// The kernels of one instruction set for one kind of weights and activations.
#[derive(Clone, Copy)]
pub struct Kernels {
    /// By rows − 1 and [`Prefetch`].
    pub(super) table: &'static [[Multiply; 3]],
    /// Whether activations are pairs.
    pub dp: bool,
}

impl Place {
    /// The first and the last byte of a panel's outputs, `row` rows below.
    #[inline]
    pub fn ends(self, row: usize, stride: usize) -> [*const u8; 2] {
        match self {
            Place::F32(place) => {
                [0, PANEL - 1].map(|at| place.wrapping_add(row * stride + at).cast_const().cast())
            }
            Place::Bf16(place) => {
                [0, PANEL - 1].map(|at| place.wrapping_add(row * stride + at).cast_const().cast())
            }
        }
    }
}

impl Kernels {
    /// The most rows of a tile, up to [`ROWS`].
    pub fn rows(&self) -> usize {
        self.table.len()
    }

    /// The kernel for a tile of `rows` rows.
    pub fn multiply(&self, rows: usize, prefetch: Prefetch) -> Multiply {
        self.table[rows - 1][prefetch as usize]
    }
}

/// The kernels of `isa`, which must be available, for weights stored as `stored` and activations in the order
/// that [`Order::of`] names.
pub fn kernels(isa: Isa, stored: Dtype, order: Order) -> Kernels {
    match (isa, order) {
        #[cfg(target_arch = "x86_64")]
        (_, Order::Swapped) => avx512::dp_kernels(),
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512 | Isa::Avx512Bf16, _) => avx512::fma_kernels(stored),
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx2, _) => avx2::kernels(stored),
        _ => scalar::kernels(stored),
    }
}
