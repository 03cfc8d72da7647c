//! Steps of whole sessions.

use redb::ReadableTable;
use uuid::Uuid;

use crate::sessions::record::{Session, SessionId, Settings};
use crate::sessions::store::local::error::Failure;
use crate::sessions::store::local::rows::{SessionRow, TurnRow};
use crate::sessions::store::local::tables::{Tables, missing, named, put, session_row, shown};
use crate::sessions::store::{Change, Conflict, Fork, NewSession, Quota, StoreError};

impl Tables<'_> {
    /// See [`Store::create`](crate::sessions::store::Store::create).
    pub fn create(&mut self, tenant: &str, new: &NewSession) -> Result<Session, Failure> {
        let row = SessionRow::new(tenant, new.key.clone(), new.settings.created_ms, None);
        if let Some(before) = self.made_before(&row, &new.settings)? {
            return Ok(before);
        }
        self.may_add_session(tenant, new.id, new.quota)?;
        self.add_session(new.id, &row, &new.settings)?;
        Ok(row.shown(new.id, new.settings.clone()))
    }

    /// See [`Store::fork`](crate::sessions::store::Store::fork).
    pub fn fork(&mut self, tenant: &str, source: SessionId, fork: &Fork) -> Result<Session, Failure> {
        let forked = Some((source, fork.turns));
        let mut row = SessionRow::new(tenant, fork.key.clone(), fork.settings.created_ms, forked);
        if let Some(before) = self.made_before(&row, &fork.settings)? {
            return Ok(before);
        }
        let from = session_row(&self.sessions, tenant, source)?;
        if fork.turns > from.turns {
            return Err(
                StoreError::TooFewTurns { session: source, has: from.turns, wanted: fork.turns }.into()
            );
        }
        if from.running().is_some() && fork.turns == from.turns {
            let (version, why) = (from.version, Conflict::Running);
            return Err(StoreError::Conflict { session: source, version, why }.into());
        }
        self.may_add_session(tenant, fork.id, fork.quota)?;
        row.turns = fork.turns;
        self.add_session(fork.id, &row, &fork.settings)?;
        for index in 0..fork.turns {
            let turn = self.places.get((source.0.as_u128(), index))?.map(|turn| turn.value());
            let turn = turn.ok_or_else(|| missing(source.0))?;
            self.places.insert((fork.id.0.as_u128(), index), turn)?;
            let turn = Uuid::from_u128(turn);
            let mut place: TurnRow = named(&self.turns, turn)?;
            place.shared += 1;
            put(&mut self.turns, turn, &place)?;
        }
        Ok(row.shown(fork.id, fork.settings.clone()))
    }

    /// See [`Store::truncate`](crate::sessions::store::Store::truncate).
    pub fn truncate(
        &mut self,
        tenant: &str,
        id: SessionId,
        change: Change,
        turns: u32,
    ) -> Result<Session, Failure> {
        let before = self.idle_row(tenant, id, change.version)?;
        if turns > before.turns {
            return Err(StoreError::TooFewTurns { session: id, has: before.turns, wanted: turns }.into());
        }
        let mut row = before.clone();
        row.version += 1;
        row.turns = turns;
        row.updated_ms = change.now_ms;
        self.drop_turns(id, &before, turns)?;
        self.put_session(id, Some(&before), &row)?;
        shown(&self.settings, id, &row)
    }

    /// See [`Store::delete`](crate::sessions::store::Store::delete).
    pub fn delete(&mut self, tenant: &str, id: SessionId, change: Change) -> Result<(), Failure> {
        let row = self.idle_row(tenant, id, change.version)?;
        self.remove_session(id, &row)
    }

    /// See [`Store::expire`](crate::sessions::store::Store::expire).
    pub fn expire(&mut self, before_ms: u64, most: u32) -> Result<u32, Failure> {
        let mut old = Vec::new();
        for idle in self.idle.range((0, 0)..(before_ms, 0))?.take(most as usize) {
            let (_, id) = idle?.0.value();
            old.push(SessionId(Uuid::from_u128(id)));
        }
        for id in &old {
            let row: SessionRow = named(&self.sessions, id.0)?;
            self.remove_session(*id, &row)?;
        }
        Ok(u32::try_from(old.len()).unwrap_or(u32::MAX))
    }

    /// The session that the key of `made` made before.
    fn made_before(&self, made: &SessionRow, settings: &Settings) -> Result<Option<Session>, Failure> {
        if made.key.is_empty() {
            return Ok(None);
        }
        let before = self.session_keys.get((made.tenant.as_str(), made.key.as_str()))?;
        let Some(id) = before.map(|id| SessionId(Uuid::from_u128(id.value()))) else { return Ok(None) };
        let row: SessionRow = named(&self.sessions, id.0)?;
        let session = shown(&self.settings, id, &row)?;
        if !row.is_made_as(made) || !session.settings.same_request(settings) {
            return Err(StoreError::KeyReused(made.key.clone()).into());
        }
        Ok(Some(session))
    }

    fn may_add_session(&self, tenant: &str, id: SessionId, quota: Quota) -> Result<(), Failure> {
        if self.sessions.get(id.0.as_u128())?.is_some() {
            return Err(StoreError::SessionExists(id).into());
        }
        let (kept, _) = self.kept(tenant)?;
        if kept >= quota.sessions {
            return Err(StoreError::Quota { what: "sessions", kept, most: quota.sessions }.into());
        }
        Ok(())
    }

    fn add_session(&mut self, id: SessionId, row: &SessionRow, settings: &Settings) -> Result<(), Failure> {
        let number = id.0.as_u128();
        self.put_session(id, None, row)?;
        put(&mut self.settings, id.0, settings)?;
        self.owned.insert((row.tenant.as_str(), number), ())?;
        if !row.key.is_empty() {
            self.session_keys.insert((row.tenant.as_str(), row.key.as_str()), number)?;
        }
        self.count(&row.tenant, 1, 0)
    }

    fn remove_session(&mut self, id: SessionId, row: &SessionRow) -> Result<(), Failure> {
        self.drop_turns(id, row, 0)?;
        let number = id.0.as_u128();
        self.sessions.remove(number)?;
        self.settings.remove(number)?;
        self.idle.remove((row.updated_ms, number))?;
        self.owned.remove((row.tenant.as_str(), number))?;
        if !row.key.is_empty() {
            self.session_keys.remove((row.tenant.as_str(), row.key.as_str()))?;
        }
        self.count(&row.tenant, -1, 0)
    }
}
