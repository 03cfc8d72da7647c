//! When a step passed the points of its way through this stage: debug events under [`TIMELINE`].
//!
//! Times are microseconds of the machine's clock, so that those of a gateway (`asterism_gateway::timeline`) and of shards on
//! the same machine can be laid side by side. What comes last tells all, once the step's report is on its way, so that telling
//! delays the step as little as it can.

use std::ops::Range;

use asterism_process::clock;
use asterism_tensor::StepTimes;

/// Whose events these are.
const TIMELINE: &str = "asterism_shard::timeline";

/// Whether anyone wants to know. A card's times are kept only if so when its stage is loaded.
pub fn is_told() -> bool {
    tracing::enabled!(target: TIMELINE, tracing::Level::DEBUG)
}

/// The points that a step has passed; zeros if nobody wants to know.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timeline {
    is_told: bool,
    planned: u64,
    applied: u64,
    launched: u64,
    done: u64,
}

impl Timeline {
    /// Its plan's turn has come.
    pub fn planned() -> Self {
        let mut timeline = Self { is_told: is_told(), ..Self::default() };
        timeline.planned = timeline.now();
        timeline
    }

    /// Its plan is checked, and its sequences are as it says.
    pub fn applied(&mut self) {
        self.applied = self.now();
    }

    /// The device was given its layers; a CPU has done them.
    pub fn launched(&mut self) {
        self.launched = self.now();
    }

    /// Its output and its evidence are there.
    pub fn done(&mut self) {
        self.done = self.now();
    }

    /// Its report is on its way.
    pub fn reported(self, layers: &Range<usize>, step: u64) {
        if !self.is_told {
            return;
        }
        let reported = self.now();
        let Self { planned, applied, launched, done, .. } = self;
        tracing::debug!(target: TIMELINE, ?layers, step, planned, applied, launched, done, reported, "step");
    }

    fn now(self) -> u64 {
        if self.is_told { clock::micros() } else { 0 }
    }
}

/// When a card did the parts of a step, in milliseconds by its own clock since the stage was loaded.
pub fn tell_card(layers: &Range<usize>, step: u64, times: &StepTimes) {
    let shown = |part: &Range<f64>| format!("{:.3}..{:.3}", part.start, part.end);
    let StepTimes { upload, compute, download } = times;
    let [upload, download] = [upload, download].map(|part| part.as_ref().map(shown).unwrap_or_default());
    let compute = shown(compute);
    tracing::debug!(target: TIMELINE, ?layers, step, upload, compute, download, "card");
}
