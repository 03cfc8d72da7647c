//! A scheduler's step as the plan that goes over the wire.

use asterism_proto::shard::v1 as wire;

use crate::scheduler::{SequenceId, Span, Step};

/// The plan of a step; `setting` makes a sequence's processors, which go with a run's first span.
pub fn plan(epoch: u64, step: Step, setting: impl Fn(SequenceId) -> Option<wire::Setting>) -> wire::StepPlan {
    let spans = step.spans.into_iter().map(|span| wire_span(span, &setting)).collect();
    wire::StepPlan { epoch, step: step.id, ended: step.ended, spans, traceparent: String::new() }
}

fn wire_span(span: Span, setting: impl Fn(SequenceId) -> Option<wire::Setting>) -> wire::Span {
    let start = span.start.map(|start| wire::SequenceStart {
        prompt_len: start.prompt_len,
        setting: setting(span.sequence),
        prior_ids: Vec::new(),
    });
    wire::Span {
        sequence: span.run,
        first_position: span.first_position,
        token_ids: span.token_ids,
        table_offset: span.table_offset,
        blocks: span.blocks,
        evidence_positions: span.evidence.collect(),
        top_k: span.top_k,
        setting_id: span.setting_id,
        start,
    }
}
