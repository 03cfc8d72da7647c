//! What lives: the tokens of turns that were not forgotten. Pure: the same for writing and for reading back.

use std::collections::HashMap;

use foldhash::fast::FixedState;

use super::error::{Damage, JournalError};
use super::format::{Entry, Note, RecordWriter};
use crate::sessions::TurnId;
use crate::sessions::store::Appended;

/// The most tokens that may live at once, so that a begin record can hold them.
const MOST_TOKENS: usize = 1 << 27;

/// The turns that live.
#[derive(Debug, Default)]
pub struct Kept {
    turns: HashMap<TurnId, KeptTurn, FixedState>,
    tokens: usize,
}

/// What is known of one turn.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeptTurn {
    /// Its tokens so far.
    pub token_ids: Vec<u32>,
    /// Whether it is to end with them.
    pub stop: bool,
}

/// What a turn was before a change of it.
#[derive(Debug)]
pub struct Undo {
    turn: TurnId,
    /// `None`: there was none.
    before: Option<(usize, bool)>,
}

impl Kept {
    /// Adds tokens, and writes down those that are new; nothing changes if there is none.
    ///
    /// # Errors
    /// They do not join, differ from those that the turn has, or are too many.
    pub fn append(
        &mut self,
        added: &Appended,
        record: &mut RecordWriter,
    ) -> Result<Option<Undo>, JournalError> {
        let Appended { turn, first, ref token_ids } = *added;
        let has = self.turns.get(&turn).map_or(&[][..], |kept| &kept.token_ids);
        let gap = JournalError::Gap { turn, has: has.len(), first };
        let again = has.get(first as usize..).ok_or(gap)?;
        if let Some(differs) = again.iter().zip(token_ids).position(|(old, new)| old != new) {
            return Err(JournalError::OtherToken { turn, index: first as usize + differs });
        }
        let Some(new @ [_, ..]) = token_ids.get(again.len()..) else { return Ok(None) };
        let tokens = self.tokens + new.len();
        if tokens > MOST_TOKENS {
            return Err(JournalError::TooMany { tokens, most: MOST_TOKENS });
        }
        record.entry(turn, has.len() as u32, Note::None, new);
        let undo = self.undo_of(turn);
        self.turns.entry(turn).or_default().token_ids.extend(new);
        self.tokens = tokens;
        Ok(Some(undo))
    }

    /// Notes that a turn is to end, and writes it down; nothing changes if that is known.
    pub fn stop(&mut self, turn: TurnId, record: &mut RecordWriter) -> Option<Undo> {
        let undo = self.undo_of(turn);
        let kept = self.turns.entry(turn).or_default();
        if std::mem::replace(&mut kept.stop, true) {
            return None;
        }
        record.entry(turn, kept.token_ids.len() as u32, Note::Stop, &[]);
        Some(undo)
    }

    /// Adds what a record says.
    ///
    /// # Errors
    /// It does not join what the records before say.
    pub fn read(&mut self, entry: Entry<'_>) -> Result<(), Damage> {
        let Entry { turn, first, note, tokens } = entry;
        let kept = self.turns.entry(turn).or_default();
        let has = kept.token_ids.len();
        if has != first as usize {
            return Err(Damage::Gap { turn, has, first });
        }
        kept.token_ids.extend(tokens.ids());
        self.tokens += tokens.len();
        match note {
            Note::None => {}
            Note::Stop => kept.stop = true,
            Note::Forget => drop(self.forget(turn)),
        }
        Ok(())
    }

    /// Takes a change back; changes are taken back in the reverse of their order.
    pub fn undo(&mut self, undo: Undo) {
        match undo.before {
            None => drop(self.forget(undo.turn)),
            Some((tokens, stop)) => {
                let Some(kept) = self.turns.get_mut(&undo.turn) else { return };
                self.tokens -= kept.token_ids.len() - tokens;
                kept.token_ids.truncate(tokens);
                kept.stop = stop;
            }
        }
    }

    /// Forgets a turn; how many tokens it had, if there is such a one.
    pub fn forget(&mut self, turn: TurnId) -> Option<u32> {
        let tokens = self.turns.remove(&turn)?.token_ids.len();
        self.tokens -= tokens;
        Some(tokens as u32)
    }

    /// Writes all that lives down.
    pub fn write(&self, record: &mut RecordWriter) {
        for (turn, kept) in &self.turns {
            let note = if kept.stop { Note::Stop } else { Note::None };
            record.entry(*turn, 0, note, &kept.token_ids);
        }
    }

    /// What lives.
    pub fn turns(&self) -> impl Iterator<Item = (TurnId, &KeptTurn)> {
        self.turns.iter().map(|(turn, kept)| (*turn, kept))
    }

    fn undo_of(&self, turn: TurnId) -> Undo {
        Undo { turn, before: self.turns.get(&turn).map(|kept| (kept.token_ids.len(), kept.stop)) }
    }
}
