//! What is kept of the requests: distributions, counts and a sample, all of bounded size.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::latency::Latency;
use super::objective::{Objective, Times};
use super::random::Random;
use super::target::{Answer, Failed, FailureKind};
use super::timeline::Timeline;

/// One request, from when it was due to its end.
#[derive(Debug)]
pub struct Outcome {
    /// Which turn of its conversation, from 1.
    pub turn: u32,
    /// New tokens of the prompt, as drawn.
    pub wanted: u32,
    /// Tokens of the prompt that an earlier request had too.
    pub repeated: u32,
    /// When it was to be sent. All latencies count from here, so that a late client does not hide a slow server.
    pub due: Instant,
    /// When it was sent.
    pub sent: Instant,
    /// When it was over.
    pub ended: Instant,
    /// What was heard, failed or not.
    pub answer: Answer,
    /// Whether it ended well.
    pub result: Result<(), Failed>,
    /// From when on requests are measured, if that is known yet and this is one of them or beside them.
    pub measured_from: Option<Instant>,
    /// Whether it is one of the warm-up.
    pub warm_up: bool,
}

/// All requests so far.
#[derive(Debug)]
pub struct Recorder {
    began: Instant,
    objectives: Vec<Objective>,
    random: Random,
    /// Between the first measured request's due time and the last one's end.
    pub window: Option<(Instant, Instant)>,
    /// Requests of the warm-up.
    pub warm_up: u64,
    /// Measured requests.
    pub requests: u64,
    /// Of them, those that ended well.
    pub answered: u64,
    /// Of them, those that met all objectives.
    pub good: u64,
    /// Of those that ended well, those that missed an objective, each.
    pub missed: Vec<u64>,
    /// Failed ones by kind, with the words of the first of each.
    pub failures: BTreeMap<FailureKind, (u64, String)>,
    /// Due to the first token.
    pub ttft: Latency,
    /// The same of first turns of which the server had cached nothing, as far as it tells.
    pub cold_ttft: Latency,
    /// Token to token.
    pub inter_token: Latency,
    /// Token to token in the mean of each request.
    pub tpot: Latency,
    /// Due to the end.
    pub e2e: Latency,
    /// Due to sent: how late this client was.
    pub lag: Latency,
    /// Tokens of the prompts, of those that ended well.
    pub prompt_tokens: u64,
    /// Of them, those that a cache had.
    pub cached_tokens: u64,
    /// Of them, those that earlier requests had too, where the server counts tokens.
    pub repeated_tokens: u64,
    /// Tokens of the answers, of those that ended well.
    pub answer_tokens: u64,
    /// Messages that brought them.
    pub messages: u64,
    /// Tokens that came within the window, whoever's they are.
    pub window_tokens: f64,
    /// Whether the server has counted tokens, so far always.
    pub counted: bool,
    /// By turn, from the first on.
    pub turns: Vec<Turn>,
    /// By time, the warm-up included.
    pub timeline: Timeline,
    /// Some measured requests, each as likely as any other.
    pub sample: Vec<Sample>,
}

/// The requests of one turn that ended well.
#[derive(Clone, Debug, Default)]
pub struct Turn {
    /// Due to the first token.
    pub ttft: Latency,
    /// Due to the end.
    pub e2e: Latency,
    /// Tokens of the prompts.
    pub prompt_tokens: u64,
    /// Of them, those that a cache had.
    pub cached_tokens: u64,
    /// Of them, those that earlier requests had too, where the server counts tokens.
    pub repeated_tokens: u64,
    /// Tokens of the answers.
    pub answer_tokens: u64,
}

/// One request in a plot.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// When it was due, from the beginning.
    pub due: Duration,
    /// Which turn it was.
    pub turn: u32,
    /// Its times; none if it failed.
    pub times: Option<Times>,
}

/// Requests in the sample.
const SAMPLES: usize = 2_000;
/// Turns that are told apart; the later ones are counted with the last.
const TURNS: usize = 64;

impl Recorder {
    /// Nothing yet.
    pub fn new(began: Instant, objectives: Vec<Objective>) -> Self {
        Self {
            began,
            missed: vec![0; objectives.len()],
            objectives,
            random: Random::of(0, &[]),
            window: None,
            warm_up: 0,
            requests: 0,
            answered: 0,
            good: 0,
            failures: BTreeMap::new(),
            ttft: Latency::default(),
            cold_ttft: Latency::default(),
            inter_token: Latency::default(),
            tpot: Latency::default(),
            e2e: Latency::default(),
            lag: Latency::default(),
            prompt_tokens: 0,
            cached_tokens: 0,
            repeated_tokens: 0,
            answer_tokens: 0,
            messages: 0,
            window_tokens: 0.0,
            counted: true,
            turns: Vec::new(),
            timeline: Timeline::default(),
            sample: Vec::new(),
        }
    }

    /// When the first request could be due.
    pub fn began(&self) -> Instant {
        self.began
    }

    /// The promises that are counted by.
    pub fn objectives(&self) -> &[Objective] {
        &self.objectives
    }

    /// One more request.
    pub fn record(&mut self, outcome: Outcome) {
        self.follow(&outcome);
        if outcome.warm_up {
            self.warm_up += 1;
            return;
        }
        let (from, to) = self.window.unwrap_or((outcome.due, outcome.ended));
        self.window = Some((from.min(outcome.due), to.max(outcome.ended)));
        self.requests += 1;
        self.lag.record(outcome.sent.saturating_duration_since(outcome.due));
        let times = match &outcome.result {
            Ok(()) => outcome.times(),
            Err(failed) => {
                let (count, _) =
                    self.failures.entry(failed.kind).or_insert_with(|| (0, failed.message.clone()));
                *count += 1;
                None
            }
        };
        let due = outcome.due.saturating_duration_since(self.began);
        self.sample(Sample { due, turn: outcome.turn, times });
        if let Some(times) = times {
            self.answered(&outcome, &times);
        }
    }

    /// What belongs to the time in which it happened, measured request or not.
    fn follow(&mut self, outcome: &Outcome) {
        let since = |at: Instant| at.saturating_duration_since(self.began);
        let (due, ended) = (since(outcome.due), since(outcome.ended));
        let pieces = &outcome.answer.pieces;
        let heard: u32 = pieces.iter().map(|piece| piece.tokens).sum();
        // Where messages stand for tokens, each stands for as many as the server counted in the mean.
        let weight = f64::from(outcome.answer.tokens()) / f64::from(heard.max(1));
        for piece in pieces {
            let tokens = f64::from(piece.tokens) * weight;
            self.timeline.at(piece.at.saturating_duration_since(self.began)).tokens += tokens;
            if outcome.measured_from.is_some_and(|from| piece.at >= from) {
                self.window_tokens += tokens;
            }
        }
        self.timeline.at(due).begun += 1;
        let slice = self.timeline.at(ended);
        slice.ended += 1;
        slice.failed += u64::from(outcome.result.is_err());
    }

    fn answered(&mut self, outcome: &Outcome, times: &Times) {
        self.answered += 1;
        self.ttft.record(times.ttft);
        self.e2e.record(times.e2e);
        if let Some(tpot) = times.tpot {
            self.tpot.record(tpot);
        }
        for pair in outcome.answer.pieces.windows(2) {
            if let [before, piece] = pair {
                // Tokens that came together took their time together.
                let time = piece.at.saturating_duration_since(before.at) / piece.tokens.max(1);
                self.inter_token.record_many(time, u64::from(piece.tokens));
            }
        }
        let mut good = true;
        for (objective, missed) in self.objectives.iter().zip(&mut self.missed) {
            let met = objective.is_met(times);
            *missed += u64::from(!met);
            good &= met;
        }
        self.good += u64::from(good);
        let usage = outcome.answer.usage;
        self.counted &= usage.is_some();
        let prompt_tokens = u64::from(usage.map_or(outcome.wanted, |usage| usage.prompt_tokens));
        let cached_tokens = u64::from(usage.map_or(0, |usage| usage.cached_tokens));
        let repeated_tokens = usage.map_or(0, |usage| u64::from(outcome.repeated.min(usage.prompt_tokens)));
        let answer_tokens = u64::from(outcome.answer.tokens());
        if outcome.turn == 1 && cached_tokens == 0 {
            self.cold_ttft.record(times.ttft);
        }
        self.prompt_tokens += prompt_tokens;
        self.cached_tokens += cached_tokens;
        self.repeated_tokens += repeated_tokens;
        self.answer_tokens += answer_tokens;
        self.messages += outcome.answer.pieces.len() as u64;
        let turn = (outcome.turn.max(1) as usize).min(TURNS);
        if self.turns.len() < turn {
            self.turns.resize_with(turn, Turn::default);
        }
        if let Some(turn) = self.turns.get_mut(turn - 1) {
            turn.ttft.record(times.ttft);
            turn.e2e.record(times.e2e);
            turn.prompt_tokens += prompt_tokens;
            turn.cached_tokens += cached_tokens;
            turn.repeated_tokens += repeated_tokens;
            turn.answer_tokens += answer_tokens;
        }
    }

    /// Reservoir sampling (Vitter, 1985, algorithm R).
    fn sample(&mut self, sample: Sample) {
        if self.sample.len() < SAMPLES {
            self.sample.push(sample);
            return;
        }
        let place = self.random.below(self.requests);
        if let Some(kept) = usize::try_from(place).ok().and_then(|place| self.sample.get_mut(place)) {
            *kept = sample;
        }
    }
}

impl Outcome {
    /// How long it took; none without a token.
    fn times(&self) -> Option<Times> {
        let (first, last) = (self.answer.pieces.first()?, self.answer.pieces.last()?);
        let later = self.answer.tokens().saturating_sub(first.tokens);
        let between = last.at.saturating_duration_since(first.at);
        Some(Times {
            ttft: first.at.saturating_duration_since(self.due),
            tpot: (later > 0).then(|| between / later),
            e2e: self.ended.saturating_duration_since(self.due),
        })
    }
}

#[cfg(test)]
mod tests;
