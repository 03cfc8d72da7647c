//! Who waits for admission, and whose turn it is.
//!
//! Between tenants: the one that was served least for its weight, see [`shares`]. Within a tenant: by priority and age, see
//! [`line`]. The queue is bounded by count and by tokens; half of it is open to all, the other half is kept for the tenants by
//! weight, so that none fills it for the others.
//!
//! No clock: times are values that come with the sequences.

mod line;
mod shares;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use line::Line;
pub(super) use line::Turn;
use shares::Shares;

use super::limits::tokens;
use super::{NewSequence, QueueLimits, Refusal, SequenceId, TenantId};

/// What waits, and what has left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// Sequences that wait for admission.
    pub waiting: u32,
    /// Their prompts and answers, in tokens.
    pub waiting_tokens: u64,
    /// The prompts and answers of all that ever left the queue: were admitted, ended or refused there.
    pub left_tokens: u64,
}

#[derive(Debug)]
pub(super) struct Queue {
    limits: QueueLimits,
    shares: Shares,
    /// Of the tenants that wait.
    lines: BTreeMap<TenantId, Line>,
    turns: BTreeMap<SequenceId, (TenantId, Turn)>,
    /// Whose line was the last to become empty.
    last: TenantId,
    tokens: u64,
    known_tokens: u64,
    arrivals: u64,
    left_tokens: u64,
}

impl Queue {
    pub(super) fn new(limits: QueueLimits) -> Self {
        Self {
            limits,
            shares: Shares::default(),
            lines: BTreeMap::new(),
            turns: BTreeMap::new(),
            last: TenantId::default(),
            tokens: 0,
            known_tokens: 0,
            arrivals: 0,
            left_tokens: 0,
        }
    }

    /// With the tenants' weights, in their order; a tenant beyond them has 1.
    pub(super) fn weighted(self, weights: Vec<NonZeroU32>) -> Self {
        Self { shares: Shares::new(weights), ..self }
    }

    /// Sequences that wait.
    pub(super) fn len(&self) -> u32 {
        self.turns.len() as u32
    }

    /// Their prompts and answers.
    pub(super) fn tokens(&self) -> u64 {
        self.tokens
    }

    /// What of them is known: their prompts, and answers' given ids.
    pub(super) fn known_tokens(&self) -> u64 {
        self.known_tokens
    }

    /// What waits, and what has left.
    pub(super) fn flow(&self) -> Flow {
        Flow { waiting: self.len(), waiting_tokens: self.tokens, left_tokens: self.left_tokens }
    }

    pub(super) fn push(&mut self, sequence: NewSequence) -> Result<(), Refusal> {
        if self.turns.contains_key(&sequence.id) {
            return Err(Refusal::Duplicate { sequence: sequence.id });
        }
        self.check_room(&sequence)?;
        let tenant = sequence.tenant;
        if !self.lines.contains_key(&tenant) {
            // What it was not served while nothing of it waited is not made up for.
            let waiting = self.lines.keys().map(|waiting| self.shares.served(*waiting)).min();
            let floor = waiting.unwrap_or_else(|| self.shares.served(self.last));
            self.shares.raise(tenant, floor);
        }
        let turn = Turn::new(&sequence, self.arrivals);
        self.arrivals += 1;
        self.tokens += tokens(&sequence);
        self.known_tokens += known_tokens(&sequence);
        self.turns.insert(sequence.id, (tenant, turn));
        self.lines.entry(tenant).or_default().insert(turn, sequence);
        Ok(())
    }

    /// Whose turn it is: the first of the tenant that was served least for its weight, and the earliest among equals.
    pub(super) fn first(&self) -> Option<&NewSequence> {
        self.next().and_then(|tenant| self.lines.get(&tenant)?.first()).map(|(_, sequence)| sequence)
    }

    /// Takes the first out, and charges its tenant with the tokens that it brings.
    pub(super) fn pop(&mut self) -> Option<(Turn, NewSequence)> {
        let tenant = self.next()?;
        let (turn, _) = self.lines.get(&tenant)?.first()?;
        let sequence = self.take(tenant, turn)?;
        self.charge(tenant, known_tokens(&sequence));
        Some((turn, sequence))
    }

    /// Charges a tenant with tokens that it was served.
    pub(super) fn charge(&mut self, tenant: TenantId, tokens: u64) {
        self.shares.charge(tenant, tokens);
    }

    /// Takes one out, wherever it stands.
    pub(super) fn remove(&mut self, sequence: SequenceId) -> bool {
        let Some((tenant, turn)) = self.turns.get(&sequence).copied() else { return false };
        self.take(tenant, turn).is_some()
    }

    /// Takes out, and returns, all that do not pass a check.
    pub(super) fn retain(
        &mut self,
        check: impl Fn(&NewSequence) -> Result<(), Refusal>,
    ) -> Vec<(SequenceId, Refusal)> {
        let waiting = self.lines.values().flat_map(Line::sequences);
        let refused: Vec<_> =
            waiting.filter_map(|sequence| Some((sequence.id, check(sequence).err()?))).collect();
        for (sequence, _) in &refused {
            self.remove(*sequence);
        }
        refused
    }

    /// The waiting tenant that was served least for its weight.
    fn next(&self) -> Option<TenantId> {
        let by_service = |(tenant, line): (&TenantId, &Line)| {
            Some((self.shares.served(*tenant), line.first()?.0, *tenant))
        };
        self.lines.iter().filter_map(by_service).min().map(|(.., tenant)| tenant)
    }

    fn take(&mut self, tenant: TenantId, turn: Turn) -> Option<NewSequence> {
        let line = self.lines.get_mut(&tenant)?;
        let sequence = line.remove(turn)?;
        if line.is_empty() {
            self.lines.remove(&tenant);
            self.last = tenant;
        }
        self.turns.remove(&sequence.id);
        self.tokens -= tokens(&sequence);
        self.known_tokens -= known_tokens(&sequence);
        self.left_tokens += tokens(&sequence);
        Some(sequence)
    }

    /// Whether there is room for one more of its tenant. A tenant of which nothing waits may bring any number of tokens, so
    /// that whatever could run can come in.
    fn check_room(&self, new: &NewSequence) -> Result<(), Refusal> {
        let QueueLimits { requests, tokens: limit } = self.limits;
        let kept = self.kept_for_others(new.tenant, u64::from(requests), Line::len);
        if u64::from(self.len()) + kept >= u64::from(requests) {
            return Err(Refusal::QueueFull { waiting: self.len() });
        }
        let kept = self.kept_for_others(new.tenant, limit, Line::tokens);
        let (waiting, tokens, limit) = (self.tokens, tokens(new), limit.saturating_sub(kept));
        if self.lines.contains_key(&new.tenant) && waiting.saturating_add(tokens) > limit {
            return Err(Refusal::QueueTokens { waiting, tokens, limit });
        }
        Ok(())
    }

    /// What other tenants have not taken of the part of `limit` that is kept for them.
    fn kept_for_others(&self, tenant: TenantId, limit: u64, taken: impl Fn(&Line) -> u64) -> u64 {
        let others = self.shares.tenants().filter(|other| *other != tenant);
        let left = others.map(|other| {
            let taken = self.lines.get(&other).map_or(0, &taken);
            self.shares.part_of(limit / 2, other).saturating_sub(taken)
        });
        left.sum()
    }
}

/// Of a sequence that has not begun: its prompt and the given ids of its answer.
fn known_tokens(sequence: &NewSequence) -> u64 {
    (sequence.prompt.len() + sequence.given.len()) as u64
}
