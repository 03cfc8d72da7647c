//! Which candidates are left of a ranking, and the inverse of their cumulative distribution.
//!
//! A ranking is a row sorted by logit, or only its beginning. Both take the same way through this code, which
//! gives up as soon as it would need what a beginning lacks. So what a beginning yields is what the row yields.

use super::sampling::Shape;

/// The best logits of a processed row, in descending order.
#[derive(Clone, Copy, Debug)]
pub struct Ranking<'a> {
    /// The logits; −∞ where masked.
    pub logits: &'a [f32],
    /// Whether these are the whole row.
    pub complete: bool,
    /// ln Σ exp(logit / temperature) over the whole row, where it is known.
    pub log_sum_exp: Option<f64>,
}

/// The candidates of a draw: the first ranks of a ranking.
#[derive(Clone, Debug)]
pub struct Distribution {
    /// Sums of exp((logit − max) / temperature) up to and including each rank.
    cumulative: Vec<f64>,
    /// The candidates' whole mass, in the same unit.
    total: f64,
    /// Whether no candidate lies beyond `cumulative`.
    complete: bool,
}

impl Distribution {
    /// Truncates a ranking; `None` where it may end before the candidates do.
    pub fn new(shape: &Shape, ranking: Ranking<'_>) -> Option<Self> {
        let max = f64::from(*ranking.logits.first()?);
        let weight = |&logit: &f32| libm::exp((f64::from(logit) - max) / shape.temperature);
        let (logits, mut complete) = match shape.top_k {
            Some(k) => (top_k(ranking, k.get() as usize)?, true),
            None => (ranking.logits, ranking.complete),
        };
        // The mass that top-p refers to, and of all candidates where nothing cuts any off. Weights that it takes are kept.
        let mut weights = Vec::new();
        let mut mass = || match ranking.log_sum_exp {
            Some(log_sum_exp) if shape.top_k.is_none() => {
                Some(libm::exp(log_sum_exp - max / shape.temperature))
            }
            _ => complete.then(|| {
                weights.extend(logits.iter().map(weight));
                weights.iter().sum()
            }),
        };
        let is_plain = shape.top_k.is_none() && shape.top_p >= 1.0 && shape.min_p <= 0.0;
        let mass = if is_plain || shape.top_p < 1.0 { mass()? } else { f64::INFINITY };
        let enough = if shape.top_p < 1.0 { shape.top_p * mass } else { f64::INFINITY };

        let mut cumulative = Vec::with_capacity(logits.len());
        let mut sum = 0.0;
        for (rank, logit) in logits.iter().enumerate() {
            let weight = weights.get(rank).copied().unwrap_or_else(|| weight(logit));
            // Nothing behind a candidate without weight has any.
            if sum >= enough || weight < shape.min_p || weight == 0.0 {
                complete = true;
                break;
            }
            sum += weight;
            cumulative.push(sum);
        }
        complete |= sum >= enough;
        let total = if is_plain { mass } else { sum };
        (complete || is_plain).then_some(Self { cumulative, total, complete })
    }

    /// The rank that a uniform number in [0, 1) draws; `None` where it lies beyond the ranks known.
    pub fn draw(&self, uniform: f64) -> Option<usize> {
        let target = uniform * self.total;
        let rank = self.cumulative.partition_point(|&sum| sum <= target);
        if rank < self.cumulative.len() {
            return Some(rank);
        }
        // Rounding may leave the target above the last sum.
        if self.complete { self.cumulative.len().checked_sub(1) } else { None }
    }

    /// Probability by rank.
    #[cfg(test)]
    pub fn probabilities(&self) -> Vec<f64> {
        let before = std::iter::once(&0.0).chain(&self.cumulative);
        self.cumulative.iter().zip(before).map(|(sum, before)| (sum - before) / self.total).collect()
    }
}

/// The logits not below the k-th; `None` where more equals of it may follow.
fn top_k(ranking: Ranking<'_>, k: usize) -> Option<&[f32]> {
    let Ranking { logits, complete, .. } = ranking;
    let Some(kth) = k.checked_sub(1).and_then(|last| logits.get(last)) else {
        return complete.then_some(logits);
    };
    let end = logits.partition_point(|logit| logit >= kth);
    (complete || end < logits.len()).then(|| &logits[..end])
}
