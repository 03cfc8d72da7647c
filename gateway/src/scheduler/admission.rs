//! Who may begin, and when.
//!
//! Nothing is reserved for answers: a sequence is let in once there are blocks for the tokens that it has. Beyond those of all
//! that run, one block stays free for each that may still grow, so that a new one is not preempted, or preempts others, right
//! after.

use super::Scheduler;
use super::admitted::Admitted;
use super::running::Running;

impl Scheduler {
    /// Lets sequences in as far as a step's worth of known rows is at hand. Replays go first, as their readers have begun to
    /// read; nothing overtakes one that has to wait for blocks, so that it does not wait for ever.
    pub(super) fn admit(&mut self) {
        let nobody_waits = self.replays.len() == 0 && (!self.admitting || self.queue.len() == 0);
        if nobody_waits || self.running.values().any(|running| running.admitted.is_suspect()) {
            return;
        }
        let prefilling = self.running.values().filter(|running| running.is_prefilling());
        let mut rows: u64 = prefilling.map(|running| u64::from(running.rows_left())).sum();
        while rows < u64::from(self.limits.rows) && self.slots() < self.limits.logits_slots {
            let Some(next) = self.next_admitted() else { return };
            let is_suspect = next.is_suspect();
            self.last_run += 1;
            self.runs.insert(self.last_run, next.id());
            let mut running = Running::new(self.last_run, next);
            running.find_prefix(&self.pool, &self.limits.row_kinds);
            rows += u64::from(running.rows_left());
            self.running.insert(running.admitted.id(), running);
            if is_suspect {
                return; // It runs alone.
            }
        }
    }

    /// Takes out who goes next, if it may begin now.
    fn next_admitted(&mut self) -> Option<Admitted> {
        if let Some(first) = self.replays.first() {
            let may = match first.is_suspect() {
                true => self.running.is_empty() && self.in_flight.len() == 0,
                false => self.has_room(first.room(), || self.held_prefix(&first.sequence, &first.drawn)),
            };
            return if may { self.replays.pop() } else { None };
        }
        let first = self.queue.first().filter(|_| self.admitting)?;
        let known = (first.prompt.len() + first.given.len()) as u32;
        if !self.has_room(first.room(known), || self.held_prefix(first, &first.given)) {
            return None;
        }
        let (turn, sequence) = self.queue.pop()?;
        Some(Admitted::new(turn, sequence))
    }

    /// Whether so many blocks are free beyond those that others are promised. `held` of them need not be, as others hold them.
    fn has_room(&self, blocks: u32, held: impl Fn() -> u32) -> bool {
        let promised: u32 =
            self.running.values().map(|running| running.admitted.room() - running.held()).sum();
        let free = self.pool.free().saturating_sub(promised);
        // What was submitted fits alone.
        self.running.is_empty() || blocks <= free || (free > 0 && blocks - held() <= free)
    }
}
