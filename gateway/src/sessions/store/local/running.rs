//! Which turns run, and who goes on with them.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::error::Failure;
use super::tables::Changes;
use super::writer::Watch;
use crate::sessions::journal::{Journal, Recovered};
use crate::sessions::record::TurnId;
use crate::sessions::store::{Appended, Claimed};

/// The turns that run, as the database has them.
#[derive(Debug)]
pub struct Running {
    turns: Mutex<Turns>,
    /// Forgets those that have ended.
    journal: Arc<Journal>,
}

#[derive(Debug, Default)]
struct Turns {
    running: HashSet<TurnId>,
    /// Those that a process before began, and nobody has claimed.
    unclaimed: BTreeMap<TurnId, Recovered>,
    /// Those that are noted to end.
    stops: BTreeSet<TurnId>,
}

impl Running {
    /// None runs yet.
    pub fn new(journal: Arc<Journal>) -> Self {
        Self { turns: Mutex::default(), journal }
    }

    /// Takes over what a process before left: the turns that run, and the journal.
    pub fn recover(&self, running: &[TurnId], recovered: Vec<Recovered>) {
        let mut recovered: HashMap<TurnId, Recovered> =
            recovered.into_iter().map(|turn| (turn.turn, turn)).collect();
        let mut turns = self.turns();
        for turn in running {
            let none = Recovered { turn: *turn, token_ids: Vec::new(), stop: false };
            let recovered = recovered.remove(turn).unwrap_or(none);
            turns.running.insert(*turn);
            if recovered.stop {
                turns.stops.insert(*turn);
            }
            turns.unclaimed.insert(*turn, recovered);
        }
        // They ended, and the journal was not told.
        recovered.into_keys().for_each(|turn| self.journal.forget(turn));
    }

    /// Whether a turn runs.
    pub fn runs(&self, turn: TurnId) -> bool {
        self.turns().running.contains(&turn)
    }

    /// Whether a turn runs, and not without anybody.
    pub fn runs_here(&self, turn: TurnId) -> bool {
        self.turns().runs_here(turn)
    }

    /// Leaves out the tokens of turns that do not run here; which these are.
    pub fn retain(&self, tokens: &mut Vec<Appended>) -> Vec<TurnId> {
        let (turns, mut left_out) = (self.turns(), Vec::new());
        tokens.retain(|added| {
            let stays = turns.runs_here(added.turn);
            if !stays && !left_out.contains(&added.turn) {
                left_out.push(added.turn);
            }
            stays
        });
        left_out
    }

    /// Notes that a turn, if it runs, is to end.
    pub fn stop(&self, turn: TurnId) {
        let mut turns = self.turns();
        if turns.running.contains(&turn) {
            turns.stops.insert(turn);
        }
    }

    /// The turns that run here and are to end.
    pub fn stops(&self) -> Vec<TurnId> {
        let turns = self.turns();
        turns.stops.iter().copied().filter(|turn| turns.runs_here(*turn)).collect()
    }

    /// The tokens, from one on, of a turn that nobody has claimed.
    pub fn tokens(&self, turn: TurnId, first: u32) -> Option<Vec<u32>> {
        let turns = self.turns();
        let recovered = turns.unclaimed.get(&turn)?;
        Some(recovered.token_ids.get(first as usize..).unwrap_or_default().to_vec())
    }

    /// Gives out what nobody has claimed, each as `read` finds it.
    ///
    /// # Errors
    /// Those of `read`; nothing was given out.
    pub fn claim(&self, read: impl Fn(TurnId) -> Result<Claimed, Failure>) -> Result<Vec<Claimed>, Failure> {
        let mut turns = self.turns();
        let mut claimed = Vec::with_capacity(turns.unclaimed.len());
        for (turn, recovered) in &turns.unclaimed {
            let (token_ids, stop) = (recovered.token_ids.clone(), turns.stops.contains(turn));
            claimed.push(Claimed { token_ids, stop, ..read(*turn)? });
        }
        turns.unclaimed.clear();
        Ok(claimed)
    }

    fn turns(&self) -> MutexGuard<'_, Turns> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turns {
    fn runs_here(&self, turn: TurnId) -> bool {
        self.running.contains(&turn) && !self.unclaimed.contains_key(&turn)
    }
}

impl Watch for Arc<Running> {
    fn changed(&self, changes: &Changes) {
        let mut turns = self.turns();
        turns.running.extend(&changes.begun);
        for turn in &changes.ended {
            turns.running.remove(turn);
            turns.unclaimed.remove(turn);
            turns.stops.remove(turn);
            self.journal.forget(*turn);
        }
    }
}
