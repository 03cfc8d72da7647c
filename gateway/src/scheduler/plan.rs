//! What goes into the next step: decode rows and prompt chunks.

use super::chunks::CHUNKS_AT_FIRST_STAGE;
use super::queue::Turn;
use super::running::{Running, State};
use super::{Scheduler, SequenceId, Span};

/// What prompts are given of a step's rows, at least, while there are more decode rows than fit: one part in this many.
const PROMPT_SHARE: u32 = 4;

/// A step's spans, decode rows first.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) spans: Vec<Span>,
    pub(super) decode_rows: u32,
}

/// The rows that a sequence is to have in a step, if there are blocks for them.
#[derive(Debug)]
pub(super) struct Wish {
    turn: Turn,
    pub(super) sequence: SequenceId,
    pub(super) rows: u32,
}

impl Scheduler {
    /// The rows of the next step; none while nothing is due or the stages have enough.
    pub(super) fn plan(&mut self) -> Plan {
        if self.stages_have_enough() {
            return Plan::default();
        }
        self.find_prefixes();
        self.admit();
        loop {
            let preemptions = self.preemptions;
            let mut wishes = self.decode_rows();
            wishes.extend(self.chunks(wishes.len() as u32));
            let plan = self.feed(wishes);
            if !plan.spans.is_empty() || self.preemptions == preemptions {
                return plan;
            }
            // All that were to have rows are preempted; others may have some now.
        }
    }

    /// Whether a step more would only wait. Where nobody decodes, and so no drawn token waits behind prompt rows, only those at the
    /// first of several stages count, so that it has another at hand even while a later one is slow.
    fn stages_have_enough(&self) -> bool {
        let steps = self.in_flight.with_rows();
        if self.limits.stages <= 1 || self.running.values().any(Running::is_decoding) {
            return steps >= self.groups.steps();
        }
        steps >= self.limits.steps_in_flight
            || self.in_flight.chunks_at_first_stage(0) >= CHUNKS_AT_FIRST_STAGE
    }

    /// Plans what was wished for, as far as there are blocks.
    fn feed(&mut self, mut wishes: Vec<Wish>) -> Plan {
        wishes.sort_unstable_by_key(|wish| wish.turn);
        for wish in &mut wishes {
            wish.rows = self.make_room(wish.sequence, wish.rows);
        }
        wishes.retain(|wish| wish.rows > 0);
        let step = self.in_flight.next_id();
        let mut proposing = self.proposing(&wishes);
        let (mut plan, mut chunks) = (Plan::default(), Vec::new());
        for Wish { sequence, rows, .. } in wishes {
            let proposal = self.propose(sequence, &mut proposing);
            let Some(running) = self.running.get_mut(&sequence) else { continue };
            let spans = if running.is_prefilling() { &mut chunks } else { &mut plan.spans };
            spans.push(running.feed(rows, proposal, step));
        }
        plan.decode_rows = plan.spans.len() as u32;
        plan.spans.append(&mut chunks);
        plan
    }

    /// One group's rows: of the sequences that are ready, those that have waited longest.
    fn decode_rows(&self) -> Vec<Wish> {
        let groups = self.groups.count();
        let free_groups = groups.saturating_sub(self.in_flight.with_decode_rows());
        if free_groups == 0 {
            return Vec::new();
        }
        let (mut decoding, mut under_way, mut prompts, mut ready) = (0, 0, false, Vec::new());
        for running in self.running.values() {
            match running.state {
                State::Prefilling => prompts = true,
                State::Awaiting(_) => {
                    let is_under_way = self.in_flight.contains(running.admitted.last_step);
                    under_way += u32::from(running.is_decoding() && is_under_way);
                }
                State::Ready { since } => ready.push((since, running)),
            }
            decoding += u32::from(running.is_decoding());
        }
        // An even share of those that are not in flight, and never more than of all: groups that differ grow alike.
        let share = (decoding - under_way).div_ceil(free_groups).min(decoding.div_ceil(groups));
        let most =
            |limit: u32| if prompts { limit.saturating_sub((limit / PROMPT_SHARE).max(1)) } else { limit };
        let rows = share.min(most(self.limits.rows)).min(most(self.limits.evidence_rows));
        ready.sort_unstable_by_key(|(since, _)| *since);
        ready.into_iter().take(rows as usize).map(|(_, running)| Wish::of(running, 1)).collect()
    }

    /// Prompt rows beside the decode rows, or alone where a stage would else have nothing to do.
    fn chunks(&self, decode_rows: u32) -> Vec<Wish> {
        let mut prompts: Vec<_> = self.running.values().filter(|running| running.is_prefilling()).collect();
        if self.chunk_would_stall(decode_rows) {
            return Vec::new();
        }
        prompts.sort_unstable_by_key(|running| running.admitted.turn);
        let mut room = self.chunk_rows(&prompts).min(self.limits.rows - decode_rows);
        let mut evidence_room = self.limits.evidence_rows - decode_rows;
        let mut wishes = Vec::new();
        for running in prompts {
            let mut rows = running.rows_left().min(room);
            if rows == running.rows_left() {
                // Without its last row where the step has no evidence row left for that.
                rows -= u32::from(evidence_room == 0);
                evidence_room = evidence_room.saturating_sub(1);
            }
            if rows > 0 {
                room -= rows;
                wishes.push(Wish::of(running, rows));
            }
        }
        wishes
    }

    /// Whether decode rows would wait too long behind prompt rows that go out now, beside `decode_rows` or in a step of their
    /// own.
    fn chunk_would_stall(&self, decode_rows: u32) -> bool {
        if decode_rows > 0 {
            return self.in_flight.chunks_at_first_stage(0) >= CHUNKS_AT_FIRST_STAGE;
        }
        let decoding = self.running.values().filter(|running| running.is_decoding());
        let latest_step = |running: &Running| match running.state {
            State::Awaiting(_) => running.admitted.last_step,
            _ => 0,
        };
        let Some(oldest) = decoding.map(latest_step).min() else { return false };
        // Better beside the decode rows that come back next, or once the first stage is done with the chunk before.
        let decoding_in_flight = self.in_flight.with_decode_rows() > 0;
        let all_groups = decoding_in_flight && self.in_flight.with_rows() >= self.groups.count();
        all_groups || self.in_flight.chunks_at_first_stage(oldest) > 0
    }
}

impl Wish {
    fn of(running: &Running, rows: u32) -> Self {
        Self { turn: running.admitted.turn, sequence: running.admitted.id(), rows }
    }
}
