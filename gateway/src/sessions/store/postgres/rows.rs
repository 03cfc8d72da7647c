//! What the columns mean.

use prost::Message;
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::connections::unsigned;
use super::error::Failure;
use crate::sessions::record::{Answer, NewTurn, Session, SessionId, Settings, Turn, TurnId};
use crate::sessions::store::{Claimed, StoreError};

/// Columns of a session, in the place of `id` what it is called.
pub fn session(row: &PgRow, id: SessionId) -> Result<Session, Failure> {
    Ok(Session {
        id,
        version: number(row, "version")?,
        turns: count(row, "turns")?,
        running: row.try_get::<Option<Uuid>, _>("running")?.map(TurnId),
        updated_ms: number(row, "updated_ms")?,
        settings: message::<Settings>(row.try_get("settings")?)?,
    })
}

/// The column `id`.
pub fn session_id(row: &PgRow) -> Result<SessionId, Failure> {
    Ok(SessionId(row.try_get("id")?))
}

/// Columns of a turn; `given` stands in for one that is as it was given.
pub fn turn(row: &PgRow, given: Option<&NewTurn>) -> Result<Turn, Failure> {
    let accepted = match (row.try_get::<Option<&[u8]>, _>("accepted")?, given) {
        (Some(bytes), _) => message(bytes)?,
        (None, Some(given)) => given.clone(),
        (None, None) => return Err(damaged("a turn is stored without what was accepted")),
    };
    let answer = row.try_get::<Option<&[u8]>, _>("answer")?.map(message::<Answer>).transpose()?;
    Ok(Turn { id: TurnId(row.try_get("turn")?), index: count(row, "place")?, accepted, answer })
}

/// Columns of a turn that was claimed, and the last attempt to write its tokens.
pub fn claimed(row: &PgRow) -> Result<(Claimed, i64), Failure> {
    let accepted = message(row.try_get("accepted")?)?;
    let turn = Turn { id: TurnId(row.try_get("turn")?), index: count(row, "place")?, accepted, answer: None };
    let claimed = Claimed {
        tenant: row.try_get("tenant")?,
        session: SessionId(row.try_get("session")?),
        turn,
        token_ids: token_ids(row)?,
        stop: row.try_get("stop")?,
    };
    Ok((claimed, row.try_get("attempt")?))
}

/// The column `token_ids`.
pub fn token_ids(row: &PgRow) -> Result<Vec<u32>, Failure> {
    let ids: Vec<i32> = row.try_get("token_ids")?;
    Ok(ids.into_iter().map(i32::cast_unsigned).collect())
}

/// The only row of a step.
pub fn only(rows: Vec<PgRow>) -> Result<PgRow, Failure> {
    rows.into_iter().next().ok_or_else(|| damaged("a step gave no row"))
}

/// A column that counts.
pub fn number(row: &PgRow, column: &str) -> Result<u64, Failure> {
    Ok(unsigned(row.try_get(column)?)?)
}

/// A column that counts something of which there are few.
pub fn count(row: &PgRow, column: &str) -> Result<u32, Failure> {
    let number = number(row, column)?;
    u32::try_from(number).map_err(|_| damaged(&format!("{column} is {number}")))
}

fn message<M: Message + Default>(bytes: &[u8]) -> Result<M, Failure> {
    M::decode(bytes).map_err(|error| damaged(&error.to_string()))
}

fn damaged(why: &str) -> Failure {
    StoreError::Damaged(why.to_owned()).into()
}
