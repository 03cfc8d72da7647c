//! Blocks for rows that are planned, and who gives up theirs for them.
//!
//! Whoever needs a block and finds none takes those of the running sequence whose turn is last, the youngest of the lowest
//! priority; that may be itself. It is replayed later. The first in turn is never preempted and always gets on, so it ends,
//! and then the next is the first: nothing starves.

use super::running::Running;
use super::{Scheduler, SequenceId};

impl Scheduler {
    /// Makes room for a sequence's next `rows` rows, or for fewer; how many there is room for. Sequences must be given room in
    /// the order of their turns, so that none is preempted that has rows in the plan already.
    pub(super) fn make_room(&mut self, sequence: SequenceId, rows: u32) -> u32 {
        loop {
            let Some(running) = self.running.get_mut(&sequence) else { return 0 };
            running.take_blocks(rows, &self.pool);
            match running.rows_with_room().min(rows) {
                0 => {}
                room => return room,
            }
            let turn = running.admitted.turn;
            match self.last_in_turn() {
                Some(last) if last.admitted.turn >= turn => self.preempt(last.admitted.id()),
                // Those before it hold all blocks, and it has none.
                _ => return 0,
            }
        }
    }

    /// The running sequence that gives up its blocks first.
    fn last_in_turn(&self) -> Option<&Running> {
        let holders = self.running.values().filter(|running| running.held() > 0);
        holders.max_by_key(|running| running.admitted.turn)
    }

    /// Ends a sequence's run, to be replayed later. What its steps under way bring is not wanted any more.
    pub(super) fn preempt(&mut self, sequence: SequenceId) {
        if let Some(admitted) = self.end_run(sequence) {
            self.preemptions += 1;
            self.replays.insert(admitted);
        }
    }
}
