//! The turns that run under this gateway, with their tokens: what is appended is compared with them, and a connection that breaks
//! takes nothing of them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

use crate::sessions::record::TurnId;
use crate::sessions::store::{Appended, StoreError};

/// The turns that run here. Bounded by the answers that they may have.
#[derive(Debug, Default)]
pub struct Running {
    turns: Mutex<HashMap<TurnId, Vec<u32>>>,
    /// The last attempt to write.
    attempt: AtomicI64,
}

/// What is new in tokens to append.
#[derive(Debug, Default)]
pub struct News {
    /// Turns that do not run here.
    pub left_out: Vec<TurnId>,
    /// Turns in the order in which they were named.
    pub turns: Vec<Longer>,
}

/// A turn that has new tokens.
#[derive(Debug)]
pub struct Longer {
    /// Its name.
    pub turn: TurnId,
    /// How many tokens it had before.
    pub has: usize,
    /// Those that follow.
    pub new: Vec<u32>,
}

impl Running {
    /// Adds a turn without tokens. False: it runs already.
    pub fn begin(&self, turn: TurnId) -> bool {
        let mut turns = self.turns();
        let is_new = !turns.contains_key(&turn);
        if is_new {
            turns.insert(turn, Vec::new());
        }
        is_new
    }

    /// Adds a turn as it was claimed; later attempts are greater than its last.
    pub fn claim(&self, turn: TurnId, token_ids: Vec<u32>, attempt: i64) {
        self.attempt.fetch_max(attempt, Ordering::Relaxed);
        self.turns().insert(turn, token_ids);
    }

    /// It runs here no longer.
    pub fn remove(&self, turn: TurnId) {
        self.turns().remove(&turn);
    }

    /// Whether it runs here, as far as is known.
    pub fn has(&self, turn: TurnId) -> bool {
        self.turns().contains_key(&turn)
    }

    /// The names of all.
    pub fn names(&self) -> Vec<Uuid> {
        self.turns().keys().map(|turn| turn.0).collect()
    }

    /// A number for an attempt to write, greater than those before.
    pub fn next_attempt(&self) -> i64 {
        self.attempt.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// What is new in these tokens.
    ///
    /// # Errors
    /// [`StoreError::NotNext`], [`StoreError::OtherToken`].
    pub fn news(&self, tokens: &[Appended]) -> Result<News, StoreError> {
        let (turns, mut news) = (self.turns(), News::default());
        for Appended { turn, first, token_ids } in tokens {
            let Some(has) = turns.get(turn) else {
                if !news.left_out.contains(turn) {
                    news.left_out.push(*turn);
                }
                continue;
            };
            let known = news.turns.iter().position(|longer| longer.turn == *turn);
            let place = known.unwrap_or_else(|| {
                news.turns.push(Longer { turn: *turn, has: has.len(), new: Vec::new() });
                news.turns.len() - 1
            });
            news.turns[place].add(has, *first, token_ids)?;
        }
        news.turns.retain(|longer| !longer.new.is_empty());
        Ok(news)
    }

    /// Keeps what was written.
    pub fn extend(&self, longer: &Longer) {
        if let Some(token_ids) = self.turns().get_mut(&longer.turn) {
            token_ids.truncate(longer.has);
            token_ids.extend(&longer.new);
        }
    }

    /// All tokens of a turn that is to be longer.
    pub fn whole(&self, longer: &Longer) -> Vec<u32> {
        let mut token_ids = self.turns().get(&longer.turn).cloned().unwrap_or_default();
        token_ids.truncate(longer.has);
        token_ids.extend(&longer.new);
        token_ids
    }

    fn turns(&self) -> MutexGuard<'_, HashMap<TurnId, Vec<u32>>> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Longer {
    /// Adds tokens, which must follow those that the turn has or be the same.
    fn add(&mut self, has: &[u32], first: u32, token_ids: &[u32]) -> Result<(), StoreError> {
        let (turn, total) = (self.turn, has.len() + self.new.len());
        if first as usize > total {
            return Err(StoreError::NotNext { turn, has: total, first });
        }
        for (index, id) in (first as usize..).zip(token_ids) {
            let known = if index < has.len() { has.get(index) } else { self.new.get(index - has.len()) };
            match known {
                None => self.new.push(*id),
                Some(known) if known == id => {}
                Some(_) => return Err(StoreError::OtherToken { turn, index }),
            }
        }
        Ok(())
    }
}
