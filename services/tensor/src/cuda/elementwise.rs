//! Rows of activations: looked up, normed, added, multiplied, gathered; and the lists of ids that they come from.
#![allow(unsafe_code, reason = "launches kernels")]

use std::sync::Arc;

use crate::cuda::Cuda;
use crate::cuda::card::Card;
use crate::cuda::compile::Theme;
use crate::cuda::launch::{Arg, Grid, Kernel, Module};
use crate::cuda::memory::DeviceMemory;
use crate::cuda::upload::Upload;
use crate::storage::Storage;
use crate::{Device, Dtype, Embedding, Indices, Tensor, TensorError};

/// Kernels of this theme.
#[derive(Debug)]
pub struct Kernels {
    /// By the table's type.
    embed_f32: ByDtype,
    embed_f16: ByDtype,
    embed_bf16: ByDtype,
    add_rms_norm: ByDtype,
    add: ByDtype,
    silu_mul: ByDtype,
    gather_rows: ByDtype,
}

/// A kernel for either type of activations.
#[derive(Debug)]
struct ByDtype {
    f32: Kernel,
    bf16: Kernel,
}

/// Threads of a block that has a piece of a row, and the piece's columns: as in the kernels.
const PIECE_THREADS: u32 = 64;
const PIECE: usize = 512;

/// Columns that a thread takes at once where rows are whole runs of them.
const RUN: usize = 8;

const WARP: usize = 32;
const MOST_THREADS: usize = 1024;

// === impl Kernels ===

impl Kernels {
    /// Compiles them for the card.
    pub fn new(card: &Arc<Card>) -> Result<Kernels, TensorError> {
        let module = card.kernels(Theme::Elementwise, &[])?;
        let of = |name: &str| ByDtype::new(&module, name);
        Ok(Kernels {
            embed_f32: of("elementwise_embed_f32")?,
            embed_f16: of("elementwise_embed_f16")?,
            embed_bf16: of("elementwise_embed_bf16")?,
            add_rms_norm: of("elementwise_add_rms_norm")?,
            add: of("elementwise_add")?,
            silu_mul: of("elementwise_silu_mul")?,
            gather_rows: of("elementwise_gather_rows")?,
        })
    }
}

impl ByDtype {
    fn new(module: &Module, name: &str) -> Result<ByDtype, TensorError> {
        Ok(ByDtype {
            f32: module.kernel(&format!("{name}_f32"))?,
            bf16: module.kernel(&format!("{name}_bf16"))?,
        })
    }

    fn of(&self, dtype: Dtype) -> &Kernel {
        match dtype {
            Dtype::F32 => &self.f32,
            _ => &self.bf16,
        }
    }
}

// === impl Cuda ===

impl Cuda {
    /// Zeros, with no row in use. A multiplication may compute rows beyond those in use, up to its next bucket, so
    /// there is memory for those too.
    pub(crate) fn tensor(&self, dtype: Dtype, rows: usize, cols: usize) -> Result<Tensor, TensorError> {
        let bytes = Tensor::bytes(dtype, Device::padded_rows(rows), cols)?;
        let memory = DeviceMemory::zeroed(self.card().context(), bytes)?;
        Ok(Tensor::with(dtype, [rows, cols], Storage::Card(memory)))
    }

    /// No index yet.
    pub(crate) fn indices(&self, capacity: usize) -> Result<Indices, TensorError> {
        let upload = Upload::new(self.card().context(), capacity.saturating_mul(size_of::<u32>()))?;
        Ok(Indices { capacity, host: Vec::with_capacity(capacity), card: Some(upload) })
    }

    /// Sends the host's list to the card.
    pub(crate) fn write_indices(&self, indices: &mut Indices) -> Result<(), TensorError> {
        let Indices { host, card, .. } = indices;
        let upload = card.as_mut().ok_or(TensorError::OtherDevice)?;
        upload.area::<u32>()?[..host.len()].copy_from_slice(host);
        upload.send(&self.card().compute, size_of_val(&host[..]))
    }

    pub(crate) fn embed(
        &self,
        ids: &Indices,
        table: &Embedding,
        scale: f32,
        out: &mut Tensor,
    ) -> Result<(), TensorError> {
        let kernels = match table.dtype() {
            Dtype::F32 => &self.elementwise.embed_f32,
            Dtype::F16 => &self.elementwise.embed_f16,
            Dtype::Bf16 => &self.elementwise.embed_bf16,
        };
        let (ids, table, to, cols) = (ids.address()?, table.address()?, out.address()?, int(out.cols())?);
        let arguments = [Arg::of(&ids), Arg::of(&table), Arg::of(&scale), Arg::of(&to), Arg::of(&cols)];
        // SAFETY: the kernel's arguments; ids and shapes are checked, there are as many ids as rows of `out`.
        unsafe { self.card().launch(kernels.of(out.dtype()), pieces(out.rows(), out.cols())?, &arguments) }
    }

    /// `weight`: the address of the norm's weights, f32; and ε.
    pub(crate) fn add_rms_norm(
        &self,
        residual: &mut Tensor,
        delta: Option<&Tensor>,
        (weight, eps): (u64, f32),
        out: &mut Tensor,
    ) -> Result<(), TensorError> {
        let (rows, cols, dtype) = (residual.rows(), residual.cols(), residual.dtype());
        if cols == 0 {
            return Ok(());
        }
        let delta = delta.map_or(Ok(0), Tensor::address)?;
        let (x, to, width) = (residual.address()?, out.address()?, int(cols)?);
        let runs = if cols.is_multiple_of(RUN) { cols / RUN } else { cols };
        let threads = runs.next_multiple_of(WARP).min(MOST_THREADS);
        let grid = Grid::line(blocks(rows)?, blocks(threads)?);
        let arguments =
            [Arg::of(&x), Arg::of(&delta), Arg::of(&weight), Arg::of(&eps), Arg::of(&to), Arg::of(&width)];
        // SAFETY: the kernel's arguments; shapes and types are checked, and a null `delta` is none.
        unsafe { self.card().launch(self.elementwise.add_rms_norm.of(dtype), grid, &arguments) }
    }

    pub(crate) fn add(&self, residual: &mut Tensor, delta: &Tensor) -> Result<(), TensorError> {
        let elements = residual.rows() * residual.cols();
        let (x, y, count) = (residual.address()?, delta.address()?, elements as u64);
        let grid = Grid::line(blocks(elements.div_ceil(PIECE))?, PIECE_THREADS);
        let kernel = self.elementwise.add.of(residual.dtype());
        // SAFETY: the kernel's arguments; shapes and types are checked.
        unsafe { self.card().launch(kernel, grid, &[Arg::of(&x), Arg::of(&y), Arg::of(&count)]) }
    }

    pub(crate) fn silu_mul(&self, gate_up: &Tensor, out: &mut Tensor) -> Result<(), TensorError> {
        let (from, to, cols) = (gate_up.address()?, out.address()?, int(out.cols())?);
        let (kernel, grid) = (self.elementwise.silu_mul.of(out.dtype()), pieces(out.rows(), out.cols())?);
        // SAFETY: the kernel's arguments; shapes and types are checked.
        unsafe { self.card().launch(kernel, grid, &[Arg::of(&from), Arg::of(&to), Arg::of(&cols)]) }
    }

    pub(crate) fn gather_rows(
        &self,
        x: &Tensor,
        indices: &Indices,
        out: &mut Tensor,
    ) -> Result<(), TensorError> {
        let (from, indices, to, cols) = (x.address()?, indices.address()?, out.address()?, int(out.cols())?);
        let (kernel, grid) = (self.elementwise.gather_rows.of(out.dtype()), pieces(out.rows(), out.cols())?);
        let arguments = [Arg::of(&from), Arg::of(&indices), Arg::of(&to), Arg::of(&cols)];
        // SAFETY: the kernel's arguments; indices and shapes are checked, there are as many indices as rows of `out`.
        unsafe { self.card().launch(kernel, grid, &arguments) }
    }
}

/// A block for every piece of every row.
fn pieces(rows: usize, cols: usize) -> Result<Grid, TensorError> {
    Ok(Grid::line(blocks(rows.saturating_mul(cols.div_ceil(PIECE)))?, PIECE_THREADS))
}

/// A number of blocks or threads as the driver takes it.
pub(super) fn blocks(count: usize) -> Result<u32, TensorError> {
    int(count).map(i32::cast_unsigned)
}

/// A size as kernels take it.
pub(super) fn int(size: usize) -> Result<i32, TensorError> {
    i32::try_from(size).map_err(|_| TensorError::OutOfRange {
        op: "launch",
        what: "size",
        index: size,
        limit: i32::MAX as usize,
    })
}
