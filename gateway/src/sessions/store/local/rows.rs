//! What the database has of sessions and turns beside what the records say: what changes, and what is looked up.

use uuid::Uuid;

use crate::sessions::record::{Session, SessionId, Settings, TurnId};

/// What changes of a session, so that its settings are written once.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SessionRow {
    #[prost(string, tag = "1")]
    pub tenant: String,
    #[prost(uint64, tag = "2")]
    pub version: u64,
    #[prost(uint32, tag = "3")]
    pub turns: u32,
    /// The turn that runs.
    #[prost(bytes = "vec", tag = "4")]
    running: Vec<u8>,
    #[prost(uint64, tag = "5")]
    pub updated_ms: u64,
    /// What it was made under; empty: nothing.
    #[prost(string, tag = "6")]
    pub key: String,
    /// Of which session it was made, and with how many turns.
    #[prost(bytes = "vec", tag = "7")]
    source: Vec<u8>,
    #[prost(uint32, tag = "8")]
    shared_turns: u32,
}

/// Where a turn belongs.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TurnRow {
    #[prost(string, tag = "1")]
    pub tenant: String,
    /// Where it was begun.
    #[prost(bytes = "vec", tag = "2")]
    session: Vec<u8>,
    #[prost(uint32, tag = "3")]
    pub index: u32,
    /// How many sessions have it.
    #[prost(uint32, tag = "4")]
    pub shared: u32,
    /// What it was accepted under; empty: nothing.
    #[prost(string, tag = "5")]
    pub key: String,
}

impl SessionRow {
    /// A new session, without turns.
    pub fn new(tenant: &str, key: String, updated_ms: u64, forked: Option<(SessionId, u32)>) -> Self {
        Self {
            tenant: tenant.to_owned(),
            version: 1,
            turns: 0,
            running: Vec::new(),
            updated_ms,
            key,
            source: forked.map(|(source, _)| source.0.into_bytes().to_vec()).unwrap_or_default(),
            shared_turns: forked.map(|(_, turns)| turns).unwrap_or_default(),
        }
    }

    /// The turn that runs.
    pub fn running(&self) -> Option<TurnId> {
        Uuid::from_slice(&self.running).ok().map(TurnId)
    }

    /// A turn runs now, or none.
    pub fn set_running(&mut self, turn: Option<TurnId>) {
        self.running = turn.map(|turn| turn.0.into_bytes().to_vec()).unwrap_or_default();
    }

    /// Whether it was made of the same turns.
    pub fn is_made_as(&self, other: &Self) -> bool {
        (&self.source, self.shared_turns) == (&other.source, other.shared_turns)
    }

    /// As a caller sees it.
    pub fn shown(&self, id: SessionId, settings: Settings) -> Session {
        let (version, turns, updated_ms) = (self.version, self.turns, self.updated_ms);
        Session { id, version, turns, running: self.running(), updated_ms, settings }
    }
}

impl TurnRow {
    /// A turn that one session has.
    pub fn new(tenant: &str, session: SessionId, index: u32, key: String) -> Self {
        let session = session.0.into_bytes().to_vec();
        Self { tenant: tenant.to_owned(), session, index, shared: 1, key }
    }

    /// Where it was begun.
    pub fn session(&self) -> Option<SessionId> {
        Uuid::from_slice(&self.session).ok().map(SessionId)
    }
}
