//! One sequence's proposals.

use super::control::{Control, Outcome};
use super::costs::Price;
use super::lookup::{History, Lookup};

/// Proposes what may follow in one sequence, as much of it as pays.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Speculator {
    lookup: Lookup,
    control: Control,
}

/// What a step offers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Offer {
    /// Of each row beyond the sequence's first.
    pub price: Price,
    /// How many there is room for.
    pub most: u32,
}

/// Ids that may follow the token that is due; none where nothing is known or it would not pay.
#[derive(Clone, Debug, PartialEq)]
pub struct Proposal {
    /// In order of position.
    pub ids: Vec<u32>,
    /// Of each.
    pub price: Price,
}

impl Speculator {
    /// Takes in what the history has gained; proposals do so by themselves, but then a long prompt at once.
    pub fn read(&mut self, history: History<'_>) {
        self.lookup.extend(history);
    }

    /// What to feed behind the history's last id, which is the token that is due.
    pub fn propose(&mut self, history: History<'_>, offer: Offer) -> Proposal {
        let len = self.control.len(offer.price, offer.most);
        let ids = if len == 0 {
            Vec::new()
        } else {
            self.lookup.extend(history);
            self.lookup.propose(history, len)
        };
        Proposal { ids, price: offer.price }
    }

    /// Takes in how the step's proposal fared, an empty one too.
    pub fn verified(&mut self, outcome: Outcome) {
        self.control.verified(outcome);
    }
}
