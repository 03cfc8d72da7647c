//! Which rows run in which step. Pure: values in, plans out; no async, no clock, no I/O.
//!
//! Continuous batching over paged blocks of KV: waiting sequences are admitted by tenants' shares, priority and age once
//! their prompts fit, these run in chunks beside the decode rows of others, and each then has one decode row a step until it
//! ends.
//! [`Scheduler::next_step`] builds one immutable [`Step`] at a time; [`Scheduler::token`], [`Scheduler::step_done`] and
//! [`Scheduler::end`] tell it what became of them.
//!
//! Blocks are taken as positions are fed. When there are none left, a sequence is preempted: its run on the stages ends, and
//! later another begins that feeds the same tokens again, drawn ones too, and goes on from there. The end of an epoch
//! interrupts all that run in the same way.
//!
//! What holds at any time:
//! - A block belongs to one run while its rows are planned, and may be shared by many afterwards; it is not written again.
//! - A block goes back by `Drop`; every plan names all ends since the plan before, and ends apply first, so no plan can hand
//!   out a block that its stages still count as another's.
//! - A decoding sequence is in one step at most.
//! - No step exceeds the stages' rows or evidence rows, no plan the raw rows that the last stage can keep.
//! - A step with rows goes out while fewer than there are groups, and one more, are in flight; where nobody decodes, while the
//!   first of several stages has fewer than three. There are never more than the stages queue; beside them at most one step
//!   that holds ends only.

mod admission;
mod admitted;
mod blocks;
mod chunks;
mod deadlines;
mod epochs;
mod groups;
mod limits;
mod plan;
mod preemption;
mod prefix;
mod proposals;
mod queue;
mod replays;
mod running;
mod sharing;
mod step;
#[cfg(test)]
mod tests;
mod times;

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use admitted::Admitted;
use blocks::BlockPool;
use deadlines::Deadlines;
use groups::Groups;
pub use groups::Pace;
pub use limits::{BLOCK_ROWS, Limits, QueueLimits, Refusal, RowKinds};
pub use queue::Flow;
use queue::Queue;
use replays::Replays;
use running::{Running, State};
use step::InFlight;
pub use step::{Span, Start, Step};
use times::StepTimes;

use crate::speculation::{StepCosts, Verdict, Wanted};

/// Names a sequence; never used again.
pub type SequenceId = u64;

/// Names one run of a sequence on the stages, from its admission to its end or preemption; never used again. On the wire it is
/// the sequence's id.
pub type RunId = u64;

/// Counts the steps of an epoch: 1, 2, 3, …
pub type StepId = u64;

/// Names a tenant: its place among those configured, 0 for requests that name none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantId(pub u32);

/// A request for one answer.
#[derive(Clone, Debug, PartialEq)]
pub struct NewSequence {
    /// Its name.
    pub id: SequenceId,
    /// The prompt's ids.
    pub prompt: Arc<[u32]>,
    /// The first ids of its answer, drawn before it came here: fewer than `max_tokens`. They are fed as in a replay.
    pub given: Vec<u32>,
    /// The most tokens of its answer, the given ones included.
    pub max_tokens: u32,
    /// On whose account it runs.
    pub tenant: TenantId,
    /// Higher goes first among one tenant's.
    pub priority: i32,
    /// When it came, by the caller's clock.
    pub arrived: Duration,
    /// When nobody wants its answer any more, by the same clock.
    pub deadline: Option<Duration>,
    /// Whether it finds no blocks that others fed, and leaves none for others.
    pub bypass_cache: bool,
    /// Whether ids are proposed that may follow.
    pub speculation: Speculation,
    /// What is reported of its rows.
    pub evidence: EvidenceSpec,
}

/// What the last stage reports of a sequence's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EvidenceSpec {
    /// The processors, by the id under which the stages were told them.
    pub setting_id: u64,
    /// How many of the best ids.
    pub top_k: u32,
}

/// Whether ids are proposed that may follow in a sequence. Its tokens are the same either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Speculation {
    /// As many as pay.
    #[default]
    Auto,
    /// As many as there is room for, as if rows cost nothing. What is proposed then depends on no clock.
    Always,
    /// None.
    Off,
}

/// What a drawn token means for its sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Committed {
    /// More are wanted: it will be fed in a later step, or was already, as it was proposed.
    Continues,
    /// It was the last of `max_tokens`; the sequence has ended.
    Full,
    /// The run is over, or no token of it was wanted.
    NotWanted,
}

/// How much there is to do, and how much room is left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loads {
    /// Sequences that wait for admission.
    pub waiting: u32,
    /// Their prompts and answers, in tokens.
    pub waiting_tokens: u64,
    /// Sequences that were preempted or interrupted, and wait to be replayed.
    pub replaying: u32,
    /// Running sequences whose prompts or replays have rows left to run.
    pub prefilling: u32,
    /// Running sequences past that.
    pub decoding: u32,
    /// Blocks of the pool that no sequence holds.
    pub free_blocks: u32,
    /// Blocks of the pool.
    pub blocks: u32,
    /// Steps sent and not yet done.
    pub steps_in_flight: u32,
    /// G.
    pub groups: u32,
    /// Of the free blocks, those whose content is kept.
    pub cached_blocks: u32,
    /// Sequences whose blocks were taken for others, ever.
    pub preemptions: u64,
    /// Tokens that were looked up in the prefix index, ever: whole prompts, in replays with the answer so far.
    pub prefix_queries: u64,
    /// Tokens that were found there, ever.
    pub prefix_hits: u64,
    /// What was proposed, and what of it held, ever.
    pub proposed: Proposed,
}

/// Ids that were fed ahead of their drawing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Proposed {
    /// Spans with a proposal.
    pub proposals: u64,
    /// Their ids.
    pub tokens: u64,
    /// Of these, those that were drawn.
    pub accepted: u64,
}

/// Plans one pipeline's steps.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    queue: Queue,
    deadlines: Deadlines,
    admitting: bool,
    replays: Replays,
    running: BTreeMap<SequenceId, Running>,
    /// Whose runs those are.
    runs: BTreeMap<RunId, SequenceId>,
    last_run: RunId,
    pool: BlockPool,
    /// Runs that the stages know and that ended since the last plan.
    ended: Vec<RunId>,
    preemptions: u64,
    /// Tokens looked up in the prefix index, and those found there.
    prefix_queries: u64,
    prefix_hits: u64,
    proposed: Proposed,
    costs: StepCosts,
    in_flight: InFlight,
    groups: Groups,
    times: StepTimes,
    /// Orders what became ready to decode.
    clock: u64,
}

impl Scheduler {
    /// For a pipeline at the start of an epoch.
    pub fn new(limits: Limits, queue: QueueLimits) -> Self {
        Self {
            limits,
            queue: Queue::new(queue),
            deadlines: Deadlines::default(),
            admitting: true,
            replays: Replays::default(),
            running: BTreeMap::new(),
            runs: BTreeMap::new(),
            last_run: 0,
            pool: BlockPool::new(limits.blocks),
            ended: Vec::new(),
            preemptions: 0,
            prefix_queries: 0,
            prefix_hits: 0,
            proposed: Proposed::default(),
            costs: StepCosts::default(),
            in_flight: InFlight::default(),
            groups: Groups::new(&limits),
            times: StepTimes::default(),
            clock: 0,
        }
    }

    /// With the tenants' weights, in their order: of two that both have something waiting, one of twice the weight is
    /// served twice the tokens.
    pub fn weighted(self, weights: Vec<NonZeroU32>) -> Self {
        Self { queue: self.queue.weighted(weights), ..self }
    }

    /// What the stages have room for.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The longest prompt and answer together, in tokens.
    pub fn context(&self) -> u32 {
        self.limits.context()
    }

    /// Queues a sequence.
    ///
    /// # Errors
    /// It could never run, or the queue is full.
    pub fn submit(&mut self, sequence: NewSequence) -> Result<(), Refusal> {
        self.limits.check(&sequence)?;
        if self.running.contains_key(&sequence.id) || self.replays.contains(sequence.id) {
            return Err(Refusal::Duplicate { sequence: sequence.id });
        }
        let (id, deadline) = (sequence.id, sequence.deadline);
        self.queue.push(sequence)?;
        self.deadlines.insert(id, deadline);
        Ok(())
    }

    /// The next plan to send, or `None` while nothing is due or the stages have enough. Call it again until then after
    /// every change, but commit all tokens of a step's report first, so that they go on together.
    pub fn next_step(&mut self) -> Option<Step> {
        let plan = self.plan();
        self.share(&plan);
        if plan.spans.is_empty() && (self.ended.is_empty() || self.in_flight.has_ends_only()) {
            return None;
        }
        Some(self.in_flight.send(std::mem::take(&mut self.ended), plan))
    }

    /// Every stage has reported the step. False: it was not in flight.
    pub fn step_done(&mut self, step: StepId) -> bool {
        self.in_flight.done(step)
    }

    /// The first stage has reported the step.
    pub fn left_first_stage(&mut self, step: StepId) {
        self.in_flight.left_first_stage(step);
    }

    /// Whose run this is; `None` once it is over: what comes of it is not wanted any more.
    pub fn sequence(&self, run: RunId) -> Option<SequenceId> {
        self.runs.get(&run).copied()
    }

    /// The token drawn from the evidence of a sequence's run that is [`wanted`](Self::wanted) now.
    pub fn token(&mut self, run: RunId, id: u32) -> Committed {
        let Some(sequence) = self.sequence(run) else { return Committed::NotWanted };
        let Some(running) = self.running.get_mut(&sequence) else { return Committed::NotWanted };
        let State::Awaiting(verification) = &mut running.state else { return Committed::NotWanted };
        let (verdict, outcome) = (verification.drawn(id), verification.outcome());
        let fed = verification.fed();
        let was_suspect = running.admitted.is_suspect();
        self.queue.charge(running.admitted.sequence.tenant, 1);
        let continues = running.admitted.gain(id);
        match verdict {
            Verdict::Holds => {
                self.proposed.accepted += 1;
                running.was_fed(&self.pool, &self.limits.row_kinds);
            }
            Verdict::Over => {
                debug_assert_eq!(running.fed, fed, "the next span begins there");
                running.admitted.speculator.verified(outcome);
                self.clock += 1;
                running.state = State::Ready { since: self.clock };
            }
        }
        if !continues {
            self.end(sequence);
            return Committed::Full;
        }
        if was_suspect && self.replays.first().is_some_and(Admitted::is_suspect) {
            // It is cleared, and goes on with all the others once the next has been tried alone.
            self.preempt(sequence);
        }
        Committed::Continues
    }

    /// Asks for another number of best ids in a running sequence's evidence from its next step on.
    pub fn set_top_k(&mut self, sequence: SequenceId, top_k: u32) {
        if let Some(running) = self.running.get_mut(&sequence) {
            running.admitted.sequence.evidence.top_k = top_k;
        }
    }

    /// Ends a sequence at whatever point of its life: its answer is whole, or nobody wants it any more. The next plan
    /// tells the stages. False: there is no such sequence (any more).
    pub fn end(&mut self, sequence: SequenceId) -> bool {
        self.deadlines.remove(sequence);
        let known = self.end_run(sequence).or_else(|| self.replays.remove(sequence)).is_some();
        known || self.queue.remove(sequence)
    }

    /// Ends a sequence's run, if it runs; its blocks go back.
    fn end_run(&mut self, sequence: SequenceId) -> Option<Admitted> {
        let running = self.running.remove(&sequence)?;
        self.runs.remove(&running.run);
        if running.has_begun() {
            self.ended.push(running.run);
        }
        Some(running.admitted)
    }

    /// Admits nothing new until the next epoch: a stage is about to stop. What was admitted before goes on.
    pub fn pause_admission(&mut self) {
        self.admitting = false;
    }

    /// Takes in how long a step took, which decides the number of groups and the size of chunks.
    pub fn observe(&mut self, pace: Pace) {
        self.times.observe(pace.rows, pace.stage);
        if let (Some(turnaround), Some(line)) = (pace.turnaround, self.times.line()) {
            self.groups.observe(turnaround, line.fixed);
        }
    }

    /// What waits for admission, and what has left the queue.
    pub fn flow(&self) -> Flow {
        self.queue.flow()
    }

    /// How much there is to do, and how much room is left.
    pub fn loads(&self) -> Loads {
        let prefilling = self.running.values().filter(|running| running.is_prefilling()).count() as u32;
        Loads {
            waiting: self.queue.len(),
            waiting_tokens: self.queue.tokens(),
            replaying: self.replays.len(),
            prefilling,
            decoding: self.running.len() as u32 - prefilling,
            free_blocks: self.pool.free(),
            blocks: self.limits.blocks,
            steps_in_flight: self.in_flight.len(),
            groups: self.groups.count(),
            cached_blocks: self.pool.cached(),
            preemptions: self.preemptions,
            prefix_queries: self.prefix_queries,
            prefix_hits: self.prefix_hits,
            proposed: self.proposed,
        }
    }
}
