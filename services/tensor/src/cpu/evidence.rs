//! What is reported of a row of logits: its K best, its log-sum-exp, whether it is finite.
#![allow(unsafe_code, reason = "threads write disjoint partial sums")]

use std::cmp::Ordering;

use super::Cpu;
use super::disjoint::Disjoint;
use super::exp::exp_f64;
use super::process::process;
use super::simd::{Kernel, LANES, Simd, dispatch_f32};
use crate::{EvidenceRequest, Processors, RowEvidence};

/// Ids of a partial sum of the log-sum-exp.
pub const CHUNK: usize = 1024;

/// Candidates gathered beyond twice the K best before they are cut back to K.
const SLACK: usize = 16;

/// The row at work.
#[derive(Debug)]
pub struct Scratch {
    processed: Box<[f32]>,
    best: Vec<Candidate>,
}

/// One of a row's best ids.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    id: u32,
    logit: f32,
}

impl Scratch {
    /// For rows of `vocab` logits.
    pub fn new(vocab: usize) -> Scratch {
        Scratch { processed: vec![0.0; vocab].into(), best: Vec::new() }
    }

    /// The row after the processors, which were checked.
    pub fn process(&mut self, cpu: &Cpu, raw: &[f32], processors: &Processors<'_>) -> &[f32] {
        process(cpu, raw, processors, &mut self.processed);
        &self.processed
    }
}

/// The evidence of a raw row.
pub fn evidence(cpu: &Cpu, raw: &[f32], request: &EvidenceRequest<'_>, scratch: &mut Scratch) -> RowEvidence {
    let Scratch { processed, best } = scratch;
    let processed = if request.processors.is_plain() {
        raw
    } else {
        process(cpu, raw, &request.processors, processed);
        processed
    };
    top_k(cpu, processed, request.top_k, best);
    let mut evidence = RowEvidence {
        non_finite: first_non_finite(cpu, raw).map(|id| id as u32),
        ids: best.iter().map(|best| best.id).collect(),
        processed: best.iter().map(|best| best.logit).collect(),
        raw: best.iter().map(|best| raw[best.id as usize]).collect(),
        processed_log_sum_exp: request
            .temperature
            .map(|temperature| log_sum_exp(cpu, processed, temperature)),
        ..RowEvidence::default()
    };
    if let Some(logprobs) = request.logprobs {
        evidence.raw_log_sum_exp = Some(log_sum_exp(cpu, raw, 1.0));
        top_k(cpu, raw, logprobs, best);
        evidence.raw_best_ids = best.iter().map(|best| best.id).collect();
        evidence.raw_best = best.iter().map(|best| best.logit).collect();
    }
    evidence
}

/// The `k` best of `row` into `best`, greatest first, of equals the lower id first; NaN comes last.
fn top_k(cpu: &Cpu, row: &[f32], k: usize, best: &mut Vec<Candidate>) {
    best.clear();
    let k = k.min(row.len());
    if k == 0 {
        return;
    }
    dispatch_f32(cpu.isa(), TopK { row, k, best });
    cut(best, k);
    best.sort_unstable_by(order);
    if best.len() < k {
        let rest = row.iter().enumerate().filter(|(_, logit)| logit.is_nan());
        best.extend(rest.take(k - best.len()).map(|(id, &logit)| Candidate { id: id as u32, logit }));
    }
}

/// Better before worse. No NaN comes here.
fn order(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.partial_cmp(&a.logit).unwrap_or(Ordering::Equal).then(a.id.cmp(&b.id))
}

/// Keeps the `k` best, in any order, and returns the worst of them if there are as many.
fn cut(best: &mut Vec<Candidate>, k: usize) -> Option<f32> {
    if best.len() < k {
        return None;
    }
    let (_, &mut worst, _) = best.select_nth_unstable_by(k - 1, order);
    best.truncate(k);
    Some(worst.logit)
}

struct TopK<'a> {
    row: &'a [f32],
    k: usize,
    best: &'a mut Vec<Candidate>,
}

impl Kernel for TopK<'_> {
    type Output = ();

    /// Takes all that beats the worst of the K best so far (a later equal never does).
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let TopK { row, k, best } = self;
        let mut bar = None;
        for at in (0..row.len()).step_by(LANES) {
            let v = s.load_f32(row, at);
            let mut better = match bar {
                Some(bar) => s.greater(v, s.splat(bar)),
                None => !s.nan(v),
            };
            if row.len() - at < LANES {
                better &= (1 << (row.len() - at)) - 1;
            }
            while better != 0 {
                let id = at + better.trailing_zeros() as usize;
                best.push(Candidate { id: id as u32, logit: row[id] });
                better &= better - 1;
            }
            if best.len() >= 2 * k + SLACK || (bar.is_none() && best.len() >= k) {
                bar = cut(best, k);
            }
        }
    }
}

/// ln Σ exp(x / temperature) = max / temperature + ln Σ exp((x − max) / temperature) in f64: partial sums
/// over chunks of 1,024 ids with sixteen lanes each, added in ascending order. −∞ if all are −∞, NaN if one
/// is NaN or +∞.
fn log_sum_exp(cpu: &Cpu, row: &[f32], temperature: f64) -> f64 {
    let max = dispatch_f32(cpu.isa(), Max(row));
    if max == f32::NEG_INFINITY {
        let nan = row.iter().any(|x| x.is_nan());
        return if nan { f64::NAN } else { f64::NEG_INFINITY };
    }
    let max = f64::from(max);
    let mut sums = vec![0.0; row.len().div_ceil(CHUNK)];
    let parts = Disjoint::new(&mut sums);
    cpu.split(parts.len(), 8 * CHUNK, &|chunks| {
        // SAFETY: shares of chunks do not overlap.
        let sums = unsafe { parts.part(chunks.clone()) };
        let row = &row[chunks.start * CHUNK..row.len().min(chunks.end * CHUNK)];
        dispatch_f32(cpu.isa(), ChunkSums { row, max, temperature, sums });
    });
    finish(max, &sums, temperature)
}

/// The log-sum-exp out of the greatest logit and the chunks' sums.
pub fn finish(max: f64, sums: &[f64], temperature: f64) -> f64 {
    let sum = sums.iter().fold(0.0, |sum, part| sum + part);
    max / temperature + libm::log(sum)
}

struct Max<'a>(&'a [f32]);

impl Kernel for Max<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let below = s.splat(f32::NEG_INFINITY);
        let mut max = below;
        for at in (0..self.0.len()).step_by(LANES) {
            let v = s.load_f32(self.0, at);
            // The new lane comes first, so that a NaN is passed over.
            max = s.max(s.first(self.0.len() - at, v, below), max);
        }
        s.reduce_max(max)
    }
}

struct ChunkSums<'a> {
    row: &'a [f32],
    max: f64,
    temperature: f64,
    sums: &'a mut [f64],
}

impl Kernel for ChunkSums<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (max, temperature) = (s.splat_f64(self.max), s.splat_f64(self.temperature));
        for (chunk, sum) in self.row.chunks(CHUNK).zip(self.sums) {
            let mut lanes = s.splat_f64(0.0);
            for at in (0..chunk.len()).step_by(LANES) {
                let x = s.load_f64(chunk, at, f64::NEG_INFINITY);
                lanes = s.add_f64(lanes, exp_f64(s, s.div_f64(s.sub_f64(x, max), temperature)));
            }
            *sum = fold(s.to_array_f64(lanes));
        }
    }
}

/// (i, i+8), (i, i+4), (i, i+2), (i, i+1).
fn fold(v: [f64; LANES]) -> f64 {
    let v8: [f64; 8] = std::array::from_fn(|i| v[i] + v[i + 8]);
    let v4: [f64; 4] = std::array::from_fn(|i| v8[i] + v8[i + 4]);
    (v4[0] + v4[2]) + (v4[1] + v4[3])
}

/// The first index whose value is NaN or infinite.
fn first_non_finite(cpu: &Cpu, row: &[f32]) -> Option<usize> {
    dispatch_f32(cpu.isa(), NonFinite(row))
}

struct NonFinite<'a>(&'a [f32]);

impl Kernel for NonFinite<'_> {
    type Output = Option<usize>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Option<usize> {
        for at in (0..self.0.len()).step_by(LANES) {
            let finite = s.finite(s.load_f32(self.0, at));
            if finite != u16::MAX {
                return Some(at + finite.trailing_ones() as usize);
            }
        }
        None
    }
}
