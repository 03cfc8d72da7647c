//! How many ids to propose: as many as pay, and never more than was earned.
//!
//! Two things decide. The *estimate*: with a share `a` of proposals that hold and a price `r` of a row, `k` proposed ids make
//! `1 + a + … + aᵏ` tokens out of a step that costs `1 + k·r`; the best ratio is taken. It begins hopeful, and what was seen
//! long ago is forgotten, so that a text that begins to repeat itself is noticed. The *ledger* bounds what hope costs: each
//! token earns a hundredth, each accepted one pays in the step that it saved, each proposed row is paid. What is not there
//! is not spent, so at any time
//!
//! ```text
//! time with speculation ≤ 1.01 × time without + half a step
//! ```
//!
//! as far as prices are right. (The sum of what was paid is at most the sum of what was earned: with `n` tokens in `s` steps,
//! `Σ k·r ≤ ½ + n/100 + (n - s)`, and the time is `s + Σ k·r`.)

use super::costs::Price;

/// Ids proposed at most: a span of 16 rows.
pub const MOST_PROPOSED: u32 = 15;

/// In tokens: what each sequence may spend before it has earned anything.
pub(super) const ALLOWANCE: f64 = 0.5;

/// What each token earns: so slow may speculation make a text that it does not help.
pub(super) const EARNED: f64 = 0.01;

/// No more than this is saved up, so that a text that ceases to repeat itself ceases to be guessed at.
const MOST_CREDIT: f64 = 4.0;

/// Proposals that hold, of so many, before any was seen.
const HOPE: (f64, f64) = (3.0, 4.0);

/// Proposals that are remembered.
const MEMORY: f64 = 16.0;

/// What is remembered of them from one step to the next.
const KEPT: f64 = 31.0 / 32.0;

/// Decides how many ids a sequence proposes.
#[derive(Clone, Debug, PartialEq)]
pub struct Control {
    /// Of the proposed ids that a token was drawn for, those that were drawn.
    held: f64,
    tried: f64,
    /// In tokens.
    credit: f64,
}

/// How a step's proposal fared; a step without one has an outcome too.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// Ids.
    pub proposed: u32,
    /// Of these, those that were drawn.
    pub accepted: u32,
    /// Of each.
    pub price: Price,
}

impl Default for Control {
    fn default() -> Self {
        Self { held: 0.0, tried: 0.0, credit: ALLOWANCE }
    }
}

impl Control {
    /// How many ids to propose, up to `most`, where each costs `price`.
    pub fn len(&self, price: Price, most: u32) -> u32 {
        let price = price.tokens();
        let share = self.share();
        let (mut best, mut best_ratio) = (0, 1.0);
        let (mut tokens, mut next) = (1.0, 1.0);
        for len in 1..=most.min(MOST_PROPOSED) {
            next *= share;
            tokens += next;
            let cost = f64::from(len) * price;
            if cost > self.credit {
                break;
            }
            if tokens / (1.0 + cost) > best_ratio {
                (best, best_ratio) = (len, tokens / (1.0 + cost));
            }
        }
        best
    }

    /// Takes in a step's outcome.
    pub fn verified(&mut self, outcome: Outcome) {
        let accepted = f64::from(outcome.accepted.min(outcome.proposed));
        let tried = if outcome.accepted < outcome.proposed { accepted + 1.0 } else { accepted };
        let room = if self.tried > 0.0 { (MEMORY - tried).max(0.0) / self.tried } else { 0.0 };
        let kept = room.min(KEPT);
        self.held = self.held * kept + accepted;
        self.tried = self.tried * kept + tried;
        let paid = f64::from(outcome.proposed) * outcome.price.tokens();
        self.credit = (self.credit + EARNED * (1.0 + accepted) + accepted - paid).min(MOST_CREDIT);
    }

    /// The share of proposals that hold, as far as is known.
    fn share(&self) -> f64 {
        (HOPE.0 + self.held) / (HOPE.1 + self.tried)
    }
}
