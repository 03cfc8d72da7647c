//! The buffers between the stage's device and its edges.
//!
//! A step's input may be staged before its turn: on a card it then comes up while the step before computes. A step's output
//! gets a place before the step begins, and keeps it until the link has sent it; there are as many places as an edge has
//! credits, and those of the steps under way.

use std::sync::Arc;

use asterism_link::StepBytes;
use asterism_model::Stage;
use asterism_proto::{Failure, Reason};
use asterism_tensor::{Edge, EdgeBuffer, EdgeBytes, EdgeRoom, Staged, TensorError};
use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::step::StepError;
use crate::timeline;

/// Steps that the device may have been given and that are not reported.
pub const MOST_UNDER_WAY: usize = 2;
/// The step's at work, and the next one's.
const INPUTS: usize = 2;

/// See the module.
#[derive(Debug)]
pub struct Edges {
    edge: Edge,
    row_bytes: usize,
    places: Option<Arc<Semaphore>>,
}

/// The input of a step, on its way to the device.
#[derive(Debug)]
pub struct StagedStep {
    /// The step it belongs to.
    pub step: u64,
    /// Its rows.
    pub rows: Staged,
}

/// Room for a step's output until it is sent.
#[derive(Debug)]
pub struct Place {
    _permit: OwnedSemaphorePermit,
}

/// Bytes in their place.
#[derive(Debug)]
struct Placed {
    // Gives its buffer back before its place.
    bytes: EdgeBytes,
    _place: Place,
}

impl Edges {
    /// Buffers for the steps of `stage`, of which a pipeline has so many in flight.
    ///
    /// # Errors
    /// There is not enough memory.
    pub fn new(stage: &Stage, steps_in_flight: u32) -> Result<Self, TensorError> {
        let info = stage.info();
        let places = steps_in_flight as usize + MOST_UNDER_WAY;
        let outgoing = if info.is_last() { 0 } else { places };
        let room = EdgeRoom {
            rows: info.max_rows,
            cols: info.spec.hidden,
            dtype: info.compute.dtype(),
            outgoing,
            incoming: if info.is_first() { 0 } else { INPUTS },
            timed: timeline::is_told(),
        };
        let edge = stage.device().edge(room)?;
        let places = (outgoing > 0).then(|| Arc::new(Semaphore::new(outgoing)));
        Ok(Self { edge, row_bytes: info.row_bytes(), places })
    }

    /// Whether [`Edges::place`] would not wait.
    pub fn has_place(&self) -> bool {
        self.places.as_ref().is_none_or(|places| places.available_permits() > 0)
    }

    /// A place for a step's output, as soon as there is one; `None` on the last stage.
    pub async fn place(&self) -> Option<Place> {
        let places = Arc::clone(self.places.as_ref()?);
        // Nobody closes it.
        places.acquire_owned().await.ok().map(|permit| Place { _permit: permit })
    }

    /// Lets a step's input come up to the device.
    ///
    /// # Errors
    /// It is not made of rows; the device has failed.
    pub fn stage(&mut self, input: &StepBytes) -> Result<StagedStep, StepError> {
        let StepBytes { step, bytes } = input;
        if bytes.len() % self.row_bytes.max(1) != 0 {
            let message = format!("activations of step {step} are {} bytes, not whole rows", bytes.len());
            return Err(Failure::new(Reason::InvalidArgument, message).into());
        }
        Ok(StagedStep { step: *step, rows: self.edge.stage(bytes)? })
    }

    /// A step begins, with this input unless the stage is the first.
    ///
    /// # Errors
    /// The device has failed.
    pub fn begin(&mut self, input: Option<&mut StagedStep>) -> Result<(), TensorError> {
        self.edge.begin(input.map(|input| &mut input.rows))
    }

    /// Lets the step's output go down to its place; without one, only marks that the step is done.
    ///
    /// # Errors
    /// The device has failed.
    pub fn read(&mut self, stage: &Stage, place: Option<&Place>) -> Result<EdgeBuffer, TensorError> {
        match place {
            Some(_) => self.edge.read(stage.hidden()),
            None => self.edge.mark(),
        }
    }
}

impl Place {
    /// The output in this place, to be sent.
    pub fn hold(self, bytes: EdgeBytes) -> Bytes {
        Bytes::from_owner(Placed { bytes, _place: self })
    }
}

impl AsRef<[u8]> for Placed {
    fn as_ref(&self) -> &[u8] {
        self.bytes.as_ref()
    }
}
