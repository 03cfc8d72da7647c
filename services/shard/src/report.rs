//! What a stage tells of its time and its life.
//!
//! A beat is a layer that is done. On a CPU each layer is heard of by itself. A card is given all layers of a step at once, so
//! they are heard of together, once the step is done; it counts as at work from when it is given the step until then, also
//! if it hangs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use asterism_proto::shard::v1::{Beat, StageTimes};

/// The device thread's signs of life, read by others every second.
#[derive(Debug, Default)]
pub struct Heart {
    layers_done: AtomicU64,
    /// Steps that the device is at.
    working: AtomicU32,
    draining: AtomicBool,
}

impl Heart {
    /// One more layer is done.
    pub fn layer_done(&self) {
        self.layers_done(1);
    }

    /// So many more layers are done.
    pub fn layers_done(&self, layers: usize) {
        self.layers_done.fetch_add(layers as u64, Ordering::Relaxed);
    }

    /// The device is at work until the guard is dropped.
    pub fn work(self: &Arc<Self>) -> Work {
        self.working.fetch_add(1, Ordering::Relaxed);
        Work { heart: Arc::clone(self) }
    }

    /// From now on the shard wants to leave.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Whether the shard wants to leave.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// How it is now.
    pub fn beat(&self) -> Beat {
        Beat {
            layers_done: self.layers_done.load(Ordering::Relaxed),
            working: self.working.load(Ordering::Relaxed) > 0,
            draining: self.is_draining(),
        }
    }
}

/// See [`Heart::work`].
#[derive(Debug)]
pub struct Work {
    heart: Arc<Heart>,
}

impl Drop for Work {
    fn drop(&mut self) {
        self.heart.working.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a stage does with its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    /// Layers and evidence.
    Computing,
    /// Nothing is planned.
    WaitingForPlan,
    /// The stage before has not sent its output.
    WaitingForInput,
    /// The stage after has no buffer free, or the driver does not read reports.
    WaitingForOutput,
}

/// Where a stage's time goes, from report to report.
#[derive(Debug, Default)]
pub struct StageClock {
    times: StageTimes,
}

impl StageClock {
    /// Adds the time that `work` takes.
    pub fn time<T>(&mut self, doing: Doing, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = work();
        self.add(doing, start.elapsed());
        result
    }

    /// Adds a time.
    pub fn add(&mut self, doing: Doing, time: Duration) {
        let spent = match doing {
            Doing::Computing => &mut self.times.busy,
            Doing::WaitingForPlan => &mut self.times.wait_plan,
            Doing::WaitingForInput => &mut self.times.wait_input,
            Doing::WaitingForOutput => &mut self.times.wait_output,
        };
        *spent = spent.saturating_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    /// The times since this was last called.
    pub fn take(&mut self) -> StageTimes {
        std::mem::take(&mut self.times)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_works_as_long_as_a_guard_lives() {
        let heart = Arc::<Heart>::default();
        let work = heart.work();
        drop(heart.work());
        heart.layer_done();
        assert_eq!(heart.beat(), Beat { layers_done: 1, working: true, draining: false });
        drop(work);
        heart.drain();
        assert_eq!(heart.beat(), Beat { layers_done: 1, working: false, draining: true });
    }

    #[test]
    fn times_add_up_until_they_are_taken() {
        let mut clock = StageClock::default();
        clock.add(Doing::Computing, Duration::from_nanos(5));
        clock.add(Doing::Computing, Duration::from_nanos(6));
        clock.add(Doing::WaitingForPlan, Duration::from_nanos(7));
        clock.add(Doing::WaitingForInput, Duration::from_nanos(8));
        clock.add(Doing::WaitingForOutput, Duration::MAX);
        let times = StageTimes { busy: 11, wait_plan: 7, wait_input: 8, wait_output: u64::MAX };
        assert_eq!(clock.take(), times);
        assert_eq!(clock.take(), StageTimes::default());
    }
}
