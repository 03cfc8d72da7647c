//! From a request's fields to parameters.

use super::*;
use crate::sampler::{MAX_EVIDENCE_K, Method, widened_k};

const VOCAB: u32 = 80_896;

fn telechat() -> GenerationDefaults {
    GenerationDefaults {
        temperature: 0.3,
        top_k: 5,
        top_p: 0.85,
        repetition_penalty: 1.02,
        ..GenerationDefaults::default()
    }
}

fn resolve(request: v1::Sampling) -> Sampling {
    Sampling::resolve(&request, &v1::Output::default(), &telechat(), VOCAB, 77).unwrap()
}

fn shape_of(request: v1::Sampling) -> Option<Shape> {
    match resolve(request).method() {
        Method::Greedy => None,
        Method::Draw(shape) => Some(shape.clone()),
    }
}

fn telechat_shape() -> Shape {
    Shape { temperature: 0.3f32.into(), top_k: k(5), top_p: 0.85f32.into(), min_p: 0.0 }
}

#[test]
fn nothing_set_is_as_the_checkpoint_says() {
    assert_eq!(shape_of(v1::Sampling::default()), None);
    let sampling = resolve(v1::Sampling::default());
    assert_eq!((sampling.seed(), sampling.logprobs()), (77, None));
    assert_eq!(sampling.setting(3).repetition_penalty, 1.02);
    let defaults = GenerationDefaults { do_sample: true, ..telechat() };
    let drawn =
        Sampling::resolve(&v1::Sampling::default(), &v1::Output::default(), &defaults, VOCAB, 0).unwrap();
    assert_eq!(drawn.method(), &Method::Draw(telechat_shape()));
    let off = v1::Sampling { do_sample: Some(false), ..Default::default() };
    let greedy = Sampling::resolve(&off, &v1::Output::default(), &defaults, VOCAB, 0).unwrap();
    assert_eq!(greedy.method(), &Method::Greedy);
}

#[test]
fn any_field_of_the_draw_asks_for_it() {
    let all = telechat_shape();
    for (request, expected) in [
        (v1::Sampling { do_sample: Some(true), ..Default::default() }, Some(all.clone())),
        (
            v1::Sampling { temperature: Some(0.5), ..Default::default() },
            Some(Shape { temperature: 0.5, ..all.clone() }),
        ),
        (v1::Sampling { top_k: Some(9), ..Default::default() }, Some(Shape { top_k: k(9), ..all.clone() })),
        (v1::Sampling { top_k: Some(0), ..Default::default() }, Some(Shape { top_k: None, ..all.clone() })),
        (v1::Sampling { top_p: Some(0.5), ..Default::default() }, Some(Shape { top_p: 0.5, ..all.clone() })),
        (v1::Sampling { min_p: Some(0.5), ..Default::default() }, Some(Shape { min_p: 0.5, ..all.clone() })),
        // Not these.
        (v1::Sampling { seed: Some(1), presence_penalty: Some(1.0), ..Default::default() }, None),
        (v1::Sampling { temperature: Some(0.0), ..Default::default() }, None),
        // A word about it counts more, and nothing is drawn at temperature 0.
        (v1::Sampling { do_sample: Some(false), top_p: Some(0.5), ..Default::default() }, None),
        (v1::Sampling { do_sample: Some(true), temperature: Some(0.0), ..Default::default() }, None),
        (v1::Sampling { top_p: Some(0.5), temperature: Some(0.0), ..Default::default() }, None),
    ] {
        assert_eq!(shape_of(request.clone()), expected, "{request:?}");
    }
}

#[test]
fn top_k_of_the_whole_vocabulary_is_off() {
    for (top_k, expected) in [(VOCAB - 1, k(VOCAB - 1)), (VOCAB, None), (u32::MAX, None)] {
        let request = v1::Sampling { top_k: Some(top_k), ..Default::default() };
        assert_eq!(shape_of(request).unwrap().top_k, expected);
    }
}

#[test]
fn bad_values_are_refused_by_name() {
    type Change = fn(&mut v1::Sampling, f32);
    let fields: [(&str, Change, &[f32]); 6] = [
        ("temperature", |s, x| s.temperature = Some(x), &[-1.0, -1e-9, 1e30]),
        ("top_p", |s, x| s.top_p = Some(x), &[-0.5, 0.0, 1.5]),
        ("min_p", |s, x| s.min_p = Some(x), &[-0.1, 1.01]),
        ("repetition_penalty", |s, x| s.repetition_penalty = Some(x), &[-1.0, 0.0, 1e20]),
        ("presence_penalty", |s, x| s.presence_penalty = Some(x), &[-1e20, 1e20]),
        ("frequency_penalty", |s, x| s.frequency_penalty = Some(x), &[-1e20, 1e20]),
    ];
    for (name, change, values) in fields {
        for &value in values.iter().chain(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY]) {
            let mut request = v1::Sampling::default();
            change(&mut request, value);
            let failure =
                Sampling::resolve(&request, &v1::Output::default(), &telechat(), VOCAB, 0).unwrap_err();
            assert_eq!(failure.reason, asterism_proto::Reason::InvalidArgument);
            assert_eq!(failure.field, Some(format!("sampling.{name}")), "{value}");
            assert!(failure.message.contains(&format!("{name} is {value}")), "{}", failure.message);
        }
    }
}

#[test]
fn bounds_themselves_are_fine() {
    let request = v1::Sampling {
        temperature: Some(100.0),
        top_p: Some(1.0),
        min_p: Some(1.0),
        repetition_penalty: Some(0.8),
        presence_penalty: Some(-2.0),
        frequency_penalty: Some(2.0),
        logit_bias: vec![v1::LogitBias { token_id: VOCAB - 1, bias: -1e9 }],
        ..Default::default()
    };
    let setting = resolve(request).setting(8);
    let expected = shard::v1::Setting {
        id: 8,
        bias: vec![shard::v1::TokenBias { token_id: VOCAB - 1, bias: -1e9 }],
        repetition_penalty: 0.8,
        presence_penalty: -2.0,
        frequency_penalty: 2.0,
        ..Default::default()
    };
    assert_eq!(setting, expected);
}

#[test]
fn bad_biases_are_refused() {
    let biased = |ids: &[u32], bias| {
        let logit_bias = ids.iter().map(|&token_id| v1::LogitBias { token_id, bias }).collect();
        let request = v1::Sampling { logit_bias, ..Default::default() };
        Sampling::resolve(&request, &v1::Output::default(), &telechat(), VOCAB, 0)
    };
    let many: Vec<u32> = (0..1025).collect();
    assert!(biased(&many[1..], 1.0).is_ok());
    let refused = [
        biased(&[VOCAB], 1.0),
        biased(&[1, 2, 1], 1.0),
        biased(&[1], f32::NAN),
        biased(&[1], f32::NEG_INFINITY),
        biased(&[1], 1e10),
        biased(&many, 1.0),
    ];
    for refused in refused {
        assert_eq!(refused.unwrap_err().field.as_deref(), Some("sampling.logit_bias"));
    }
}

#[test]
fn too_many_logprobs_are_refused() {
    let asked = |logprobs, vocab| {
        let output = v1::Output { logprobs: Some(logprobs) };
        Sampling::resolve(&v1::Sampling::default(), &output, &telechat(), vocab, 0)
    };
    assert_eq!(asked(1024, VOCAB).unwrap().logprobs(), Some(1024));
    for refused in [asked(1025, VOCAB), asked(u32::MAX, VOCAB), asked(33, 32)] {
        assert_eq!(refused.unwrap_err().field.as_deref(), Some("output.logprobs"));
    }
}

#[test]
fn k_is_as_small_as_the_draw_allows() {
    let evidence_k = |request: &v1::Sampling, logprobs, vocab| {
        Sampling::resolve(request, &v1::Output { logprobs }, &telechat(), vocab, 0).unwrap().evidence_k(vocab)
    };
    let greedy = v1::Sampling::default();
    let top_k = |k| v1::Sampling { top_k: Some(k), ..Default::default() };
    for (request, logprobs, vocab, expected) in [
        (&greedy, None, VOCAB, 1),
        (&greedy, Some(0), VOCAB, 64),
        (&greedy, Some(100), VOCAB, 100),
        (&top_k(0), None, VOCAB, 64),
        (&top_k(56), None, VOCAB, 64),
        (&top_k(57), None, VOCAB, 65),
        (&top_k(5), None, VOCAB, 13),
        (&top_k(5), Some(20), VOCAB, 20),
        (&top_k(2000), None, VOCAB, 1024),
        (&top_k(u32::MAX), None, VOCAB, 64),
        (&top_k(5), None, 10, 10),
    ] {
        assert_eq!(evidence_k(request, logprobs, vocab), expected, "{request:?} {logprobs:?} {vocab}");
    }
    assert_eq!(
        [64, 128, 512, 1000, 1024].map(|k| widened_k(k, VOCAB)),
        [128, 256, 1024, 1024, MAX_EVIDENCE_K]
    );
    assert_eq!(widened_k(64, 100), 100);
}

#[test]
fn the_log_sum_exp_is_asked_for_where_the_draw_refers_to_it() {
    for (shape, asks) in [
        (OFF, true),
        (Shape { top_p: 0.5, ..OFF }, true),
        (Shape { top_p: 0.5, min_p: 0.5, ..OFF }, true),
        (Shape { min_p: 0.5, ..OFF }, false),
        (Shape { top_k: k(5), ..OFF }, false),
        (Shape { top_k: k(5), top_p: 0.5, ..OFF }, false),
    ] {
        let shape = Shape { temperature: 0.5, ..shape };
        let setting = resolved(&asking(&shape), &v1::Output::default(), 100).setting(1);
        assert_eq!(setting.temperature, asks.then_some(0.5), "{shape:?}");
    }
    assert_eq!(resolve(v1::Sampling::default()).setting(1).temperature, None);
}
