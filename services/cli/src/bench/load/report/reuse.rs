//! What conversations repeat, and what of that a server's prefix cache has saved.

use std::fmt;

use serde::Serialize;

use super::super::dialogue::Workload;
use super::build::ratio;
use super::{Recorder, Summary};

/// How much of the prompts was cached, beside how much could have been.
#[derive(Clone, Debug, Serialize)]
pub struct Reuse {
    /// Part of the prompts' tokens that a cache had.
    pub cached: f64,
    /// Part of them that earlier requests had too, by the lengths of prompts and answers: what a cache of everything had.
    pub repeated: f64,
    /// First turns of which nothing was cached, as far as the server tells.
    pub cold_requests: u64,
    /// To their first tokens.
    pub cold_ttft_p50_ms: f64,
    /// To the first tokens of second turns.
    pub turn_2_ttft_p50_ms: f64,
    /// The latter divided by the former, if there are both.
    pub turn_2_by_cold: Option<f64>,
}

impl Reuse {
    /// Of a load whose conversations repeat something.
    pub fn new(recorder: &Recorder, workload: &Workload) -> Option<Self> {
        if workload.turns.get() == 1 && workload.system == 0 {
            return None;
        }
        let cold = Summary::of(&recorder.cold_ttft);
        let second = recorder.turns.get(1).filter(|turn| turn.ttft.count() > 0);
        let second = second.map(|turn| turn.ttft.quantile(0.5));
        Some(Self {
            cached: ratio(recorder.cached_tokens, recorder.prompt_tokens),
            repeated: ratio(recorder.repeated_tokens, recorder.prompt_tokens),
            cold_requests: cold.count,
            cold_ttft_p50_ms: cold.p50,
            turn_2_ttft_p50_ms: second.unwrap_or(0.0),
            turn_2_by_cold: second.filter(|_| cold.p50 > 0.0).map(|second| second / cold.p50),
        })
    }
}

impl fmt::Display for Reuse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (cached, repeated) = (100.0 * self.cached, 100.0 * self.repeated);
        writeln!(
            f,
            "reuse       {cached:.1} % of the prompts cached, {repeated:.1} % said before, by lengths"
        )?;
        let Self { cold_requests, cold_ttft_p50_ms, turn_2_ttft_p50_ms, turn_2_by_cold, .. } = self;
        match turn_2_by_cold {
            Some(by_cold) => writeln!(
                f,
                "turn 2      {by_cold:.3} of the time of a cold turn 1 to the first token: {turn_2_ttft_p50_ms:.2} \
                 by {cold_ttft_p50_ms:.2} ms (p50, {cold_requests} cold)"
            ),
            None => writeln!(f, "turn 2      not compared: there was none, or no cold turn 1"),
        }
    }
}
