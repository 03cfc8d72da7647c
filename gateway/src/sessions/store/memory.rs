//! A store that forgets everything with its process; the model of what a store does.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::FutureExt;
use prost::Message;

use super::{
    Answer, Appended, BeginTurn, Begun, Change, Claimed, Conflict, Fork, Key, NewSession, NewTurn, Quota,
    Session, SessionId, Settings, Store, StoreError, Stored, Turn, TurnId,
};

/// Keeps sessions in memory. Its clones are one store.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore {
    kept: Arc<Mutex<Kept>>,
}

#[derive(Debug, Default)]
struct Kept {
    sessions: BTreeMap<SessionId, Conversation>,
    turns: BTreeMap<TurnId, Said>,
    /// Bytes of turns and answers, by tenant.
    bytes: HashMap<String, u64>,
}

#[derive(Clone, Debug)]
struct Conversation {
    tenant: String,
    version: u64,
    updated_ms: u64,
    settings: Settings,
    key: Key,
    /// Of which session it was made, and with how many turns.
    forked: Option<(SessionId, u32)>,
    turns: Vec<TurnId>,
    keys: BTreeMap<Key, TurnId>,
}

#[derive(Debug)]
struct Said {
    tenant: String,
    /// Where it was begun.
    session: SessionId,
    index: u32,
    accepted: NewTurn,
    state: State,
    /// How many sessions have it.
    shared: u32,
}

#[derive(Debug)]
enum State {
    Running { token_ids: Vec<u32>, stop: bool, claimed: bool },
    Ended(Answer),
}

// === impl MemoryStore ===

impl MemoryStore {
    /// The store as another process would find it: nobody goes on with the turns that run.
    pub fn restarted(self) -> Self {
        for turn in self.kept().turns.values_mut() {
            if let State::Running { claimed, .. } = &mut turn.state {
                *claimed = false;
            }
        }
        self
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn done<T: Send + 'static>(
        &self,
        step: impl FnOnce(&mut Kept) -> Result<T, StoreError>,
    ) -> Stored<'_, T> {
        let done = step(&mut self.kept());
        futures::future::ready(done).boxed()
    }
}

impl Store for MemoryStore {
    fn create(&self, tenant: &str, session: NewSession) -> Stored<'_, Session> {
        self.done(|kept| kept.create(tenant, session))
    }

    fn session(&self, tenant: &str, id: SessionId) -> Stored<'_, Session> {
        self.done(|kept| Ok(kept.shown(id, kept.conversation(tenant, id)?)))
    }

    fn sessions(&self, tenant: &str, before: Option<SessionId>, most: u32) -> Stored<'_, Vec<Session>> {
        self.done(|kept| {
            let older =
                kept.sessions.iter().rev().filter(|(id, _)| before.is_none_or(|before| **id < before));
            let own = older.filter(|(_, session)| session.tenant == tenant).take(most as usize);
            Ok(own.map(|(id, session)| kept.shown(*id, session)).collect())
        })
    }

    fn turns(&self, tenant: &str, id: SessionId, first: u32, most: u32) -> Stored<'_, Vec<Turn>> {
        self.done(|kept| {
            let turns = &kept.conversation(tenant, id)?.turns;
            Ok(turns.iter().skip(first as usize).take(most as usize).map(|id| kept.turn(*id)).collect())
        })
    }

    fn begin(&self, tenant: &str, id: SessionId, turn: BeginTurn) -> Stored<'_, Begun> {
        self.done(|kept| kept.begin(tenant, id, turn))
    }

    fn discard(&self, turn: TurnId) -> Stored<'_, ()> {
        self.done(|kept| {
            if kept.runs_here(turn)
                && let Some(id) = kept.turns.get(&turn).map(|turn| turn.session)
                && let Some(session) = kept.sessions.get_mut(&id)
            {
                session.version += 1;
                let left = session.turns.len() - 1;
                kept.keep_first(id, left);
            }
            Ok(())
        })
    }

    fn append(&self, tokens: Vec<Appended>) -> Stored<'_, Vec<TurnId>> {
        self.done(|kept| kept.append(&tokens))
    }

    fn stop(&self, turn: TurnId) -> Stored<'_, ()> {
        self.done(|kept| {
            if let Some(Said { state: State::Running { stop, .. }, .. }) = kept.turns.get_mut(&turn) {
                *stop = true;
            }
            Ok(())
        })
    }

    fn stops(&self) -> Stored<'_, Vec<TurnId>> {
        self.done(|kept| {
            let stops = |turn: &Said| matches!(turn.state, State::Running { stop: true, claimed: true, .. });
            Ok(kept.turns.iter().filter(|(_, turn)| stops(turn)).map(|(id, _)| *id).collect())
        })
    }

    fn finish(&self, turn: TurnId, answer: Answer) -> Stored<'_, u64> {
        self.done(|kept| kept.finish(turn, answer))
    }

    fn tokens(&self, turn: TurnId, first: u32) -> Stored<'_, Option<Vec<u32>>> {
        self.done(|kept| match kept.turns.get(&turn) {
            Some(Said { state: State::Running { token_ids, claimed: false, .. }, .. }) => {
                Ok(Some(token_ids.get(first as usize..).unwrap_or_default().to_vec()))
            }
            _ => Ok(None),
        })
    }

    fn claim(&self) -> Stored<'_, Vec<Claimed>> {
        self.done(|kept| Ok(kept.claim()))
    }

    fn fork(&self, tenant: &str, source: SessionId, fork: Fork) -> Stored<'_, Session> {
        self.done(|kept| kept.fork(tenant, source, fork))
    }

    fn truncate(&self, tenant: &str, id: SessionId, change: Change, turns: u32) -> Stored<'_, Session> {
        self.done(|kept| {
            kept.idle(tenant, id, change.version)?;
            let session = kept.conversation_mut(tenant, id)?;
            let has = session.turns.len() as u32;
            if turns > has {
                return Err(StoreError::TooFewTurns { session: id, has, wanted: turns });
            }
            session.version += 1;
            session.updated_ms = change.now_ms;
            kept.keep_first(id, turns as usize);
            Ok(kept.shown(id, kept.conversation(tenant, id)?))
        })
    }

    fn delete(&self, tenant: &str, id: SessionId, change: Change) -> Stored<'_, ()> {
        self.done(|kept| {
            kept.idle(tenant, id, change.version)?;
            kept.remove(id);
            Ok(())
        })
    }

    fn expire(&self, before_ms: u64, most: u32) -> Stored<'_, u32> {
        self.done(|kept| {
            let idle = kept.sessions.iter().filter(|(_, session)| kept.running(session).is_none());
            let old = idle.filter(|(_, session)| session.updated_ms < before_ms);
            let mut old: Vec<_> = old.map(|(id, session)| (session.updated_ms, *id)).collect();
            old.sort_unstable();
            old.truncate(most as usize);
            old.iter().for_each(|(_, id)| kept.remove(*id));
            Ok(old.len() as u32)
        })
    }
}

// === impl Kept ===

impl Kept {
    fn create(&mut self, tenant: &str, new: NewSession) -> Result<Session, StoreError> {
        let NewSession { id, key, settings, quota } = new;
        let made = Conversation::new(tenant, key, settings, None);
        if let Some(session) = self.made_before(&made)? {
            return Ok(session);
        }
        self.may_add_session(tenant, id, quota)?;
        self.sessions.insert(id, made);
        Ok(self.shown(id, self.conversation(tenant, id)?))
    }

    fn fork(&mut self, tenant: &str, source: SessionId, fork: Fork) -> Result<Session, StoreError> {
        let Fork { id, key, turns, settings, quota } = fork;
        let mut made = Conversation::new(tenant, key, settings, Some((source, turns)));
        if let Some(session) = self.made_before(&made)? {
            return Ok(session);
        }
        let from = self.conversation(tenant, source)?;
        let shared = from.turns.get(..turns as usize).ok_or(StoreError::TooFewTurns {
            session: source,
            has: from.turns.len() as u32,
            wanted: turns,
        })?;
        if shared.last().is_some_and(|last| self.runs(*last)) {
            let version = from.version;
            return Err(StoreError::Conflict { session: source, version, why: Conflict::Running });
        }
        made.turns = shared.to_vec();
        self.may_add_session(tenant, id, quota)?;
        for turn in &made.turns {
            if let Some(turn) = self.turns.get_mut(turn) {
                turn.shared += 1;
            }
        }
        self.sessions.insert(id, made);
        Ok(self.shown(id, self.conversation(tenant, id)?))
    }

    /// The session that the key of `made` made before.
    fn made_before(&self, made: &Conversation) -> Result<Option<Session>, StoreError> {
        let same_key = |session: &Conversation| session.tenant == made.tenant && session.key == made.key;
        let before = self.sessions.iter().find(|(_, session)| !made.key.is_empty() && same_key(session));
        let Some((id, session)) = before else { return Ok(None) };
        if session.forked != made.forked || !session.settings.same_request(&made.settings) {
            return Err(StoreError::KeyReused(made.key.clone()));
        }
        Ok(Some(self.shown(*id, session)))
    }

    fn may_add_session(&self, tenant: &str, id: SessionId, quota: Quota) -> Result<(), StoreError> {
        if self.sessions.contains_key(&id) {
            return Err(StoreError::SessionExists(id));
        }
        let kept = self.sessions.values().filter(|session| session.tenant == tenant).count() as u64;
        if kept >= quota.sessions {
            return Err(StoreError::Quota { what: "sessions", kept, most: quota.sessions });
        }
        Ok(())
    }

    fn begin(&mut self, tenant: &str, id: SessionId, turn: BeginTurn) -> Result<Begun, StoreError> {
        let BeginTurn { id: turn_id, version, key, turn: accepted, quota } = turn;
        let session = self.conversation(tenant, id)?;
        if let Some(before) = session.keys.get(&key) {
            let turn = self.turn(*before);
            if turn.accepted.messages != accepted.messages {
                return Err(StoreError::KeyReused(key));
            }
            return Ok(Begun { turn, session: self.shown(id, session) });
        }
        self.idle(tenant, id, version)?;
        if self.turns.contains_key(&turn_id) {
            return Err(StoreError::TurnExists(turn_id));
        }
        let bytes = accepted.encoded_len() as u64;
        let kept = self.bytes.get(tenant).copied().unwrap_or_default();
        if kept + bytes > quota.bytes {
            return Err(StoreError::Quota { what: "bytes", kept, most: quota.bytes });
        }
        *self.bytes.entry(tenant.to_owned()).or_default() += bytes;
        let session = self.conversation_mut(tenant, id)?;
        session.version += 1;
        session.updated_ms = accepted.accepted_ms;
        let index = session.turns.len() as u32;
        session.turns.push(turn_id);
        if !key.is_empty() {
            session.keys.insert(key, turn_id);
        }
        let state = State::Running { token_ids: Vec::new(), stop: false, claimed: true };
        let said = Said { tenant: tenant.to_owned(), session: id, index, accepted, state, shared: 1 };
        self.turns.insert(turn_id, said);
        Ok(Begun { turn: self.turn(turn_id), session: self.shown(id, self.conversation(tenant, id)?) })
    }

    fn append(&mut self, tokens: &[Appended]) -> Result<Vec<TurnId>, StoreError> {
        let (mut longer, mut left_out) = (BTreeMap::new(), Vec::new());
        for added in tokens {
            let Some(Said { state: State::Running { token_ids, claimed: true, .. }, .. }) =
                self.turns.get(&added.turn)
            else {
                if !left_out.contains(&added.turn) {
                    left_out.push(added.turn);
                }
                continue;
            };
            let ids = longer.entry(added.turn).or_insert_with(|| token_ids.clone());
            let not_next = StoreError::NotNext { turn: added.turn, has: ids.len(), first: added.first };
            let again = ids.get(added.first as usize..).ok_or(not_next)?;
            let known = again.len().min(added.token_ids.len());
            if let Some(differs) = again.iter().zip(&added.token_ids).position(|(old, new)| old != new) {
                let index = added.first as usize + differs;
                return Err(StoreError::OtherToken { turn: added.turn, index });
            }
            ids.extend(&added.token_ids[known..]);
        }
        for (turn, ids) in longer {
            if let Some(Said { state: State::Running { token_ids, .. }, .. }) = self.turns.get_mut(&turn) {
                *token_ids = ids;
            }
        }
        Ok(left_out)
    }

    fn finish(&mut self, id: TurnId, answer: Answer) -> Result<u64, StoreError> {
        let turn = self.turns.get_mut(&id).ok_or(StoreError::NoTurn(id))?;
        let session = self.sessions.get_mut(&turn.session).ok_or(StoreError::NoTurn(id))?;
        if session.turns.get(turn.index as usize) != Some(&id) {
            return Err(StoreError::NoTurn(id));
        }
        match &turn.state {
            State::Running { claimed: true, .. } => {
                session.version += 1;
                session.updated_ms = answer.ended_ms;
                *self.bytes.entry(turn.tenant.clone()).or_default() += answer.encoded_len() as u64;
                turn.state = State::Ended(answer);
                Ok(session.version)
            }
            State::Ended(before) if *before == answer => Ok(session.version),
            State::Running { .. } | State::Ended(_) => Err(StoreError::Taken(id)),
        }
    }

    fn claim(&mut self) -> Vec<Claimed> {
        let mut unclaimed = Vec::new();
        for (id, turn) in &mut self.turns {
            if let State::Running { claimed: claimed @ false, .. } = &mut turn.state {
                *claimed = true;
                unclaimed.push(*id);
            }
        }
        let claim = |id: TurnId| {
            let turn = self.turns.get(&id)?;
            let State::Running { token_ids, stop, .. } = &turn.state else { return None };
            let (tenant, session) = (turn.tenant.clone(), turn.session);
            Some(Claimed { tenant, session, turn: self.turn(id), token_ids: token_ids.clone(), stop: *stop })
        };
        unclaimed.into_iter().filter_map(claim).collect()
    }

    fn conversation(&self, tenant: &str, id: SessionId) -> Result<&Conversation, StoreError> {
        let session = self.sessions.get(&id).filter(|session| session.tenant == tenant);
        session.ok_or(StoreError::NoSession(id))
    }

    fn conversation_mut(&mut self, tenant: &str, id: SessionId) -> Result<&mut Conversation, StoreError> {
        let session = self.sessions.get_mut(&id).filter(|session| session.tenant == tenant);
        session.ok_or(StoreError::NoSession(id))
    }

    /// Whether a session may change.
    fn idle(&self, tenant: &str, id: SessionId, version: Option<u64>) -> Result<(), StoreError> {
        let session = self.conversation(tenant, id)?;
        let conflict = |why| StoreError::Conflict { session: id, version: session.version, why };
        if self.running(session).is_some() {
            return Err(conflict(Conflict::Running));
        }
        match version {
            Some(version) if version != session.version => Err(conflict(Conflict::Version)),
            _ => Ok(()),
        }
    }

    fn running(&self, session: &Conversation) -> Option<TurnId> {
        session.turns.last().copied().filter(|last| self.runs(*last))
    }

    fn runs(&self, turn: TurnId) -> bool {
        matches!(self.turns.get(&turn), Some(Said { state: State::Running { .. }, .. }))
    }

    fn runs_here(&self, turn: TurnId) -> bool {
        matches!(self.turns.get(&turn), Some(Said { state: State::Running { claimed: true, .. }, .. }))
    }

    fn shown(&self, id: SessionId, session: &Conversation) -> Session {
        Session {
            id,
            version: session.version,
            turns: session.turns.len() as u32,
            running: self.running(session),
            updated_ms: session.updated_ms,
            settings: session.settings.clone(),
        }
    }

    /// A turn that a session has.
    fn turn(&self, id: TurnId) -> Turn {
        let said = &self.turns[&id];
        let answer = match &said.state {
            State::Running { .. } => None,
            State::Ended(answer) => Some(answer.clone()),
        };
        Turn { id, index: said.index, accepted: said.accepted.clone(), answer }
    }

    fn remove(&mut self, id: SessionId) {
        self.keep_first(id, 0);
        self.sessions.remove(&id);
    }

    /// Forgets the later turns of a session where no other has them.
    fn keep_first(&mut self, id: SessionId, turns: usize) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        for gone in session.turns.split_off(turns) {
            session.keys.retain(|_, turn| *turn != gone);
            let Some(turn) = self.turns.get_mut(&gone) else { continue };
            turn.shared -= 1;
            if turn.shared > 0 {
                continue;
            }
            if let Some(turn) = self.turns.remove(&gone)
                && let Some(bytes) = self.bytes.get_mut(&turn.tenant)
            {
                *bytes -= turn.bytes();
            }
        }
    }
}

// === impl Conversation, Said ===

impl Conversation {
    fn new(tenant: &str, key: Key, settings: Settings, forked: Option<(SessionId, u32)>) -> Self {
        let updated_ms = settings.created_ms;
        let (tenant, turns, keys) = (tenant.to_owned(), Vec::new(), BTreeMap::new());
        Self { tenant, version: 1, updated_ms, settings, key, forked, turns, keys }
    }
}

impl Said {
    fn bytes(&self) -> u64 {
        let answer = match &self.state {
            State::Running { .. } => 0,
            State::Ended(answer) => answer.encoded_len(),
        };
        (self.accepted.encoded_len() + answer) as u64
    }
}
