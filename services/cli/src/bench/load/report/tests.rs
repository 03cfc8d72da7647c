use std::num::{NonZeroU32, NonZeroUsize};
use std::time::{Duration, UNIX_EPOCH};

use super::super::dialogue::{Form, Workload};
use super::super::pace::Spacing;
use super::super::recorder::Outcome;
use super::super::target::{Answer, Failed, Piece, Usage};
use super::super::terms::Terms;
use super::*;

/// Two turns of each of 40 conversations, every tenth of them failed.
fn report() -> Report {
    let began = Instant::now();
    let at = |millis: u64| began + Duration::from_millis(millis);
    let objectives = vec!["ttft=60ms".parse().unwrap(), "e2e=1s".parse().unwrap()];
    let mut recorder = Recorder::new(began, objectives);
    for index in 0..80_u64 {
        let (due, turn) = (index * 50, 1 + (index % 2) as u32);
        let first = due + 40 + index;
        let pieces = (0..5).map(|token| Piece { at: at(first + token * 20), tokens: 1 }).collect();
        let usage =
            Some(Usage { prompt_tokens: 100 * turn, completion_tokens: 5, cached_tokens: 80 * (turn - 1) });
        let full = || Err(Failed::new(FailureKind::Exhausted, "<queue> is full"));
        recorder.record(Outcome {
            turn,
            wanted: 100,
            repeated: 90 * (turn - 1),
            due: at(due),
            sent: at(due),
            ended: at(first + 100),
            answer: Answer { pieces, usage, ..Answer::default() },
            result: if index % 10 == 9 { full() } else { Ok(()) },
            measured_from: (index >= 8).then(|| at(400)),
            warm_up: index < 8,
        });
    }
    told(&recorder)
}

fn told(recorder: &Recorder) -> Report {
    let plan = LoadPlan {
        pace: Pace::Open { rate: 10.0, spacing: Spacing::Poisson, limit: NonZeroUsize::MIN },
        warm_up: Extent::Requests(8),
        extent: Extent::Requests(72),
        workload: Workload {
            seed: 3,
            system: 50,
            turns: NonZeroU32::new(2).unwrap(),
            prompt: "50".parse().unwrap(),
            answer: "5".parse().unwrap(),
            think: Duration::ZERO,
        },
        timeout: Duration::from_secs(1),
        objectives: recorder.objectives().to_vec(),
    };
    let target = TargetPlan {
        url: "http://127.0.0.1:1".to_owned(),
        model: None,
        form: Form::Chat,
        api_key: Some("a-secret".to_owned()),
        vocab: None,
        extra: serde_json::Map::new(),
        temperature: None,
        stop_at_eos: false,
        terms: Terms::default(),
        most_at_once: 1,
    };
    let circumstances = Circumstances {
        target: &target,
        model: "<tiny & co>".to_owned(),
        plan: &plan,
        began: UNIX_EPOCH,
        interrupted: false,
        notes: vec!["a note".to_owned()],
    };
    Report::new(recorder, circumstances)
}

/// The names of all values below, in order; those of a list by its first element.
fn names(value: &serde_json::Value, path: &str, into: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(fields) => {
            for (name, value) in fields {
                names(value, &format!("{path}.{name}"), into);
            }
        }
        serde_json::Value::Array(values) if values.first().is_some_and(serde_json::Value::is_object) => {
            names(&values[0], &format!("{path}[]"), into);
        }
        _ => into.push(path.trim_start_matches('.').to_owned()),
    }
}

#[test]
fn the_figures_are_those_of_the_requests() {
    let report = report();
    assert_eq!((report.requests.warm_up, report.requests.measured), (8, 72));
    assert_eq!((report.requests.answered, report.requests.failed), (64, 8));
    // Due at 400 ms; the last one's end is at 79 · 50 + 40 + 79 + 100 ms.
    assert!((report.window_s - 3.769).abs() < 1e-9, "{}", report.window_s);
    assert!((report.throughput.requests_per_s - 64.0 / 3.769).abs() < 1e-9);
    assert_eq!(report.tokens.answer, 64 * 5);
    // Some of the warm-up's tokens came later than the measurement's beginning; those of failed requests came too.
    assert!(report.throughput.answer_tokens_per_s * report.window_s >= 72.0 * 5.0 - 1e-6);
    let goodput = report.goodput.as_ref().unwrap();
    // 40 + index ≤ 60 ms from index 8 on, without those that end in 9.
    assert_eq!(goodput.objectives[0].missed, 64 - 11);
    assert!((goodput.share - 11.0 / 72.0).abs() < 1e-9);
    assert_eq!(report.turns.len(), 2);
    assert_eq!((report.turns[1].prompt_tokens, report.turns[1].cached_tokens), (200.0, 80.0));
    assert_eq!(report.failures.len(), 1);
    assert_eq!(report.timeline.slices.last().unwrap().running, 0);
    assert_eq!(report.timeline.slices.iter().map(|slice| slice.failed).sum::<u64>(), 8);
}

#[test]
fn the_form_for_machines_has_these_names() {
    let mut found = Vec::new();
    names(&serde_json::to_value(report()).unwrap(), "", &mut found);
    let summaries = ["ttft", "inter_token", "tpot", "e2e", "client_lag"].map(|name| {
        ["count", "mean", "min", "p50", "p90", "p95", "p99", "p999", "max", "curve"]
            .map(|field| format!("latency_ms.{name}.{field}"))
    });
    let before = "format asterism began interrupted notes target.url target.model target.prompts load.pace \
        load.concurrency load.rate_per_s load.warm_up load.extent load.system_tokens load.prompt load.answer load.turns \
        load.think_s load.seed load.temperature load.ignore_eos load.tenant load.priority load.deadline_s \
        load.bypass_cache window_s requests.warm_up requests.measured \
        requests.answered requests.failed failures[].kind failures[].count failures[].example tokens.prompt tokens.cached \
        tokens.repeated tokens.answer tokens.counted_by_server tokens.per_message throughput.requests_per_s \
        throughput.prompt_tokens_per_s throughput.answer_tokens_per_s goodput.requests_per_s goodput.share \
        goodput.objectives[].quantity goodput.objectives[].most_ms goodput.objectives[].missed";
    let after = "turns[].turn turns[].answered turns[].prompt_tokens turns[].cached_tokens turns[].repeated_tokens turns[].answer_tokens \
        turns[].ttft_p50_ms turns[].ttft_p99_ms turns[].e2e_p50_ms turns[].e2e_p99_ms reuse.cached reuse.repeated reuse.cold_requests \
        reuse.cold_ttft_p50_ms reuse.turn_2_ttft_p50_ms reuse.turn_2_by_cold timeline.slice_s \
        timeline.measured_from_s timeline.measured_to_s timeline.slices[].answer_tokens_per_s timeline.slices[].running \
        timeline.slices[].failed sample[].due_s sample[].turn sample[].ttft_ms sample[].tpot_ms sample[].e2e_ms";
    let expected: Vec<String> = before
        .split_whitespace()
        .map(str::to_owned)
        .chain(summaries.into_iter().flatten())
        .chain(after.split_whitespace().map(str::to_owned))
        .collect();
    assert_eq!(found, expected);
}

#[test]
fn the_table_tells_what_matters() {
    let table = report().to_string();
    for line in [
        "requests    64 answered, 8 failed in 3.77 s: 16.98/s",
        "goodput     2.92/s, 15.3 % of the requests: ttft ≤ 60 ms, e2e ≤ 1,000 ms",
        // 36 first turns of 100 tokens, 28 second ones of 200, 80 of them cached and 90 said before.
        "reuse       24.3 % of the prompts cached, 27.4 % said before, by lengths",
        "8 failed (exhausted), the first: <queue> is full",
        "note: a note",
    ] {
        assert!(table.lines().any(|found| found == line), "{line}\nis not in\n{table}");
    }
    let row = table.lines().find(|line| line.starts_with("to first token")).unwrap();
    assert_eq!(row.split_whitespace().count(), 3 + 6, "{row}");
}

/// All elements of a page that are opened and closed, in order.
fn assert_well_formed(page: &str) {
    const EMPTY: [&str; 2] = ["!DOCTYPE", "meta"];
    let mut open = Vec::new();
    for tag in page.split('<').skip(1) {
        let (tag, _) = tag.split_once('>').unwrap_or_else(|| panic!("no end: {tag}"));
        let name = tag.split_whitespace().next().unwrap_or_default();
        match name.strip_prefix('/') {
            Some(name) => assert_eq!(open.pop(), Some(name), "closed: {name}"),
            None if tag.ends_with('/') || EMPTY.contains(&name) => {}
            None => open.push(name),
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

#[test]
fn the_page_stands_alone() {
    let page = report().page();
    assert_well_formed(&page);
    for inside in ["Latency", "How long requests took", "Over time", "By turn", "Failures", "Settings"] {
        assert_eq!(page.matches(&format!("<h2>{inside}</h2>")).count(), 1, "{inside}");
    }
    // Four distributions, four courses of time, two by turn.
    assert_eq!(page.matches("<svg").count(), 10);
    assert!(page.contains("promised: 60 ms") && page.contains(">warm-up<"));
    for outside in ["http://www", "https://", "<script", "<link", "src=", "url("] {
        assert!(!page.contains(outside), "{outside}");
    }
    assert!(page.contains("&lt;tiny &amp; co&gt;") && page.contains("&lt;queue&gt; is full"));
    assert!(!page.contains("NaN") && !page.contains(">inf"), "numbers only");
    assert!(!page.contains("a-secret") && !format!("{:?}", report()).contains("a-secret"));
}

#[test]
fn a_report_of_nothing_is_a_report() {
    let empty = told(&Recorder::new(Instant::now(), Vec::new()));
    let page = empty.page();
    assert_well_formed(&page);
    assert!(!page.contains("NaN"));
    assert!(empty.to_string().contains("to first token"));
}
