//! A scheduler's step as the plan that goes over the wire.

use asterism_proto::shard::v1 as wire;

use crate::scheduler::{SequenceId, Span, Step};

/// The plan of a step; `setting` makes a sequence's processors, which go with its first span.
pub fn plan(epoch: u64, step: Step, setting: impl Fn(SequenceId) -> Option<wire::Setting>) -> wire::StepPlan {
    let spans = step.spans.into_iter().map(|span| wire_span(span, &setting)).collect();
    wire::StepPlan { epoch, step: step.id, ended: step.ended, spans, traceparent: String::new() }
}

fn wire_span(span: Span, setting: impl Fn(SequenceId) -> Option<wire::Setting>) -> wire::Span {
    let (blocks, start) = match span.start {
        Some(start) => {
            let setting = setting(span.sequence);
            let told = wire::SequenceStart { prompt_len: start.prompt_len, setting, prior_ids: Vec::new() };
            (start.blocks, Some(told))
        }
        None => (Vec::new(), None),
    };
    wire::Span {
        sequence: span.sequence,
        first_position: span.first_position,
        token_ids: span.token_ids,
        table_offset: 0,
        blocks,
        evidence_positions: span.evidence.collect(),
        top_k: span.top_k,
        setting_id: span.setting_id,
        start,
    }
}
