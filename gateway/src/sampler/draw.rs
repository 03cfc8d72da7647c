//! The draw of one token.

use super::distribution::{Distribution, Ranking};
use super::evidence::Evidence;
use super::row::{Ranks, Row};
use super::sampling::{Method, Sampling};

/// What evidence yields.
#[derive(Clone, Debug, PartialEq)]
pub enum Draw {
    /// The token that the whole row would yield too.
    Token(Token),
    /// No certificate holds: only the whole row tells.
    NeedsRow,
}

/// A drawn token.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// Where asked for.
    pub logprobs: Option<Logprobs>,
}

/// Natural logarithms of probabilities before processors, at temperature 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprobs {
    /// Of the token drawn, which need not be among the best.
    pub chosen: f64,
    /// (id, logprob) of the best, best first, ties by lower id.
    pub best: Vec<(u32, f64)>,
}

/// Draws the token after the evidence's position.
pub fn draw(sampling: &Sampling, evidence: &Evidence, vocab: u32) -> Draw {
    draw_at(sampling, evidence, vocab, sampling.uniform_after(evidence.position))
}

/// [`draw`] with a given uniform number in [0, 1).
pub fn draw_at(sampling: &Sampling, evidence: &Evidence, vocab: u32, uniform: f64) -> Draw {
    let ranking = Ranking {
        logits: &evidence.processed,
        complete: evidence.ids.len() >= vocab as usize,
        log_sum_exp: evidence.processed_log_sum_exp,
    };
    let id = rank(sampling.method(), ranking, uniform).and_then(|rank| evidence.ids.get(rank));
    let token = |&id| Token { id, logprobs: logprobs(sampling, evidence, evidence.raw_of(id)) };
    id.map_or(Draw::NeedsRow, |id| Draw::Token(token(id)))
}

/// Draws the token after the evidence's position from the whole row that the evidence was taken from.
pub fn draw_from_row(sampling: &Sampling, evidence: &Evidence, row: &Row) -> Token {
    draw_from_row_at(sampling, evidence, row, sampling.uniform_after(evidence.position))
}

/// [`draw_from_row`] with a given uniform number in [0, 1).
pub fn draw_from_row_at(sampling: &Sampling, evidence: &Evidence, row: &Row, uniform: f64) -> Token {
    let ranks = Ranks::of(&row.processed);
    let log_sum_exp = evidence.processed_log_sum_exp;
    let ranking = Ranking { logits: &ranks.logits, complete: true, log_sum_exp };
    // A complete ranking always has a rank to draw; its first is the best.
    let rank = rank(sampling.method(), ranking, uniform).unwrap_or_default();
    let id = ranks.ids.get(rank).copied().unwrap_or_default();
    let raw = row.raw.as_ref().and_then(|raw| raw.get(id as usize)).copied();
    Token { id, logprobs: logprobs(sampling, evidence, raw.or_else(|| evidence.raw_of(id))) }
}

/// The rank that is taken; `None` where the ranking does not tell.
fn rank(method: &Method, ranking: Ranking<'_>, uniform: f64) -> Option<usize> {
    match method {
        Method::Greedy => Some(0),
        Method::Draw(shape) => Distribution::new(shape, ranking)?.draw(uniform),
    }
}

/// `raw`: the logit of the token drawn.
fn logprobs(sampling: &Sampling, evidence: &Evidence, raw: Option<f32>) -> Option<Logprobs> {
    let count = sampling.logprobs()? as usize;
    let log_sum_exp = evidence.raw_log_sum_exp?;
    let logprob = |logit: f32| f64::from(logit) - log_sum_exp;
    let best = evidence.raw_best.iter().take(count).map(|&(id, logit)| (id, logprob(logit))).collect();
    Some(Logprobs { chosen: logprob(raw?), best })
}
