//! A scheduler's step as the plan that goes over the wire.

use asterism_proto::shard::v1 as wire;

use crate::scheduler::{SequenceId, Span, Step};

/// The plan of a step; `setting` makes a sequence's processors, which go with a run's first span.
pub fn plan(epoch: u64, step: Step, setting: impl Fn(SequenceId) -> Option<wire::Setting>) -> wire::StepPlan {
    let spans = step.spans.into_iter().map(|span| wire_span(span, &setting)).collect();
    wire::StepPlan { epoch, step: step.id, ended: step.ended, spans, traceparent: String::new() }
}

fn wire_span(span: Span, setting: impl Fn(SequenceId) -> Option<wire::Setting>) -> wire::Span {
    let start = span.start.map(|start| {
        let setting = setting(span.sequence);
        let prior_ids =
            if setting.as_ref().is_some_and(has_penalties) { start.prior_ids } else { Vec::new() };
        wire::SequenceStart { prompt_len: start.prompt_len, setting, prior_ids }
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

/// Whether ids before a row change it.
fn has_penalties(setting: &wire::Setting) -> bool {
    let is_on = |penalty| penalty != 0.0;
    (is_on(setting.repetition_penalty) && setting.repetition_penalty != 1.0)
        || is_on(setting.presence_penalty)
        || is_on(setting.frequency_penalty)
}
