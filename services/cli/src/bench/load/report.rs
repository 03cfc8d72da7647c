//! What came out, for people and for machines. Times are milliseconds where their name says so, else seconds.

mod axis;
mod page;
mod plot;
mod reuse;
mod table;
mod utc;

use std::time::{Instant, SystemTime};

use serde::Serialize;

pub use self::reuse::Reuse;

use super::drive::LoadPlan;
use super::latency::Latency;
use super::objective::Quantity;
use super::pace::{Extent, Pace};
use super::recorder::{Recorder, Turn};
use super::target::{FailureKind, TargetPlan};

/// Raised when a reader of the JSON form would misread it.
const FORMAT: u32 = 1;
/// Points of a distribution's curve.
const POINTS: usize = 400;

/// All of it. Its JSON form is what `--json` writes.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The version of this form.
    pub format: u32,
    /// The version of this program.
    pub asterism: &'static str,
    /// When the load began, in UTC.
    pub began: String,
    /// Whether it was stopped before its end.
    pub interrupted: bool,
    /// What a reader should know before believing the figures.
    pub notes: Vec<String>,
    /// Who was asked.
    pub target: TargetTold,
    /// How.
    pub load: LoadTold,
    /// From the first measured request's due time to the last one's end.
    pub window_s: f64,
    /// How many.
    pub requests: Requests,
    /// Failed ones by kind.
    pub failures: Vec<FailureTold>,
    /// Of the requests that ended well.
    pub tokens: Tokens,
    /// By the window.
    pub throughput: Throughput,
    /// Requests that kept all objectives, if there are any.
    pub goodput: Option<Goodput>,
    /// Of the requests that ended well, from when they were due.
    pub latency_ms: Latencies,
    /// The same by turn.
    pub turns: Vec<TurnTold>,
    /// What of the prompts was not computed again, where conversations repeat something.
    pub reuse: Option<Reuse>,
    /// By time, from the beginning, the warm-up included.
    pub timeline: TimelineTold,
    /// Some requests, each as likely as any other.
    pub sample: Vec<SampleTold>,
}

/// Who was asked.
#[derive(Clone, Debug, Serialize)]
pub struct TargetTold {
    /// Where.
    pub url: String,
    /// The model's name there.
    pub model: String,
    /// How prompts were handed over.
    pub prompts: &'static str,
}

/// How it was asked.
#[derive(Clone, Debug, Serialize)]
pub struct LoadTold {
    /// In words.
    pub pace: String,
    /// Conversations at once, of a closed loop.
    pub concurrency: Option<usize>,
    /// Conversations a second, of an open one.
    pub rate_per_s: Option<f64>,
    /// Requests or a time.
    pub warm_up: String,
    /// Requests or a time.
    pub extent: String,
    /// Tokens of the shared system prompt.
    pub system_tokens: u32,
    /// The distribution of a turn's new tokens.
    pub prompt: String,
    /// The distribution of the answers' limits.
    pub answer: String,
    /// Requests of a conversation.
    pub turns: u32,
    /// Between an answer and the next turn.
    pub think_s: f64,
    /// What all was drawn from.
    pub seed: u64,
    /// As asked for.
    pub temperature: Option<f32>,
    /// Whether answers had to go on to their limits.
    pub ignore_eos: bool,
    /// Whose requests they are.
    pub tenant: Option<String>,
    /// Higher goes first.
    pub priority: Option<i32>,
    /// When answers are not wanted any more.
    pub deadline_s: Option<f64>,
    /// Whether the server's prefix cache was left out.
    pub bypass_cache: bool,
}

/// How many requests.
#[derive(Clone, Debug, Serialize)]
pub struct Requests {
    /// Not measured.
    pub warm_up: u64,
    /// Measured.
    pub measured: u64,
    /// Of the measured, those that ended well.
    pub answered: u64,
    /// Of the measured, the others.
    pub failed: u64,
}

/// One kind of failure.
#[derive(Clone, Debug, Serialize)]
pub struct FailureTold {
    /// Which.
    pub kind: FailureKind,
    /// How many requests.
    pub count: u64,
    /// What was said of the first.
    pub example: String,
}

/// How many tokens.
#[derive(Clone, Debug, Serialize)]
pub struct Tokens {
    /// Of the prompts.
    pub prompt: u64,
    /// Of them, those that a cache had.
    pub cached: u64,
    /// Of them, those that earlier requests had too, in their prompts or answers, where the server counts tokens.
    pub repeated: u64,
    /// Of the answers.
    pub answer: u64,
    /// Whether the server has counted them.
    pub counted_by_server: bool,
    /// In the mean.
    pub per_message: f64,
}

/// What was done in a second.
#[derive(Clone, Debug, Serialize)]
pub struct Throughput {
    /// Requests that ended well.
    pub requests_per_s: f64,
    /// Tokens of their prompts.
    pub prompt_tokens_per_s: f64,
    /// Tokens that came within the window, those of the warm-up's last answers included.
    pub answer_tokens_per_s: f64,
}

/// Requests that kept all objectives.
#[derive(Clone, Debug, Serialize)]
pub struct Goodput {
    /// In a second.
    pub requests_per_s: f64,
    /// Of all measured requests, failed ones included.
    pub share: f64,
    /// What was promised.
    pub objectives: Vec<ObjectiveTold>,
}

/// One objective.
#[derive(Clone, Debug, Serialize)]
pub struct ObjectiveTold {
    /// Of what.
    pub quantity: Quantity,
    /// Not longer than this.
    pub most_ms: f64,
    /// Requests that ended well but not so.
    pub missed: u64,
}

/// All distributions.
#[derive(Clone, Debug, Serialize)]
pub struct Latencies {
    /// To the first token.
    pub ttft: Summary,
    /// From token to token.
    pub inter_token: Summary,
    /// From token to token in the mean of each request.
    pub tpot: Summary,
    /// To the end.
    pub e2e: Summary,
    /// How late this client was itself.
    pub client_lag: Summary,
}

/// One distribution.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// How many times there are; without any, all else is 0.
    pub count: u64,
    /// Their mean.
    pub mean: f64,
    /// The shortest.
    pub min: f64,
    /// The median.
    pub p50: f64,
    /// 90 % are no longer.
    pub p90: f64,
    /// 95 % are no longer.
    pub p95: f64,
    /// 99 % are no longer.
    pub p99: f64,
    /// 99.9 % are no longer.
    pub p999: f64,
    /// The longest.
    pub max: f64,
    /// (time, share of the times that are no longer).
    pub curve: Vec<(f64, f64)>,
}

/// The requests of one turn.
#[derive(Clone, Debug, Serialize)]
pub struct TurnTold {
    /// From 1.
    pub turn: usize,
    /// Those that ended well.
    pub answered: u64,
    /// In the mean.
    pub prompt_tokens: f64,
    /// In the mean.
    pub cached_tokens: f64,
    /// In the mean.
    pub repeated_tokens: f64,
    /// In the mean.
    pub answer_tokens: f64,
    /// To the first token.
    pub ttft_p50_ms: f64,
    /// To the first token.
    pub ttft_p99_ms: f64,
    /// To the end.
    pub e2e_p50_ms: f64,
    /// To the end.
    pub e2e_p99_ms: f64,
}

/// What happened when.
#[derive(Clone, Debug, Serialize)]
pub struct TimelineTold {
    /// Of one slice.
    pub slice_s: f64,
    /// When the window began.
    pub measured_from_s: f64,
    /// When it ended.
    pub measured_to_s: f64,
    /// One after the other.
    pub slices: Vec<SliceTold>,
}

/// One slice of time.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct SliceTold {
    /// That came.
    pub answer_tokens_per_s: f64,
    /// Requests that were due and had not ended, at the slice's end.
    pub running: u64,
    /// Requests that failed.
    pub failed: u64,
}

/// One request.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct SampleTold {
    /// From the beginning.
    pub due_s: f64,
    /// From 1.
    pub turn: u32,
    /// None if it failed.
    pub ttft_ms: Option<f64>,
    /// None if it failed, or had one token.
    pub tpot_ms: Option<f64>,
    /// None if it failed.
    pub e2e_ms: Option<f64>,
}

/// How a load was run, beside what came out.
#[derive(Clone, Debug)]
pub struct Circumstances<'a> {
    /// Who was asked.
    pub target: &'a TargetPlan,
    /// The model's name there.
    pub model: String,
    /// How.
    pub plan: &'a LoadPlan,
    /// When it began.
    pub began: SystemTime,
    /// Whether it was stopped before its end.
    pub interrupted: bool,
    /// What is known already.
    pub notes: Vec<String>,
}

mod build;

#[cfg(test)]
mod tests;
