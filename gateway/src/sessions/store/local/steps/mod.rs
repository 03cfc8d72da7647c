//! The steps that change the database. Each checks all that may be refused before it changes anything, so that a refused one
//! leaves nothing among the others of its transaction.

mod sessions;
mod turns;

use redb::ReadableTable;
use uuid::Uuid;

use super::error::Failure;
use super::rows::{SessionRow, TurnRow};
use super::tables::{Tables, find, missing, named, put, session_row};
use crate::sessions::record::{SessionId, TurnId};
use crate::sessions::store::{Conflict, StoreError};

impl Tables<'_> {
    /// A session that may change.
    fn idle_row(&self, tenant: &str, id: SessionId, version: Option<u64>) -> Result<SessionRow, Failure> {
        let row = session_row(&self.sessions, tenant, id)?;
        let conflict = |why| StoreError::Conflict { session: id, version: row.version, why };
        if row.running().is_some() {
            return Err(conflict(Conflict::Running).into());
        }
        match version {
            Some(version) if version != row.version => Err(conflict(Conflict::Version).into()),
            _ => Ok(row),
        }
    }

    /// Writes a session that was changed from `before`.
    fn put_session(
        &mut self,
        id: SessionId,
        before: Option<&SessionRow>,
        row: &SessionRow,
    ) -> Result<(), Failure> {
        self.changes.any = true;
        let number = id.0.as_u128();
        if let Some(before) = before {
            self.idle.remove((before.updated_ms, number))?;
        }
        if row.running().is_none() {
            self.idle.insert((row.updated_ms, number), ())?;
        }
        put(&mut self.sessions, id.0, row)
    }

    /// Forgets a session's turns from `first` on, where no other has them.
    fn drop_turns(&mut self, id: SessionId, row: &SessionRow, first: u32) -> Result<(), Failure> {
        self.changes.any = true;
        let number = id.0.as_u128();
        for index in first..row.turns {
            let turn = self.places.remove((number, index))?.map(|turn| Uuid::from_u128(turn.value()));
            let turn = turn.ok_or_else(|| missing(id.0))?;
            let mut place: TurnRow = named(&self.turns, turn)?;
            if place.session() == Some(id) && !place.key.is_empty() {
                self.turn_keys.remove((number, place.key.as_str()))?;
            }
            place.shared = place.shared.saturating_sub(1);
            if place.shared > 0 {
                put(&mut self.turns, turn, &place)?;
            } else {
                self.forget_turn(turn, &place)?;
            }
        }
        Ok(())
    }

    fn forget_turn(&mut self, turn: Uuid, row: &TurnRow) -> Result<(), Failure> {
        let number = turn.as_u128();
        self.turns.remove(number)?;
        let accepted = self.accepted.remove(number)?.map(|bytes| bytes.value().len());
        let answer = self.answers.remove(number)?.map(|bytes| bytes.value().len());
        let bytes = accepted.unwrap_or_default() + answer.unwrap_or_default();
        self.count(&row.tenant, 0, -(bytes as i64))
    }

    /// What a tenant keeps: sessions and bytes.
    fn kept(&self, tenant: &str) -> Result<(u64, u64), Failure> {
        Ok(self.tenants.get(tenant)?.map(|kept| kept.value()).unwrap_or_default())
    }

    fn count(&mut self, tenant: &str, sessions: i64, bytes: i64) -> Result<(), Failure> {
        let before = self.kept(tenant)?;
        let kept = (before.0.saturating_add_signed(sessions), before.1.saturating_add_signed(bytes));
        if kept == (0, 0) {
            self.tenants.remove(tenant)?;
        } else {
            self.tenants.insert(tenant, kept)?;
        }
        Ok(())
    }

    /// The session in which a turn was begun, while that has it.
    fn begun_in(&self, turn: TurnId) -> Result<Option<(SessionId, SessionRow)>, Failure> {
        let Some(place) = find::<TurnRow>(&self.turns, turn.0)? else { return Ok(None) };
        let session = place.session().ok_or_else(|| missing(turn.0))?;
        let there = self.places.get((session.0.as_u128(), place.index))?;
        if there.is_none_or(|there| there.value() != turn.0.as_u128()) {
            return Ok(None);
        }
        Ok(Some((session, named(&self.sessions, session.0)?)))
    }
}
