//! When evidence is enough, and when it is not.

use super::*;
use crate::sampler::{Draw, Token, draw, draw_at, draw_from_row, draw_from_row_at, uniform};

/// Eight logits of descending weights 1/2, 1/4, … at temperature 1 (the last two equal).
fn halves() -> Vec<f32> {
    [1, 2, 3, 4, 5, 6, 7, 7].map(|i| -(i as f32) * std::f32::consts::LN_2).to_vec()
}

/// What evidence of K = 1, 2, … yields.
fn drawn(row: &[f32], shape: &Shape, uniform: f64) -> Vec<Option<u32>> {
    let sampling = resolved(&asking(shape), &v1::Output::default(), row.len());
    let id = |k| match draw_at(&sampling, &evidence(row, k, &sampling), row.len() as u32, uniform) {
        Draw::Token(token) => Some(token.id),
        Draw::NeedsRow => None,
    };
    (1..=row.len()).map(id).collect()
}

/// From K = `enough` on the token is `id`, below it a row is needed.
#[track_caller]
fn assert_enough(row: &[f32], shape: &Shape, uniform: f64, (enough, id): (usize, u32)) {
    let expected: Vec<_> = (1..=row.len()).map(|k| (k >= enough).then_some(id)).collect();
    assert_eq!(drawn(row, shape, uniform), expected, "{shape:?} at {uniform}");
}

#[test]
fn greedy_needs_one() {
    let request = v1::Sampling { do_sample: Some(false), ..Default::default() };
    let row = [1.0, 3.0, 3.0, 2.0];
    let sampling = resolved(&request, &v1::Output::default(), row.len());
    let token = Token { id: 1, logprobs: None };
    assert_eq!(draw(&sampling, &evidence(&row, 1, &sampling), 4), Draw::Token(token.clone()));
    assert_eq!(draw_from_row(&sampling, &evidence(&row, 1, &sampling), &whole(&row, &sampling)), token);
}

#[test]
fn plain_needs_the_mass_above_the_uniform() {
    assert_enough(&halves(), &OFF, 0.0, (1, 0));
    assert_enough(&halves(), &OFF, 0.49, (1, 0));
    assert_enough(&halves(), &OFF, 0.51, (2, 1));
    assert_enough(&halves(), &OFF, 0.87, (3, 2));
    assert_enough(&halves(), &OFF, 0.88, (4, 3));
    assert_enough(&halves(), &OFF, 0.9999, (8, 7));
}

#[test]
fn top_k_needs_one_below_the_kth() {
    let shape = Shape { top_k: k(3), ..OFF };
    // 4 : 2 : 1 of 7.
    assert_enough(&halves(), &shape, 0.56, (4, 0));
    assert_enough(&halves(), &shape, 0.58, (4, 1));
    assert_enough(&halves(), &shape, 0.86, (4, 2));
}

#[test]
fn equals_of_the_kth_stay() {
    let row = [1.0, 0.0, 1.0, 0.0, 0.0, -1.0, -1.0];
    let shape = Shape { top_k: k(3), ..OFF };
    assert_enough(&row, &shape, 0.0, (6, 0));
    assert_enough(&row, &shape, 0.99999, (6, 4));
    // All that follows is equal: only the whole row shows that nothing more does.
    assert_enough(&row, &Shape { top_k: k(6), ..OFF }, 0.99999, (7, 6));
}

#[test]
fn top_p_needs_its_mass() {
    let shape = Shape { top_p: 0.7, ..OFF };
    // 1/2 and 1/4 are left: those before the third have 3/4.
    assert_enough(&halves(), &shape, 0.66, (2, 0));
    assert_enough(&halves(), &shape, 0.67, (2, 1));
    assert_enough(&halves(), &Shape { top_p: 1e-6, ..OFF }, 0.9999, (1, 0));
}

#[test]
fn top_p_refers_to_what_top_k_left() {
    // 4 : 2 : 1 of 7; those before the second have 4/7 > 0.55.
    let shape = Shape { top_k: k(3), top_p: 0.55, ..OFF };
    assert_enough(&halves(), &shape, 0.9999, (4, 0));
    assert_enough(&halves(), &Shape { top_p: 0.6, ..shape }, 0.9999, (4, 1));
}

#[test]
fn min_p_needs_one_below_the_bar() {
    let shape = Shape { min_p: 0.2, ..OFF };
    // 1 : 1/2 : 1/4 of the best's probability.
    assert_enough(&halves(), &shape, 0.57, (4, 0));
    assert_enough(&halves(), &shape, 0.9999, (4, 2));
    assert_enough(&halves(), &Shape { min_p: 1.0, ..OFF }, 0.9999, (2, 0));
}

#[test]
fn of_top_p_and_min_p_either_suffices() {
    assert_enough(&halves(), &Shape { top_p: 0.7, min_p: 0.001, ..OFF }, 0.99, (2, 1));
    assert_enough(&halves(), &Shape { top_p: 0.999, min_p: 0.3, ..OFF }, 0.99, (3, 1));
}

#[test]
fn temperature_comes_before_truncation() {
    // Temperature 1/2 squares the weights: 3/4, 3/16, …
    let shape = Shape { temperature: 0.5, top_p: 0.7, ..OFF };
    assert_enough(&halves(), &shape, 0.9999, (1, 0));
    let shape = Shape { temperature: 0.5, min_p: 0.2, ..OFF };
    assert_enough(&halves(), &shape, 0.9999, (3, 1));
}

#[test]
fn masked_ids_are_never_drawn() {
    let row = [f32::NEG_INFINITY, 1.0, f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY];
    for shape in
        [OFF, Shape { top_k: k(4), ..OFF }, Shape { top_p: 0.99, ..OFF }, Shape { min_p: 0.01, ..OFF }]
    {
        for uniform in [0.0, 0.5, 0.8, 1.0 - f64::EPSILON / 2.0] {
            let expected = if uniform < 0.7 { 1 } else { 3 };
            let found: Vec<u32> = drawn(&row, &shape, uniform).into_iter().flatten().collect();
            assert!(
                !found.is_empty() && found.iter().all(|&id| id == expected),
                "{shape:?} {uniform} {found:?}"
            );
        }
    }
}

#[test]
fn rounding_ends_at_the_last_candidate() {
    let ranks = Ranks::of(&[0.0, 1.0, -2.0]);
    // A log-sum-exp slightly too great: the sums never reach the total.
    let log_sum_exp = log_sum_exp(&[0.0, 1.0, -2.0], 1.0) + 1e-9;
    let distribution = distribution(&OFF, &ranks, Some(log_sum_exp));
    assert_eq!(distribution.draw(1.0 - f64::EPSILON / 2.0), Some(2));
}

#[test]
fn tiny_temperatures_draw_the_best() {
    for temperature in [f64::from(f32::MIN_POSITIVE), 1e-30, 1e-6] {
        let shape = Shape { temperature, ..OFF };
        assert_enough(&[5.0, 90.0, 89.0, -3.0], &shape, 1.0 - f64::EPSILON / 2.0, (1, 1));
    }
}

#[test]
fn the_uniform_is_that_of_the_next_position() {
    let row: Vec<f32> = (0..512).map(|id| (id as f32 * 0.7).sin()).collect();
    for seed in 0..50 {
        let request = v1::Sampling { seed: Some(seed), ..asking(&OFF) };
        let sampling = resolved(&request, &v1::Output::default(), 512).with_choice(3);
        let evidence = evidence(&row, 512, &sampling);
        let uniform = uniform(seed, 3, u64::from(evidence.position()) + 1);
        assert_eq!(draw(&sampling, &evidence, 512), draw_at(&sampling, &evidence, 512, uniform));
        let whole = whole(&row, &sampling);
        let token = draw_from_row(&sampling, &evidence, &whole);
        assert_eq!(token, draw_from_row_at(&sampling, &evidence, &whole, uniform));
        assert_eq!(draw(&sampling, &evidence, 512), Draw::Token(token));
    }
}
