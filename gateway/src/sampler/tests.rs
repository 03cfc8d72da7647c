//! The sampler as a whole.

use std::num::NonZeroU32;

use asterism_proto::list::pack;
use asterism_proto::{shard, v1};

use super::distribution::{Distribution, Ranking};
use super::row::Ranks;
use super::{Evidence, Row, Sampling, Shape};
use crate::text::GenerationDefaults;

mod certificates;
mod equality;
mod logprobs;
mod parse;
mod reference;
mod resolve;

const OFF: Shape = Shape { temperature: 1.0, top_k: None, top_p: 1.0, min_p: 0.0 };

fn k(k: u32) -> Option<NonZeroU32> {
    NonZeroU32::new(k)
}

/// Parameters from a request over defaults that switch everything off.
fn resolved(request: &v1::Sampling, output: &v1::Output, vocab: usize) -> Sampling {
    Sampling::resolve(request, output, &GenerationDefaults::default(), vocab as u32, 0).unwrap()
}

/// The request that asks for a shape.
fn asking(shape: &Shape) -> v1::Sampling {
    v1::Sampling {
        do_sample: Some(true),
        temperature: Some(shape.temperature as f32),
        top_k: shape.top_k.map(NonZeroU32::get),
        top_p: Some(shape.top_p as f32),
        min_p: Some(shape.min_p as f32),
        ..v1::Sampling::default()
    }
}

/// ln Σ exp(x / temperature), as the last stage defines it but for the order of its sums.
fn log_sum_exp(row: &[f32], temperature: f64) -> f64 {
    let max = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = row.iter().map(|&x| ((f64::from(x) - max) / temperature).exp()).sum();
    max / temperature + sum.ln()
}

/// What the last stage reports of a row whose processors changed nothing.
fn wire(row: &[f32], k: usize, sampling: &Sampling) -> shard::v1::Evidence {
    wire_of(&Ranks::of(row), row, k, sampling)
}

fn wire_of(ranks: &Ranks, row: &[f32], k: usize, sampling: &Sampling) -> shard::v1::Evidence {
    let setting = sampling.setting(1);
    let best = setting.logprobs.unwrap_or_default() as usize;
    shard::v1::Evidence {
        sequence: 1,
        position: 9,
        error: None,
        ids: pack(&ranks.ids[..k]),
        processed: pack(&ranks.logits[..k]),
        raw: pack(&ranks.logits[..k].iter().map(|&logit| before_mask(logit)).collect::<Vec<_>>()),
        processed_log_sum_exp: setting.temperature.map(|temperature| log_sum_exp(row, temperature.into())),
        raw_log_sum_exp: setting.logprobs.map(|_| log_sum_exp(row, 1.0)),
        raw_best_ids: pack(&ranks.ids[..best]),
        raw_best: pack(&ranks.logits[..best]),
    }
}

/// A mask is a processor: the raw logit is none of its −∞.
fn before_mask(logit: f32) -> f32 {
    if logit == f32::NEG_INFINITY { 0.0 } else { logit }
}

fn evidence(row: &[f32], k: usize, sampling: &Sampling) -> Evidence {
    Evidence::parse(wire(row, k, sampling), sampling, row.len() as u32).unwrap()
}

fn whole(row: &[f32], sampling: &Sampling) -> Row {
    let bytes: Vec<u8> = row.iter().flat_map(|logit| logit.to_le_bytes()).collect();
    let wire = shard::v1::FetchLogitsResponse { processed: bytes.clone().into(), raw: bytes.into() };
    Row::parse(&wire, sampling, row.len() as u32).unwrap()
}

/// The candidates of a whole row.
fn distribution(shape: &Shape, ranks: &Ranks, log_sum_exp: Option<f64>) -> Distribution {
    let ranking = Ranking { logits: &ranks.logits, complete: true, log_sum_exp };
    Distribution::new(shape, ranking).unwrap()
}
