//! Weights straight into the device's layout: from a checkpoint, or made up.

mod mapped;
mod sent;

use std::borrow::Cow;
use std::ops::{ControlFlow, Range};
use std::sync::atomic::{AtomicU64, Ordering};

use asterism_tensor::{
    Columns, Compute, Device, Dtype, Embedding, KeptColumns, Layout, Matrix, MatrixBuilder, Sender,
    SyntheticColumns, SyntheticMatrix, Vector,
};

use self::sent::Kept;
use super::Watch;
use crate::ModelError;
use crate::arch::{self, Projection, Source};
use crate::layer::Layer;
use crate::manifest::Manifest;
use crate::spec::DecoderSpec;
use crate::weights::{Checkpoint, StoredDtype, Synthetic};

/// A stage's weights on its device.
pub(super) struct Weights {
    pub embedding: Option<Embedding>,
    pub layers: Vec<Layer>,
    pub head: Option<(Vector, Matrix)>,
    /// Bytes of all of them.
    pub bytes: u64,
}

/// What is to be loaded: layers, and the embedding and the head where they belong to them.
#[derive(Clone, Copy)]
pub(super) struct Loading<'a> {
    pub device: &'a Device,
    pub spec: &'a DecoderSpec,
    pub layers: &'a Range<usize>,
    pub compute: Compute,
    pub watch: &'a Watch<'a>,
}

/// Loads tensors onto one device. `'a` is the life of where they come from, `'s` that of their sending to a card.
pub(crate) struct Loader<'s, 'a> {
    device: &'s Device,
    tensors: Tensors<'s, 'a>,
    compute: Compute,
    bytes: AtomicU64,
}

/// Where tensors come from.
#[derive(Clone, Copy)]
enum Tensors<'s, 'a> {
    /// A checkpoint in memory, for the CPU to pack. Its content is checked meanwhile.
    Mapped(&'a Checkpoint),
    /// A checkpoint whose content is checked on its way to a card.
    Sent(&'s Sender<'s, 'a>, Kept<'a>),
    /// A rule.
    Synthetic(&'a Synthetic),
}

/// Elements, and their type.
type Typed<'a> = (Dtype, Cow<'a, [u8]>);

impl Loading<'_> {
    /// From a checkpoint, whose content is checked.
    pub fn checkpoint(&self, checkpoint: &Checkpoint, manifest: &Manifest) -> Result<Weights, ModelError> {
        let sources = sources(self.spec, self.layers);
        for source in &sources {
            source.check(checkpoint)?;
        }
        let bytes = |source: &Source| {
            checkpoint.tensor(&source.name).and_then(|info| info.byte_len()).unwrap_or_default() as u64
        };
        let total = sources.iter().map(bytes).sum();
        match self.device {
            Device::Cpu(_) => mapped::load(self, &sources, (checkpoint, manifest), total),
            Device::Cuda(_) => sent::load(self, (checkpoint, manifest), total),
        }
    }

    /// Made up; an element counts as bf16.
    pub fn synthetic(&self, synthetic: &Synthetic) -> Result<Weights, ModelError> {
        let bytes = |source: &Source| source.shape.iter().map(|&size| size as u64).product::<u64>() * 2;
        let total = sources(self.spec, self.layers).iter().map(bytes).sum();
        let done = AtomicU64::new(0);
        self.pack(Tensors::Synthetic(synthetic), &|source| advance(self.watch, &done, bytes(source), total))
    }

    /// Loads everything, one tensor after the other; `after` each it may end.
    fn pack(
        &self,
        tensors: Tensors<'_, '_>,
        after: &dyn Fn(&Source) -> Result<(), ModelError>,
    ) -> Result<Weights, ModelError> {
        let Self { spec, layers: range, .. } = *self;
        let loader = Loader { device: self.device, tensors, compute: self.compute, bytes: AtomicU64::new(0) };
        let family = spec.family;
        let embedding = if range.start == 0 {
            let source = family.embedding(spec);
            let embedding = loader.embedding(&source)?;
            after(&source)?;
            Some(embedding)
        } else {
            None
        };
        let mut layers = Vec::with_capacity(range.len());
        for index in range.clone() {
            let sources = family.layer(spec, index);
            layers.push(Layer::load(&loader, &sources)?);
            sources.into_sources().try_for_each(|source| after(&source))?;
        }
        let head = if range.end == spec.layers {
            let (norm, source) = (family.final_norm(spec), family.head(spec));
            let parts = vec![source.clone()];
            let matrix = loader.matrix(&Projection { parts, layout: arch::Layout::OutIn, bias: None })?;
            let head = (loader.vector(&norm)?, matrix);
            after(&norm)?;
            after(&source)?;
            Some(head)
        } else {
            None
        };
        Ok(Weights { embedding, layers, head, bytes: loader.bytes.into_inner() })
    }
}

/// Tells `watch` of so many bytes more than were `done`.
pub(crate) fn advance(watch: &Watch<'_>, done: &AtomicU64, bytes: u64, total: u64) -> Result<(), ModelError> {
    tell(watch, done.fetch_add(bytes, Ordering::Relaxed) + bytes, total)
}

fn tell(watch: &Watch<'_>, done: u64, total: u64) -> Result<(), ModelError> {
    match watch(done, total) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(ModelError::LoadStopped),
    }
}

impl<'a> Loader<'_, 'a> {
    /// A norm's weights.
    pub fn vector(&self, source: &Source) -> Result<Vector, ModelError> {
        let vector = match self.read(source)? {
            Some((dtype, bytes)) => self.device.vector(dtype, &bytes, self.compute)?,
            None => self.device.synthetic_norm(source.shape.iter().product())?,
        };
        self.count(vector.len() * size_of::<f32>());
        Ok(vector)
    }

    /// A projection, its parts' columns side by side.
    pub fn matrix(&self, projection: &Projection) -> Result<Matrix, ModelError> {
        let matrix = match self.tensors {
            Tensors::Mapped(checkpoint) => self.packed_matrix(checkpoint, projection)?,
            Tensors::Sent(sender, kept) => self.sent_matrix(sender, kept, projection)?,
            Tensors::Synthetic(synthetic) => self.made_up_matrix(synthetic, projection)?,
        };
        if projection.bias.is_some() {
            self.count(matrix.outputs() * size_of::<f32>());
        }
        self.count(matrix.bytes());
        Ok(matrix)
    }

    fn packed_matrix(&self, checkpoint: &Checkpoint, projection: &Projection) -> Result<Matrix, ModelError> {
        let layout = layout(projection);
        let parts: Vec<_> =
            projection.parts.iter().map(|part| read(checkpoint, part)).collect::<Result<_, _>>()?;
        let mut builder = MatrixBuilder::new(projection.inputs(), self.compute);
        for (part, (dtype, bytes)) in projection.parts.iter().zip(&parts) {
            let (dtype, outputs) = (*dtype, projection.outputs_of(part));
            builder = builder.columns(Columns { bytes, dtype, layout, outputs, select: None });
        }
        if let Some(bias) = self.bias(projection)? {
            builder = builder.bias(bias);
        }
        Ok(self.device.matrix(builder)?)
    }

    fn sent_matrix(
        &self,
        sender: &Sender<'_, 'a>,
        kept: Kept<'a>,
        projection: &Projection,
    ) -> Result<Matrix, ModelError> {
        let layout = layout(projection);
        let columns = |part: &Source| -> Result<_, ModelError> {
            let (dtype, elements) = kept.elements(part)?;
            Ok(KeptColumns { elements, dtype, layout, outputs: projection.outputs_of(part) })
        };
        let columns = projection.parts.iter().map(columns).collect::<Result<_, _>>()?;
        let bias = self.bias(projection)?;
        Ok(sender.matrix(projection.inputs(), self.compute, columns, bias.as_deref())?)
    }

    fn made_up_matrix(&self, synthetic: &Synthetic, projection: &Projection) -> Result<Matrix, ModelError> {
        let columns = |part: &Source| SyntheticColumns {
            key: synthetic.key(&part.name),
            outputs: projection.outputs_of(part),
        };
        let columns: Vec<_> = projection.parts.iter().map(columns).collect();
        let bias = projection.bias.as_ref().map(|bias| synthetic.key(&bias.name));
        let matrix =
            SyntheticMatrix { inputs: projection.inputs(), compute: self.compute, columns: &columns, bias };
        Ok(self.device.synthetic_matrix(&matrix)?)
    }

    /// A checkpoint's bias.
    fn bias(&self, projection: &Projection) -> Result<Option<Vec<f32>>, ModelError> {
        let Some(source) = &projection.bias else { return Ok(None) };
        let Some((dtype, bytes)) = self.read(source)? else { return Ok(None) };
        Ok(Some(Vector::from_bytes(dtype, &bytes, self.compute)?.values().to_vec()))
    }

    fn embedding(&self, source: &Source) -> Result<Embedding, ModelError> {
        let shape = [0, 1].map(|axis| source.shape.get(axis).copied().unwrap_or_default());
        let embedding = match self.tensors {
            Tensors::Mapped(checkpoint) => {
                let (dtype, bytes) = read(checkpoint, source)?;
                self.device.embedding(dtype, shape, &bytes, self.compute)?
            }
            Tensors::Sent(sender, kept) => {
                let (dtype, elements) = kept.elements(source)?;
                sender.embedding(dtype, shape, elements, self.compute)?
            }
            Tensors::Synthetic(synthetic) => {
                self.device.synthetic_embedding(shape, self.compute, synthetic.key(&source.name))?
            }
        };
        self.count(embedding.bytes());
        Ok(embedding)
    }

    /// All elements of a small tensor of a checkpoint.
    fn read(&self, source: &Source) -> Result<Option<Typed<'a>>, ModelError> {
        match self.tensors {
            Tensors::Mapped(checkpoint) => read(checkpoint, source).map(Some),
            Tensors::Sent(_, kept) => {
                let (dtype, bytes) = kept.read(source)?;
                Ok(Some((dtype, bytes.into())))
            }
            Tensors::Synthetic(_) => Ok(None),
        }
    }

    fn count(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

fn layout(projection: &Projection) -> Layout {
    match projection.layout {
        arch::Layout::InOut => Layout::InputsFirst,
        arch::Layout::OutIn => Layout::OutputsFirst,
    }
}

/// A checked tensor's type.
fn dtype(checkpoint: &Checkpoint, source: &Source) -> Result<Dtype, ModelError> {
    source.check(checkpoint)?;
    let info = checkpoint.tensor(&source.name).ok_or_else(|| missing(source))?;
    weight_dtype(info.dtype)
        .ok_or_else(|| ModelError::WrongDtype { name: source.name.clone(), found: info.dtype.name() })
}

fn missing(source: &Source) -> ModelError {
    ModelError::MissingTensor { name: source.name.clone(), expected: source.shape.clone() }
}

/// A checked tensor's type and elements.
fn read<'a>(checkpoint: &'a Checkpoint, source: &Source) -> Result<Typed<'a>, ModelError> {
    let dtype = dtype(checkpoint, source)?;
    Ok((dtype, checkpoint.bytes(&source.name).ok_or_else(|| missing(source))?))
}

/// The tensors of these layers, the embedding and the head where they belong to them.
fn sources(spec: &DecoderSpec, layers: &Range<usize>) -> Vec<Source> {
    let family = spec.family;
    let mut sources = Vec::new();
    if layers.start == 0 {
        sources.push(family.embedding(spec));
    }
    for layer in layers.clone() {
        sources.extend(family.layer(spec, layer).into_sources());
    }
    if layers.end == spec.layers {
        sources.extend([family.final_norm(spec), family.head(spec)]);
    }
    sources
}

/// A stored type that weights can have, as the device knows it.
pub(super) fn weight_dtype(stored: StoredDtype) -> Option<Dtype> {
    match stored {
        StoredDtype::F32 => Some(Dtype::F32),
        StoredDtype::Bf16 => Some(Dtype::Bf16),
        StoredDtype::F16 => Some(Dtype::F16),
        _ => None,
    }
}
