//! One request's times and spans, from its arrival to its end.

use std::sync::Arc;
use std::time::Instant;

use asterism_process::trace::{Part, Span, TraceContext};
use asterism_proto::{Failure, v1};

use super::{Failed, Metrics};

/// What is noted of a request on its way. It travels with the request; dropping it before an end is told counts an
/// abort and ends its spans as cancelled, as its caller then went away.
#[derive(Debug)]
pub struct RequestRecord {
    metrics: Arc<Metrics>,
    arrived: Instant,
    planned: Option<Instant>,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
    /// Of a request that is traced.
    spans: Option<Spans>,
    /// Its end was told.
    over: bool,
}

#[derive(Debug)]
struct Spans {
    request: Span,
    /// While it waits.
    queue: Option<Span>,
}

impl RequestRecord {
    /// Of a request that arrives now, below its caller's span.
    pub fn arrived(metrics: &Arc<Metrics>, caller: &TraceContext) -> Self {
        let spans = metrics.tracer.start("request", Part::Served, caller).map(|mut request| {
            request.set("gen_ai.operation.name", "text_completion");
            Spans { request, queue: None }
        });
        let (planned, first_token, last_token) = (None, None, None);
        Self {
            metrics: Arc::clone(metrics),
            arrived: Instant::now(),
            planned,
            first_token,
            last_token,
            spans,
            over: false,
        }
    }

    /// Its prompt was taken in under an id, and waits.
    /// With `given` tokens of its answer it goes on, and its prompt was counted before.
    pub fn queued(&mut self, id: &str, prompt_tokens: u32, given: usize) {
        if given == 0 {
            self.metrics.prompt_tokens.inc_by(u64::from(prompt_tokens));
        }
        if let Some(spans) = &mut self.spans {
            spans.request.set("gen_ai.request.id", id.to_owned());
            spans.request.set("gen_ai.usage.input_tokens", i64::from(prompt_tokens));
            spans.queue = self.metrics.tracer.start("queue", Part::Within, &spans.request.context());
        }
    }

    /// Its first rows were planned; only the first time counts.
    pub fn planned(&mut self, now: Instant) {
        if self.planned.is_none() {
            self.planned = Some(now);
            self.metrics.times.queue.observe(seconds(self.arrived, now));
            if let Some(spans) = &mut self.spans {
                spans.queue = None;
            }
        }
    }

    /// A token was drawn. (Tokens are counted by who draws them, a step's at once.)
    pub fn token(&mut self, now: Instant) {
        let times = &self.metrics.times;
        match self.last_token.replace(now) {
            Some(last) => times.inter_token.observe(seconds(last, now)),
            None => {
                self.first_token = Some(now);
                times.first_token.observe(seconds(self.arrived, now));
                times.prefill.observe(seconds(self.planned.unwrap_or(self.arrived), now));
                if let Some(spans) = &mut self.spans {
                    let first = seconds(self.arrived, now);
                    spans.request.set("gen_ai.latency.time_to_first_token", first);
                }
            }
        }
    }

    /// Its answer is over.
    pub fn finished(&mut self, finished: &v1::Finished) {
        self.over = true;
        let times = &self.metrics.times;
        let (reason, ended) = self.metrics.ended.of(finished.reason());
        ended.inc();
        let usage = finished.usage.unwrap_or_default();
        // One that was stopped before has no times.
        if let (Some(first), Some(end)) = (self.first_token, self.last_token) {
            times.end_to_end.observe(seconds(self.arrived, end));
            times.inference.observe(seconds(self.planned.unwrap_or(first), end));
            times.decode.observe(seconds(first, end));
        }
        times.prompt_tokens.observe(f64::from(usage.prompt_tokens));
        times.generation_tokens.observe(f64::from(usage.completion_tokens));
        if let Some(spans) = &mut self.spans {
            spans.request.set("gen_ai.response.finish_reasons", reason);
            spans.request.set("gen_ai.usage.output_tokens", i64::from(usage.completion_tokens));
            spans.request.set("gen_ai.usage.cache_read.input_tokens", i64::from(usage.cached_tokens));
        }
    }

    /// It was refused, or its answer breaks off.
    pub fn failed(&mut self, failure: &Failure) {
        self.over = true;
        let reason = failure.reason.name();
        self.metrics.failed.get_or_create(&Failed { reason }).inc();
        if let Some(spans) = &mut self.spans {
            spans.request.fail(reason);
        }
    }

    /// Its answer goes on as another request.
    pub fn broken_off(&mut self) {
        self.over = true;
        if let Some(spans) = &mut self.spans {
            spans.request.fail("UNAVAILABLE");
        }
    }

    /// Where spans of its steps belong; `None` if it is not traced.
    pub fn trace(&self) -> Option<TraceContext> {
        self.spans.as_ref().map(|spans| spans.request.context())
    }
}

impl Drop for RequestRecord {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        // Its reader is gone.
        self.metrics.ended.of(v1::FinishReason::Aborted).1.inc();
        if let Some(spans) = &mut self.spans {
            spans.request.fail("CANCELLED");
        }
    }
}

fn seconds(from: Instant, to: Instant) -> f64 {
    to.saturating_duration_since(from).as_secs_f64()
}
