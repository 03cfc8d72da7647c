//! What a shard counts and traces of its steps.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use asterism_process::trace::{Part, Span, TraceContext, Tracer};
use asterism_proto::shard::v1::{StageTimes, StepPlan};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use crate::config::ShardConfig;

type Seconds = Counter<f64, AtomicU64>;

/// Counts steps, for Prometheus. Clones count together.
#[derive(Clone, Debug)]
pub struct StageMetrics {
    steps: Counter,
    rows: Counter,
    busy: Seconds,
    wait_plan: Seconds,
    wait_input: Seconds,
    wait_output: Seconds,
    tracer: Tracer,
    stage: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DoingLabel {
    doing: &'static str,
}

/// A step between its plan and its report.
#[derive(Debug)]
pub struct StepRecord {
    rows: u64,
    /// Of a step that is traced.
    span: Option<Span>,
}

impl StageMetrics {
    /// Of a stage, with nothing counted yet, and the registry that shows them.
    pub fn new(config: &ShardConfig) -> (Self, Registry) {
        let labels = [
            ("pipeline".into(), config.pipeline.clone().into()),
            ("stage".into(), config.stage.to_string().into()),
        ];
        let mut registry = Registry::with_prefix_and_labels("asterism_shard", labels.into_iter());
        let (steps, rows, seconds) = (Counter::default(), Counter::default(), Family::default());
        registry.register("steps", "Steps that were done", steps.clone());
        registry.register("rows", "Rows of the steps that were done", rows.clone());
        registry.register("stage_seconds", "Where the time of the stage went, in seconds", seconds.clone());
        let of = |doing| Seconds::clone(&seconds.get_or_create(&DoingLabel { doing }));
        let metrics = Self {
            steps,
            rows,
            busy: of("busy"),
            wait_plan: of("wait_plan"),
            wait_input: of("wait_input"),
            wait_output: of("wait_output"),
            tracer: Tracer::new("asterism.shard"),
            stage: config.stage,
        };
        (metrics, registry)
    }

    /// A plan's turn has come.
    pub fn begin(&self, plan: &StepPlan) -> StepRecord {
        let rows = plan.spans.iter().map(|span| span.token_ids.len() as u64).sum();
        let above = TraceContext::parse(&plan.traceparent);
        let span = if above.is_none() { None } else { self.tracer.start("stage", Part::Within, &above) };
        let span = span.map(|mut span| {
            span.set("asterism.stage", i64::from(self.stage));
            span.set("asterism.step", plan.step.cast_signed());
            span
        });
        StepRecord { rows, span }
    }

    /// The step is done; `times` are those since the report before.
    pub fn done(&self, record: StepRecord, times: &StageTimes) {
        let StepRecord { rows, mut span } = record;
        self.steps.inc();
        self.rows.inc_by(rows);
        for (counter, key, nanos) in [
            (&self.busy, "asterism.stage.busy", times.busy),
            (&self.wait_plan, "asterism.stage.wait_plan", times.wait_plan),
            (&self.wait_input, "asterism.stage.wait_input", times.wait_input),
            (&self.wait_output, "asterism.stage.wait_output", times.wait_output),
        ] {
            let seconds = Duration::from_nanos(nanos).as_secs_f64();
            counter.inc_by(seconds);
            if let Some(span) = &mut span {
                span.set(key, seconds);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;

    use super::*;

    #[test]
    fn steps_and_times_add_up() {
        let (metrics, registry) =
            StageMetrics::new(&ShardConfig { stage: 2, stages: 3, ..ShardConfig::new("m") });
        let span = asterism_proto::shard::v1::Span { token_ids: vec![1, 2, 3], ..Default::default() };
        let plan = StepPlan { spans: vec![span], ..StepPlan::default() };
        let times = StageTimes { busy: 1_500_000_000, wait_plan: 250_000_000, wait_input: 0, wait_output: 0 };
        for _ in 0..2 {
            metrics.done(metrics.begin(&plan), &times);
        }
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        let labels = "pipeline=\"default\",stage=\"2\"";
        for line in [
            format!("asterism_shard_steps_total{{{labels}}} 2\n"),
            format!("asterism_shard_rows_total{{{labels}}} 6\n"),
            format!("asterism_shard_stage_seconds_total{{{labels},doing=\"busy\"}} 3.0\n"),
            format!("asterism_shard_stage_seconds_total{{{labels},doing=\"wait_plan\"}} 0.5\n"),
        ] {
            assert!(text.contains(&line), "{line} in\n{text}");
        }
    }
}
