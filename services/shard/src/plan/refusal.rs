//! Why a plan is refused.

use asterism_proto::{Failure, Reason};

use crate::setting::SettingError;

/// Why a plan is refused.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PlanRefusal {
    /// Of another epoch than its stream.
    #[error("a plan of epoch {found} in epoch {epoch}")]
    Epoch {
        /// The plan's.
        found: u64,
        /// The present one.
        epoch: u64,
    },
    /// Not the step that is next.
    #[error("a plan for step {found}, {expected} was next")]
    Order {
        /// The plan's.
        found: u64,
        /// The one after the latest.
        expected: u64,
    },
    /// More plans wait than may.
    #[error("more than {most} plans are queued")]
    Queue {
        /// F + 1.
        most: usize,
    },
    /// The end of a sequence that is not there.
    #[error("sequence {sequence} is ended, but there is none")]
    UnknownEnd {
        /// The sequence.
        sequence: u64,
    },
    /// More rows than there are buffers for.
    #[error("{rows} rows, at most {most} are possible")]
    Rows {
        /// Of all spans.
        rows: usize,
        /// Rows that fit.
        most: usize,
    },
    /// More evidence rows than there are buffers for.
    #[error("{rows} evidence rows, at most {most} are possible")]
    EvidenceRows {
        /// Of all spans.
        rows: usize,
        /// Rows that fit.
        most: usize,
    },
    /// More sequences than there are blocks.
    #[error("{sequences} sequences, at most {most} are possible")]
    Sequences {
        /// With those that would start.
        sequences: usize,
        /// Blocks of KV.
        most: usize,
    },
    /// All slots hold rows of sequences that neither went on nor ended.
    #[error("all {slots} slots of raw logits are taken")]
    LogitsSlots {
        /// Slots of this shard.
        slots: usize,
    },
    /// One span is wrong.
    #[error("span {span} (sequence {sequence}): {why}")]
    Span {
        /// Its index in the plan.
        span: usize,
        /// Its sequence.
        sequence: u64,
        /// What is wrong with it.
        why: SpanRefusal,
    },
    /// The stage itself refused the batch.
    #[error("step {step}: {why}")]
    Batch {
        /// The step.
        step: u64,
        /// What the stage says.
        why: asterism_model::BatchError,
    },
}

/// What is wrong with a span.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SpanRefusal {
    /// It has no rows.
    #[error("it has no rows")]
    Empty,
    /// A second span of its sequence in one plan.
    #[error("its sequence has an earlier span in this plan")]
    Twice,
    /// The first span of a sequence, without a start.
    #[error("its sequence has not started")]
    NotStarted,
    /// A start of a sequence that has started.
    #[error("its sequence has started before")]
    StartedBefore,
    /// A prompt of no tokens, or longer than a sequence can be.
    #[error("prompt_len is {prompt_len}, expected 1 to {most}")]
    PromptLen {
        /// As sent.
        prompt_len: usize,
        /// Positions of the longest sequence.
        most: usize,
    },
    /// Past the end of the longest sequence.
    #[error("position {position} is not below the context of {context}")]
    Position {
        /// The last.
        position: usize,
        /// Positions of the longest sequence.
        context: usize,
    },
    /// Positions between the sequence's end and the span were never fed.
    #[error("it begins at position {first}, its sequence ends at {end}")]
    Gap {
        /// Its first position.
        first: usize,
        /// One past the last that was fed.
        end: usize,
    },
    /// An id that the model does not have.
    #[error("token id {id} is not below {vocab}")]
    TokenId {
        /// The id.
        id: u32,
        /// Ids of the model.
        vocab: usize,
    },
    /// The table's change begins beyond its end.
    #[error("table_offset is {offset}, its table has {blocks} blocks")]
    TableOffset {
        /// As sent.
        offset: usize,
        /// Entries before the change.
        blocks: usize,
    },
    /// Too few blocks for its positions, or more than the longest sequence has.
    #[error("{blocks} blocks for {positions} positions, at most {most} are possible")]
    Table {
        /// Entries of the table.
        blocks: usize,
        /// Positions up to its end.
        positions: usize,
        /// Blocks of the longest sequence.
        most: usize,
    },
    /// A block that the pool does not have.
    #[error("block {block} is not below {blocks}")]
    Block {
        /// The block.
        block: u32,
        /// Blocks of the pool.
        blocks: usize,
    },
    /// Two spans, or two places of one, would write the same rows.
    #[error("block {block} is written twice in this step")]
    WrittenTwice {
        /// The block.
        block: u32,
    },
    /// Evidence of a position that is not in it, or out of order.
    #[error("evidence position {position} is not in it, or out of order")]
    Evidence {
        /// The position.
        position: usize,
    },
    /// No candidates, or too many.
    #[error("top_k is {top_k}, expected 1 to {}", crate::setting::MOST_CANDIDATES)]
    TopK {
        /// As sent.
        top_k: u32,
    },
    /// Its setting was never sent, or no sequence that named it lives.
    #[error("setting {id} is unknown")]
    UnknownSetting {
        /// The id.
        id: u64,
    },
    /// Its setting's id stands for another one.
    #[error("setting {id} is another one already")]
    SettingTaken {
        /// The id.
        id: u64,
    },
    /// Its setting is wrong.
    #[error("setting: {0}")]
    Setting(#[from] SettingError),
    /// Penalties are on, but the ids before its start are not known.
    #[error("penalties need the ids of positions before {first}, and prior_ids does not tell them")]
    PriorIds {
        /// Its first position.
        first: usize,
    },
    /// Not one id for each position before its start.
    #[error("prior_ids has {found} ids for {first} positions")]
    PriorLen {
        /// As sent.
        found: usize,
        /// Its first position.
        first: usize,
    },
}

impl From<PlanRefusal> for Failure {
    fn from(refusal: PlanRefusal) -> Self {
        let message = refusal.to_string();
        match refusal {
            PlanRefusal::Epoch { .. } => Failure::new(Reason::FailedPrecondition, message),
            PlanRefusal::Queue { .. } => Failure::new(Reason::Exhausted, message),
            PlanRefusal::Order { .. } => Failure::invalid("plan.step", message),
            PlanRefusal::UnknownEnd { .. } => Failure::invalid("plan.ended", message),
            PlanRefusal::Span { span, .. } => Failure::invalid(format!("plan.spans[{span}]"), message),
            PlanRefusal::Rows { .. }
            | PlanRefusal::EvidenceRows { .. }
            | PlanRefusal::Sequences { .. }
            | PlanRefusal::LogitsSlots { .. }
            | PlanRefusal::Batch { .. } => Failure::invalid("plan.spans", message),
        }
    }
}
