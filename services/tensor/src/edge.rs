//! Activations between a device and a link: buffers that the host reads and fills while the device computes.
//!
//! On a card a step's rows come in and go out in three stages, each on a stream of its own, ordered by events alone: up from
//! page-locked memory to a place on the card, from there into the step's tensor and its result into another place, down from
//! there to page-locked memory. So the next step's rows come up and the last one's go down while a step computes. On the CPU
//! all of that is copies within its memory, done at once.
//!
//! Buffers are made once. One that is handed out comes back when its last owner drops it, in whichever thread.

use std::ops::Range;
use std::sync::Arc;

use crate::cuda::edge::{CardBuffer, CardEdge, CardStaged};
use crate::error::{check_below, check_eq, check_type};
use crate::{Device, Dtype, Tensor, TensorError};

/// What an [`Edge`] has memory for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EdgeRoom {
    /// The most rows of a step.
    pub rows: usize,
    /// Elements of a row.
    pub cols: usize,
    /// Their type, f32 or bf16.
    pub dtype: Dtype,
    /// Buffers of steps that go out; a link holds some of them.
    pub outgoing: usize,
    /// Buffers of steps that come in; one of them is the step's at work.
    pub incoming: usize,
    /// Whether a card's times are kept, for [`EdgeBuffer::times`].
    pub timed: bool,
}

/// A device's side of the links to its neighbours.
#[derive(Debug)]
pub struct Edge {
    room: EdgeRoom,
    row_bytes: usize,
    side: Side,
}

#[derive(Debug)]
enum Side {
    Host { outgoing: Pool<Vec<u8>>, incoming: Pool<Vec<u8>> },
    Card(Box<CardEdge>),
}

/// A step's rows that came in, on their way to the device or there already.
#[derive(Debug)]
pub struct Staged {
    bytes: usize,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Host(Arc<Vec<u8>>),
    Card(CardStaged),
}

/// What a step gives out, on its way to the host or there already.
#[derive(Debug)]
pub struct EdgeBuffer {
    side: BufferSide,
}

#[derive(Debug)]
enum BufferSide {
    Host(Arc<Vec<u8>>),
    Card(CardBuffer),
}

/// Rows that went out, little-endian: `AsRef<[u8]>`, to be sent from any thread. Its memory goes back to its [`Edge`] on drop.
#[derive(Debug)]
pub struct EdgeBytes {
    side: BufferSide,
}

/// When a card did the parts of a step: milliseconds since its edge was made, by the card's clock.
#[derive(Clone, Debug, PartialEq)]
pub struct StepTimes {
    /// Its rows came up.
    pub upload: Option<Range<f64>>,
    /// Its operations.
    pub compute: Range<f64>,
    /// Its result went down.
    pub download: Option<Range<f64>>,
}

/// Values that are handed out in turn, and come back when nobody else has them.
#[derive(Debug)]
pub(crate) struct Pool<T> {
    slots: Vec<Arc<T>>,
    next: usize,
}

impl Device {
    /// Memory for what comes from and goes to other stages.
    pub fn edge(&self, room: EdgeRoom) -> Result<Edge, TensorError> {
        let bytes = Tensor::bytes(room.dtype, room.rows, room.cols)?;
        let side = match self {
            Device::Cpu(_) => {
                // Pages that no step has touched cost nothing.
                let pool = |count| Pool::new(count, || Ok(Vec::with_capacity(bytes)));
                Side::Host { outgoing: pool(room.outgoing)?, incoming: pool(room.incoming)? }
            }
            Device::Cuda(cuda) => Side::Card(Box::new(CardEdge::new(cuda.card(), room, bytes)?)),
        };
        Ok(Edge { room, row_bytes: room.cols * room.dtype.bytes(), side })
    }
}

// === impl Edge ===

impl Edge {
    /// Takes in a step's rows, `[rows, cols]`, row-major, little-endian, and lets them come up to the device beside what it
    /// does. `bytes` is free again when this returns.
    ///
    /// # Errors
    /// They are not whole rows, or too many; as many steps are staged as there are buffers.
    pub fn stage(&mut self, bytes: &[u8]) -> Result<Staged, TensorError> {
        let op = "stage";
        check_eq(op, "bytes beyond whole rows", bytes.len() % self.row_bytes.max(1), 0)?;
        check_below(op, "the number of rows", bytes.len() / self.row_bytes.max(1), self.room.rows + 1)?;
        let place = match &mut self.side {
            Side::Host { incoming, .. } => Place::Host(incoming.take(|buffer| {
                buffer.clear();
                buffer.extend_from_slice(bytes);
                Ok(())
            })?),
            Side::Card(card) => Place::Card(card.stage(bytes)?),
        };
        Ok(Staged { bytes: bytes.len(), place })
    }

    /// A step begins, with these rows if it is not the first stage's. Only tells the clock, where there is one.
    pub fn begin(&mut self, staged: Option<&mut Staged>) -> Result<(), TensorError> {
        let Side::Card(card) = &mut self.side else { return Ok(()) };
        let staged = staged.and_then(|staged| match &mut staged.place {
            Place::Host(_) => None,
            Place::Card(place) => Some(place),
        });
        card.begin(staged)
    }

    /// Lets the rows of `tensor` go down to the host, as they are after all operations so far. Later operations may change the
    /// tensor.
    ///
    /// # Errors
    /// The tensor is of another shape or device; all buffers are held.
    pub fn read(&mut self, tensor: &Tensor) -> Result<EdgeBuffer, TensorError> {
        let op = "edge";
        check_type(op, "the tensor", tensor.dtype(), self.room.dtype)?;
        check_eq(op, "the tensor's columns", tensor.cols(), self.room.cols)?;
        check_below(op, "the number of rows", tensor.rows(), self.room.rows + 1)?;
        let side = match &mut self.side {
            Side::Host { outgoing, .. } => BufferSide::Host(outgoing.take(|buffer| {
                buffer.clear();
                tensor.read_bytes(buffer)
            })?),
            Side::Card(card) => {
                BufferSide::Card(card.read(tensor.address()?, tensor.rows() * self.row_bytes)?)
            }
        };
        Ok(EdgeBuffer { side })
    }

    /// A buffer of no rows: it is there once all operations so far are done.
    pub fn mark(&mut self) -> Result<EdgeBuffer, TensorError> {
        let side = match &mut self.side {
            Side::Host { .. } => BufferSide::Host(Arc::default()),
            Side::Card(card) => BufferSide::Card(card.mark()?),
        };
        Ok(EdgeBuffer { side })
    }
}

// === impl Staged ===

impl Staged {
    /// How many bytes came in.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Makes them the rows of `tensor`, before all later operations on it.
    ///
    /// # Errors
    /// The tensor has other rows or less room, or is of another device.
    pub fn write_to(&self, tensor: &mut Tensor) -> Result<(), TensorError> {
        match &self.place {
            Place::Host(bytes) => tensor.write_bytes(bytes),
            Place::Card(place) => {
                let row = tensor.row_bytes().max(1);
                check_eq("write", "bytes beyond whole rows", self.bytes % row, 0)?;
                tensor.set_rows(self.bytes / row)?;
                place.write_to(tensor.address()?)
            }
        }
    }
}

// === impl EdgeBuffer ===

impl EdgeBuffer {
    /// Whether it is there; never waits.
    ///
    /// # Errors
    /// The card has failed.
    pub fn is_done(&self) -> Result<bool, TensorError> {
        match &self.side {
            BufferSide::Host(_) => Ok(true),
            BufferSide::Card(buffer) => buffer.is_done(),
        }
    }

    /// Waits until it is there.
    ///
    /// # Errors
    /// The card has failed.
    pub fn wait(self) -> Result<EdgeBytes, TensorError> {
        if let BufferSide::Card(buffer) = &self.side {
            buffer.wait()?;
        }
        Ok(EdgeBytes { side: self.side })
    }
}

// === impl EdgeBytes ===

impl EdgeBytes {
    /// When the card did the parts of the step, if its edge keeps times.
    ///
    /// # Errors
    /// The card has failed.
    pub fn times(&self) -> Result<Option<StepTimes>, TensorError> {
        match &self.side {
            BufferSide::Host(_) => Ok(None),
            BufferSide::Card(buffer) => buffer.times(),
        }
    }
}

impl AsRef<[u8]> for EdgeBytes {
    fn as_ref(&self) -> &[u8] {
        match &self.side {
            BufferSide::Host(bytes) => bytes,
            BufferSide::Card(buffer) => buffer.bytes(),
        }
    }
}

// === impl Pool ===

impl<T> Pool<T> {
    /// `count` values.
    pub fn new(count: usize, make: impl Fn() -> Result<T, TensorError>) -> Result<Pool<T>, TensorError> {
        let slots = (0..count).map(|_| make().map(Arc::new)).collect::<Result<_, _>>()?;
        Ok(Pool { slots, next: 0 })
    }

    /// Prepares the value that was handed out longest ago among those that are back, and hands it out.
    pub fn take(
        &mut self,
        prepare: impl FnOnce(&mut T) -> Result<(), TensorError>,
    ) -> Result<Arc<T>, TensorError> {
        let count = self.slots.len();
        for turn in 0..count {
            let index = (self.next + turn) % count;
            let slot = &mut self.slots[index];
            if let Some(value) = Arc::get_mut(slot) {
                prepare(value)?;
                self.next = index + 1;
                return Ok(Arc::clone(slot));
            }
        }
        Err(TensorError::NoBuffer { buffers: count })
    }
}
