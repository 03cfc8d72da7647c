//! Into how many groups the decoding sequences are divided.
//!
//! A group's rows are in one stage at a time, so with as many groups as stages each stage waits once in a cycle for a group's
//! evidence to come back as a plan. One more group fills that time, at the price of one more read of all weights in each
//! cycle: that pays where the turnaround is longer than what a step takes however few its rows.

use std::time::Duration;

use super::Limits;

/// How much of each new measurement goes into the running mean.
const WEIGHT: f64 = 1.0 / 8.0;

/// The turnaround in reads of the weights above which one more group pays, and below which it no longer does: apart, so that a
/// pipeline at the edge does not go back and forth.
const WORSE: f64 = 1.1;
const BETTER: f64 = 0.9;

/// How long a step took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Its rows.
    pub rows: u32,
    /// The slowest stage's work on it.
    pub stage: Duration,
    /// From a step's evidence at the last stage to the plan that goes on from it at the first, once that is known.
    pub turnaround: Option<Duration>,
}

#[derive(Debug)]
pub(super) struct Groups {
    least: u32,
    most: u32,
    count: u32,
    most_in_flight: u32,
    /// Running mean of the turnaround in reads of the weights.
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

    /// The steps with rows that are in flight, at most, once another has gone out, while somebody decodes.
    pub(super) fn steps(&self) -> u32 {
        (self.count + 1).min(self.most_in_flight)
    }

    /// Takes in the present turnaround, and how many seconds (above 0) a stage takes to read its weights.
    pub(super) fn observe(&mut self, turnaround: Duration, read: f64) {
        let ratio = turnaround.as_secs_f64() / read;
        let mean = self.ratio.map_or(ratio, |mean| mean + WEIGHT * (ratio - mean));
        self.ratio = Some(mean);
        if mean > WORSE {
            self.count = self.most;
        } else if mean < BETTER {
            self.count = self.least;
        }
    }
}
