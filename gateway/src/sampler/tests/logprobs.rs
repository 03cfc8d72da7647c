//! Logprobs: of the raw row at temperature 1, whatever was drawn how.

use super::*;
use crate::sampler::{Draw, Logprobs, draw_at, draw_from_row_at};

const ROW: [f32; 5] = [1.0, 4.0, 2.0, 4.0, -1.0];

fn greedy_with(logprobs: u32, bias: Vec<v1::LogitBias>) -> Sampling {
    let request = v1::Sampling { do_sample: Some(false), logit_bias: bias, ..Default::default() };
    resolved(&request, &v1::Output { logprobs: Some(logprobs) }, ROW.len())
}

fn logprob(id: usize) -> f64 {
    f64::from(ROW[id]) - log_sum_exp(&ROW, 1.0)
}

fn token(draw: Draw) -> super::super::Token {
    match draw {
        Draw::Token(token) => token,
        Draw::NeedsRow => panic!("evidence was not enough"),
    }
}

#[test]
fn the_chosen_and_the_best() {
    let sampling = greedy_with(3, Vec::new());
    let evidence = evidence(&ROW, sampling.evidence_k(5) as usize, &sampling);
    let expected =
        Logprobs { chosen: logprob(1), best: [1, 3, 2].map(|id| (id, logprob(id as usize))).to_vec() };
    assert_eq!(token(draw_at(&sampling, &evidence, 5, 0.0)).logprobs, Some(expected.clone()));
    let from_row = draw_from_row_at(&sampling, &evidence, &whole(&ROW, &sampling), 0.0);
    assert_eq!(from_row.logprobs, Some(expected));
}

#[test]
fn none_is_not_zero() {
    let sampling = greedy_with(0, Vec::new());
    let found = token(draw_at(&sampling, &evidence(&ROW, 5, &sampling), 5, 0.0));
    assert_eq!(found.logprobs, Some(Logprobs { chosen: logprob(1), best: Vec::new() }));

    let request = v1::Sampling { do_sample: Some(false), ..Default::default() };
    let sampling = resolved(&request, &v1::Output::default(), ROW.len());
    assert_eq!(token(draw_at(&sampling, &evidence(&ROW, 5, &sampling), 5, 0.0)).logprobs, None);
}

#[test]
fn the_chosen_may_lie_outside_the_raw_best() {
    // A bias makes the worst id the best.
    let sampling = greedy_with(2, vec![v1::LogitBias { token_id: 4, bias: 100.0 }]);
    let wire = shard::v1::Evidence {
        ids: pack(&[4_u32, 1]),
        processed: pack(&[99.0_f32, 4.0]),
        raw: pack(&[-1.0_f32, 4.0]),
        ..wire(&ROW, 2, &sampling)
    };
    let evidence = Evidence::parse(wire, &sampling, 5).unwrap();
    let found = token(draw_at(&sampling, &evidence, 5, 0.0));
    let best = [1, 3].map(|id| (id, logprob(id as usize))).to_vec();
    assert_eq!((found.id, found.logprobs), (4, Some(Logprobs { chosen: logprob(4), best })));
}

#[test]
fn a_row_tells_the_raw_logit_of_any_id() {
    let request = v1::Sampling { do_sample: Some(true), ..Default::default() };
    let sampling = resolved(&request, &v1::Output { logprobs: Some(1) }, ROW.len());
    let evidence = evidence(&ROW, 2, &sampling);
    assert_eq!(draw_at(&sampling, &evidence, 5, 0.9999), Draw::NeedsRow);
    let found = draw_from_row_at(&sampling, &evidence, &whole(&ROW, &sampling), 0.9999);
    assert_eq!((found.id, found.logprobs.unwrap().chosen), (4, logprob(4)));
}
