//! How much each tenant has been served, for its weight.
//!
//! This is the virtual token counter of Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024), with weights:
//! start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996) for work whose length shows only as it is done. What a request
//! brings is charged at admission, tokens of the answer as they are drawn (the last, which nothing follows, is free); the least
//! charged goes next; one that comes back from having nothing to do starts level with those that wait. So while two tenants both
//! have something waiting, the one that was served more for its weight is ahead by what its last admission and the answers that
//! then ran have brought it, and by no more than that, however long it goes on.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use super::super::TenantId;

/// A token of a tenant of weight 1, in the unit of account: so much that rounding is nothing.
const TOKEN: u128 = 1 << 32;

/// Tokens for a weight of 1, in the unit of account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Served(u128);

#[derive(Debug, Default)]
pub(super) struct Shares {
    weights: Vec<NonZeroU32>,
    served: BTreeMap<TenantId, Served>,
}

impl Shares {
    pub(super) fn new(weights: Vec<NonZeroU32>) -> Self {
        Self { weights, served: BTreeMap::new() }
    }

    /// Those with a weight of their own.
    pub(super) fn tenants(&self) -> impl Iterator<Item = TenantId> {
        (0..self.weights.len() as u32).map(TenantId)
    }

    pub(super) fn served(&self, tenant: TenantId) -> Served {
        self.served.get(&tenant).copied().unwrap_or_default()
    }

    pub(super) fn charge(&mut self, tenant: TenantId, tokens: u64) {
        let cost = (u128::from(tokens) * TOKEN).div_ceil(u128::from(self.weight(tenant)));
        self.served.entry(tenant).or_default().0 += cost;
    }

    /// Lets a tenant have been served `floor` at least.
    pub(super) fn raise(&mut self, tenant: TenantId, floor: Served) {
        let served = self.served.entry(tenant).or_default();
        *served = floor.max(*served);
    }

    /// A tenant's part of `whole`, by weight.
    pub(super) fn part_of(&self, whole: u64, tenant: TenantId) -> u64 {
        let all: u128 = self.weights.iter().map(|weight| u128::from(weight.get())).sum();
        (u128::from(whole) * u128::from(self.weight(tenant)) / all.max(1)) as u64
    }

    fn weight(&self, tenant: TenantId) -> u32 {
        self.weights.get(tenant.0 as usize).map_or(1, |weight| weight.get())
    }
}
