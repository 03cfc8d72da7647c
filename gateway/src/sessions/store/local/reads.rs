//! What is read of the database.

use redb::ReadableTable;
use uuid::Uuid;

use super::error::Failure;
use super::rows::TurnRow;
use super::tables::{ReadTables, TurnTables, missing, named, session_row, shown};
use crate::sessions::record::{Session, SessionId, Turn, TurnId};
use crate::sessions::store::Claimed;

impl ReadTables {
    /// See [`Store::session`](crate::sessions::store::Store::session).
    pub fn session(&self, tenant: &str, id: SessionId) -> Result<Session, Failure> {
        let row = session_row(&self.sessions, tenant, id)?;
        shown(&self.settings, id, &row)
    }

    /// See [`Store::sessions`](crate::sessions::store::Store::sessions).
    pub fn list(&self, tenant: &str, before: Option<SessionId>, most: u32) -> Result<Vec<Session>, Failure> {
        let newest = match before {
            None => self.owned.range((tenant, 0)..=(tenant, u128::MAX))?,
            Some(before) => self.owned.range((tenant, 0)..(tenant, before.0.as_u128()))?,
        };
        let mut sessions = Vec::new();
        for owned in newest.rev().take(most as usize) {
            let (_, id) = owned?.0.value();
            sessions.push(self.session(tenant, SessionId(Uuid::from_u128(id)))?);
        }
        Ok(sessions)
    }

    /// See [`Store::turns`](crate::sessions::store::Store::turns).
    pub fn turns(&self, tenant: &str, id: SessionId, first: u32, most: u32) -> Result<Vec<Turn>, Failure> {
        session_row(&self.sessions, tenant, id)?;
        let id = id.0.as_u128();
        let mut turns = Vec::new();
        for place in self.places.range((id, first)..=(id, u32::MAX))?.take(most as usize) {
            turns.push(self.turn(TurnId(Uuid::from_u128(place?.1.value())))?);
        }
        Ok(turns)
    }

    /// The turns that run.
    pub fn running(&self) -> Result<Vec<TurnId>, Failure> {
        let running = self.running.iter()?;
        running.map(|turn| Ok(TurnId(Uuid::from_u128(turn?.0.value())))).collect()
    }

    /// A turn that runs, without tokens.
    pub fn claimed(&self, id: TurnId) -> Result<Claimed, Failure> {
        let row: TurnRow = named(&self.turns, id.0)?;
        let session = row.session().ok_or_else(|| missing(id.0))?;
        Ok(Claimed { tenant: row.tenant, session, turn: self.turn(id)?, token_ids: Vec::new(), stop: false })
    }

    fn turn(&self, id: TurnId) -> Result<Turn, Failure> {
        let tables = TurnTables { turns: &self.turns, accepted: &self.accepted, answers: &self.answers };
        tables.turn(id)
    }
}
