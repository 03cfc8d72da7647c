//! One transformer layer. Sizes: t rows of the step, E hidden, Q all query heads, K all key (or value) heads, F inner.

use asterism_tensor::{Attention, Compute, Device, KvPool, Matrix, RopeTables, Rows, Tensor, Vector};

use crate::ModelError;
use crate::arch::LayerSources;
use crate::spec::DecoderSpec;
use crate::stage::Loader;

/// A layer's weights.
#[derive(Debug)]
pub(crate) struct Layer {
    attention_norm: Vector,
    qkv: Matrix,
    attention_out: Matrix,
    mlp_norm: Vector,
    gate_up: Matrix,
    down: Matrix,
}

/// Activations of all rows of a step, allocated once and shared by all layers.
#[derive(Debug)]
pub(crate) struct Buffers {
    /// `[t, E]`: what goes from layer to layer.
    pub residual: Tensor,
    /// Whether the residual still lacks the scratch's delta: the next norm adds it on its way.
    pub pending: bool,
    /// `[t, Q + 2K]`: q, k, v side by side.
    qkv: Tensor,
    /// `[t, Q]`
    pub attended: Tensor,
    pub scratch: Scratch,
}

/// Activations of the rows that a projection is made of.
#[derive(Debug)]
pub(crate) struct Scratch {
    /// `[t, E]`: what a projection adds to the residual.
    pub delta: Tensor,
    /// `[t, E]`
    normed: Tensor,
    /// `[t, 2F]`: gate and up side by side.
    gate_up: Tensor,
    /// `[t, F]`
    product: Tensor,
}

/// What a layer works with besides its weights and the activations.
pub(crate) struct Work<'a> {
    pub device: &'a Device,
    pub spec: &'a DecoderSpec,
    /// The layer within the stage.
    pub index: usize,
    pub rows: &'a Rows,
    pub tables: &'a RopeTables,
}

impl Layer {
    pub fn load(loader: &Loader<'_, '_>, sources: &LayerSources) -> Result<Self, ModelError> {
        Ok(Self {
            attention_norm: loader.vector(&sources.attention_norm)?,
            qkv: loader.matrix(&sources.qkv)?,
            attention_out: loader.matrix(&sources.attention_out)?,
            mlp_norm: loader.vector(&sources.mlp_norm)?,
            gate_up: loader.matrix(&sources.gate_up)?,
            down: loader.matrix(&sources.down)?,
        })
    }

    /// Its matrices, in the order of their use.
    pub fn matrices(&self) -> [&Matrix; 4] {
        [&self.qkv, &self.attention_out, &self.gate_up, &self.down]
    }

    /// residual += attention(norm(residual)); residual += mlp(norm(residual)), the last addition left pending. In bf16 each
    /// operation's output is rounded, the residual after each addition too, whoever adds, so that a stage's edge may lie
    /// between any two layers.
    pub fn forward(&self, work: &Work<'_>, kv: &mut KvPool, buffers: &mut Buffers) -> Result<(), ModelError> {
        self.store(work, kv, buffers)?;
        self.attend(work, kv, buffers)?;
        let Buffers { residual, attended, scratch, .. } = buffers;
        self.project(work, attended, residual, scratch)?;
        buffers.pending = true;
        Ok(())
    }

    /// The first part of [`Layer::forward`]: queries, keys and values, of which keys and values go into the pool. After it
    /// nothing is pending.
    pub fn store(&self, work: &Work<'_>, kv: &mut KvPool, buffers: &mut Buffers) -> Result<(), ModelError> {
        let &Work { device, spec, index, rows, tables } = work;
        let Buffers { residual, pending, qkv, scratch: Scratch { delta, normed, .. }, .. } = buffers;
        let carried = std::mem::take(pending).then_some(&*delta);
        device.add_rms_norm(residual, carried, &self.attention_norm, spec.norm_epsilon, normed)?;
        device.matmul(normed, &self.qkv, qkv)?;
        device.rope_kv_write(qkv, rows, tables, kv, index)?;
        Ok(())
    }

    /// The second part: attention of every row.
    pub fn attend(&self, work: &Work<'_>, kv: &KvPool, buffers: &mut Buffers) -> Result<(), ModelError> {
        let &Work { device, spec, index, rows, tables } = work;
        let attention = Attention { kv, layer: index, rows, tables, scale: spec.attention_scale() };
        device.attention(&buffers.qkv, &attention, &mut buffers.attended)?;
        Ok(())
    }

    /// The rest, which each row goes through by itself: it may be done for some of the rows alone. What is still to be added to
    /// `residual` is in the scratch's delta.
    pub fn project(
        &self,
        &Work { device, spec, .. }: &Work<'_>,
        attended: &Tensor,
        residual: &mut Tensor,
        scratch: &mut Scratch,
    ) -> Result<(), ModelError> {
        let Scratch { delta, normed, gate_up, product } = scratch;
        device.matmul(attended, &self.attention_out, delta)?;
        device.add_rms_norm(residual, Some(delta), &self.mlp_norm, spec.norm_epsilon, normed)?;
        device.matmul(normed, &self.gate_up, gate_up)?;
        device.silu_mul(gate_up, product)?;
        device.matmul(product, &self.down, delta)?;
        Ok(())
    }
}

impl Buffers {
    pub fn new(
        device: &Device,
        spec: &DecoderSpec,
        compute: Compute,
        rows: usize,
    ) -> Result<Self, ModelError> {
        let tensor = |cols| device.tensor(compute.dtype(), rows, cols);
        let widest = spec.hidden.max(spec.q_width()).max(spec.inner);
        device.reserve(rows, widest)?;
        Ok(Self {
            residual: tensor(spec.hidden)?,
            pending: false,
            qkv: tensor(spec.q_width() + 2 * spec.kv_width())?,
            attended: tensor(spec.q_width())?,
            scratch: Scratch {
                delta: tensor(spec.hidden)?,
                normed: tensor(spec.hidden)?,
                gate_up: tensor(2 * spec.inner)?,
                product: tensor(spec.inner)?,
            },
        })
    }

    /// Adds what is pending: the residual is then what the reference's is after a layer.
    pub fn settle(&mut self, device: &Device) -> Result<(), ModelError> {
        if std::mem::take(&mut self.pending) {
            device.add(&mut self.residual, &self.scratch.delta)?;
        }
        Ok(())
    }
}
