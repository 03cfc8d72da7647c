//! Which turns run, and who goes on with them.

use std::collections::{BTreeMap, HashMap, HashSet};
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
            turns.running.insert(*turn);
            turns.unclaimed.insert(*turn, recovered.remove(turn).unwrap_or(none));
        }
        // They ended, and the journal was not told.
        recovered.into_keys().for_each(|turn| self.journal.forget(turn));
    }

    /// Whether a turn runs.
    pub fn runs(&self, turn: TurnId) -> bool {
        self.turns().running.contains(&turn)
    }

    /// Leaves out the tokens of turns that do not run.
    pub fn retain(&self, tokens: &mut Vec<Appended>) {
        let turns = self.turns();
        tokens.retain(|added| turns.running.contains(&added.turn));
    }

    /// Gives out what nobody has claimed, each as `read` finds it.
    ///
    /// # Errors
    /// Those of `read`; nothing was given out.
    pub fn claim(&self, read: impl Fn(TurnId) -> Result<Claimed, Failure>) -> Result<Vec<Claimed>, Failure> {
        let mut turns = self.turns();
        let mut claimed = Vec::with_capacity(turns.unclaimed.len());
        for (turn, recovered) in &turns.unclaimed {
            let (token_ids, stop) = (recovered.token_ids.clone(), recovered.stop);
            claimed.push(Claimed { token_ids, stop, ..read(*turn)? });
        }
        turns.unclaimed.clear();
        Ok(claimed)
    }

    fn turns(&self) -> MutexGuard<'_, Turns> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watch for Arc<Running> {
    fn changed(&self, changes: &Changes) {
        let mut turns = self.turns();
        turns.running.extend(&changes.begun);
        for turn in &changes.ended {
            turns.running.remove(turn);
            turns.unclaimed.remove(turn);
            self.journal.forget(*turn);
        }
    }
}
