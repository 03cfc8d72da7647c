//! The tables of the database.
//!
//! A turn is kept once, whichever sessions have it; a session's *places* name its turns.

use prost::Message;
use redb::{
    ReadOnlyTable, ReadTransaction, ReadableTable, Table, TableDefinition, TableError, WriteTransaction,
};
use uuid::Uuid;

use super::error::Failure;
use super::rows::{SessionRow, TurnRow};
use crate::sessions::record::{Answer, NewTurn, Session, SessionId, Settings, Turn, TurnId};
use crate::sessions::store::StoreError;

/// The format that this version writes, and the latest that it reads.
pub const FORMAT: u64 = 1;
/// Where the format is named in [`ABOUT`].
pub const FORMAT_KEY: &str = "format";
/// What the database is.
pub const ABOUT: TableDefinition<'_, &str, u64> = TableDefinition::new("about");

type Rows<'t> = TableDefinition<'t, u128, &'static [u8]>;

const SESSIONS: Rows<'_> = TableDefinition::new("sessions");
const SETTINGS: Rows<'_> = TableDefinition::new("settings");
const TURNS: Rows<'_> = TableDefinition::new("turns");
const ACCEPTED: Rows<'_> = TableDefinition::new("accepted");
const ANSWERS: Rows<'_> = TableDefinition::new("answers");
const OWNED: TableDefinition<'_, (&str, u128), ()> = TableDefinition::new("owned");
const PLACES: TableDefinition<'_, (u128, u32), u128> = TableDefinition::new("places");
const RUNNING: TableDefinition<'_, u128, ()> = TableDefinition::new("running");
const IDLE: TableDefinition<'_, (u64, u128), ()> = TableDefinition::new("idle");
const SESSION_KEYS: TableDefinition<'_, (&str, &str), u128> = TableDefinition::new("session_keys");
const TURN_KEYS: TableDefinition<'_, (u128, &str), u128> = TableDefinition::new("turn_keys");
const TENANTS: TableDefinition<'_, &str, (u64, u64)> = TableDefinition::new("tenants");

/// All tables of a transaction that writes.
pub struct Tables<'t> {
    /// What changes of a session.
    pub sessions: Table<'t, u128, &'static [u8]>,
    /// What a session was made with.
    pub settings: Table<'t, u128, &'static [u8]>,
    /// Where a turn belongs.
    pub turns: Table<'t, u128, &'static [u8]>,
    /// What was accepted as a turn.
    pub accepted: Table<'t, u128, &'static [u8]>,
    /// What came of a turn.
    pub answers: Table<'t, u128, &'static [u8]>,
    /// Tenants' sessions.
    pub owned: Table<'t, (&'static str, u128), ()>,
    /// A session's turns, by their index.
    pub places: Table<'t, (u128, u32), u128>,
    /// The turns that run.
    pub running: Table<'t, u128, ()>,
    /// The sessions in which no turn runs, by their last change.
    pub idle: Table<'t, (u64, u128), ()>,
    /// What session a tenant's key made.
    pub session_keys: Table<'t, (&'static str, &'static str), u128>,
    /// What turn a session's key made.
    pub turn_keys: Table<'t, (u128, &'static str), u128>,
    /// How many sessions a tenant keeps, and how many bytes.
    pub tenants: Table<'t, &'static str, (u64, u64)>,
    /// What its steps have done so far.
    pub changes: Changes,
}

/// What the steps of a transaction have done.
#[derive(Debug, Default)]
pub struct Changes {
    /// Anything at all.
    pub any: bool,
    /// Turns that run since.
    pub begun: Vec<TurnId>,
    /// Turns that do not run any more, some of which may have begun just before.
    pub ended: Vec<TurnId>,
}

/// The tables that are read from, at one moment.
pub struct ReadTables {
    /// See [`Tables::sessions`].
    pub sessions: ReadOnlyTable<u128, &'static [u8]>,
    /// See [`Tables::settings`].
    pub settings: ReadOnlyTable<u128, &'static [u8]>,
    /// See [`Tables::turns`].
    pub turns: ReadOnlyTable<u128, &'static [u8]>,
    /// See [`Tables::accepted`].
    pub accepted: ReadOnlyTable<u128, &'static [u8]>,
    /// See [`Tables::answers`].
    pub answers: ReadOnlyTable<u128, &'static [u8]>,
    /// See [`Tables::owned`].
    pub owned: ReadOnlyTable<(&'static str, u128), ()>,
    /// See [`Tables::places`].
    pub places: ReadOnlyTable<(u128, u32), u128>,
    /// See [`Tables::running`].
    pub running: ReadOnlyTable<u128, ()>,
}

impl<'t> Tables<'t> {
    /// Opens them all, or makes them.
    pub fn open(of: &'t WriteTransaction) -> Result<Self, TableError> {
        Ok(Self {
            sessions: of.open_table(SESSIONS)?,
            settings: of.open_table(SETTINGS)?,
            turns: of.open_table(TURNS)?,
            accepted: of.open_table(ACCEPTED)?,
            answers: of.open_table(ANSWERS)?,
            owned: of.open_table(OWNED)?,
            places: of.open_table(PLACES)?,
            running: of.open_table(RUNNING)?,
            idle: of.open_table(IDLE)?,
            session_keys: of.open_table(SESSION_KEYS)?,
            turn_keys: of.open_table(TURN_KEYS)?,
            tenants: of.open_table(TENANTS)?,
            changes: Changes::default(),
        })
    }
}

impl ReadTables {
    /// Opens them all.
    pub fn open(of: &ReadTransaction) -> Result<Self, TableError> {
        Ok(Self {
            sessions: of.open_table(SESSIONS)?,
            settings: of.open_table(SETTINGS)?,
            turns: of.open_table(TURNS)?,
            accepted: of.open_table(ACCEPTED)?,
            answers: of.open_table(ANSWERS)?,
            owned: of.open_table(OWNED)?,
            places: of.open_table(PLACES)?,
            running: of.open_table(RUNNING)?,
        })
    }
}

/// A row, where there is one.
pub fn find<M: Message + Default>(
    table: &impl ReadableTable<u128, &'static [u8]>,
    id: Uuid,
) -> Result<Option<M>, Failure> {
    let row = table.get(id.as_u128())?;
    Ok(row.map(|row| M::decode(row.value())).transpose()?)
}

/// A row that another names.
pub fn named<M: Message + Default>(
    table: &impl ReadableTable<u128, &'static [u8]>,
    id: Uuid,
) -> Result<M, Failure> {
    find(table, id)?.ok_or_else(|| missing(id))
}

/// What is named is not there.
pub fn missing(id: Uuid) -> Failure {
    Failure::Damaged(format!("{} is named, but not there", id.simple()))
}

/// Writes a row.
pub fn put(table: &mut Table<'_, u128, &'static [u8]>, id: Uuid, row: &impl Message) -> Result<(), Failure> {
    table.insert(id.as_u128(), row.encode_to_vec().as_slice())?;
    Ok(())
}

/// A tenant's session.
pub fn session_row(
    sessions: &impl ReadableTable<u128, &'static [u8]>,
    tenant: &str,
    id: SessionId,
) -> Result<SessionRow, Failure> {
    let row: Option<SessionRow> = find(sessions, id.0)?;
    Ok(row.filter(|row| row.tenant == tenant).ok_or(StoreError::NoSession(id))?)
}

/// A session as a caller sees it.
pub fn shown(
    settings: &impl ReadableTable<u128, &'static [u8]>,
    id: SessionId,
    row: &SessionRow,
) -> Result<Session, Failure> {
    let settings: Settings = named(settings, id.0)?;
    Ok(row.shown(id, settings))
}

/// Where turns are read from.
pub struct TurnTables<'a, T> {
    /// See [`Tables::turns`].
    pub turns: &'a T,
    /// See [`Tables::accepted`].
    pub accepted: &'a T,
    /// See [`Tables::answers`].
    pub answers: &'a T,
}

impl<T: ReadableTable<u128, &'static [u8]>> TurnTables<'_, T> {
    /// A turn that a session names.
    pub fn turn(&self, id: TurnId) -> Result<Turn, Failure> {
        let row: TurnRow = named(self.turns, id.0)?;
        let accepted: NewTurn = named(self.accepted, id.0)?;
        let answer: Option<Answer> = find(self.answers, id.0)?;
        Ok(Turn { id, index: row.index, accepted, answer })
    }
}
