//! What the gateway counts, for Prometheus, for `Loads` and for traces.
//!
//! Counting is cheap where tokens flow: additions to atomics, no lock, and a step's tokens in one go. What is a state and no
//! event (the queue, the blocks) is not kept here at all; the driver is asked for it when somebody looks.
//!
//! Names and shapes are those of vLLM under this project's prefix. Those that autoscalers and routers ask any engine for are
//! there under `vllm:` too, as these have it built in: the states and the cache's size for endpoint pickers (Gateway API
//! Inference Extension, llm-d), counts, lengths and latencies for llm-d's workload variant autoscaler.

mod bounds;
mod histogram;
mod record;
mod sessions;
mod stages;
#[cfg(test)]
mod tests;
mod trace;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use asterism_process::trace::Tracer;
use asterism_proto::v1;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Metric, Registry};

pub use histogram::Histogram;
use histogram::Shown;
pub use record::RequestRecord;
pub use sessions::SessionMetrics;
pub use stages::{StageClock, StageClocks};
pub use trace::StepTraces;

use crate::scheduler::{BLOCK_ROWS, Loads};

/// Everything that is counted.
#[derive(Debug)]
pub struct Metrics {
    /// For the spans of requests and steps.
    pub tracer: Tracer,
    /// Tokens of prompts that were taken in.
    pub prompt_tokens: Counter,
    /// Tokens drawn.
    pub generation_tokens: Counter,
    /// Rows of each step.
    pub step_rows: Arc<Histogram>,
    /// Where the stages' time goes.
    pub stages: StageClocks,
    /// Of sessions.
    pub sessions: SessionMetrics,
    times: RequestTimes,
    ended: Endings,
    failed: Family<Failed, Counter>,
    seen: Seen,
    registry: Registry,
}

/// Where requests spend their time, in seconds, and how long they are, in tokens.
#[derive(Debug)]
struct RequestTimes {
    first_token: Arc<Histogram>,
    inter_token: Arc<Histogram>,
    end_to_end: Arc<Histogram>,
    queue: Arc<Histogram>,
    prefill: Arc<Histogram>,
    decode: Arc<Histogram>,
    inference: Arc<Histogram>,
    prompt_tokens: Arc<Histogram>,
    generation_tokens: Arc<Histogram>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ended {
    finished_reason: &'static str,
}

/// Answers by how they ended, looked up once.
#[derive(Debug)]
struct Endings {
    stop: Counter,
    length: Counter,
    abort: Counter,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Failed {
    reason: &'static str,
}

/// The labels are what is asked for; the value is 1.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CacheConfig {
    block_size: u32,
    num_gpu_blocks: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BlockState {
    state: &'static str,
}

/// What the driver said when it was last asked.
#[derive(Debug, Default)]
struct Seen {
    running: Gauge,
    waiting: Gauge,
    waiting_tokens: Gauge,
    replaying: Gauge,
    usage: Gauge<f64, AtomicU64>,
    blocks: Family<BlockState, Gauge>,
    cache_config: Family<CacheConfig, Gauge>,
    steps_in_flight: Gauge,
    groups: Gauge,
    preemptions: Counter,
    prefix_queries: Counter,
    prefix_hits: Counter,
    proposals: Counter,
    proposed: Counter,
    accepted: Counter,
}

/// A registry, and its part under this project's prefix.
struct Names(Registry);

impl Metrics {
    /// Of a model by its name, with nothing counted yet.
    pub fn new(model: &str) -> Self {
        let mut names =
            Names(Registry::with_labels([("model_name".into(), model.to_owned().into())].into_iter()));
        let times = RequestTimes::named(&mut names);
        let (prompt_tokens, generation_tokens) = (Counter::default(), Counter::default());
        let (failed, stages) = (Family::default(), StageClocks::default());
        names.own("prompt_tokens", "Tokens of prompts that were taken in", &prompt_tokens);
        names.own("generation_tokens", "Tokens drawn", &generation_tokens);
        let ended = Endings::named(&mut names);
        names.own("request_failure", "Requests that were refused or failed, by the reason told", &failed);
        let step_rows = names.histogram(
            "iteration_tokens_total",
            "Rows of each step",
            Histogram::of_counts(bounds::STEP_ROWS),
        );
        let seen = Seen::named(&mut names);
        let sessions = SessionMetrics::named(&mut names);
        names.prefixed().register_collector(Box::new(stages.clone()));
        Self {
            tracer: Tracer::new("asterism.gateway"),
            prompt_tokens,
            generation_tokens,
            step_rows,
            stages,
            sessions,
            times,
            ended,
            failed,
            seen,
            registry: names.0,
        }
    }

    /// The registry, brought up to what the driver says now.
    pub fn registry(&self, loads: &Loads) -> &Registry {
        self.seen.set(loads);
        &self.registry
    }

    /// The same for `Loads`.
    pub fn loads(&self, loads: &Loads) -> v1::LoadsResponse {
        let latency = |of: &Histogram| Some(v1::Latency { count: of.count(), sum_seconds: of.sum() });
        v1::LoadsResponse {
            waiting: loads.waiting,
            waiting_tokens: loads.waiting_tokens,
            prefilling: loads.prefilling,
            decoding: loads.decoding,
            kv_cache: Some(v1::KvCache {
                blocks: loads.blocks,
                used_blocks: loads.blocks.saturating_sub(loads.free_blocks),
                cached_blocks: loads.cached_blocks,
                queried_tokens: loads.prefix_queries,
                hit_tokens: loads.prefix_hits,
            }),
            steps_in_flight: loads.steps_in_flight,
            groups: loads.groups,
            prompt_tokens: self.prompt_tokens.get(),
            generation_tokens: self.generation_tokens.get(),
            preemptions: loads.preemptions,
            time_to_first_token: latency(&self.times.first_token),
            inter_token: latency(&self.times.inter_token),
            stages: self.stages.seconds(),
            replaying: loads.replaying,
        }
    }
}

// === impl RequestTimes ===

impl RequestTimes {
    fn named(names: &mut Names) -> Self {
        Self {
            first_token: names.histogram_for_autoscalers(
                "time_to_first_token_seconds",
                "From a request's arrival to its first token",
                Histogram::of_seconds(bounds::FIRST_TOKEN),
            ),
            inter_token: names.histogram_for_autoscalers(
                "inter_token_latency_seconds",
                "Between two tokens of a request",
                Histogram::of_seconds(bounds::INTER_TOKEN),
            ),
            end_to_end: names.histogram(
                "e2e_request_latency_seconds",
                "From a request's arrival to its last token",
                Histogram::of_seconds(bounds::REQUEST),
            ),
            queue: names.histogram(
                "request_queue_time_seconds",
                "From a request's arrival to the plan of its first rows",
                Histogram::of_seconds(bounds::REQUEST),
            ),
            prefill: names.histogram(
                "request_prefill_time_seconds",
                "From the plan of a request's first rows to its first token",
                Histogram::of_seconds(bounds::REQUEST),
            ),
            decode: names.histogram(
                "request_decode_time_seconds",
                "From a request's first token to its last",
                Histogram::of_seconds(bounds::REQUEST),
            ),
            inference: names.histogram(
                "request_inference_time_seconds",
                "From the plan of a request's first rows to its last token",
                Histogram::of_seconds(bounds::REQUEST),
            ),
            prompt_tokens: names.histogram_for_autoscalers(
                "request_prompt_tokens",
                "Tokens of a finished request's prompt",
                Histogram::of_counts(bounds::REQUEST_TOKENS),
            ),
            generation_tokens: names.histogram_for_autoscalers(
                "request_generation_tokens",
                "Tokens of a finished request's answer",
                Histogram::of_counts(bounds::REQUEST_TOKENS),
            ),
        }
    }
}

// === impl Endings ===

impl Endings {
    fn named(names: &mut Names) -> Self {
        let ended = Family::<Ended, Counter>::default();
        names.for_autoscalers(
            "request_success",
            "Answers that ended as they should, by their reason",
            &ended,
        );
        let of = |finished_reason| Counter::clone(&ended.get_or_create(&Ended { finished_reason }));
        Self { stop: of("stop"), length: of("length"), abort: of("abort") }
    }

    /// As vLLM names a reason, and its counter.
    fn of(&self, reason: v1::FinishReason) -> (&'static str, &Counter) {
        match reason {
            v1::FinishReason::StopToken | v1::FinishReason::StopString | v1::FinishReason::Unspecified => {
                ("stop", &self.stop)
            }
            v1::FinishReason::Length => ("length", &self.length),
            v1::FinishReason::Aborted | v1::FinishReason::Interrupted => ("abort", &self.abort),
        }
    }
}

// === impl Seen ===

impl Seen {
    fn named(names: &mut Names) -> Self {
        let seen = Self::default();
        names.for_autoscalers("num_requests_running", "Requests that were admitted", &seen.running);
        names.for_autoscalers(
            "num_requests_waiting",
            "Requests that wait for admission, the interrupted ones too",
            &seen.waiting,
        );
        names.for_autoscalers(
            "kv_cache_usage_perc",
            "Part of the KV blocks that is held; 1 is all",
            &seen.usage,
        );
        names.for_autoscalers(
            "cache_config_info",
            "How large the KV pool is, as labels: rows of a block, and blocks",
            &seen.cache_config,
        );
        names.own("num_tokens_waiting", "Tokens of waiting prompts and answers", &seen.waiting_tokens);
        names.own("num_requests_replaying", "Interrupted requests among those that wait", &seen.replaying);
        names.own("kv_cache_blocks", "Blocks of KV by their state", &seen.blocks);
        names.own("steps_in_flight", "Steps sent and not yet reported by every stage", &seen.steps_in_flight);
        names.own("groups", "Into how many groups decoding requests are spread", &seen.groups);
        names.own("num_preemptions", "Requests whose blocks were taken for others", &seen.preemptions);
        names.for_autoscalers(
            "prefix_cache_queries",
            "Prompt tokens that were looked up",
            &seen.prefix_queries,
        );
        names.for_autoscalers("prefix_cache_hits", "Prompt tokens that were found", &seen.prefix_hits);
        names.own("spec_decode_num_drafts", "Proposals of what may follow in an answer", &seen.proposals);
        names.own("spec_decode_num_draft_tokens", "Tokens that were proposed", &seen.proposed);
        names.own("spec_decode_num_accepted_tokens", "Proposed tokens that were drawn", &seen.accepted);
        seen
    }

    fn set(&self, loads: &Loads) {
        let used = loads.blocks.saturating_sub(loads.free_blocks);
        self.running.set(i64::from(loads.prefilling + loads.decoding));
        self.waiting.set(i64::from(loads.waiting + loads.replaying));
        self.waiting_tokens.set(i64::try_from(loads.waiting_tokens).unwrap_or(i64::MAX));
        self.replaying.set(i64::from(loads.replaying));
        self.usage.set(f64::from(used) / f64::from(loads.blocks.max(1)));
        let empty = loads.free_blocks.saturating_sub(loads.cached_blocks);
        for (state, blocks) in [("used", used), ("cached", loads.cached_blocks), ("empty", empty)] {
            self.blocks.get_or_create(&BlockState { state }).set(i64::from(blocks));
        }
        let config = CacheConfig { block_size: BLOCK_ROWS, num_gpu_blocks: loads.blocks };
        if self.cache_config.get(&config).is_none() {
            self.cache_config.clear();
            self.cache_config.get_or_create(&config).set(1);
        }
        self.steps_in_flight.set(i64::from(loads.steps_in_flight));
        self.groups.set(i64::from(loads.groups));
        let counts = [
            (&self.preemptions, loads.preemptions),
            (&self.prefix_queries, loads.prefix_queries),
            (&self.prefix_hits, loads.prefix_hits),
            (&self.proposals, loads.proposed.proposals),
            (&self.proposed, loads.proposed.tokens),
            (&self.accepted, loads.proposed.accepted),
        ];
        for (counter, count) in counts {
            // The planner has counted already.
            counter.inner().store(count, Ordering::Relaxed);
        }
    }
}

// === impl Names ===

impl Names {
    fn prefixed(&mut self) -> &mut Registry {
        self.0.sub_registry_with_prefix("asterism")
    }

    /// Names a metric under this project's prefix.
    fn own(&mut self, name: &str, help: &str, metric: &(impl Metric + Clone)) {
        self.prefixed().register(name, help, metric.clone());
    }

    /// Names it for those too who have vLLM's names built in.
    fn for_autoscalers(&mut self, name: &str, help: &str, metric: &(impl Metric + Clone)) {
        self.own(name, help, metric);
        self.0.register(format!("vllm:{name}"), help, metric.clone());
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: Histogram) -> Arc<Histogram> {
        let histogram = Arc::new(histogram);
        self.own(name, help, &Shown(Arc::clone(&histogram)));
        histogram
    }

    fn histogram_for_autoscalers(&mut self, name: &str, help: &str, histogram: Histogram) -> Arc<Histogram> {
        let histogram = Arc::new(histogram);
        self.for_autoscalers(name, help, &Shown(Arc::clone(&histogram)));
        histogram
    }
}
