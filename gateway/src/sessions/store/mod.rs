//! Where sessions are kept: one trait, several stores.
//!
//! A store holds no policy and no clock. Each call is one durable step: once it returns, what it did outlives a killed process
//! and, [`Store::append`] excepted, a power cut. A call that fails has done nothing, unless with [`StoreError::Unreachable`]: then
//! it may have been done, and a turn that was begun so is claimed later. Every call of a session names its tenant, and what
//! belongs to another is not found. Sessions and turns get their names from the caller, fresh ones.
//!
//! Several gateways may share a store. A turn runs under one of them, that which began or claimed it, until it ends or that
//! gateway is given up; what another says of it has no effect.

pub mod local;
pub mod memory;
pub mod postgres;
#[cfg(test)]
mod suite;

use std::fmt::Debug;

use futures::FutureExt as _;
use futures::future::BoxFuture;

use super::record::{Answer, NewTurn, Session, SessionId, Settings, Turn, TurnId};

/// What a call gives once it is done.
pub type Stored<'s, T> = BoxFuture<'s, Result<T, StoreError>>;

/// Keeps sessions and turns.
///
/// A session's version is 1 at first and grows by one whenever a turn of it begins, ends or is taken back, and when it is
/// truncated; its time of change is what the caller gave with that (a turn taken back excepted). Beside the errors named, a
/// call of a session gives [`StoreError::NoSession`].
pub trait Store: Debug + Send + Sync {
    /// Makes a session. Under a key that this tenant made a session with before, and that session still kept, it is that one,
    /// as it is now.
    ///
    /// # Errors
    /// [`StoreError::KeyReused`]: the session was made with other settings (the time excepted), or by a fork.
    /// [`StoreError::SessionExists`]. [`StoreError::Quota`]: the tenant has too many sessions.
    fn create(&self, tenant: &str, session: NewSession) -> Stored<'_, Session>;

    /// A session.
    fn session(&self, tenant: &str, id: SessionId) -> Stored<'_, Session>;

    /// The `most` newest of a tenant's sessions that are older than `before`, newest first.
    fn sessions(&self, tenant: &str, before: Option<SessionId>, most: u32) -> Stored<'_, Vec<Session>>;

    /// At most `most` turns of a session, from the one at `first` on; none past its end.
    fn turns(&self, tenant: &str, id: SessionId, first: u32, most: u32) -> Stored<'_, Vec<Turn>>;

    /// Accepts a turn as a session's last; it runs from now on, under the caller. Under a key that this session accepted a turn
    /// with before, and still has, it is that one, as it is now, whatever else would be refused.
    ///
    /// # Errors
    /// [`StoreError::KeyReused`]: the turn accepted with it has other messages. [`StoreError::Conflict`]: a turn runs or the
    /// version is another. [`StoreError::TurnExists`]. [`StoreError::Quota`]: the tenant would keep too many bytes.
    fn begin(&self, tenant: &str, id: SessionId, turn: BeginTurn) -> Stored<'_, Begun>;

    /// Takes back a turn that runs under the caller, and should have no tokens, as if it had never been accepted (but the
    /// version grows). Nothing happens if it does not run so.
    fn discard(&self, turn: TurnId) -> Stored<'_, ()>;

    /// Adds tokens to the answers of turns that run under the caller, in one write. It outlives a killed process; a power cut
    /// may take what came in the last moment (50 ms; with PostgreSQL three times its `wal_writer_delay`). Tokens of other turns
    /// are left out: these turns, each once. Tokens that a turn has already are passed over.
    ///
    /// # Errors
    /// [`StoreError::NotNext`], [`StoreError::OtherToken`].
    fn append(&self, tokens: Vec<Appended>) -> Stored<'_, Vec<TurnId>>;

    /// Notes that a running turn, whoever runs it, is to end with the tokens that it has. Nothing happens if it does not run.
    fn stop(&self, turn: TurnId) -> Stored<'_, ()>;

    /// The turns that run under the caller and are noted to end, in the order of their ids.
    fn stops(&self) -> Stored<'_, Vec<TurnId>>;

    /// Commits the answer of a turn that runs under the caller, in the place of its tokens; the session's version since then. A
    /// turn that has ended so before stays as it is, and the version is the one now. No quota refuses it.
    ///
    /// # Errors
    /// [`StoreError::NoTurn`]: the session in which it was begun does not have it (any more). [`StoreError::Taken`]: it runs
    /// under another or nobody, or ended with another answer.
    fn finish(&self, turn: TurnId, answer: Answer) -> Stored<'_, u64>;

    /// The caller leaves: what runs under it may be claimed by others at once. It asks for nothing more.
    fn leave(&self) -> Stored<'_, ()> {
        futures::future::ready(Ok(())).boxed()
    }

    /// The tokens, from one on, of a turn that runs, but not under the caller, who would have them. `None`: it does not.
    fn tokens(&self, turn: TurnId, first: u32) -> Stored<'_, Option<Vec<u32>>>;

    /// Turns that run under nobody, as those of a killed process do, in the order of their ids: now under the caller, to be
    /// gone on with. All, or as many as a step takes.
    fn claim(&self) -> Stored<'_, Vec<Claimed>>;

    /// Makes a session whose first `turns` turns are those of another, shared with it. Keys are those of [`Store::create`].
    ///
    /// # Errors
    /// [`StoreError::KeyReused`]: the session made with it was not made as this fork of this source, or with other settings
    /// (the time excepted). [`StoreError::TooFewTurns`]. [`StoreError::Conflict`]: the last of the turns runs.
    /// [`StoreError::SessionExists`]. [`StoreError::Quota`]: the tenant has too many sessions.
    fn fork(&self, tenant: &str, source: SessionId, fork: Fork) -> Stored<'_, Session>;

    /// Forgets all but a session's first `turns` turns, and their keys.
    ///
    /// # Errors
    /// [`StoreError::Conflict`]: a turn runs or the version is another. [`StoreError::TooFewTurns`].
    fn truncate(&self, tenant: &str, id: SessionId, change: Change, turns: u32) -> Stored<'_, Session>;

    /// Forgets a session, its key, and those of its turns that no other shares.
    ///
    /// # Errors
    /// [`StoreError::Conflict`]: a turn runs or the version is another.
    fn delete(&self, tenant: &str, id: SessionId, change: Change) -> Stored<'_, ()>;

    /// Forgets sessions of all tenants that were last changed before `before_ms` and in which no turn runs, `most` at once, the
    /// least recently changed first; how many it were.
    fn expire(&self, before_ms: u64, most: u32) -> Stored<'_, u32>;
}

/// What a caller names an attempt by, so that trying again does nothing twice; empty: nothing.
pub type Key = String;

/// A session to make.
#[derive(Clone, Debug, PartialEq)]
pub struct NewSession {
    /// Its name.
    pub id: SessionId,
    /// Names the attempt.
    pub key: Key,
    /// What it is made with.
    pub settings: Settings,
    /// What its tenant may keep.
    pub quota: Quota,
}

/// A turn to accept.
#[derive(Clone, Debug, PartialEq)]
pub struct BeginTurn {
    /// Its name.
    pub id: TurnId,
    /// The version that the session must have; `None`: any.
    pub version: Option<u64>,
    /// Names the attempt.
    pub key: Key,
    /// What is accepted.
    pub turn: NewTurn,
    /// What the session's tenant may keep.
    pub quota: Quota,
}

/// A turn that was accepted.
#[derive(Clone, Debug, PartialEq)]
pub struct Begun {
    /// The turn; not the one given where its key was used before.
    pub turn: Turn,
    /// The session since then.
    pub session: Session,
}

/// Tokens of one turn's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Whose.
    pub turn: TurnId,
    /// How many it had before.
    pub first: u32,
    /// The ids.
    pub token_ids: Vec<u32>,
}

/// A turn to go on with.
#[derive(Clone, Debug, PartialEq)]
pub struct Claimed {
    /// Whose session it is.
    pub tenant: String,
    /// The session.
    pub session: SessionId,
    /// The turn; its answer is open.
    pub turn: Turn,
    /// The ids of its answer so far.
    pub token_ids: Vec<u32>,
    /// Whether it is to end with them.
    pub stop: bool,
}

/// A session to make of another's turns.
#[derive(Clone, Debug, PartialEq)]
pub struct Fork {
    /// Its name.
    pub id: SessionId,
    /// Names the attempt.
    pub key: Key,
    /// How many turns it begins with.
    pub turns: u32,
    /// What it is made with.
    pub settings: Settings,
    /// What its tenant may keep.
    pub quota: Quota,
}

/// What a change of a session needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// The version that the session must have; `None`: any.
    pub version: Option<u64>,
    /// The time, in milliseconds since 1970.
    pub now_ms: u64,
}

/// How much a tenant may keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Sessions.
    pub sessions: u64,
    /// Bytes of turns and answers, encoded; a turn that sessions share counts once.
    pub bytes: u64,
}

/// Why a store did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// There is no such session, or it is another's.
    #[error("there is no session {0}")]
    NoSession(SessionId),
    /// There is no such turn.
    #[error("there is no turn {0}")]
    NoTurn(TurnId),
    /// The name of a session to make is another's already.
    #[error("there is a session {0} already")]
    SessionExists(SessionId),
    /// The name of a turn to accept is another's already.
    #[error("there is a turn {0} already")]
    TurnExists(TurnId),
    /// Another change came first.
    #[error("session {session} {why}; its version is {version}")]
    Conflict {
        /// The session.
        session: SessionId,
        /// Its version now.
        version: u64,
        /// In what way.
        why: Conflict,
    },
    /// A key was used before, for something else.
    #[error("the idempotency key {0:?} was used for another request")]
    KeyReused(Key),
    /// A turn is another gateway's.
    #[error("turn {0} runs under another gateway, or ended there")]
    Taken(TurnId),
    /// Tokens do not follow those that a turn has.
    #[error("the tokens from {first} on do not follow the {has} that turn {turn} has")]
    NotNext {
        /// The turn.
        turn: TurnId,
        /// How many it has.
        has: usize,
        /// How many it was said to have.
        first: u32,
    },
    /// A token is not the one that a turn has.
    #[error("turn {turn} has another token {index}")]
    OtherToken {
        /// The turn.
        turn: TurnId,
        /// The place of the first that differs.
        index: usize,
    },
    /// A session has fewer turns.
    #[error("session {session} has {has} turns, not {wanted}")]
    TooFewTurns {
        /// The session.
        session: SessionId,
        /// Its turns.
        has: u32,
        /// Those named.
        wanted: u32,
    },
    /// The tenant keeps as much as it may.
    #[error("the tenant keeps {kept} {what}, and may keep {most}")]
    Quota {
        /// sessions or bytes
        what: &'static str,
        /// So many.
        kept: u64,
        /// And no more than these.
        most: u64,
    },
    /// Nothing can be written now, as with a full disk; reads go on.
    #[error("nothing can be stored now: {0}")]
    Unwritable(String),
    /// Nothing can be read or written now, or it is not known whether it was.
    #[error("the store does not answer: {0}")]
    Unreachable(String),
    /// What is stored cannot be understood.
    #[error("what is stored is damaged: {0}")]
    Damaged(String),
}

/// In what way another change came first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conflict {
    /// A turn runs.
    Running,
    /// The version is another.
    Version,
}

impl std::fmt::Display for Conflict {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Running => "has a turn that runs",
            Self::Version => "was changed",
        })
    }
}
