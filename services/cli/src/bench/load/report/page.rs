//! The report as one page that needs nothing else: style and plots are in it, and no script.

use std::fmt::Write as _;

use super::axis::{Axis, number};
use super::plot::{Mark, Plot};
use super::{Quantity, Report, SampleTold, Summary};

const STYLE: &str = include_str!("page.css");
/// Steps that can be told apart in a plot.
const MOST_STEPS: usize = 60;

impl Report {
    /// The page.
    pub fn page(&self) -> String {
        let title = format!("Load on {}", escaped(&self.target.model));
        let mut page = format!(
            "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
             content=\"width=device-width\"><title>{title}</title><style>\n{STYLE}</style></head><body><main>\n\
             <h1>{title}</h1><p class=\"soft\">{}, {} of warm-up, then {} &middot; <code>{}</code> &middot; {}</p>\n",
            escaped(&self.load.pace),
            escaped(&self.load.warm_up),
            escaped(&self.load.extent),
            escaped(&self.target.url),
            self.began,
        );
        page.push_str(&self.notes_box());
        page.push_str(&self.cards());
        page.push_str(&self.latency_table());
        page.push_str(&section("How long requests took", &self.distributions()));
        page.push_str(&section("Over time", &self.over_time()));
        page.push_str(&self.turn_section());
        page.push_str(&self.failure_table());
        page.push_str(&self.settings());
        page.push_str(&self.explanation());
        page.push_str("</main></body></html>\n");
        page
    }

    fn notes_box(&self) -> String {
        let paragraphs: String = self.notes.iter().map(|note| format!("<p>{}</p>", escaped(note))).collect();
        if paragraphs.is_empty() {
            paragraphs
        } else {
            format!("<div class=\"box notes\">{paragraphs}</div>\n")
        }
    }

    fn cards(&self) -> String {
        let Self { requests, throughput, latency_ms, tokens, .. } = self;
        let mut cards = String::from("<div class=\"cards\">");
        let mut card = |name: &str, value: String, unit: &str, more: String, bad: bool| {
            let class = if bad { "card bad" } else { "card" };
            let _ = writeln!(
                cards,
                "<div class=\"{class}\"><span>{name}</span><b>{value} <small>{unit}</small></b><span>{more}</span></div>"
            );
        };
        card(
            "Answered",
            number(throughput.requests_per_s),
            "/s",
            format!("{} in {:.1} s", number(requests.answered as f64), self.window_s),
            false,
        );
        let prompt = format!("{}/s read", number(throughput.prompt_tokens_per_s));
        card("Tokens written", number(throughput.answer_tokens_per_s), "/s", prompt, false);
        let p99 = |summary: &Summary| format!("p99 {} ms", milliseconds(summary.p99));
        for (name, summary) in [
            ("To first token, p50", &latency_ms.ttft),
            ("Inter-token, p50", &latency_ms.inter_token),
            ("End to end, p50", &latency_ms.e2e),
        ] {
            card(name, milliseconds(summary.p50), "ms", p99(summary), false);
        }
        if let Some(goodput) = &self.goodput {
            let share = format!("{:.1} % of requests", 100.0 * goodput.share);
            card("Goodput", number(goodput.requests_per_s), "/s", share, false);
        }
        if tokens.cached > 0 {
            let share = 100.0 * tokens.cached as f64 / tokens.prompt.max(1) as f64;
            card(
                "Prompt cached",
                format!("{share:.1}"),
                "%",
                format!("{} tokens", number(tokens.cached as f64)),
                false,
            );
        }
        if let Some(by_cold) = self.reuse.as_ref().and_then(|reuse| reuse.turn_2_by_cold) {
            let more = "to first token, p50, by a cold turn 1's".to_owned();
            card("Turn 2", format!("{by_cold:.2}"), "", more, false);
        }
        let share = 100.0 * requests.failed as f64 / requests.measured.max(1) as f64;
        let of = format!("{share:.1} % of {}", number(requests.measured as f64));
        card("Failed", number(requests.failed as f64), "", of, requests.failed > 0);
        cards + "</div>\n"
    }

    fn latency_table(&self) -> String {
        let mut rows = String::new();
        for (name, summary) in self.rows() {
            let Summary { count, mean, p50, p90, p95, p99, p999, max, .. } = *summary;
            let _ = write!(rows, "<tr><th>{name}</th><td>{}</td>", number(count as f64));
            for value in [mean, p50, p90, p95, p99, p999, max] {
                let _ = write!(rows, "<td>{}</td>", milliseconds(value));
            }
            rows.push_str("</tr>\n");
        }
        let heads = ["ms", "count", "mean", "p50", "p90", "p95", "p99", "p99.9", "max"];
        format!("<h2>Latency</h2>{}", table(&heads, &rows))
    }

    /// One plot for each of the three distributions that a reader feels, with what was promised.
    fn distributions(&self) -> String {
        let latencies = &self.latency_ms;
        let mut plots = String::new();
        for (title, summary, quantity) in [
            ("To the first token", &latencies.ttft, Some(Quantity::Ttft)),
            ("From token to token", &latencies.inter_token, None),
            ("From token to token, mean of each request", &latencies.tpot, Some(Quantity::Tpot)),
            ("To the answer's end", &latencies.e2e, Some(Quantity::E2e)),
        ] {
            let objectives = self.goodput.iter().flat_map(|goodput| &goodput.objectives);
            let limits: Vec<f64> = objectives
                .filter(|objective| Some(objective.quantity) == quantity)
                .map(|objective| objective.most_ms)
                .collect();
            let x = Axis::nines("% of them are no longer", summary.count);
            let points = until(&summary.curve, x.to);
            let top = points.iter().map(|point| point.1).chain(limits.iter().copied()).fold(0.0, f64::max);
            let mut marks = vec![Mark::Line { points, ink: "one", name: "" }];
            let limit = |&y: &f64| Mark::Limit { y, name: format!("promised: {} ms", number(y)) };
            marks.extend(limits.iter().map(limit));
            plots.push_str(&Plot { title, y: Axis::magnitudes("ms", summary.min, top), x, marks }.svg());
        }
        plots
    }

    fn over_time(&self) -> String {
        let timeline = &self.timeline;
        let end = timeline.slices.len() as f64 * timeline.slice_s;
        let x = Axis::time("seconds from the beginning", end);
        let at = |index: usize| index as f64 * timeline.slice_s;
        let warm_up = || {
            let to = timeline.measured_from_s;
            (self.requests.warm_up > 0).then_some(Mark::Band { from: 0.0, to, name: "warm-up" })
        };
        let steps = |title, label, points: Vec<(f64, f64)>, ink| {
            let y = Axis::linear(label, points.iter().map(|point| point.1).fold(0.0, f64::max));
            let marks = warm_up().into_iter().chain([Mark::Steps { points, ink }]).collect();
            Plot { title, x: x.clone(), y, marks }.svg()
        };
        let running =
            timeline.slices.iter().enumerate().map(|(index, slice)| (at(index), slice.running as f64));
        // Single steps of a slow server would be spikes.
        let together = timeline.slices.len().div_ceil(MOST_STEPS).max(1);
        let written = timeline.slices.chunks(together).enumerate().map(|(index, slices)| {
            let sum: f64 = slices.iter().map(|slice| slice.answer_tokens_per_s).sum();
            (at(index * together), sum / slices.len() as f64)
        });
        [
            steps("Tokens written", "tokens/s", to_the_end(written, end), "three"),
            steps("Requests due and not ended", "requests", to_the_end(running, end), "two"),
            self.scatter("To the first token, by request", &x, |sample| sample.ttft_ms),
            self.scatter("To the answer's end, by request", &x, |sample| sample.e2e_ms),
        ]
        .concat()
    }

    /// A time of each request of the sample.
    fn scatter(&self, title: &'static str, x: &Axis, time: fn(&SampleTold) -> Option<f64>) -> String {
        let answered: Vec<(f64, f64)> =
            self.sample.iter().filter_map(|sample| Some((sample.due_s, time(sample)?))).collect();
        let bounds = answered
            .iter()
            .fold((f64::MAX, 0.0_f64), |(least, most), point| (least.min(point.1), most.max(point.1)));
        let y = Axis::magnitudes("ms", if answered.is_empty() { 0.0 } else { bounds.0 }, bounds.1);
        let failed = self.sample.iter().filter(|sample| time(sample).is_none());
        let failed: Vec<(f64, f64)> = failed.map(|sample| (sample.due_s, y.to)).collect();
        let mut marks = vec![Mark::Dots { points: answered, ink: "one", name: "" }];
        if !failed.is_empty() {
            marks.push(Mark::Dots { points: failed, ink: "bad", name: "failed" });
        }
        let x = Axis { label: "seconds from the beginning, when due", ..x.clone() };
        Plot { title, x, y, marks }.svg()
    }

    fn turn_section(&self) -> String {
        if self.turns.len() < 2 {
            return String::new();
        }
        let curve = |value: fn(&super::TurnTold) -> f64| {
            self.turns.iter().map(|turn| (turn.turn as f64, value(turn))).collect::<Vec<_>>()
        };
        let (p50, p99) = (curve(|turn| turn.ttft_p50_ms), curve(|turn| turn.ttft_p99_ms));
        let most = p99.iter().map(|point| point.1).fold(0.0, f64::max);
        let times = Plot {
            title: "To the first token, by turn",
            x: Axis::ordinals("turn", self.turns.len()),
            y: Axis::linear("ms", most),
            marks: vec![
                Mark::Line { points: p50.clone(), ink: "one", name: "p50" },
                Mark::Dots { points: p50, ink: "one", name: "" },
                Mark::Line { points: p99.clone(), ink: "two", name: "p99" },
                Mark::Dots { points: p99, ink: "two", name: "" },
            ],
        };
        let (prompt, cached) = (curve(|turn| turn.prompt_tokens), curve(|turn| turn.cached_tokens));
        let most = prompt.iter().map(|point| point.1).fold(0.0, f64::max);
        let tokens = Plot {
            title: "Prompt by turn",
            x: Axis::ordinals("turn", self.turns.len()),
            y: Axis::linear("tokens, mean", most),
            marks: vec![
                Mark::Line { points: prompt.clone(), ink: "one", name: "prompt" },
                Mark::Dots { points: prompt, ink: "one", name: "" },
                Mark::Line { points: cached.clone(), ink: "three", name: "cached" },
                Mark::Dots { points: cached, ink: "three", name: "" },
            ],
        };
        let mut rows = String::new();
        for turn in &self.turns {
            let _ = writeln!(
                rows,
                "<tr><th>{}</th><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
                turn.turn,
                number(turn.answered as f64),
                number(turn.prompt_tokens.round()),
                number(turn.cached_tokens.round()),
                number(turn.repeated_tokens.round()),
                milliseconds(turn.ttft_p50_ms),
                milliseconds(turn.ttft_p99_ms),
                milliseconds(turn.e2e_p50_ms),
                milliseconds(turn.e2e_p99_ms),
            );
        }
        let heads = [
            "turn",
            "answered",
            "prompt tokens",
            "cached",
            "said before",
            "ttft p50",
            "ttft p99",
            "end p50",
            "end p99",
        ];
        section("By turn", &[times.svg(), tokens.svg()].concat()) + &table(&heads, &rows)
    }

    fn failure_table(&self) -> String {
        if self.failures.is_empty() {
            return String::new();
        }
        let mut rows = String::new();
        for failure in &self.failures {
            let (kind, count) = (failure.kind.name(), number(failure.count as f64));
            let _ = writeln!(
                rows,
                "<tr><th>{kind}</th><td>{count}</td><td class=\"text\">{}</td></tr>",
                escaped(&failure.example)
            );
        }
        let heads = "<th>kind</th><th>requests</th><th class=\"text\">the first said</th>";
        format!(
            "<h2>Failures</h2><div class=\"box\"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>\n"
        )
    }

    fn settings(&self) -> String {
        let load = &self.load;
        let shared = match load.system_tokens {
            0 => "none".to_owned(),
            tokens => format!("{tokens} tokens, the same in every conversation"),
        };
        let turns = match load.turns {
            1 => "1".to_owned(),
            turns => format!("{turns}, each {} s after the last answer", load.think_s),
        };
        let temperature =
            load.temperature.map_or("the server's".to_owned(), |temperature| temperature.to_string());
        let ends = if load.ignore_eos { "at their limits" } else { "where the model ends them" };
        let tenant = load.tenant.as_deref().unwrap_or("none named");
        let priority = load.priority.map_or("the server's".to_owned(), |priority| priority.to_string());
        let deadline = load.deadline_s.map_or("none".to_owned(), |seconds| format!("{seconds} s"));
        let cache = if load.bypass_cache { "bypassed" } else { "as the server has it" };
        let counts = if self.tokens.counted_by_server { "the server's" } else { "this client's" };
        let mut list = String::new();
        for (name, value) in [
            ("prompts", self.target.prompts),
            ("new prompt tokens", &load.prompt),
            ("answer tokens", &load.answer),
            ("system prompt", &shared),
            ("turns", &turns),
            ("temperature", &temperature),
            ("answers end", ends),
            ("tenant", tenant),
            ("priority", &priority),
            ("deadline", &deadline),
            ("prefix cache", cache),
            ("token counts", counts),
            ("seed", &load.seed.to_string()),
            ("asterism", self.asterism),
        ] {
            let _ = write!(list, "<dt>{name}</dt><dd>{}</dd>", escaped(value));
        }
        format!("<h2>Settings</h2><div class=\"box\"><dl>{list}</dl></div>\n")
    }

    fn explanation(&self) -> String {
        let origin = if self.load.rate_per_s.is_some() {
            "Latencies count from the time at which a request was due by its schedule, not from when it was sent: a slow \
             server cannot hide by being asked less, nor this client by being late (client lag)."
        } else {
            "In a closed loop a request is due when the one before it has ended, so a slow server is asked less: compare \
             servers at the same concurrency, or measure with a rate."
        };
        let window = "Rates are by the time from the first measured request's due time to the last one's end. Tokens written \
                      are all that came in that time; failed requests have no latencies, and never count as good.";
        let figures = "Distributions have three significant figures and hold every measured request; the plot by request is a \
                       uniform sample of at most 2,000.";
        format!("<footer><p>{origin}</p><p>{window} {figures}</p></footer>")
    }
}

/// A distribution's curve as (share, time), up to this share.
fn until(curve: &[(f64, f64)], most: f64) -> Vec<(f64, f64)> {
    const NEAR: f64 = 1e-9;
    let inside = curve.iter().take_while(|point| point.1 <= most + NEAR);
    let mut points: Vec<(f64, f64)> = inside.map(|&(time, share)| (share, time)).collect();
    let ends_before = points.last().is_none_or(|last| last.0 < most - NEAR);
    // The next time is the first that so many do not exceed.
    let next = curve.get(points.len()).filter(|_| ends_before);
    points.extend(next.map(|&(time, _)| (most, time)));
    points
}

/// The last step goes on to the end.
fn to_the_end(points: impl Iterator<Item = (f64, f64)>, end: f64) -> Vec<(f64, f64)> {
    let mut points: Vec<(f64, f64)> = points.collect();
    points.extend(points.last().map(|last| (end, last.1)));
    points
}

fn section(title: &str, plots: &str) -> String {
    format!("<h2>{title}</h2><div class=\"plots\">{plots}</div>\n")
}

fn table(heads: &[&str], rows: &str) -> String {
    let heads: String = heads.iter().map(|head| format!("<th>{head}</th>")).collect();
    format!("<div class=\"box\"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>\n")
}

/// With as many decimals as three figures have.
fn milliseconds(value: f64) -> String {
    match value {
        value if value >= 100.0 => number(value),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

/// Text that a browser shows as it is.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}
