use super::super::target::{Piece, Usage};
use super::*;

/// A request that was due at 100 ms and sent at 110, with tokens at these milliseconds.
fn outcome(began: Instant, tokens: &[(u64, u32)]) -> Outcome {
    let at = |millis| began + Duration::from_millis(millis);
    let pieces: Vec<Piece> =
        tokens.iter().map(|&(millis, tokens)| Piece { at: at(millis), tokens }).collect();
    Outcome {
        turn: 1,
        wanted: 30,
        repeated: 0,
        due: at(100),
        sent: at(110),
        ended: pieces.last().map_or(at(400), |last| last.at),
        answer: Answer { pieces, ..Answer::default() },
        result: Ok(()),
        measured_from: Some(at(100)),
        warm_up: false,
    }
}

fn recorder(began: Instant) -> Recorder {
    Recorder::new(began, vec!["ttft=150ms".parse().unwrap(), "tpot=1s".parse().unwrap()])
}

#[track_caller]
fn assert_near(value: f64, expected: f64) {
    assert!((value - expected).abs() <= 1e-3 * expected, "{value} is not {expected}");
}

#[test]
fn latencies_count_from_when_a_request_was_due() {
    let began = Instant::now();
    let mut recorder = recorder(began);
    recorder.record(outcome(began, &[(300, 1), (340, 1), (400, 1)]));
    assert_near(recorder.ttft.max(), 200.0);
    assert_near(recorder.e2e.max(), 300.0);
    assert_near(recorder.lag.max(), 10.0);
    assert_near(recorder.tpot.max(), 50.0);
    assert_near(recorder.inter_token.min(), 40.0);
    assert_near(recorder.inter_token.max(), 60.0);
    assert_eq!((recorder.answered, recorder.good), (1, 0));
    assert_eq!(recorder.missed, [1, 0], "due at 100 ms, it came 200 ms later");
    assert_eq!(
        recorder.window,
        Some((began + Duration::from_millis(100), began + Duration::from_millis(400)))
    );
}

#[test]
fn tokens_that_came_together_share_their_time() {
    let began = Instant::now();
    let mut recorder = recorder(began);
    recorder.record(outcome(began, &[(200, 2), (230, 3)]));
    assert_eq!(recorder.inter_token.count(), 3);
    assert_near(recorder.inter_token.max(), 10.0);
    assert_near(recorder.tpot.max(), 10.0);
    assert_eq!((recorder.answer_tokens, recorder.messages, recorder.good), (5, 2, 1));
    assert!(!recorder.counted && recorder.prompt_tokens == 30, "what was asked stands in for a count");
}

#[test]
fn the_servers_count_stands_above_messages() {
    let began = Instant::now();
    let mut recorder = recorder(began);
    let mut counted = outcome(began, &[(200, 1), (300, 1)]);
    counted.answer.usage = Some(Usage { prompt_tokens: 50, completion_tokens: 6, cached_tokens: 16 });
    recorder.record(counted);
    assert_eq!((recorder.answer_tokens, recorder.prompt_tokens, recorder.cached_tokens), (6, 50, 16));
    assert_near(recorder.tpot.max(), 20.0);
    assert_near(recorder.window_tokens, 6.0);
    let slices: Vec<f64> = recorder.timeline.slices().iter().map(|slice| slice.tokens).collect();
    assert_eq!(slices, [0.0, 0.0, 3.0, 3.0]);
}

#[test]
fn a_warm_up_is_followed_but_not_measured() {
    let began = Instant::now();
    let mut recorder = recorder(began);
    let from = began + Duration::from_millis(250);
    let warm_up =
        Outcome { warm_up: true, measured_from: Some(from), ..outcome(began, &[(200, 1), (300, 1)]) };
    recorder.record(warm_up);
    assert_eq!((recorder.warm_up, recorder.requests, recorder.ttft.count()), (1, 0, 0));
    assert_near(recorder.window_tokens, 1.0);
    assert_eq!(recorder.window, None);
}

#[test]
fn failures_are_counted_by_kind_with_the_first_words() {
    let began = Instant::now();
    let mut recorder = recorder(began);
    for message in ["full", "still full"] {
        let failed = Err(Failed::new(FailureKind::Exhausted, message));
        recorder.record(Outcome { result: failed, ..outcome(began, &[(200, 1)]) });
    }
    let broken = Err(Failed::new(FailureKind::BrokenOff, "gone"));
    recorder.record(Outcome { result: broken, ..outcome(began, &[]) });
    assert_eq!(recorder.failures[&FailureKind::Exhausted], (2, "full".to_owned()));
    assert_eq!(recorder.failures[&FailureKind::BrokenOff].0, 1);
    assert_eq!((recorder.requests, recorder.answered, recorder.ttft.count()), (3, 0, 0));
    assert!(recorder.sample.iter().all(|sample| sample.times.is_none()));
    assert_near(recorder.window_tokens, 2.0);
}

#[test]
fn a_sample_is_bounded_and_turns_are_told_apart() {
    let began = Instant::now();
    let mut recorder = recorder(began);
    for index in 0..5_000 {
        recorder.record(Outcome { turn: 1 + index % 3, ..outcome(began, &[(200, 1), (300, 1)]) });
    }
    assert_eq!(recorder.sample.len(), SAMPLES);
    let counts: Vec<u64> = recorder.turns.iter().map(|turn| turn.ttft.count()).collect();
    assert_eq!(counts, [1667, 1667, 1666]);
    recorder.record(Outcome { turn: 1_000_000, ..outcome(began, &[(200, 1)]) });
    assert_eq!(recorder.turns.len(), TURNS);
}
