//! Into how many groups the decoding sequences are divided.
//!
//! With as many groups as stages, every stage has work while a group's evidence comes back as a plan, as long as that
//! takes less than a stage's step. One more group hides a longer turnaround, at the price of one more read of all weights
//! in each cycle.

use std::time::Duration;

use super::Limits;

/// How much of each new measurement goes into the running mean.
const WEIGHT: f64 = 1.0 / 8.0;

/// The turnaround in stage times above which one more group pays, and below which it no longer does: apart, so that a
/// pipeline at the edge does not go back and forth.
const WORSE: f64 = 1.1;
const BETTER: f64 = 0.9;

/// How long things take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// One step in the slowest stage.
    pub stage: Duration,
    /// From a step's evidence at the last stage to the plan that goes on from it at the first.
    pub turnaround: Duration,
}

#[derive(Debug)]
pub(super) struct Groups {
    least: u32,
    most: u32,
    count: u32,
    most_in_flight: u32,
    /// Running mean of the turnaround in stage times.
    ratio: Option<f64>,
}

impl Groups {
    pub(super) fn new(limits: &Limits) -> Self {
        // G + 1 steps may be in flight, and only F can.
        let room = limits.steps_in_flight.saturating_sub(1).max(1);
        let least = limits.stages.clamp(1, room);
        let most = if limits.stages <= 1 { least } else { (limits.stages + 1).min(room) };
        Self { least, most, count: least, most_in_flight: limits.steps_in_flight, ratio: None }
    }

    /// G.
    pub(super) fn count(&self) -> u32 {
        self.count
    }

    /// The most steps with rows that may be in flight.
    pub(super) fn steps(&self) -> u32 {
        (self.count + 1).min(self.most_in_flight)
    }

    pub(super) fn observe(&mut self, pace: Pace) {
        if pace.stage.is_zero() {
            return;
        }
        let ratio = pace.turnaround.as_secs_f64() / pace.stage.as_secs_f64();
        let mean = self.ratio.map_or(ratio, |mean| mean + WEIGHT * (ratio - mean));
        self.ratio = Some(mean);
        if mean > WORSE {
            self.count = self.most;
        } else if mean < BETTER {
            self.count = self.least;
        }
    }
}
