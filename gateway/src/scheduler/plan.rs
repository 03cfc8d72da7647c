//! What goes into the next step: admission, decode rows, prompt chunks.

use super::limits::{BLOCK_ROWS, tokens};
use super::running::{Running, State};
use super::{Scheduler, SequenceId, Span, StepId};

/// Rows that a prompt chunk has at least, where that many are left: with fewer a step costs no less time.
const LEAST_CHUNK: u32 = 64;

/// Into how many chunks for each stage the prompts' rows are cut while others decode beside them.
const CHUNKS_BESIDE_DECODING: u32 = 4;

/// What prompts are given of a step's rows, at least, while there are more decode rows than fit: one part in this many.
const PROMPT_SHARE: u32 = 4;

/// A step's spans as far as they are planned.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) spans: Vec<Span>,
    pub(super) decode_rows: u32,
    prompt_rows: u32,
    evidence_rows: u32,
}

impl Scheduler {
    /// The rows of the next step; none while nothing is due or the stages have enough.
    pub(super) fn plan(&mut self) -> Plan {
        let mut plan = Plan::default();
        if self.in_flight.with_rows() < self.groups.steps() {
            self.admit();
            self.plan_decode_rows(&mut plan);
            self.plan_chunks(&mut plan);
        }
        plan
    }

    /// Lets sequences in, first come first served, as far as a step's worth of prompt rows is at hand. One that has to
    /// wait for blocks is not overtaken, so that it does not wait for ever.
    fn admit(&mut self) {
        let mut prompt_rows: u64 = self.running.values().map(|it| u64::from(it.prompt_rows_left())).sum();
        while self.admitting
            && prompt_rows < u64::from(self.limits.rows)
            && self.running.len() < self.limits.logits_slots as usize
        {
            let Some(first) = self.queue.first() else { return };
            // What was submitted fits the context, which is a u32.
            let blocks = tokens(first).div_ceil(u64::from(BLOCK_ROWS)) as u32;
            let Some(blocks) = self.pool.take(blocks) else { return };
            let Some((turn, sequence)) = self.queue.pop() else { return };
            prompt_rows += sequence.prompt.len() as u64;
            self.running.insert(sequence.id, Running::new(turn, sequence, blocks));
        }
    }

    /// One group's rows: of the sequences that are ready, those that have waited longest.
    fn plan_decode_rows(&mut self, plan: &mut Plan) {
        let groups = self.groups.count();
        let free_groups = groups.saturating_sub(self.in_flight.with_decode_rows());
        if free_groups == 0 {
            return;
        }
        let (mut decoding, mut under_way, mut prompts, mut ready) = (0, 0, false, Vec::new());
        for (id, running) in &self.running {
            match running.state {
                State::Prefilling => prompts = true,
                State::Awaiting { step } if self.in_flight.contains(step) => under_way += 1,
                State::Awaiting { .. } => {}
                State::Ready { token, since } => ready.push((since, *id, token)),
            }
            decoding += u32::from(running.state != State::Prefilling);
        }
        // An even share of those that are not in flight, and never more than of all: groups that differ grow alike.
        let share = (decoding - under_way).div_ceil(free_groups).min(decoding.div_ceil(groups));
        let most =
            |limit: u32| if prompts { limit.saturating_sub((limit / PROMPT_SHARE).max(1)) } else { limit };
        let rows = share.min(most(self.limits.rows)).min(most(self.limits.evidence_rows));
        ready.sort_unstable();
        let step = self.in_flight.next_id();
        for (_, id, token) in ready.into_iter().take(rows as usize) {
            if let Some(running) = self.running.get_mut(&id) {
                plan.spans.push(running.feed_token(token, step));
                plan.decode_rows += 1;
                plan.evidence_rows += 1;
            }
        }
    }

    /// Prompt rows beside the decode rows, or alone where a stage would else have nothing to do.
    fn plan_chunks(&mut self, plan: &mut Plan) {
        let decoding_in_flight = self.in_flight.with_decode_rows() > 0;
        if plan.decode_rows == 0 && decoding_in_flight && self.in_flight.with_rows() >= self.groups.count() {
            return; // Better beside the decode rows that come back next: a step of their own would make those wait.
        }
        let mut prompts: Vec<_> = self
            .running
            .iter()
            .filter(|(_, running)| running.is_prefilling())
            .map(|(id, running)| (running.turn, *id, running.prompt_rows_left()))
            .collect();
        prompts.sort_unstable();
        let rows_left = prompts.iter().map(|(_, _, rows)| *rows).fold(0, u32::saturating_add);
        let chunk = self.chunk_rows(rows_left, prompts.len() < self.running.len());
        let step = self.in_flight.next_id();
        for (_, id, rows) in prompts {
            let room = chunk.saturating_sub(plan.prompt_rows).min(self.limits.rows - plan.rows());
            self.plan_chunk(plan, id, rows.min(room), step);
        }
    }

    /// Plans rows of one prompt, without its last where the step has no evidence row left for that.
    fn plan_chunk(&mut self, plan: &mut Plan, id: SequenceId, mut rows: u32, step: StepId) {
        let Some(running) = self.running.get_mut(&id) else { return };
        let wants_evidence = rows == running.prompt_rows_left();
        if wants_evidence && plan.evidence_rows >= self.limits.evidence_rows {
            rows = rows.saturating_sub(1);
        } else if wants_evidence {
            plan.evidence_rows += 1;
        }
        if rows > 0 {
            plan.spans.push(running.feed_prompt(rows, step));
            plan.prompt_rows += rows;
        }
    }

    /// How many prompt rows a step gets of the `rows` that wait: with nobody decoding, what keeps all stages busy; beside
    /// decode rows less, so that those do not wait long. (How much KV is left does not matter: admission has reserved it.)
    fn chunk_rows(&self, rows: u32, beside_decoding: bool) -> u32 {
        let chunks = self.limits.stages.max(1) * if beside_decoding { CHUNKS_BESIDE_DECODING } else { 1 };
        rows.div_ceil(chunks).max(LEAST_CHUNK).min(self.limits.rows)
    }
}

impl Plan {
    fn rows(&self) -> u32 {
        self.decode_rows + self.prompt_rows
    }
}
