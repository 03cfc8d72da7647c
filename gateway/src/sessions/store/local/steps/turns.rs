//! Steps of one turn.

use prost::Message;
use redb::ReadableTable;
use uuid::Uuid;

use crate::sessions::record::{Answer, SessionId, Turn, TurnId};
use crate::sessions::store::local::error::Failure;
use crate::sessions::store::local::rows::TurnRow;
use crate::sessions::store::local::tables::{Tables, TurnTables, put, session_row, shown};
use crate::sessions::store::{BeginTurn, Begun, StoreError};

impl Tables<'_> {
    /// See [`Store::begin`](crate::sessions::store::Store::begin).
    pub fn begin(&mut self, tenant: &str, id: SessionId, new: &BeginTurn) -> Result<Begun, Failure> {
        if let Some(before) = self.begun_before(tenant, id, new)? {
            return Ok(before);
        }
        let before = self.idle_row(tenant, id, new.version)?;
        if self.turns.get(new.id.0.as_u128())?.is_some() {
            return Err(StoreError::TurnExists(new.id).into());
        }
        let accepted = new.turn.encode_to_vec();
        let (_, kept) = self.kept(tenant)?;
        if kept + accepted.len() as u64 > new.quota.bytes {
            return Err(StoreError::Quota { what: "bytes", kept, most: new.quota.bytes }.into());
        }
        let mut row = before.clone();
        row.version += 1;
        row.turns += 1;
        row.updated_ms = new.turn.accepted_ms;
        row.set_running(Some(new.id));
        let session = shown(&self.settings, id, &row)?;
        self.put_session(id, Some(&before), &row)?;
        let (session_number, turn_number) = (id.0.as_u128(), new.id.0.as_u128());
        let index = before.turns;
        put(&mut self.turns, new.id.0, &TurnRow::new(tenant, id, index, new.key.clone()))?;
        self.accepted.insert(turn_number, accepted.as_slice())?;
        self.places.insert((session_number, index), turn_number)?;
        self.running.insert(turn_number, ())?;
        if !new.key.is_empty() {
            self.turn_keys.insert((session_number, new.key.as_str()), turn_number)?;
        }
        self.count(tenant, 0, accepted.len() as i64)?;
        self.changes.begun.push(new.id);
        let turn = Turn { id: new.id, index, accepted: new.turn.clone(), answer: None };
        Ok(Begun { turn, session })
    }

    /// See [`Store::finish`](crate::sessions::store::Store::finish).
    pub fn finish(&mut self, turn: TurnId, answer: &Answer) -> Result<u64, Failure> {
        let Some((id, before)) = self.begun_in(turn)? else {
            return Err(StoreError::NoTurn(turn).into());
        };
        if before.running() != Some(turn) {
            let tables = TurnTables { turns: &self.turns, accepted: &self.accepted, answers: &self.answers };
            let is_same = tables.turn(turn)?.answer.as_ref() == Some(answer);
            return if is_same { Ok(before.version) } else { Err(StoreError::Taken(turn).into()) };
        }
        let mut row = before.clone();
        row.version += 1;
        row.updated_ms = answer.ended_ms;
        row.set_running(None);
        self.put_session(id, Some(&before), &row)?;
        let answer = answer.encode_to_vec();
        self.answers.insert(turn.0.as_u128(), answer.as_slice())?;
        self.running.remove(turn.0.as_u128())?;
        self.count(&row.tenant, 0, answer.len() as i64)?;
        self.changes.ended.push(turn);
        Ok(row.version)
    }

    /// See [`Store::discard`](crate::sessions::store::Store::discard).
    pub fn discard(&mut self, turn: TurnId) -> Result<(), Failure> {
        let Some((id, before)) = self.begun_in(turn)? else { return Ok(()) };
        if before.running() != Some(turn) {
            return Ok(());
        }
        let mut row = before.clone();
        row.version += 1;
        row.turns -= 1;
        row.set_running(None);
        self.drop_turns(id, &before, row.turns)?;
        self.put_session(id, Some(&before), &row)?;
        self.running.remove(turn.0.as_u128())?;
        self.changes.ended.push(turn);
        Ok(())
    }

    /// The turn that the key of `new` made before.
    fn begun_before(&self, tenant: &str, id: SessionId, new: &BeginTurn) -> Result<Option<Begun>, Failure> {
        let row = session_row(&self.sessions, tenant, id)?;
        if new.key.is_empty() {
            return Ok(None);
        }
        let before = self.turn_keys.get((id.0.as_u128(), new.key.as_str()))?;
        let Some(turn) = before.map(|turn| TurnId(Uuid::from_u128(turn.value()))) else { return Ok(None) };
        let tables = TurnTables { turns: &self.turns, accepted: &self.accepted, answers: &self.answers };
        let turn = tables.turn(turn)?;
        if turn.accepted.messages != new.turn.messages {
            return Err(StoreError::KeyReused(new.key.clone()).into());
        }
        Ok(Some(Begun { turn, session: shown(&self.settings, id, &row)? }))
    }
}
