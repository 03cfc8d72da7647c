//! What can go wrong between a checkpoint and a stage.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use asterism_tensor::TensorError;

/// Everything this library refuses, with the values that decide.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The system could not read or write a file.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The path holds none of the formats that are read.
    #[error(
        "{}: no checkpoint here (looked for config.json with model.safetensors, pytorch_model.bin or an index of either, or one .gguf file)",
        path.display()
    )]
    NoCheckpoint {
        /// The folder or file that was looked at.
        path: PathBuf,
    },
    /// A file is truncated, corrupt, or of a kind or version that is not read.
    #[error("{}: {what}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and where.
        what: String,
    },
    /// A pickle asks for more than tensors.
    #[error("{}: refused: the pickle names `{global}`, and only tensors are read", path.display())]
    ForbiddenGlobal {
        /// The file.
        path: PathBuf,
        /// The module and name that it wants to load.
        global: String,
    },
    /// An index names a file that is not there.
    #[error("{}: names `{shard}` for `{tensor}`, but there is no such file", index.display())]
    MissingShard {
        /// The index file.
        index: PathBuf,
        /// The missing file.
        shard: String,
        /// A tensor that should be in it.
        tensor: String,
    },
    /// An index places a tensor in a file that does not hold it.
    #[error("{}: places `{tensor}` in `{shard}`, which does not hold it", index.display())]
    NotInShard {
        /// The index file.
        index: PathBuf,
        /// The file it names.
        shard: String,
        /// The tensor that is not in it.
        tensor: String,
    },
    /// The config describes a model of a family that is not known.
    #[error("unknown architecture: {found}; known: {known}")]
    UnknownArchitecture {
        /// What the config says of itself.
        found: String,
        /// The families that are known.
        known: &'static str,
    },
    /// The config is not what its family's configs are.
    #[error("config.json: {field}: {problem}")]
    Config {
        /// The field at fault.
        field: String,
        /// What is wrong with its value.
        problem: String,
    },
    /// The checkpoint lacks a tensor that the model needs.
    #[error("tensor `{name}` is missing, expected shape {expected:?}")]
    MissingTensor {
        /// The tensor.
        name: String,
        /// The shape the config implies.
        expected: Vec<usize>,
    },
    /// A tensor has another shape than the config implies.
    #[error("tensor `{name}` has shape {found:?}, expected {expected:?}")]
    WrongShape {
        /// The tensor.
        name: String,
        /// The shape the config implies.
        expected: Vec<usize>,
        /// The shape in the checkpoint.
        found: Vec<usize>,
    },
    /// A weight is stored in a type that weights cannot have.
    #[error("tensor `{name}` is stored as {found}, expected F32, BF16 or F16")]
    WrongDtype {
        /// The tensor.
        name: String,
        /// The type in the checkpoint.
        found: &'static str,
    },
    /// A tensor's bytes are not those that the manifest was made from.
    #[error("tensor `{name}` does not match the manifest: blake3 is {found}, expected {expected}")]
    WrongContent {
        /// The tensor.
        name: String,
        /// The manifest's hash.
        expected: String,
        /// The hash of what was read.
        found: String,
    },
    /// A tensor's elements cannot be read, or not all of them.
    #[error("tensor `{name}` cannot be read from {}: {source}", path.display())]
    Unreadable {
        /// The tensor.
        name: String,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A manifest does not fit its checkpoint.
    #[error("{}: {what}", path.display())]
    Manifest {
        /// The manifest file.
        path: PathBuf,
        /// What differs.
        what: String,
    },
    /// The place to write to holds something already.
    #[error("{}: exists already and is not empty", path.display())]
    Occupied {
        /// The place.
        path: PathBuf,
    },
    /// Another process converts to the same place.
    #[error("{}: another conversion to this place is running", path.display())]
    Busy {
        /// The place.
        path: PathBuf,
    },
    /// A range of layers is empty or goes past the model's end.
    #[error("layers {start}..{end} are not a range within the model's {layers} layers")]
    WrongLayers {
        /// First layer.
        start: usize,
        /// One past the last layer.
        end: usize,
        /// Layers of the model.
        layers: usize,
    },
    /// A number of stages that the layers cannot be split into.
    #[error("{layers} layers cannot be split into {stages} stages")]
    WrongStages {
        /// Stages asked for.
        stages: usize,
        /// Layers of the model.
        layers: usize,
    },
    /// Not enough memory for the weights, the buffers and one block of KV.
    #[error(
        "layers {}..{} do not fit: {} of weights, {} of buffers and {} for the least KV are needed, {} are given{}",
        layers.start, layers.end, bytes(*weights), bytes(*buffers), bytes(*least_kv), bytes(*memory),
        enough.map(|devices| format!("; {devices} such devices are enough")).unwrap_or_default()
    )]
    DoesNotFit {
        /// The stage's layers.
        layers: Range<usize>,
        /// Bytes of the weights.
        weights: u64,
        /// Bytes of activations, logits and tables.
        buffers: u64,
        /// Bytes of one block of KV.
        least_kv: u64,
        /// Bytes given.
        memory: u64,
        /// How many devices of that memory would do, where that was looked for and is possible.
        enough: Option<usize>,
    },
    /// A batch that this stage cannot run.
    #[error("refused batch: {0}")]
    Batch(BatchError),
    /// The caller's callback asked to stop.
    #[error("stopped at layer {layer}")]
    Stopped {
        /// The layer after which it was asked.
        layer: usize,
    },
    /// Whoever watched the loading ended it.
    #[error("loading was stopped")]
    LoadStopped,
    /// An operation on the device was refused.
    #[error(transparent)]
    Tensor(TensorError),
}

impl From<TensorError> for ModelError {
    /// What a reader of weights refused comes back as it was.
    fn from(error: TensorError) -> Self {
        match error {
            TensorError::Elements { source } => match source.downcast() {
                Ok(refused) => *refused,
                Err(source) => Self::Tensor(TensorError::Elements { source }),
            },
            error => Self::Tensor(error),
        }
    }
}

/// Why a batch was refused; nothing has been computed then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// There are no rows.
    #[error("it has no rows")]
    Empty,
    /// More rows than there are buffers for.
    #[error("{rows} rows, at most {most} are possible")]
    TooManyRows {
        /// Rows of the batch.
        rows: usize,
        /// Rows that fit.
        most: usize,
    },
    /// More evidence rows than there are buffers for.
    #[error("{rows} evidence rows, at most {most} are possible")]
    TooMuchEvidence {
        /// Evidence rows of the batch.
        rows: usize,
        /// Rows that fit.
        most: usize,
    },
    /// A token id that the model does not have.
    #[error("span {span}: token id {id} is not below {vocab}")]
    TokenId {
        /// Index of the span.
        span: usize,
        /// The id.
        id: u32,
        /// Ids of the model.
        vocab: usize,
    },
    /// A position past the longest sequence that was prepared for.
    #[error("span {span}: position {position} is not below the context of {context}")]
    Position {
        /// Index of the span.
        span: usize,
        /// The last position of the span, or of its prompt.
        position: usize,
        /// Positions of the longest sequence.
        context: usize,
    },
    /// A block table too short for the span's last position.
    #[error("span {span}: {blocks} blocks for {positions} positions")]
    BlockTable {
        /// Index of the span.
        span: usize,
        /// Blocks in its table.
        blocks: usize,
        /// Positions up to its end.
        positions: usize,
    },
    /// More entries of block tables than there is memory for.
    #[error("block tables of {blocks} entries in all, at most {most} are possible")]
    TooManyBlocks {
        /// Entries of all spans.
        blocks: usize,
        /// Entries that fit.
        most: usize,
    },
    /// A block that the pool does not have.
    #[error("span {span}: block {block} is not below {blocks}")]
    Block {
        /// Index of the span.
        span: usize,
        /// The block.
        block: u32,
        /// Blocks in the pool.
        blocks: usize,
    },
    /// Evidence of a row that is not in the span, or not in ascending order.
    #[error("span {span}: evidence position {position} is not in it, or out of order")]
    Evidence {
        /// Index of the span.
        span: usize,
        /// The position.
        position: usize,
    },
    /// Activations of another size than the batch implies.
    #[error("{found} bytes of activations, expected {expected}")]
    Input {
        /// Bytes given.
        found: usize,
        /// Bytes of all rows.
        expected: usize,
    },
    /// Activations where token ids are wanted, or the other way round.
    #[error("the first stage takes token ids, all others activations")]
    InputKind,
}

impl ModelError {
    pub(crate) fn io(path: &Path, source: io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }

    pub(crate) fn malformed(path: &Path, what: impl Into<String>) -> Self {
        Self::Malformed { path: path.to_owned(), what: what.into() }
    }

    pub(crate) fn config(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Config { field: field.into(), problem: problem.into() }
    }
}

impl From<BatchError> for ModelError {
    fn from(error: BatchError) -> Self {
        Self::Batch(error)
    }
}

/// A size as people read it: three digits and a binary unit.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut size = count as f64 / 1024.0;
    let mut unit = UNITS[0];
    for larger in &UNITS[1..] {
        if size < 1000.0 {
            break;
        }
        size /= 1024.0;
        unit = larger;
    }
    format!("{size:.2} {unit}")
}
