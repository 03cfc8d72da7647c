//! From one epoch to the next: what ran is interrupted, and replayed by stages that know nothing of it.
//!
//! A sequence whose rows break the stages would end every epoch and take all others with it. So one that had rows under way
//! at two epoch ends, with no token gained between, is replayed alone, and given up if that epoch ends under it too.

use super::{BlockPool, Groups, InFlight, Limits, Refusal, Scheduler, SequenceId, State, StepTimes};
use crate::speculation::StepCosts;

impl Scheduler {
    /// The epoch is over: all that runs is to be replayed in the next. Returns the sequences that are given up, as every epoch
    /// ended under their rows.
    pub fn end_epoch(&mut self) -> Vec<SequenceId> {
        let running = std::mem::take(&mut self.running).into_values();
        // A row that is being fetched is as much under way as one in a step.
        let running = running.map(|running| (matches!(running.state, State::Awaiting(_)), running.admitted));
        let preempted = self.replays.take().map(|admitted| (false, admitted));
        let mut given_up = Vec::new();
        for (awaiting, mut admitted) in running.chain(preempted) {
            let last_step = std::mem::take(&mut admitted.last_step);
            let under_way = awaiting || self.in_flight.contains(last_step);
            if under_way && !admitted.strike() {
                self.deadlines.remove(admitted.id());
                given_up.push(admitted.id());
            } else {
                self.replays.insert(admitted);
            }
        }
        self.runs.clear();
        self.ended.clear();
        self.in_flight = InFlight::default();
        given_up
    }

    /// A new epoch begins, within new limits. Returns the sequences that can never run within them.
    pub fn begin_epoch(&mut self, limits: Limits) -> Vec<(SequenceId, Refusal)> {
        self.limits = limits;
        self.admitting = true;
        self.pool = BlockPool::new(limits.blocks);
        self.groups = Groups::new(&limits);
        self.times = StepTimes::default();
        self.costs = StepCosts::default();
        let check = |sequence: &_| limits.check(sequence);
        let begun = self.replays.iter().map(|admitted| &admitted.sequence);
        let begun: Vec<_> =
            begun.filter_map(|sequence| Some((sequence.id, check(sequence).err()?))).collect();
        for (sequence, _) in &begun {
            self.replays.remove(*sequence);
        }
        let mut refused = self.queue.retain(check);
        refused.extend(begun);
        for (sequence, _) in &refused {
            self.deadlines.remove(*sequence);
        }
        refused
    }
}
