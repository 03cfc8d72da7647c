//! The list of operations. Each checks shapes and types, then hands over to the device.
//!
//! Operations set the number of rows of the tensors they write. Rows of one call are independent: each gets
//! the same bits alone.

use half::{bf16, f16};

use crate::cpu::elementwise;
use crate::cpu::gemm::{Activations, Matmul, Outputs};
use crate::cpu::norm::AddRmsNorm;
use crate::cpu::rope::RopeKvWrite;
use crate::error::{check_below, check_eq, check_type};
use crate::{
    Compute, Device, Dtype, Embedding, Indices, KvPool, Matrix, RopeTables, Rows, Tensor, TensorError, Vector,
};

mod attention;
mod evidence;

pub use attention::{Attention, AttnSpan};
pub use evidence::{EvidenceMemory, EvidenceRequest, EvidenceRoom, Processors, RowEvidence};

/// Runs the same call for the element type of a tensor: `E` names it within.
macro_rules! by_dtype {
    ($dtype:expr, $E:ident => $call:expr) => {
        match $dtype {
            Dtype::F32 => {
                type $E = f32;
                $call
            }
            _ => {
                type $E = bf16;
                $call
            }
        }
    };
}
use by_dtype;

impl Device {
    /// out\[i\] ← round(table\[ids\[i\]\] · scale).
    pub fn embed(
        &self,
        ids: &Indices,
        table: &Embedding,
        scale: f32,
        out: &mut Tensor,
    ) -> Result<(), TensorError> {
        let op = "embed";
        check_eq(op, "the output's columns", out.cols(), table.cols())?;
        for &id in ids.values() {
            check_below(op, "token id", id as usize, table.vocab())?;
        }
        out.set_rows(ids.len())?;
        let cpu = match self {
            Device::Cpu(cpu) => cpu,
            Device::Cuda(cuda) => return cuda.embed(ids, table, scale, out),
        };
        let ids = ids.values();
        by_dtype!(out.dtype(), E => {
            let out = out.elements_mut::<E>()?;
            match table.dtype() {
                Dtype::F32 => elementwise::embed(cpu, ids, table.elements::<f32>()?, scale, out),
                Dtype::Bf16 => elementwise::embed(cpu, ids, table.elements::<bf16>()?, scale, out),
                Dtype::F16 => elementwise::embed(cpu, ids, table.elements::<f16>()?, scale, out),
            }
        });
        Ok(())
    }

    /// residual ← round(residual + delta), if there is a delta; then
    /// out ← round(round(residual / √(mean(residual²) + eps)) · weight), row by row.
    pub fn add_rms_norm(
        &self,
        residual: &mut Tensor,
        delta: Option<&Tensor>,
        weight: &Vector,
        eps: f32,
        out: &mut Tensor,
    ) -> Result<(), TensorError> {
        let op = "add_rms_norm";
        if let Some(delta) = delta {
            check_like(op, "delta", delta, residual)?;
        }
        check_eq(op, "the weight's length", weight.len(), residual.cols())?;
        check_eq(op, "the output's columns", out.cols(), residual.cols())?;
        check_type(op, "the output", out.dtype(), residual.dtype())?;
        out.set_rows(residual.rows())?;
        let cpu = match self {
            Device::Cpu(cpu) => cpu,
            Device::Cuda(cuda) => {
                let weight = weight.address()?;
                return cuda.add_rms_norm(residual, delta, (weight, eps), out);
            }
        };
        by_dtype!(residual.dtype(), E => {
            let delta = delta.map(Tensor::elements::<E>).transpose()?;
            let (residual, out) = (residual.elements_mut::<E>()?, out.elements_mut::<E>()?);
            AddRmsNorm { residual, delta, weight: weight.values(), eps, out }.run(cpu);
        });
        Ok(())
    }

    /// residual ← round(residual + delta).
    pub fn add(&self, residual: &mut Tensor, delta: &Tensor) -> Result<(), TensorError> {
        check_like("add", "delta", delta, residual)?;
        let cpu = match self {
            Device::Cpu(cpu) => cpu,
            Device::Cuda(cuda) => return cuda.add(residual, delta),
        };
        by_dtype!(residual.dtype(), E => {
            elementwise::add(cpu, residual.elements_mut::<E>()?, delta.elements::<E>()?);
        });
        Ok(())
    }

    /// out ← x · matrix + bias, rounded once if the output is bf16.
    pub fn matmul(&self, x: &Tensor, matrix: &Matrix, out: &mut Tensor) -> Result<(), TensorError> {
        self.multiply("matmul", x, matrix, 1.0, out)
    }

    /// logits ← (x · matrix + bias) · scale in f32.
    pub fn head(
        &self,
        x: &Tensor,
        matrix: &Matrix,
        scale: f32,
        logits: &mut Tensor,
    ) -> Result<(), TensorError> {
        check_type("head", "the logits", logits.dtype(), Dtype::F32)?;
        self.multiply("head", x, matrix, scale, logits)
    }

    fn multiply(
        &self,
        op: &'static str,
        x: &Tensor,
        matrix: &Matrix,
        scale: f32,
        out: &mut Tensor,
    ) -> Result<(), TensorError> {
        check_eq(op, "the input's columns", x.cols(), matrix.inputs())?;
        check_eq(op, "the output's columns", out.cols(), matrix.outputs())?;
        check_type(op, "the input", x.dtype(), matrix.compute().dtype())?;
        out.set_rows(x.rows())?;
        let cpu = match self {
            Device::Cpu(cpu) => cpu,
            Device::Cuda(cuda) => return cuda.multiply(x, matrix.card()?, scale, out),
        };
        let matrix = matrix.cpu()?;
        let x_view = match matrix.compute() {
            Compute::F32 => Activations::F32(x.elements()?),
            Compute::Bf16 => Activations::Bf16(x.elements()?),
        };
        let out = match out.dtype() {
            Dtype::F32 => Outputs::F32(out.elements_mut()?),
            _ => Outputs::Bf16(out.elements_mut()?),
        };
        cpu.gemm().matmul(cpu.pool(), Matmul { rows: x.rows(), x: x_view, matrix, scale, out })
    }

    /// Rotates the queries in `qkv` (rows Q|K|V, heads side by side) in place by each row's table, and writes
    /// keys, rotated by the table of the block they go to, and values into one layer of `kv`.
    pub fn rope_kv_write(
        &self,
        qkv: &mut Tensor,
        rows: &Rows,
        tables: &RopeTables,
        kv: &mut KvPool,
        layer: usize,
    ) -> Result<(), TensorError> {
        let op = "rope_kv_write";
        let heads = attention::check_qkv(op, qkv, rows, kv, layer)?;
        let cpu = match self {
            Device::Cpu(cpu) => cpu,
            Device::Cuda(cuda) => return cuda.rope_kv_write(qkv, rows, tables, (kv, layer), heads),
        };
        let work = RopeKvWrite { spans: &rows.spans, tables, layer, heads };
        by_dtype!(qkv.dtype(), E => work.run::<E>(cpu, qkv.elements_mut()?, kv)?);
        Ok(())
    }

    /// out ← round(silu(gate) · up) for rows gate|up.
    pub fn silu_mul(&self, gate_up: &Tensor, out: &mut Tensor) -> Result<(), TensorError> {
        let op = "silu_mul";
        check_eq(op, "the input's columns", gate_up.cols(), 2 * out.cols())?;
        check_type(op, "the output", out.dtype(), gate_up.dtype())?;
        out.set_rows(gate_up.rows())?;
        let cols = out.cols();
        let cpu = match self {
            Device::Cpu(cpu) => cpu,
            Device::Cuda(cuda) => return cuda.silu_mul(gate_up, out),
        };
        by_dtype!(out.dtype(), E => {
            elementwise::silu_mul::<E>(cpu, gate_up.elements()?, out.elements_mut()?, cols);
        });
        Ok(())
    }

    /// out\[i\] ← x\[indices\[i\]\].
    pub fn gather_rows(&self, x: &Tensor, indices: &Indices, out: &mut Tensor) -> Result<(), TensorError> {
        let op = "gather_rows";
        check_eq(op, "the output's columns", out.cols(), x.cols())?;
        check_type(op, "the output", out.dtype(), x.dtype())?;
        for &index in indices.values() {
            check_below(op, "row", index as usize, x.rows())?;
        }
        out.set_rows(indices.len())?;
        let cols = x.cols();
        if let Device::Cuda(cuda) = self {
            return cuda.gather_rows(x, indices, out);
        }
        let indices = indices.values();
        by_dtype!(x.dtype(), E => {
            elementwise::gather_rows::<E>(x.elements()?, indices, out.elements_mut()?, cols);
        });
        Ok(())
    }
}

/// Refuses a tensor of another shape or type.
fn check_like(op: &'static str, what: &'static str, x: &Tensor, like: &Tensor) -> Result<(), TensorError> {
    check_type(op, what, x.dtype(), like.dtype())?;
    check_eq(op, "the rows of the second operand", x.rows(), like.rows())?;
    check_eq(op, "the columns of the second operand", x.cols(), like.cols())
}
