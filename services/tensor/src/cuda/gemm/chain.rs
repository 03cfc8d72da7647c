//! Multiplication by our own kernels: the reference for all plans, and what runs where there is none.
#![allow(unsafe_code, reason = "starts kernels")]

use std::sync::Arc;

use crate::cuda::card::Card;
use crate::cuda::compile::Theme;
use crate::cuda::launch::{Arg, Grid, Kernel};
use crate::{Compute, Dtype, TensorError};

/// Our own kernels, one for each size of tile.
#[derive(Debug)]
pub struct Chains {
    card: Arc<Card>,
    bf16: [Tile; 3],
    f32: [Tile; 2],
    compare: Kernel,
}

/// A kernel, and the part of the output that one of its blocks computes.
#[derive(Debug)]
struct Tile {
    kernel: Kernel,
    rows: usize,
    columns: usize,
    threads: u32,
}

/// One multiplication: y\[m, n\] = round((Σₖ x\[m, k\] · w\[n, k\] + bias\[n\]) · scale). Addresses are the card's.
#[derive(Clone, Copy, Debug)]
pub struct Product {
    /// Activations.
    pub x: u64,
    /// Elements from one row of `x` to the next.
    pub x_stride: usize,
    /// Weights `[outputs, inputs]`.
    pub weights: u64,
    /// f32 values, or 0: no bias.
    pub bias: u64,
    /// The bias in the outputs' type, which cuBLASLt wants it in.
    pub library_bias: u64,
    /// Outputs `[rows, outputs]`.
    pub out: u64,
    /// Rows M.
    pub rows: usize,
    /// Output size N.
    pub outputs: usize,
    /// Input size K.
    pub inputs: usize,
    /// Multiplies each output after the bias.
    pub scale: f32,
    /// The type of `x` and the weights.
    pub compute: Compute,
    /// The type of the outputs.
    pub out_type: Dtype,
}

/// `Multiply` of `kernels/gemm.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Multiply {
    x: u64,
    w: u64,
    bias: u64,
    y: u64,
    x_stride: i64,
    m: i32,
    n: i32,
    k: i32,
    scale: f32,
    aligned: i32,
    y_f32: i32,
}

/// Rows of an output, and what they should be.
#[derive(Clone, Copy, Debug)]
pub struct Comparison {
    /// The first row.
    pub out: u64,
    /// Bytes from one row to the next.
    pub stride: usize,
    /// The rows wanted, without gaps.
    pub reference: u64,
    /// Bytes of a row.
    pub row: usize,
    /// How many rows.
    pub rows: usize,
    /// Where two u32 are counted up: words of 16 bits that differ, and words of the reference that are not zero.
    pub counts: u64,
}

impl Chains {
    /// Compiles them.
    pub fn new(card: &Arc<Card>) -> Result<Chains, TensorError> {
        let module = card.kernels(Theme::Gemm, &[])?;
        let tile = |name: &str, [rows, columns]: [usize; 2], threads, shared| {
            Ok::<_, TensorError>(Tile {
                kernel: module.kernel(name)?.with_shared(shared)?,
                rows,
                columns,
                threads,
            })
        };
        Ok(Chains {
            card: Arc::clone(card),
            bf16: [
                tile("gemm_chain16_bf16", [16, 64], 128, 61_440)?,
                tile("gemm_chain64_bf16", [64, 64], 128, 65_536)?,
                tile("gemm_chain128_bf16", [128, 128], 256, 98_304)?,
            ],
            f32: [
                tile("gemm_chain8_f32", [8, 64], 128, 37_888)?,
                tile("gemm_chain64_f32", [64, 64], 256, 33_280)?,
            ],
            compare: module.kernel("gemm_compare")?,
        })
    }

    /// Enqueues a multiplication on the compute stream.
    ///
    /// # Safety
    /// The addresses are those of memory that holds what `product` says.
    pub unsafe fn multiply(&self, product: &Product) -> Result<(), TensorError> {
        let &Product {
            x, x_stride, weights, bias, out, rows, outputs, inputs, scale, compute, out_type, ..
        } = product;
        let tiles: &[Tile] = match compute {
            Compute::Bf16 => &self.bf16,
            Compute::F32 => &self.f32,
        };
        let Some(tile) = tiles.iter().find(|tile| tile.rows >= rows).or(tiles.last()) else {
            return Ok(());
        };
        let call = Multiply {
            x,
            w: weights,
            bias,
            y: out,
            x_stride: x_stride as i64,
            m: size("rows", rows)?,
            n: size("outputs", outputs)?,
            k: size("inputs", inputs)?,
            scale,
            aligned: i32::from(
                inputs.is_multiple_of(8) && x_stride.is_multiple_of(8) && (x | weights) % 16 == 0,
            ),
            y_f32: i32::from(out_type == Dtype::F32),
        };
        let blocks = [rows.div_ceil(tile.rows) as u32, outputs.div_ceil(tile.columns) as u32, 1];
        let grid = Grid { blocks, threads: tile.threads };
        // SAFETY: the kernel's one argument; memory by the caller's promise.
        unsafe { self.card.launch(&tile.kernel, grid, &[Arg::of(&call)]) }
    }

    /// Enqueues a comparison on the compute stream.
    ///
    /// # Safety
    /// The addresses are those of memory that holds what `comparison` says.
    pub unsafe fn compare(&self, comparison: &Comparison) -> Result<(), TensorError> {
        let &Comparison { out, stride, reference, row, rows, counts } = comparison;
        let (stride, words) = ((stride / 2) as i64, (row / 2) as i64);
        let blocks = [(row / 2).div_ceil(1024).clamp(1, 256) as u32, rows as u32, 1];
        let arguments =
            [Arg::of(&out), Arg::of(&stride), Arg::of(&reference), Arg::of(&words), Arg::of(&counts)];
        // SAFETY: the kernel's arguments in order; memory by the caller's promise.
        unsafe { self.card.launch(&self.compare, Grid { blocks, threads: 256 }, &arguments) }
    }
}

/// A size as kernels count.
fn size(what: &'static str, size: usize) -> Result<i32, TensorError> {
    i32::try_from(size).map_err(|_| TensorError::OutOfRange {
        op: "matmul",
        what,
        index: size,
        limit: 1 << 31,
    })
}
