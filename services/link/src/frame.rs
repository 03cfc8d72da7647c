//! A step's bytes to frames and back. Pure: values in, values out.

use asterism_process::channel::FRAME_PAYLOAD_LIMIT;
use asterism_proto::shard::v1::Frame;
use bytes::{Bytes, BytesMut};

use crate::{FrameError, StepBytes};

/// What an edge lets through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// The edge's epoch.
    pub epoch: u64,
    /// Bytes of the largest step.
    pub largest: u64,
}

/// Cuts a step into frames, without copying it.
pub fn cut(epoch: u64, step: StepBytes) -> impl Iterator<Item = Frame> {
    let StepBytes { step, bytes } = step;
    let total = bytes.len();
    (0..total).step_by(FRAME_PAYLOAD_LIMIT).map(move |offset| Frame {
        epoch,
        step,
        total_bytes: total as u64,
        offset: offset as u64,
        payload: bytes.slice(offset..total.min(offset + FRAME_PAYLOAD_LIMIT)),
    })
}

/// Puts the frames of an edge together, in the order in which they must come. Holds at most one step that is not whole yet,
/// in at most [`Bounds::largest`] bytes.
#[derive(Debug)]
pub struct Assembler {
    bounds: Bounds,
    /// The latest step of which anything came.
    latest: u64,
    partial: Option<Partial>,
}

/// A step of which some frames are there.
#[derive(Debug)]
struct Partial {
    total: u64,
    bytes: BytesMut,
}

impl Assembler {
    /// Of an edge of which nothing came yet.
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, latest: 0, partial: None }
    }

    /// Whether `frame` would begin a step, for which the peer needs a credit.
    pub fn begins_with(&self, frame: &Frame) -> bool {
        self.partial.is_none() && frame.step > self.latest
    }

    /// Bytes held of a step that is not whole.
    pub fn held(&self) -> usize {
        self.partial.as_ref().map_or(0, |partial| partial.bytes.capacity())
    }

    /// Takes one frame in, and gives its step once that is whole.
    ///
    /// # Errors
    /// The frame is not the one that was due; the assembler is as before.
    pub fn push(&mut self, frame: Frame) -> Result<Option<StepBytes>, FrameError> {
        let Frame { epoch, step, total_bytes: total, offset, payload } = frame;
        if epoch != self.bounds.epoch {
            return Err(FrameError::Epoch { found: epoch, epoch: self.bounds.epoch });
        }
        let found = payload.len() as u64;
        match &mut self.partial {
            None => {
                self.check_first(step, total, offset)?;
                if found == 0 || found > total {
                    return Err(FrameError::Payload { step, offset, found, total });
                }
                self.latest = step;
                if found == total {
                    return Ok(Some(StepBytes { step, bytes: payload }));
                }
                // Reserved whole: the largest step's buffer is what a credit stands for.
                let mut bytes = BytesMut::with_capacity(usize::try_from(total).unwrap_or(usize::MAX));
                bytes.extend_from_slice(&payload);
                self.partial = Some(Partial { total, bytes });
                Ok(None)
            }
            Some(partial) => {
                if step != self.latest {
                    return Err(FrameError::Order { found: step, expected: self.latest });
                }
                if total != partial.total {
                    return Err(FrameError::TotalChanged { step, found: total, total: partial.total });
                }
                let expected = partial.bytes.len() as u64;
                if offset != expected {
                    return Err(FrameError::Offset { step, found: offset, expected });
                }
                if found == 0 || found > total - expected {
                    return Err(FrameError::Payload { step, offset, found, total });
                }
                partial.bytes.extend_from_slice(&payload);
                if expected + found < total {
                    return Ok(None);
                }
                let bytes = self.partial.take().map_or_else(Bytes::new, |partial| partial.bytes.freeze());
                Ok(Some(StepBytes { step, bytes }))
            }
        }
    }

    /// Whether a step may begin so.
    fn check_first(&self, step: u64, total: u64, offset: u64) -> Result<(), FrameError> {
        if step <= self.latest {
            return Err(FrameError::Order { found: step, expected: self.latest.saturating_add(1) });
        }
        let largest = self.bounds.largest;
        if total == 0 || total > largest {
            return Err(FrameError::Total { step, total, largest });
        }
        if offset != 0 {
            return Err(FrameError::Offset { step, found: offset, expected: 0 });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
