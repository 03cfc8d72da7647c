//! When the card did the parts of a step: pairs of events that tell time, made for each step where that is asked for.

use std::ops::Range;
use std::sync::Arc;

use crate::TensorError;
use crate::cuda::stream::{Event, Stream};
use crate::edge::StepTimes;

/// What all times of an edge are counted from.
#[derive(Debug)]
pub struct Timeline {
    origin: Event,
}

/// From one event of a stream to a later one.
#[derive(Debug)]
pub struct Interval {
    start: Event,
    end: Event,
}

/// The events of one step.
#[derive(Debug)]
pub struct StepMarks {
    timeline: Arc<Timeline>,
    upload: Option<Interval>,
    compute: Interval,
    download: Option<Interval>,
}

impl Timeline {
    /// Time begins with what `stream` is given from now on.
    pub fn new(stream: &Stream) -> Result<Arc<Timeline>, TensorError> {
        let origin = Event::timed(stream.context())?;
        origin.record(stream)?;
        Ok(Arc::new(Timeline { origin }))
    }
}

impl Interval {
    /// An interval that begins with what `stream` is given from now on.
    pub fn begin(stream: &Stream) -> Result<Interval, TensorError> {
        let event = || Event::timed(stream.context());
        let interval = Interval { start: event()?, end: event()? };
        interval.start.record(stream)?;
        Ok(interval)
    }

    /// It ends with what `stream` was given so far.
    pub fn end(&self, stream: &Stream) -> Result<(), TensorError> {
        self.end.record(stream)
    }

    fn since(&self, timeline: &Timeline) -> Result<Range<f64>, TensorError> {
        // The difference by itself, since single precision gets coarse far from the origin.
        let start = f64::from(timeline.origin.milliseconds_to(&self.start)?);
        Ok(start..start + f64::from(self.start.milliseconds_to(&self.end)?))
    }
}

impl StepMarks {
    /// A step whose operations begin now.
    pub fn begin(
        timeline: &Arc<Timeline>,
        compute: &Stream,
        upload: Option<Interval>,
    ) -> Result<StepMarks, TensorError> {
        let compute = Interval::begin(compute)?;
        Ok(StepMarks { timeline: Arc::clone(timeline), upload, compute, download: None })
    }

    /// Its operations are enqueued.
    pub fn computed(&mut self, compute: &Stream) -> Result<(), TensorError> {
        self.compute.end(compute)
    }

    /// Its result begins to go down.
    pub fn download(&mut self, link: &Stream) -> Result<(), TensorError> {
        self.download = Some(Interval::begin(link)?);
        Ok(())
    }

    /// Its result is enqueued to go down.
    pub fn downloaded(&self, link: &Stream) -> Result<(), TensorError> {
        self.download.as_ref().map_or(Ok(()), |download| download.end(link))
    }

    /// All its times. It is done.
    pub fn times(&self) -> Result<StepTimes, TensorError> {
        let since = |interval: &Interval| interval.since(&self.timeline);
        Ok(StepTimes {
            upload: self.upload.as_ref().map(since).transpose()?,
            compute: since(&self.compute)?,
            download: self.download.as_ref().map(since).transpose()?,
        })
    }
}
