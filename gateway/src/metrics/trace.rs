//! Spans of the steps that traced requests take part in.
//!
//! Each traced request has a span of its own for each of its steps, so that its trace is whole. The stages report below one
//! of them, the first's, to which the others are linked: however many requests share a step, a stage does its work once.

use std::collections::VecDeque;

use asterism_process::trace::{Part, Span, TraceContext, Tracer};
use asterism_proto::shard::v1::StepPlan;

use crate::scheduler::{RunId, StepId};

/// The spans of steps under way; they end with it.
#[derive(Debug)]
pub struct StepTraces {
    tracer: Tracer,
    under_way: VecDeque<(StepId, Vec<Span>)>,
}

impl StepTraces {
    /// Of no step yet.
    pub fn new(tracer: Tracer) -> Self {
        Self { tracer, under_way: VecDeque::new() }
    }

    /// A plan is about to go out; tells it whose trace its stages report to. `trace` knows whose runs are traced.
    pub fn send(&mut self, plan: &mut StepPlan, trace: impl Fn(RunId) -> Option<TraceContext>) {
        if !self.tracer.is_on() {
            return;
        }
        let mut spans: Vec<Span> = Vec::new();
        let rows: usize = plan.spans.iter().map(|span| span.token_ids.len()).sum();
        for part in &plan.spans {
            let Some(request) = trace(part.sequence) else { continue };
            let Some(mut span) = self.tracer.start("step", Part::Within, &request) else { continue };
            span.set("asterism.epoch", plan.epoch.cast_signed());
            span.set("asterism.step", plan.step.cast_signed());
            span.set("asterism.step.rows", rows as i64);
            span.set("asterism.span.rows", part.token_ids.len() as i64);
            span.set("asterism.span.first_position", i64::from(part.first_position));
            if let Some(first) = spans.first() {
                span.link(&first.context());
            }
            spans.push(span);
        }
        if let Some(first) = spans.first() {
            plan.traceparent = first.context().traceparent();
            self.under_way.push_back((plan.step, spans));
        }
    }

    /// Every stage has reported a step.
    pub fn done(&mut self, step: StepId) {
        self.under_way.retain(|(sent, _)| *sent != step);
    }
}
