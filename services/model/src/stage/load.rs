//! Weights straight into the device's layout: from a checkpoint, or made up.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;

use asterism_tensor::{
    Columns, Compute, Device, Dtype, Embedding, Layout, Matrix, MatrixBuilder, SyntheticColumns,
    SyntheticMatrix, Vector,
};

use crate::ModelError;
use crate::arch::{self, Projection, Source};
use crate::layer::Layer;
use crate::manifest::Manifest;
use crate::spec::DecoderSpec;
use crate::weights::{Checkpoint, StoredDtype, Synthetic};

/// Hashing threads past a few only wait for the disk.
const MOST_HASHERS: usize = 8;

/// A stage's weights on its device.
pub(super) struct Weights {
    pub embedding: Option<Embedding>,
    pub layers: Vec<Layer>,
    pub head: Option<(Vector, Matrix)>,
    /// Bytes of all of them.
    pub bytes: u64,
}

/// Loads a model's tensors onto one device.
pub(crate) struct Loader<'a> {
    device: &'a Device,
    tensors: Tensors<'a>,
    compute: Compute,
    bytes: AtomicU64,
}

/// Where tensors come from.
#[derive(Clone, Copy)]
pub(super) enum Tensors<'a> {
    /// A checkpoint, whose content is checked.
    Checkpoint(&'a Checkpoint, &'a Manifest),
    /// A rule.
    Synthetic(&'a Synthetic),
}

impl<'a> Loader<'a> {
    pub(super) fn new(device: &'a Device, tensors: Tensors<'a>, compute: Compute) -> Self {
        Self { device, tensors, compute, bytes: AtomicU64::new(0) }
    }

    /// Loads the layers, and the embedding and the head where they belong to them.
    pub(super) fn load(
        &self,
        spec: &DecoderSpec,
        layers: &Range<usize>,
        progress: &(dyn Fn(u64, u64) + Sync),
    ) -> Result<Weights, ModelError> {
        let sources = sources(spec, layers);
        let total = sources.iter().map(|source| self.stored_bytes(source)).sum();
        match self.tensors {
            Tensors::Checkpoint(checkpoint, manifest) => {
                for source in &sources {
                    source.check(checkpoint)?;
                }
                self.load_checked((spec, layers), &sources, (checkpoint, manifest), &|done| {
                    progress(done / 2, total);
                })
            }
            Tensors::Synthetic(_) => {
                let done = AtomicU64::new(0);
                let advance = |bytes: u64| progress(done.fetch_add(bytes, Ordering::Relaxed) + bytes, total);
                self.pack(spec, layers, &AtomicBool::new(false), &advance)
            }
        }
    }

    /// While this thread packs with the device's threads, others check the same tensors against the manifest; both read the
    /// same pages. `progress` is told bytes, each twice: once packed, once hashed.
    fn load_checked(
        &self,
        (spec, layers): (&DecoderSpec, &Range<usize>),
        sources: &[Source],
        (checkpoint, manifest): (&Checkpoint, &Manifest),
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<Weights, ModelError> {
        let done = AtomicU64::new(0);
        let advance = |bytes: u64| progress(done.fetch_add(bytes, Ordering::Relaxed) + bytes);
        let next = AtomicUsize::new(0);
        let stop = AtomicBool::new(false);
        let hash = || {
            while let Some(source) = sources.get(next.fetch_add(1, Ordering::Relaxed)) {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let bytes = checkpoint.bytes(&source.name).unwrap_or_default();
                if let Err(error) = manifest.verify(&source.name, &bytes) {
                    stop.store(true, Ordering::Relaxed);
                    return Err(error);
                }
                advance(bytes.len() as u64);
            }
            Ok(())
        };
        let hashers = thread::available_parallelism().map_or(1, usize::from).min(MOST_HASHERS);
        thread::scope(|scope| {
            let hashers: Vec<_> = (0..hashers).map(|_| scope.spawn(hash)).collect();
            let weights = self.pack(spec, layers, &stop, &advance);
            if weights.is_err() {
                stop.store(true, Ordering::Relaxed);
            }
            for hasher in hashers {
                // A panic of a hasher is raised again here, by joining it.
                hasher.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            }
            weights
        })
    }

    fn pack(
        &self,
        spec: &DecoderSpec,
        range: &Range<usize>,
        stop: &AtomicBool,
        advance: &dyn Fn(u64),
    ) -> Result<Weights, ModelError> {
        let family = spec.family;
        let embedding = if range.start == 0 {
            let source = family.embedding(spec);
            let embedding = self.embedding(&source)?;
            advance(self.stored_bytes(&source));
            Some(embedding)
        } else {
            None
        };
        let mut layers = Vec::with_capacity(range.len());
        for index in range.clone() {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let sources = family.layer(spec, index);
            layers.push(Layer::load(self, &sources)?);
            sources.into_sources().for_each(|source| advance(self.stored_bytes(&source)));
        }
        let head = if range.end == spec.layers && !stop.load(Ordering::Relaxed) {
            let (norm, source) = (family.final_norm(spec), family.head(spec));
            let parts = vec![source.clone()];
            let matrix = self.matrix(&Projection { parts, layout: arch::Layout::OutIn, bias: None })?;
            let head = (self.vector(&norm)?, matrix);
            advance(self.stored_bytes(&norm) + self.stored_bytes(&source));
            Some(head)
        } else {
            None
        };
        Ok(Weights { embedding, layers, head, bytes: self.bytes.load(Ordering::Relaxed) })
    }

    /// A norm's weights.
    pub fn vector(&self, source: &Source) -> Result<Vector, ModelError> {
        let vector = match self.tensors {
            Tensors::Checkpoint(checkpoint, _) => {
                let (dtype, bytes) = read(checkpoint, source)?;
                self.device.vector(dtype, &bytes, self.compute)?
            }
            Tensors::Synthetic(_) => self.device.synthetic_norm(source.shape.iter().product())?,
        };
        self.count(vector.len() * size_of::<f32>());
        Ok(vector)
    }

    /// A projection, its parts' columns side by side.
    pub fn matrix(&self, projection: &Projection) -> Result<Matrix, ModelError> {
        let matrix = match self.tensors {
            Tensors::Checkpoint(checkpoint, _) => self.stored_matrix(checkpoint, projection)?,
            Tensors::Synthetic(synthetic) => self.made_up_matrix(synthetic, projection)?,
        };
        self.count(matrix.bytes());
        Ok(matrix)
    }

    fn stored_matrix(&self, checkpoint: &Checkpoint, projection: &Projection) -> Result<Matrix, ModelError> {
        let layout = match projection.layout {
            arch::Layout::InOut => Layout::InputsFirst,
            arch::Layout::OutIn => Layout::OutputsFirst,
        };
        let parts: Vec<_> =
            projection.parts.iter().map(|part| read(checkpoint, part)).collect::<Result<_, _>>()?;
        let mut builder = MatrixBuilder::new(projection.inputs(), self.compute);
        for (part, (dtype, bytes)) in projection.parts.iter().zip(&parts) {
            let (dtype, outputs) = (*dtype, projection.outputs_of(part));
            builder = builder.columns(Columns { bytes, dtype, layout, outputs, select: None });
        }
        if let Some(source) = &projection.bias {
            let (dtype, bytes) = read(checkpoint, source)?;
            builder = builder.bias(self.device.vector(dtype, &bytes, self.compute)?.values().to_vec());
            self.count(bytes.len() / dtype.bytes() * size_of::<f32>());
        }
        Ok(self.device.matrix(builder)?)
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
        self.count(if bias.is_some() { matrix.outputs() * size_of::<f32>() } else { 0 });
        Ok(self.device.synthetic_matrix(&matrix)?)
    }

    fn embedding(&self, source: &Source) -> Result<Embedding, ModelError> {
        let shape = [0, 1].map(|axis| source.shape.get(axis).copied().unwrap_or_default());
        let embedding = match self.tensors {
            Tensors::Checkpoint(checkpoint, _) => {
                let (dtype, bytes) = read(checkpoint, source)?;
                self.device.embedding(dtype, shape, &bytes, self.compute)?
            }
            Tensors::Synthetic(synthetic) => {
                self.device.synthetic_embedding(shape, self.compute, synthetic.key(&source.name))?
            }
        };
        self.count(embedding.bytes());
        Ok(embedding)
    }

    /// Bytes of a tensor where it comes from; a made-up one counts as bf16.
    fn stored_bytes(&self, source: &Source) -> u64 {
        match self.tensors {
            Tensors::Checkpoint(checkpoint, _) => {
                checkpoint.tensor(&source.name).and_then(|info| info.byte_len()).unwrap_or_default() as u64
            }
            Tensors::Synthetic(_) => source.shape.iter().map(|&size| size as u64).product::<u64>() * 2,
        }
    }

    fn count(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// A checked tensor's type and elements.
fn read<'a>(checkpoint: &'a Checkpoint, source: &Source) -> Result<(Dtype, Cow<'a, [u8]>), ModelError> {
    source.check(checkpoint)?;
    let missing = || ModelError::MissingTensor { name: source.name.clone(), expected: source.shape.clone() };
    let info = checkpoint.tensor(&source.name).ok_or_else(missing)?;
    let dtype = weight_dtype(info.dtype)
        .ok_or_else(|| ModelError::WrongDtype { name: source.name.clone(), found: info.dtype.name() })?;
    Ok((dtype, checkpoint.bytes(&source.name).ok_or_else(missing)?))
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
