//! When a step passed the points of its way through the driver: debug events under `asterism_gateway::timeline`.
//!
//! Times are those of `asterism_shard::timeline`: microseconds of the machine's clock. They are told when the next plan is on
//! its way, so that telling delays it as little as it can.

use std::collections::VecDeque;

use asterism_process::clock;

/// Whose events these are.
const TIMELINE: &str = "asterism_gateway::timeline";

/// The points that the steps of an epoch pass. Keeps nothing unless somebody wants to know.
#[derive(Debug)]
pub struct Timeline {
    is_told: bool,
    /// Oldest first: the last stage reports in step order.
    under_way: VecDeque<Marks>,
    /// Of steps that are drawn and not told.
    drawn: Vec<Marks>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Marks {
    step: u64,
    rows: usize,
    sent: u64,
    read: u64,
    drawn: u64,
}

impl Default for Timeline {
    fn default() -> Self {
        let is_told = tracing::enabled!(target: TIMELINE, tracing::Level::DEBUG);
        Self { is_told, under_way: VecDeque::new(), drawn: Vec::new() }
    }
}

impl Timeline {
    /// A plan is on its way to every stage.
    pub fn sent(&mut self, step: u64) {
        if self.is_told {
            self.under_way.push_back(Marks { step, sent: clock::micros(), ..Marks::default() });
        }
    }

    /// The last stage's report is here.
    pub fn read(&mut self, step: u64) {
        if let Some(marks) = self.under_way.front_mut().filter(|marks| marks.step == step) {
            marks.read = clock::micros();
        }
    }

    /// The tokens of its evidence, of so many rows, are drawn.
    pub fn drawn(&mut self, step: u64, rows: usize) {
        if let Some(marks) = self.under_way.pop_front_if(|marks| marks.step == step) {
            self.drawn.push(Marks { rows, drawn: clock::micros(), ..marks });
        }
    }

    /// Tells of the steps that were drawn since the last time.
    pub fn tell(&mut self) {
        for Marks { step, rows, sent, read, drawn } in self.drawn.drain(..) {
            tracing::debug!(target: TIMELINE, step, rows, sent, read, drawn, "step");
        }
    }
}
