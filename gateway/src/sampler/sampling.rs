//! How an answer's tokens are drawn: a request's fields over the checkpoint's defaults, checked.

use std::collections::HashSet;
use std::num::NonZeroU32;
use std::ops::RangeInclusive;

use asterism_proto::{Failure, shard, v1};

use super::philox::uniform;
use crate::text::GenerationDefaults;

/// The most candidates of a row's evidence.
pub const MAX_EVIDENCE_K: u32 = 1024;

/// What a draw without top-k asks for: enough for nearly every certificate, and still under a kilobyte.
const OPEN_EVIDENCE_K: u32 = 64;

/// Candidates beyond top-k, so that a few equals of the k-th do not cost a fetch.
const TIES: u32 = 8;

/// The most ids that a request may bias.
const MAX_BIASES: usize = 1024;

/// Checked sampling parameters of one answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    method: Method,
    repetition_penalty: f32,
    presence_penalty: f32,
    frequency_penalty: f32,
    bias: Vec<(u32, f32)>,
    seed: u64,
    choice: u32,
    logprobs: Option<u32>,
}

/// How a token is chosen among the processed logits.
#[derive(Clone, Debug, PartialEq)]
pub enum Method {
    /// The best, of equals the lowest id.
    Greedy,
    /// At random.
    Draw(Shape),
}

/// What is done to the distribution before a draw, in this order.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// Logits are divided by it; above 0.
    pub temperature: f64,
    /// Ids not below the k-th best stay; below the vocabulary's size.
    pub top_k: Option<NonZeroU32>,
    /// Ids stay while those before them have less than this share of the mass; 1: off.
    pub top_p: f64,
    /// Ids stay that have at least this share of the best id's probability; 0: off.
    pub min_p: f64,
}

impl Sampling {
    /// Checks a request's fields and fills what they leave unset from `defaults`; an unset seed becomes
    /// `fallback_seed`. A [`Failure`] names the field.
    pub fn resolve(
        request: &v1::Sampling,
        output: &v1::Output,
        defaults: &GenerationDefaults,
        vocab: u32,
        fallback_seed: u64,
    ) -> Result<Self, Failure> {
        check("temperature", request.temperature, 0.0..=100.0)?;
        check("top_p", request.top_p, f32::MIN_POSITIVE..=1.0)?;
        check("min_p", request.min_p, 0.0..=1.0)?;
        check("repetition_penalty", request.repetition_penalty, 0.01..=100.0)?;
        check("presence_penalty", request.presence_penalty, -100.0..=100.0)?;
        check("frequency_penalty", request.frequency_penalty, -100.0..=100.0)?;
        Ok(Self {
            method: method(request, defaults, vocab),
            repetition_penalty: request.repetition_penalty.unwrap_or(defaults.repetition_penalty),
            presence_penalty: request.presence_penalty.unwrap_or(0.0),
            frequency_penalty: request.frequency_penalty.unwrap_or(0.0),
            bias: bias(&request.logit_bias, vocab)?,
            seed: request.seed.unwrap_or(fallback_seed),
            choice: 0,
            logprobs: logprobs(output, vocab)?,
        })
    }

    /// The fields of a request that is resolved to the same, whatever the defaults are then.
    pub fn to_request(&self) -> v1::Sampling {
        let request = v1::Sampling {
            do_sample: Some(false),
            repetition_penalty: Some(self.repetition_penalty),
            presence_penalty: Some(self.presence_penalty),
            frequency_penalty: Some(self.frequency_penalty),
            logit_bias: self.bias.iter().map(|&(token_id, bias)| v1::LogitBias { token_id, bias }).collect(),
            seed: Some(self.seed),
            ..v1::Sampling::default()
        };
        match &self.method {
            Method::Greedy => request,
            // They came as f32.
            Method::Draw(shape) => v1::Sampling {
                do_sample: Some(true),
                temperature: Some(shape.temperature as f32),
                top_k: Some(shape.top_k.map_or(0, NonZeroU32::get)),
                top_p: Some(shape.top_p as f32),
                min_p: Some(shape.min_p as f32),
                ..request
            },
        }
    }

    /// The same for another of several answers to one request.
    pub fn with_choice(self, choice: u32) -> Self {
        Self { choice, ..self }
    }

    /// How a token is chosen.
    pub fn method(&self) -> &Method {
        &self.method
    }

    /// The key of the generator.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// How many best alternatives to report with each token; `None`: no logprobs at all.
    pub fn logprobs(&self) -> Option<u32> {
        self.logprobs
    }

    /// How many candidates to ask for at first; see [`widened_k`] for later.
    pub fn evidence_k(&self, vocab: u32) -> u32 {
        let wanted = match &self.method {
            Method::Greedy => self.logprobs.map_or(1, |_| OPEN_EVIDENCE_K),
            // A step waits for its evidence, so no more is sent than the certificate takes.
            Method::Draw(shape) => {
                shape.top_k.map_or(OPEN_EVIDENCE_K, |top_k| top_k.get().saturating_add(TIES))
            }
        };
        let wanted = wanted.max(self.logprobs.unwrap_or(0));
        wanted.min(MAX_EVIDENCE_K).min(vocab)
    }

    /// What the last stage does to the sequence's rows and reports of them.
    pub fn setting(&self, id: u64) -> shard::v1::Setting {
        let bias = self.bias.iter().map(|&(token_id, bias)| shard::v1::TokenBias { token_id, bias });
        let temperature = match &self.method {
            Method::Draw(shape) if self.needs_log_sum_exp() => Some(shape.temperature as f32),
            _ => None,
        };
        shard::v1::Setting {
            id,
            bias: bias.collect(),
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            temperature,
            logprobs: self.logprobs,
            allowed: Default::default(),
        }
    }

    /// Whether a draw refers to the mass of the whole row: with top-k its own mass does, with min-p alone that
    /// of what is left.
    pub(super) fn needs_log_sum_exp(&self) -> bool {
        match &self.method {
            Method::Greedy => false,
            Method::Draw(shape) => shape.top_k.is_none() && (shape.top_p < 1.0 || shape.min_p <= 0.0),
        }
    }

    /// The uniform number of the token after the row at `position`.
    pub(super) fn uniform_after(&self, position: u32) -> f64 {
        uniform(self.seed, self.choice, u64::from(position) + 1)
    }
}

/// How many candidates to ask for of a sequence's next rows, once a row had to be fetched although `k` were
/// there: twice as many, within bounds.
pub fn widened_k(k: u32, vocab: u32) -> u32 {
    k.saturating_mul(2).min(MAX_EVIDENCE_K).min(vocab)
}

/// A temperature of 0 is greedy, whatever else is set.
fn method(request: &v1::Sampling, defaults: &GenerationDefaults, vocab: u32) -> Method {
    let asks_for_it = request.temperature.is_some_and(|temperature| temperature > 0.0)
        || request.top_k.is_some()
        || request.top_p.is_some()
        || request.min_p.is_some();
    let do_sample = request.do_sample.unwrap_or(asks_for_it || defaults.do_sample);
    let temperature = request.temperature.unwrap_or(defaults.temperature);
    if !do_sample || temperature <= 0.0 {
        return Method::Greedy;
    }
    let top_k = request.top_k.unwrap_or(defaults.top_k);
    Method::Draw(Shape {
        temperature: temperature.into(),
        top_k: NonZeroU32::new(top_k).filter(|k| k.get() < vocab),
        top_p: request.top_p.unwrap_or(defaults.top_p).into(),
        min_p: request.min_p.unwrap_or(defaults.min_p).into(),
    })
}

fn check(name: &str, value: Option<f32>, range: RangeInclusive<f32>) -> Result<(), Failure> {
    match value {
        Some(value) if !range.contains(&value) => {
            let message = format!("{name} is {value}, not in {}", interval(&range));
            Err(Failure::invalid(format!("sampling.{name}"), message))
        }
        _ => Ok(()),
    }
}

/// The least positive number stands for an open end at 0.
fn interval(range: &RangeInclusive<f32>) -> String {
    match *range.start() {
        f32::MIN_POSITIVE => format!("(0, {}]", range.end()),
        start => format!("[{start}, {}]", range.end()),
    }
}

/// −10⁹ bans an id, 10⁹ forces it; nothing overflows.
const BIASES: RangeInclusive<f32> = -1e9..=1e9;

fn bias(biases: &[v1::LogitBias], vocab: u32) -> Result<Vec<(u32, f32)>, Failure> {
    let refuse = |message| Err(Failure::invalid("sampling.logit_bias", message));
    if biases.len() > MAX_BIASES {
        return refuse(format!("{} ids are biased, more than {MAX_BIASES}", biases.len()));
    }
    let mut seen = HashSet::new();
    for &v1::LogitBias { token_id, bias } in biases {
        if token_id >= vocab {
            return refuse(format!("token id {token_id} is beyond a vocabulary of {vocab}"));
        }
        if !BIASES.contains(&bias) {
            return refuse(format!(
                "the bias of token id {token_id} is {bias}, not in {}",
                interval(&BIASES)
            ));
        }
        if !seen.insert(token_id) {
            return refuse(format!("token id {token_id} is biased twice"));
        }
    }
    Ok(biases.iter().map(|biased| (biased.token_id, biased.bias)).collect())
}

fn logprobs(output: &v1::Output, vocab: u32) -> Result<Option<u32>, Failure> {
    let most = MAX_EVIDENCE_K.min(vocab);
    match output.logprobs {
        Some(count) if count > most => {
            Err(Failure::invalid("output.logprobs", format!("logprobs is {count}, more than {most}")))
        }
        count => Ok(count),
    }
}
