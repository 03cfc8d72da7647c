//! What can be wrong with a call.

use std::io;

use thiserror::Error;

use crate::{Compute, Dtype, KvType};

/// An operation that was refused, or a device that could not be had.
#[derive(Debug, Error)]
pub enum TensorError {
    /// A size that does not fit the other operands.
    #[error("{op}: {what} is {found}, must be {expected}")]
    Shape {
        /// The operation.
        op: &'static str,
        /// Which size.
        what: &'static str,
        /// What the other operands ask for.
        expected: usize,
        /// What it is.
        found: usize,
    },
    /// An operand of another element type than the operation needs.
    #[error("{op}: {what} is {found}, must be {expected}")]
    Type {
        /// The operation.
        op: &'static str,
        /// Which operand.
        what: &'static str,
        /// The type needed.
        expected: Dtype,
        /// The type found.
        found: Dtype,
    },
    /// An index (token id, row, block, position, table, layer) beyond its limit.
    #[error("{op}: {what} {index} is not below {limit}")]
    OutOfRange {
        /// The operation.
        op: &'static str,
        /// What is counted.
        what: &'static str,
        /// The index given.
        index: usize,
        /// The first index that does not exist.
        limit: usize,
    },
    /// More rows than the tensor has memory for.
    #[error("a tensor of {capacity} rows cannot hold {rows}")]
    Capacity {
        /// Rows asked for.
        rows: usize,
        /// Rows there is memory for.
        capacity: usize,
    },
    /// A setting that no operation accepts.
    #[error("{op}: {what} must be {rule}")]
    Setting {
        /// The operation.
        op: &'static str,
        /// Which setting.
        what: &'static str,
        /// What it must be.
        rule: &'static str,
    },
    /// A weight tensor whose bytes do not fit its shape.
    #[error("weights of {inputs} inputs and {outputs} outputs in {dtype} cannot be {got} bytes")]
    WeightBytes {
        /// Input size K.
        inputs: usize,
        /// Output size N.
        outputs: usize,
        /// Its element type.
        dtype: Dtype,
        /// The bytes given.
        got: usize,
    },
    /// A selected column that a weight tensor does not have.
    #[error("column {column} of a weight tensor with {columns}")]
    Column {
        /// The column.
        column: u32,
        /// How many there are.
        columns: usize,
    },
    /// A bias of another length than the matrix has columns.
    #[error("a bias of {got} values for {columns} columns")]
    Bias {
        /// Output size N.
        columns: usize,
        /// The values given.
        got: usize,
    },
    /// Elements of weights that were to be sent to a card could not be read.
    #[error(transparent)]
    Elements {
        /// Why not, in the words of whoever reads them.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// More weights for a sending that an error has ended already; that error is what comes out of it.
    #[error("the sending of weights has ended")]
    SendingEnded,
    /// Keys and values in a type that no kernel of the device takes beside these activations.
    #[error("{device} has no keys and values in {kv_type} under {compute} activations")]
    KvType {
        /// Which kind of device.
        device: &'static str,
        /// The type of keys and values.
        kv_type: KvType,
        /// The type of activations.
        compute: Compute,
    },
    /// Values of different devices, or of another than the operation's.
    #[error("a value lives on another device than the operation runs on")]
    OtherDevice,
    /// A library that a card needs cannot be opened.
    #[error("{library} cannot be opened: {remedy}")]
    Library {
        /// Which.
        library: &'static str,
        /// What helps.
        remedy: &'static str,
    },
    /// A library that a card needs is too old, for us or for the others.
    #[error("{library} is of version {}.{}, {}.{} or later is needed: {remedy}", .found.0, .found.1, .needed.0, .needed.1)]
    OldLibrary {
        /// Which.
        library: &'static str,
        /// Its version; of the driver: the CUDA version that it supports.
        found: (u32, u32),
        /// The oldest that would do.
        needed: (u32, u32),
        /// What helps.
        remedy: &'static str,
    },
    /// The driver has no such card.
    #[error("there is no card cuda:{ordinal}, the driver has {count}")]
    NoCard {
        /// The card asked for.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },
    /// A card that lacks instructions which every kernel uses.
    #[error("{name} has compute capability {}.{}, 8.0 or later is needed", .capability.0, .capability.1)]
    OldCard {
        /// Its name.
        name: String,
        /// Major and minor.
        capability: (u32, u32),
    },
    /// Kernels that do not compile or load.
    #[error("the kernels of {theme} cannot be used: {log}")]
    Kernel {
        /// Their file.
        theme: &'static str,
        /// The compiler's words.
        log: String,
    },
    /// The driver or a library refused a call, or work on the card failed.
    #[error("{what}: {message}")]
    Cuda {
        /// The call.
        what: &'static str,
        /// Its answer.
        message: String,
    },
    /// All buffers of an edge are in use.
    #[error("all {buffers} buffers of an edge are in use")]
    NoBuffer {
        /// How many there are.
        buffers: usize,
    },
    /// An instruction set was asked for that this processor lacks.
    #[error("this processor has no {isa} instructions")]
    IsaUnavailable {
        /// Its name.
        isa: &'static str,
    },
    /// The operating system refused memory.
    #[error("cannot allocate {bytes} bytes")]
    Memory {
        /// The size asked for.
        bytes: usize,
        /// Its answer.
        source: io::Error,
    },
    /// The operating system refused threads.
    #[error("cannot start {threads} threads")]
    Threads {
        /// How many were asked for.
        threads: usize,
        /// Its answer.
        source: io::Error,
    },
}

impl TensorError {
    /// Whether a card has failed: nothing that it was given can be relied on, nor anything that it will be given.
    pub fn is_device_failure(&self) -> bool {
        matches!(self, TensorError::Cuda { .. })
    }
}

/// Refuses a size that differs.
pub(crate) fn check_eq(
    op: &'static str,
    what: &'static str,
    found: usize,
    expected: usize,
) -> Result<(), TensorError> {
    if found == expected { Ok(()) } else { Err(TensorError::Shape { op, what, expected, found }) }
}

/// Refuses an index that is not below `limit`.
pub(crate) fn check_below(
    op: &'static str,
    what: &'static str,
    index: usize,
    limit: usize,
) -> Result<(), TensorError> {
    if index < limit { Ok(()) } else { Err(TensorError::OutOfRange { op, what, index, limit }) }
}

/// Refuses another element type.
pub(crate) fn check_type(
    op: &'static str,
    what: &'static str,
    found: Dtype,
    expected: Dtype,
) -> Result<(), TensorError> {
    if found == expected { Ok(()) } else { Err(TensorError::Type { op, what, expected, found }) }
}
