//! From what was recorded to what is told.

use super::super::length::Length;
use super::*;

impl Report {
    /// Of these requests under these circumstances.
    pub fn new(recorder: &Recorder, circumstances: Circumstances<'_>) -> Self {
        let window_s = recorder.window.map_or(0.0, |(from, to)| (to - from).as_secs_f64());
        let by_window = |amount: f64| if window_s > 0.0 { amount / window_s } else { 0.0 };
        let goodput = (!recorder.objectives().is_empty()).then(|| Goodput {
            requests_per_s: by_window(recorder.good as f64),
            share: ratio(recorder.good, recorder.requests),
            objectives: objectives(recorder),
        });
        let failures = recorder.failures.iter();
        let mut report = Self {
            format: FORMAT,
            asterism: env!("CARGO_PKG_VERSION"),
            began: utc::utc(circumstances.began),
            interrupted: circumstances.interrupted,
            notes: circumstances.notes.clone(),
            target: TargetTold {
                url: circumstances.target.url.clone(),
                model: circumstances.model.clone(),
                prompts: circumstances.target.form.name(),
            },
            load: LoadTold::new(circumstances.plan, circumstances.target),
            window_s,
            requests: Requests {
                warm_up: recorder.warm_up,
                measured: recorder.requests,
                answered: recorder.answered,
                failed: recorder.requests - recorder.answered,
            },
            failures: failures
                .map(|(&kind, (count, example))| FailureTold {
                    kind,
                    count: *count,
                    example: example.clone(),
                })
                .collect(),
            tokens: Tokens {
                prompt: recorder.prompt_tokens,
                cached: recorder.cached_tokens,
                repeated: recorder.repeated_tokens,
                answer: recorder.answer_tokens,
                counted_by_server: recorder.counted,
                per_message: ratio(recorder.answer_tokens, recorder.messages),
            },
            throughput: Throughput {
                requests_per_s: by_window(recorder.answered as f64),
                prompt_tokens_per_s: by_window(recorder.prompt_tokens as f64),
                answer_tokens_per_s: by_window(recorder.window_tokens),
            },
            goodput,
            latency_ms: Latencies {
                ttft: Summary::of(&recorder.ttft),
                inter_token: Summary::of(&recorder.inter_token),
                tpot: Summary::of(&recorder.tpot),
                e2e: Summary::of(&recorder.e2e),
                client_lag: Summary::of(&recorder.lag),
            },
            turns: recorder
                .turns
                .iter()
                .enumerate()
                .map(|(index, turn)| TurnTold::new(index + 1, turn))
                .collect(),
            reuse: Reuse::new(recorder, &circumstances.plan.workload),
            timeline: TimelineTold::new(recorder),
            sample: samples(recorder),
        };
        report.add_notes(circumstances.plan);
        report
    }

    /// What the figures themselves say against believing them.
    fn add_notes(&mut self, plan: &LoadPlan) {
        if self.interrupted {
            self.notes.push(
                "stopped before its end: requests under way were dropped and are not counted".to_owned(),
            );
        }
        if self.requests.answered > 0 && !self.tokens.counted_by_server {
            self.notes.push(
                "the server does not count tokens: a message counts as one, and prompts as long as wanted"
                    .to_owned(),
            );
        }
        // A gateway tells the ids of each message.
        let ids_unknown = self.target.url.starts_with("http");
        if ids_unknown && self.tokens.per_message > 1.05 && self.tokens.counted_by_server {
            let per_message = self.tokens.per_message;
            self.notes.push(format!(
                "a message brought {per_message:.2} tokens in the mean: inter-token is from message to message"
            ));
        }
        let lag = self.latency_ms.client_lag.p99;
        if matches!(plan.pace, Pace::Open { .. }) && lag > 5.0 && lag > 0.05 * self.latency_ms.ttft.p50 {
            self.notes.push(format!(
                "this client sent 1 % of the requests {lag:.1} ms or more after they were due, which latencies include"
            ));
        }
        let written = ratio(self.tokens.answer, self.requests.answered);
        if let Length::Fixed(wanted) = plan.workload.answer
            && self.load.ignore_eos
            && self.requests.answered > 0
            && written < 0.98 * f64::from(wanted)
        {
            self.notes.push(format!(
                "answers have {written:.1} tokens in the mean instead of {wanted}: the server ends them by itself"
            ));
        }
    }
}

pub(super) fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

fn objectives(recorder: &Recorder) -> Vec<ObjectiveTold> {
    let objectives = recorder.objectives().iter().zip(&recorder.missed);
    let told = objectives.map(|(objective, &missed)| ObjectiveTold {
        quantity: objective.quantity,
        most_ms: objective.most.as_secs_f64() * 1e3,
        missed,
    });
    told.collect()
}

fn samples(recorder: &Recorder) -> Vec<SampleTold> {
    let ms = |time: std::time::Duration| time.as_secs_f64() * 1e3;
    let told = recorder.sample.iter().map(|sample| SampleTold {
        due_s: sample.due.as_secs_f64(),
        turn: sample.turn,
        ttft_ms: sample.times.map(|times| ms(times.ttft)),
        tpot_ms: sample.times.and_then(|times| times.tpot).map(ms),
        e2e_ms: sample.times.map(|times| ms(times.e2e)),
    });
    let mut told: Vec<SampleTold> = told.collect();
    told.sort_by(|a, b| a.due_s.total_cmp(&b.due_s));
    told
}

impl LoadTold {
    fn new(plan: &LoadPlan, target: &TargetPlan) -> Self {
        let workload = &plan.workload;
        let (concurrency, rate_per_s) = match plan.pace {
            Pace::Closed { concurrency } => (Some(concurrency.get()), None),
            Pace::Open { rate, .. } => (None, Some(rate)),
        };
        Self {
            pace: plan.pace.to_string(),
            concurrency,
            rate_per_s,
            warm_up: match plan.warm_up {
                Extent::Requests(0) => "none".to_owned(),
                warm_up => warm_up.to_string(),
            },
            extent: plan.extent.to_string(),
            system_tokens: workload.system,
            prompt: workload.prompt.to_string(),
            answer: workload.answer.to_string(),
            turns: workload.turns.get(),
            think_s: workload.think.as_secs_f64(),
            seed: workload.seed,
            temperature: target.temperature,
            ignore_eos: !target.stop_at_eos,
            tenant: target.terms.tenant.clone(),
            priority: target.terms.priority,
            deadline_s: target.terms.deadline.map(|deadline| deadline.as_secs_f64()),
            bypass_cache: target.terms.bypass_cache,
        }
    }
}

impl Summary {
    /// Of these times.
    pub fn of(latency: &Latency) -> Self {
        Self {
            count: latency.count(),
            mean: latency.mean(),
            min: latency.min(),
            p50: latency.quantile(0.5),
            p90: latency.quantile(0.9),
            p95: latency.quantile(0.95),
            p99: latency.quantile(0.99),
            p999: latency.quantile(0.999),
            max: latency.max(),
            curve: latency.curve(POINTS),
        }
    }
}

impl TurnTold {
    fn new(turn: usize, of: &Turn) -> Self {
        let answered = of.ttft.count();
        Self {
            turn,
            answered,
            prompt_tokens: ratio(of.prompt_tokens, answered),
            cached_tokens: ratio(of.cached_tokens, answered),
            repeated_tokens: ratio(of.repeated_tokens, answered),
            answer_tokens: ratio(of.answer_tokens, answered),
            ttft_p50_ms: of.ttft.quantile(0.5),
            ttft_p99_ms: of.ttft.quantile(0.99),
            e2e_p50_ms: of.e2e.quantile(0.5),
            e2e_p99_ms: of.e2e.quantile(0.99),
        }
    }
}

impl TimelineTold {
    fn new(recorder: &Recorder) -> Self {
        let since = |at: Instant| at.saturating_duration_since(recorder.began()).as_secs_f64();
        let slice_s = recorder.timeline.width().as_secs_f64();
        let mut running = 0_u64;
        let slices = recorder.timeline.slices().iter().map(|slice| {
            running = (running + slice.begun).saturating_sub(slice.ended);
            SliceTold { answer_tokens_per_s: slice.tokens / slice_s, running, failed: slice.failed }
        });
        let (from, to) = recorder.window.map_or((0.0, 0.0), |(from, to)| (since(from), since(to)));
        Self { slice_s, measured_from_s: from, measured_to_s: to, slices: slices.collect() }
    }
}
