//! Until when answers are wanted.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{Scheduler, SequenceId};

/// The deadlines of all sequences that wait or run.
#[derive(Debug, Default)]
pub(super) struct Deadlines {
    by_time: BTreeSet<(Duration, SequenceId)>,
    of: BTreeMap<SequenceId, Duration>,
}

impl Deadlines {
    pub(super) fn insert(&mut self, sequence: SequenceId, deadline: Option<Duration>) {
        if let Some(deadline) = deadline {
            self.of.insert(sequence, deadline);
            self.by_time.insert((deadline, sequence));
        }
    }

    pub(super) fn remove(&mut self, sequence: SequenceId) {
        if let Some(deadline) = self.of.remove(&sequence) {
            self.by_time.remove(&(deadline, sequence));
        }
    }

    /// Whose deadline has come.
    fn due(&self, now: Duration) -> Vec<SequenceId> {
        self.by_time.range(..=(now, SequenceId::MAX)).map(|(_, sequence)| *sequence).collect()
    }
}

impl Scheduler {
    /// Ends all sequences whose deadline has come, whether they wait or run; the next plan tells the stages.
    pub fn expire(&mut self, now: Duration) -> Vec<SequenceId> {
        let due = self.deadlines.due(now);
        for sequence in &due {
            self.end(*sequence);
        }
        due
    }

    /// The earliest deadline of all.
    pub fn next_deadline(&self) -> Option<Duration> {
        self.deadlines.by_time.first().map(|(deadline, _)| *deadline)
    }
}
