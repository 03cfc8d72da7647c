//! The report in the terminal.

use std::fmt;

use super::axis::number;
use super::{Report, Summary};

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { target, load, requests, tokens, throughput, .. } = self;
        writeln!(f, "target      {}, {}, {}", target.url, target.model, target.prompts)?;
        writeln!(f, "load        {}; {} after a warm-up of {}", load.pace, load.extent, load.warm_up)?;
        write!(f, "tokens      prompt {}, answer {}", load.prompt, load.answer)?;
        if load.turns > 1 || load.system_tokens > 0 {
            write!(f, ", shared system prompt {}, turns {}", load.system_tokens, load.turns)?;
        }
        writeln!(f, "; seed {}\n", load.seed)?;
        writeln!(
            f,
            "requests    {} answered, {} failed in {:.2} s: {}/s",
            number(requests.answered as f64),
            number(requests.failed as f64),
            self.window_s,
            number(throughput.requests_per_s)
        )?;
        let cached = 100.0 * tokens.cached as f64 / tokens.prompt.max(1) as f64;
        writeln!(
            f,
            "in          {} tokens, {}/s; {cached:.1} % cached",
            number(tokens.prompt as f64),
            number(throughput.prompt_tokens_per_s)
        )?;
        writeln!(
            f,
            "out         {} tokens, {}/s",
            number(tokens.answer as f64),
            number(throughput.answer_tokens_per_s)
        )?;
        if let Some(goodput) = &self.goodput {
            let promised = goodput
                .objectives
                .iter()
                .map(|objective| format!("{} ≤ {} ms", objective.quantity.name(), number(objective.most_ms)));
            writeln!(
                f,
                "goodput     {}/s, {:.1} % of the requests: {}",
                number(goodput.requests_per_s),
                100.0 * goodput.share,
                promised.collect::<Vec<_>>().join(", ")
            )?;
        }
        self.latencies(f)?;
        self.by_turn(f)?;
        if let Some(reuse) = &self.reuse {
            write!(f, "\n{reuse}")?;
        }
        for failure in &self.failures {
            writeln!(
                f,
                "\n{} failed ({}), the first: {}",
                failure.count,
                failure.kind.name(),
                failure.example
            )?;
        }
        for note in &self.notes {
            writeln!(f, "\nnote: {note}")?;
        }
        Ok(())
    }
}

impl Report {
    /// Each distribution under its name.
    pub(super) fn rows(&self) -> [(&'static str, &Summary); 5] {
        let latencies = &self.latency_ms;
        [
            ("to first token", &latencies.ttft),
            ("inter-token", &latencies.inter_token),
            ("per token, by request", &latencies.tpot),
            ("end to end", &latencies.e2e),
            ("client lag", &latencies.client_lag),
        ]
    }

    fn latencies(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\n{:<24}", "ms")?;
        for name in ["mean", "p50", "p90", "p95", "p99", "max"] {
            write!(f, "{name:>11}")?;
        }
        writeln!(f)?;
        for (name, summary) in self.rows() {
            write!(f, "{name:<24}")?;
            for value in [summary.mean, summary.p50, summary.p90, summary.p95, summary.p99, summary.max] {
                write!(f, "{value:>11.2}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }

    fn by_turn(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.turns.len() < 2 {
            return Ok(());
        }
        writeln!(
            f,
            "\n{:<6}{:>10}{:>16}{:>10}{:>13}{:>16}{:>16}",
            "turn", "requests", "prompt tokens", "cached", "said before", "ttft p50 ms", "ttft p99 ms"
        )?;
        for turn in &self.turns {
            let share = |tokens: f64| 100.0 * tokens / turn.prompt_tokens.max(1.0);
            let (cached, repeated) = (share(turn.cached_tokens), share(turn.repeated_tokens));
            writeln!(
                f,
                "{:<6}{:>10}{:>16.1}{cached:>8.1} %{repeated:>11.1} %{:>16.2}{:>16.2}",
                turn.turn, turn.answered, turn.prompt_tokens, turn.ttft_p50_ms, turn.ttft_p99_ms
            )?;
        }
        Ok(())
    }
}
