//! The card's side of an edge: page-locked buffers, places on the card, and the events that order their copies.
#![allow(unsafe_code, reason = "copies between the card's memory and the host's")]

mod timeline;

use std::sync::Arc;

use crate::TensorError;
use crate::cuda::card::Card;
use crate::cuda::memory::{DeviceMemory, PinnedMemory};
use crate::cuda::stream::Event;
use crate::edge::{EdgeRoom, Pool, StepTimes};

use self::timeline::{Interval, StepMarks, Timeline};

/// Results that may wait on the card for their way down: one goes down while the next is put there.
const SHADOWS: usize = 2;
/// Marks in use at once: of the steps that the card was given and that nobody has waited for.
const MARKS: usize = 4;
/// The host fills a buffer in pieces, so that the first come up while it fills the next.
const PIECE: usize = 2 << 20;

/// See [`crate::Edge`]. Rows come up on the stream of copies from the host and go down on that of the link, so that a result
/// that waits for its operations holds no upload up.
#[derive(Debug)]
pub struct CardEdge {
    card: Arc<Card>,
    incoming: Pool<Incoming>,
    outgoing: Pool<Outgoing>,
    shadows: Vec<Shadow>,
    next_shadow: usize,
    marks: Pool<Event>,
    timeline: Option<Arc<Timeline>>,
    /// The step at work, where times are kept.
    begun: Option<StepMarks>,
}

/// A buffer of the host and a place of the same size on the card.
#[derive(Debug)]
struct Incoming {
    pinned: PinnedMemory,
    place: DeviceMemory,
    bytes: usize,
    /// The place holds the rows.
    uploaded: Event,
    /// The place is not read any more.
    taken: Event,
}

/// A buffer of the host.
#[derive(Debug)]
struct Outgoing {
    pinned: PinnedMemory,
    bytes: usize,
    /// The buffer holds the rows.
    downloaded: Event,
}

/// A result as it was when its step ended.
#[derive(Debug)]
struct Shadow {
    place: DeviceMemory,
    /// The place holds the rows.
    filled: Event,
    /// The place is not read any more.
    read: Event,
}

/// See [`crate::Staged`].
#[derive(Debug)]
pub struct CardStaged {
    card: Arc<Card>,
    buffer: Arc<Incoming>,
    upload: Option<Interval>,
}

/// See [`crate::EdgeBuffer`].
#[derive(Debug)]
pub struct CardBuffer {
    rows: Rows,
    marks: Option<Box<StepMarks>>,
}

#[derive(Debug)]
enum Rows {
    Some(Arc<Outgoing>),
    None(Arc<Event>),
}

impl CardEdge {
    /// Takes all memory; a step has up to `bytes` bytes.
    pub fn new(card: &Arc<Card>, room: EdgeRoom, bytes: usize) -> Result<CardEdge, TensorError> {
        let context = card.context();
        let incoming = || -> Result<Incoming, TensorError> {
            Ok(Incoming {
                pinned: PinnedMemory::zeroed(context, bytes)?,
                place: DeviceMemory::unwritten(context, bytes)?,
                bytes: 0,
                uploaded: Event::new(context)?,
                taken: Event::new(context)?,
            })
        };
        let outgoing = || -> Result<Outgoing, TensorError> {
            let pinned = PinnedMemory::zeroed(context, bytes)?;
            Ok(Outgoing { pinned, bytes: 0, downloaded: Event::new(context)? })
        };
        let shadow = |_| -> Result<Shadow, TensorError> {
            let place = DeviceMemory::unwritten(context, bytes)?;
            Ok(Shadow { place, filled: Event::new(context)?, read: Event::new(context)? })
        };
        let shadows = room.outgoing.min(SHADOWS);
        Ok(CardEdge {
            card: Arc::clone(card),
            incoming: Pool::new(room.incoming, incoming)?,
            outgoing: Pool::new(room.outgoing, outgoing)?,
            shadows: (0..shadows).map(shadow).collect::<Result<_, _>>()?,
            next_shadow: 0,
            marks: Pool::new(MARKS, || Event::new(context))?,
            timeline: if room.timed { Some(Timeline::new(&card.compute)?) } else { None },
            begun: None,
        })
    }

    /// See [`crate::Edge::stage`].
    pub fn stage(&mut self, bytes: &[u8]) -> Result<CardStaged, TensorError> {
        let Self { card, incoming, timeline, .. } = self;
        let copies = &card.copies;
        let mut upload = None;
        let buffer = incoming.take(|buffer| {
            let Incoming { pinned, place, uploaded, taken, .. } = buffer;
            // Long done, unless this buffer's last step was dropped as soon as it was staged.
            if !uploaded.is_done()? {
                uploaded.wait()?;
            }
            copies.wait(taken)?;
            upload = timeline.as_ref().map(|_| Interval::begin(copies)).transpose()?;
            let mut address = place.address();
            let area = pinned.as_mut_slice::<u8>();
            for (piece, area) in bytes.chunks(PIECE).zip(area.chunks_mut(PIECE)) {
                let area = &mut area[..piece.len()];
                area.copy_from_slice(piece);
                // SAFETY: place and buffer have the same size. The buffer stays as it is until `uploaded`, by the wait above,
                // and freeing it waits for the card.
                unsafe { copies.upload(address, area)? };
                address += piece.len() as u64;
            }
            // Before the event that others wait for, so that it is done when they are.
            if let Some(upload) = &upload {
                upload.end(copies)?;
            }
            uploaded.record(copies)?;
            buffer.bytes = bytes.len();
            Ok(())
        })?;
        Ok(CardStaged { card: Arc::clone(card), buffer, upload })
    }

    /// See [`crate::Edge::begin`].
    pub fn begin(&mut self, staged: Option<&mut CardStaged>) -> Result<(), TensorError> {
        if let Some(timeline) = &self.timeline {
            let upload = staged.and_then(|staged| staged.upload.take());
            self.begun = Some(StepMarks::begin(timeline, &self.card.compute, upload)?);
        }
        Ok(())
    }

    /// See [`crate::Edge::read`]: `bytes` bytes at `address`.
    pub fn read(&mut self, address: u64, bytes: usize) -> Result<CardBuffer, TensorError> {
        let Self { card, outgoing, shadows, next_shadow, begun, .. } = self;
        let (compute, link) = (&card.compute, &card.link);
        let count = shadows.len();
        let Some(shadow) = shadows.get_mut(*next_shadow) else {
            return Err(TensorError::NoBuffer { buffers: 0 });
        };
        let mut marks = begun.take();
        let buffer = outgoing.take(|buffer| {
            if let Some(marks) = &mut marks {
                marks.computed(compute)?;
            }
            compute.wait(&shadow.read)?;
            if bytes > 0 {
                // SAFETY: the tensor has so many bytes, and the place has room for the largest step; they are different areas.
                unsafe { compute.copy(shadow.place.address(), address, bytes)? };
            }
            shadow.filled.record(compute)?;
            link.wait(&shadow.filled)?;
            if let Some(marks) = &mut marks {
                marks.download(link)?;
            }
            let Outgoing { pinned, downloaded, .. } = buffer;
            if bytes > 0 {
                // SAFETY: as above. Nobody else has the buffer, and its rows are shown after `downloaded` only; freeing it
                // waits for the card.
                unsafe { link.download(&mut pinned.as_mut_slice::<u8>()[..bytes], shadow.place.address())? };
            }
            shadow.read.record(link)?;
            if let Some(marks) = &mut marks {
                marks.downloaded(link)?;
            }
            downloaded.record(link)?;
            buffer.bytes = bytes;
            Ok(())
        })?;
        *next_shadow = (*next_shadow + 1) % count;
        Ok(CardBuffer { rows: Rows::Some(buffer), marks: marks.map(Box::new) })
    }

    /// See [`crate::Edge::mark`].
    pub fn mark(&mut self) -> Result<CardBuffer, TensorError> {
        let compute = &self.card.compute;
        let mut marks = self.begun.take();
        if let Some(marks) = &mut marks {
            marks.computed(compute)?;
        }
        let mark = self.marks.take(|mark| mark.record(compute))?;
        Ok(CardBuffer { rows: Rows::None(mark), marks: marks.map(Box::new) })
    }
}

impl CardStaged {
    /// Copies the rows to `address`, a tensor with room for them, before later operations.
    pub fn write_to(&self, address: u64) -> Result<(), TensorError> {
        let Incoming { place, bytes, uploaded, taken, .. } = &*self.buffer;
        let compute = &self.card.compute;
        compute.wait(uploaded)?;
        if *bytes > 0 {
            // SAFETY: the place holds so many bytes, and the caller has checked that the tensor does; they are different areas.
            unsafe { compute.copy(address, place.address(), *bytes)? };
        }
        taken.record(compute)
    }
}

impl CardBuffer {
    /// See [`crate::EdgeBuffer::is_done`].
    pub fn is_done(&self) -> Result<bool, TensorError> {
        self.event().is_done()
    }

    /// Waits for the card.
    pub fn wait(&self) -> Result<(), TensorError> {
        self.event().wait()
    }

    /// The rows. The caller has waited for them.
    pub fn bytes(&self) -> &[u8] {
        match &self.rows {
            Rows::Some(buffer) => &buffer.pinned.as_slice()[..buffer.bytes],
            Rows::None(_) => &[],
        }
    }

    /// See [`crate::EdgeBytes::times`].
    pub fn times(&self) -> Result<Option<StepTimes>, TensorError> {
        self.marks.as_ref().map(|marks| marks.times()).transpose()
    }

    fn event(&self) -> &Event {
        match &self.rows {
            Rows::Some(buffer) => &buffer.downloaded,
            Rows::None(mark) => mark,
        }
    }
}
