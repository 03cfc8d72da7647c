//! What a plan says, and which plans are under way.

use std::collections::VecDeque;
use std::ops::Range;

use super::plan::Plan;
use super::{RunId, SequenceId, StepId};

/// One micro-batch's way through the pipeline. Every stage applies `ended` before `spans`.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// 1, 2, 3, … within an epoch.
    pub id: StepId,
    /// Runs whose state the stages drop.
    pub ended: Vec<RunId>,
    /// The rows, decode rows first; none in a step that holds ends only.
    pub spans: Vec<Span>,
}

/// One sequence's consecutive rows within a step.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// Whose.
    pub sequence: SequenceId,
    /// Its name for the stages.
    pub run: RunId,
    /// The first row's position.
    pub first_position: u32,
    /// One id a row.
    pub token_ids: Vec<u32>,
    /// How much of its block table the stages know.
    pub table_offset: u32,
    /// What follows there.
    pub blocks: Vec<u32>,
    /// Positions whose next token is wanted.
    pub evidence: Range<u32>,
    /// How many best ids their evidence holds.
    pub top_k: u32,
    /// The processors.
    pub setting_id: u64,
    /// Only in a run's first span.
    pub start: Option<Start>,
}

/// What the stages are told once of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// Of the original prompt, also in a replay: its rows past that are of the answer.
    pub prompt_len: u32,
    /// The ids of the positions before its first row: a prefix that was cached.
    pub prior_ids: Vec<u32>,
}

/// Steps that were sent and are not done.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    steps: VecDeque<Sent>,
    last: StepId,
}

#[derive(Debug)]
struct Sent {
    id: StepId,
    has_rows: bool,
    has_decode_rows: bool,
    has_chunks: bool,
    /// Whether the first stage has not reported it.
    at_first_stage: bool,
}

impl InFlight {
    /// The id of the step that is made next.
    pub(super) fn next_id(&self) -> StepId {
        self.last + 1
    }

    /// Makes the next step.
    pub(super) fn send(&mut self, ended: Vec<RunId>, plan: Plan) -> Step {
        self.last += 1;
        let has_chunks = plan.spans.len() as u32 > plan.decode_rows;
        let (has_rows, has_decode_rows) = (!plan.spans.is_empty(), plan.decode_rows > 0);
        self.steps.push_back(Sent {
            id: self.last,
            has_rows,
            has_decode_rows,
            has_chunks,
            at_first_stage: true,
        });
        Step { id: self.last, ended, spans: plan.spans }
    }

    /// Takes a step out that is done.
    pub(super) fn done(&mut self, step: StepId) -> bool {
        let before = self.steps.len();
        self.steps.retain(|sent| sent.id != step);
        self.steps.len() < before
    }

    /// The first stage is done with a step.
    pub(super) fn left_first_stage(&mut self, step: StepId) {
        if let Some(sent) = self.steps.iter_mut().find(|sent| sent.id == step) {
            sent.at_first_stage = false;
        }
    }

    /// Steps with prompt rows, sent after `step`, that wait for the first stage or run there.
    pub(super) fn chunks_at_first_stage(&self, step: StepId) -> u32 {
        let is_one = |sent: &&Sent| sent.id > step && sent.has_chunks && sent.at_first_stage;
        self.steps.iter().filter(is_one).count() as u32
    }

    pub(super) fn contains(&self, step: StepId) -> bool {
        self.steps.iter().any(|sent| sent.id == step)
    }

    /// All steps, those with ends only too.
    pub(super) fn len(&self) -> u32 {
        self.steps.len() as u32
    }

    pub(super) fn has_ends_only(&self) -> bool {
        self.steps.iter().any(|sent| !sent.has_rows)
    }

    pub(super) fn with_rows(&self) -> u32 {
        self.steps.iter().filter(|sent| sent.has_rows).count() as u32
    }

    pub(super) fn with_decode_rows(&self) -> u32 {
        self.steps.iter().filter(|sent| sent.has_decode_rows).count() as u32
    }
}
