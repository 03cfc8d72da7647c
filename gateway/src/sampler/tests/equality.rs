//! A thousand rows of the real vocabulary's size, a thousand uniforms each: evidence draws what the row draws.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::sampler::{Draw, draw_at, draw_from_row_at, uniform};

const VOCAB: usize = 80_896;
const ROWS: usize = 1_000;
const UNIFORMS: u64 = 1_000;
/// Of the uniforms, those that also go the whole way from the wire to the token.
const WHOLE_WAY: u64 = 5;

fn shapes() -> Vec<Shape> {
    vec![
        OFF,
        Shape { temperature: 0.3, top_k: k(5), top_p: 0.85, ..OFF },
        Shape { top_k: k(50), ..OFF },
        Shape { temperature: 0.3, top_p: 0.85, ..OFF },
        Shape { top_p: 0.95, ..OFF },
        Shape { min_p: 0.05, ..OFF },
        Shape { temperature: 0.3, top_k: k(1000), top_p: 0.9, min_p: 0.01 },
    ]
}

/// Of many kinds: flat to peaked, smooth to full of equals, with and without a few that stand out.
fn row(index: usize, row: &mut Vec<f32>) {
    let mut state = (index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut next = move || {
        // xorshift64*; the sum of four 16-bit parts is about normal.
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    };
    let spread = [0.5, 1.0, 2.0, 3.0, 5.0][index % 5];
    let grain = [0.0, 0.0, 0.125, 0.5][index / 5 % 4];
    let outstanding = [0, 1, 3, 20, 100][index / 20 % 5];
    row.clear();
    row.extend((0..VOCAB).map(|_| {
        let bits = next();
        let sum: u64 = (0..4).map(|part| bits >> (16 * part) & 0xffff).sum();
        (sum as f32 / 65_536.0 - 2.0) * 1.732 * spread
    }));
    for _ in 0..outstanding {
        row[next() as usize % VOCAB] += 4.0 + (next() % 1024) as f32 / 128.0;
    }
    if grain > 0.0 {
        row.iter_mut().for_each(|x| *x = (*x / grain).round() * grain);
    }
}

/// How many of a row's uniforms evidence was enough for.
fn check(row: &[f32], ranks: &Ranks, shape: &Shape, row_index: usize) -> usize {
    let sampling = resolved(&asking(shape), &v1::Output::default(), VOCAB);
    // As it comes through a request.
    let crate::sampler::Method::Draw(shape) = sampling.method().clone() else { unreachable!() };
    let wire = wire_of(ranks, row, sampling.evidence_k(VOCAB as u32) as usize, &sampling);
    let evidence = Evidence::parse(wire, &sampling, VOCAB as u32).unwrap();
    let log_sum_exp = evidence.processed_log_sum_exp;
    let whole_distribution = distribution(&shape, ranks, log_sum_exp);
    let ranking = Ranking { logits: &evidence.processed, complete: false, log_sum_exp };
    let from_evidence = Distribution::new(&shape, ranking);
    let mut enough = 0;
    for number in 0..UNIFORMS {
        let uniform = uniform(row_index as u64, 0, number);
        let expected = ranks.ids[whole_distribution.draw(uniform).unwrap()];
        let rank = from_evidence.as_ref().and_then(|distribution| distribution.draw(uniform));
        if let Some(rank) = rank {
            assert_eq!(evidence.ids[rank], expected, "row {row_index}, {shape:?}, uniform {uniform}");
            enough += 1;
        }
        if number < WHOLE_WAY {
            match draw_at(&sampling, &evidence, VOCAB as u32, uniform) {
                Draw::Token(token) => assert_eq!((token.id, rank.is_some()), (expected, true)),
                Draw::NeedsRow => assert_eq!(rank, None),
            }
        }
        if number == 0 && row_index.is_multiple_of(50) {
            let token = draw_from_row_at(&sampling, &evidence, &whole(row, &sampling), uniform);
            assert_eq!(token.id, expected, "row {row_index}, {shape:?}, uniform {uniform}");
        }
    }
    enough
}

#[test]
fn evidence_draws_what_the_row_draws() {
    let shapes = shapes();
    let next_row = AtomicUsize::new(0);
    let enough = Mutex::new(vec![0; shapes.len()]);
    let work = || {
        let mut values = Vec::with_capacity(VOCAB);
        loop {
            let index = next_row.fetch_add(1, Ordering::Relaxed);
            if index >= ROWS {
                return;
            }
            row(index, &mut values);
            let ranks = Ranks::of(&values);
            for (number, shape) in shapes.iter().enumerate() {
                let found = check(&values, &ranks, shape, index);
                enough.lock().unwrap()[number] += found;
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get().min(4));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    let draws = ROWS * UNIFORMS as usize;
    for (shape, &enough) in shapes.iter().zip(&*enough.lock().unwrap()) {
        println!(
            "evidence was enough for {:.1} % of the draws of {shape:?}",
            enough as f64 * 100.0 / draws as f64
        );
        assert!(enough > draws / 20, "hardly any draw of {shape:?} tests a thing");
    }
    let all: usize = enough.lock().unwrap().iter().sum();
    assert!(all < draws * shapes.len(), "some rows are flat enough to need fetching");
}
