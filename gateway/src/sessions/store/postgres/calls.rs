//! The steps, each one call of a function of the migrations, and what is read.

use prost::Message;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{Postgres, Row, query};
use uuid::Uuid;

use super::connections::signed;
use super::error::Failure;
use super::*;
use crate::sessions::record::Settings;
use crate::sessions::store::{Key, Quota};

/// The most turns that are claimed at once.
const MOST_CLAIMED: i64 = 1024;
/// How often a step is tried under another name of this gateway.
const MOST_NAMES: u32 = 3;

/// A session to make, of nothing or of another.
pub struct Making<'m> {
    id: SessionId,
    key: &'m Key,
    settings: &'m Settings,
    source: Option<(SessionId, u32)>,
    quota: Quota,
}

impl<'m> Making<'m> {
    /// Of nothing.
    pub fn of_new(new: &'m NewSession) -> Self {
        let NewSession { id, key, settings, quota } = new;
        Self { id: *id, key, settings, source: None, quota: *quota }
    }

    /// Of another session's turns.
    pub fn of_fork(source: SessionId, fork: &'m Fork) -> Self {
        let Fork { id, key, turns, settings, quota } = fork;
        Self { id: *id, key, settings, source: Some((source, *turns)), quota: *quota }
    }
}

/// As it is stored: none, where it names nothing.
fn stored(key: &Key) -> Option<&[u8]> {
    (!key.is_empty()).then_some(key.as_bytes())
}

impl PostgresStore {
    pub(super) async fn make_session(&self, tenant: &str, new: Making<'_>) -> Result<Session, StoreError> {
        let settings = new.settings.encode_to_vec();
        let (source, turns) = new.source.map(|(source, turns)| (source.0, i64::from(turns))).unzip();
        let rows = self.connections.ask(Repeat::Harmless, |again| {
            query("SELECT * FROM make_session($1, $2, $3, $4, $5, $6, $7, $8, $9)")
                .bind(tenant)
                .bind(new.id.0)
                .bind(stored(new.key))
                .bind(&settings)
                .bind(signed(new.settings.created_ms))
                .bind(source)
                .bind(turns)
                .bind(signed(new.quota.sessions))
                .bind(again)
        });
        let row = rows::only(rows.await?)?;
        let made = rows::session(&row, rows::session_id(&row)?)?;
        let made_of = (column::<Option<Uuid>>(&row, "source")?, column::<Option<i64>>(&row, "source_turns")?);
        if made_of != (source, turns) || !made.settings.same_request(new.settings) {
            return Err(StoreError::KeyReused(new.key.clone()));
        }
        Ok(made)
    }

    pub(super) async fn read_session(&self, tenant: &str, id: SessionId) -> Result<Session, StoreError> {
        let rows = self.connections.ask(Repeat::Harmless, |_| {
            query("SELECT * FROM sessions WHERE id = $1 AND tenant = $2").bind(id.0).bind(tenant)
        });
        let rows = rows.await?;
        let row = rows.first().ok_or(StoreError::NoSession(id))?;
        Ok(rows::session(row, id)?)
    }

    pub(super) async fn read_sessions(
        &self,
        tenant: &str,
        before: Option<SessionId>,
        most: u32,
    ) -> Result<Vec<Session>, StoreError> {
        let before = before.map_or(Uuid::max(), |before| before.0);
        let rows = self.connections.ask(Repeat::Harmless, |_| {
            query("SELECT * FROM sessions WHERE tenant = $1 AND id < $2 ORDER BY id DESC LIMIT $3")
                .bind(tenant)
                .bind(before)
                .bind(i64::from(most))
        });
        let rows = rows.await?;
        let sessions = rows.iter().map(|row| rows::session(row, rows::session_id(row)?));
        Ok(sessions.collect::<Result<_, Failure>>()?)
    }

    pub(super) async fn read_turns(
        &self,
        tenant: &str,
        id: SessionId,
        first: u32,
        most: u32,
    ) -> Result<Vec<Turn>, StoreError> {
        // One row without a turn where the session has none of these.
        const TURNS: &str = "
            SELECT t.id AS turn, t.place, t.accepted, t.answer FROM sessions s
            LEFT JOIN (session_turns p JOIN turns t ON t.id = p.turn)
                ON p.session = s.id AND p.place >= $3 AND p.place < $4
            WHERE s.id = $1 AND s.tenant = $2 ORDER BY p.place";
        let end = i64::from(first) + i64::from(most);
        let rows = self
            .connections
            .ask(Repeat::Harmless, |_| query(TURNS).bind(id.0).bind(tenant).bind(i64::from(first)).bind(end));
        let rows = rows.await?;
        if rows.is_empty() {
            return Err(StoreError::NoSession(id));
        }
        let mut turns = Vec::with_capacity(rows.len());
        for row in &rows {
            if column::<Option<Uuid>>(row, "turn")?.is_some() {
                turns.push(rows::turn(row, None)?);
            }
        }
        Ok(turns)
    }

    pub(super) async fn begin_turn(
        &self,
        tenant: &str,
        id: SessionId,
        new: BeginTurn,
    ) -> Result<Begun, StoreError> {
        let accepted = new.turn.encode_to_vec();
        // Known before it is there, so that it is not claimed as one that nobody knows of.
        let is_new = self.running.begin(new.id);
        let begun = self.ask_as_gateway(|gateway, again| {
            query("SELECT * FROM begin_turn($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)")
                .bind(gateway)
                .bind(tenant)
                .bind(id.0)
                .bind(new.id.0)
                .bind(new.version.map(signed))
                .bind(stored(&new.key))
                .bind(&accepted)
                .bind(signed(new.turn.accepted_ms))
                .bind(signed(new.quota.bytes))
                .bind(again)
        });
        let begun = begun.await.and_then(|rows| {
            let row = rows::only(rows)?;
            Ok(Begun { turn: rows::turn(&row, Some(&new.turn))?, session: rows::session(&row, id)? })
        });
        if is_new && !matches!(&begun, Ok(begun) if begun.turn.id == new.id) {
            // If it was begun all the same, it is claimed.
            self.running.remove(new.id);
        }
        let begun = begun?;
        if begun.turn.accepted.messages != new.turn.messages {
            return Err(StoreError::KeyReused(new.key));
        }
        Ok(begun)
    }

    pub(super) async fn discard_turn(&self, turn: TurnId) -> Result<(), StoreError> {
        let gateway = self.gateway.id();
        let step = |_| query("SELECT discard_turn($1, $2)").bind(gateway).bind(turn.0);
        self.connections.ask(Repeat::Harmless, step).await?;
        self.running.remove(turn);
        Ok(())
    }

    pub(super) async fn stop_turn(&self, turn: TurnId) -> Result<(), StoreError> {
        let step = |_| query("UPDATE running SET stop = true WHERE turn = $1").bind(turn.0);
        self.connections.ask(Repeat::Harmless, step).await?;
        Ok(())
    }

    pub(super) async fn read_stops(&self) -> Result<Vec<TurnId>, StoreError> {
        let gateway = self.gateway.id();
        let rows = self.connections.ask(Repeat::Harmless, |_| {
            query("SELECT turn FROM running WHERE gateway = $1 AND stop ORDER BY turn").bind(gateway)
        });
        rows.await?.iter().map(|row| Ok(TurnId(column(row, "turn")?))).collect()
    }

    pub(super) async fn finish_turn(&self, turn: TurnId, answer: &Answer) -> Result<u64, StoreError> {
        let (gateway, bytes) = (self.gateway.id(), answer.encode_to_vec());
        let rows = self.connections.ask(Repeat::Harmless, |_| {
            query("SELECT finish_turn($1, $2, $3, $4) AS version")
                .bind(gateway)
                .bind(turn.0)
                .bind(&bytes)
                .bind(signed(answer.ended_ms))
        });
        let finished = rows.await.and_then(|rows| rows::number(&rows::only(rows)?, "version"));
        if matches!(finished, Ok(_) | Err(Failure::Refused(StoreError::Taken(_) | StoreError::NoTurn(_)))) {
            self.running.remove(turn);
        }
        Ok(finished?)
    }

    pub(super) async fn read_tokens(&self, turn: TurnId, first: u32) -> Result<Option<Vec<u32>>, StoreError> {
        if self.running.has(turn) {
            return Ok(None);
        }
        let rows = self.connections.ask(Repeat::Harmless, |_| {
            query("SELECT told(turn, $2) AS token_ids FROM running WHERE turn = $1")
                .bind(turn.0)
                .bind(i64::from(first))
        });
        let rows = rows.await?;
        Ok(rows.first().map(rows::token_ids).transpose()?)
    }

    pub(super) async fn claim_turns(&self) -> Result<Vec<Claimed>, StoreError> {
        let known = self.running.names();
        let rows = self.ask_as_gateway(|gateway, _| {
            query("SELECT * FROM claim($1, $2, $3)").bind(gateway).bind(&known).bind(MOST_CLAIMED)
        });
        let mut all = Vec::new();
        for row in rows.await? {
            // One that began here while the claim was under way.
            if column(&row, "own")? && self.running.has(TurnId(column(&row, "turn")?)) {
                continue;
            }
            match rows::claimed(&row) {
                Ok((claimed, attempt)) => {
                    self.running.claim(claimed.turn.id, claimed.token_ids.clone(), attempt);
                    all.push(claimed);
                }
                // Kept as it is, under this gateway, and no hindrance to the others.
                Err(failure) => {
                    let turn = TurnId(column(&row, "turn")?);
                    self.running.claim(turn, Vec::new(), 0);
                    tracing::error!(%turn, ?failure, "a turn cannot be gone on with");
                }
            }
        }
        Ok(all)
    }

    pub(super) async fn truncate_session(
        &self,
        tenant: &str,
        id: SessionId,
        change: Change,
        turns: u32,
    ) -> Result<Session, StoreError> {
        let rows = self.connections.ask(Repeat::Unknown, |_| {
            query("SELECT * FROM truncate_session($1, $2, $3, $4, $5)")
                .bind(tenant)
                .bind(id.0)
                .bind(change.version.map(signed))
                .bind(i64::from(turns))
                .bind(signed(change.now_ms))
        });
        Ok(rows::session(&rows::only(rows.await?)?, id)?)
    }

    pub(super) async fn delete_session(
        &self,
        tenant: &str,
        id: SessionId,
        change: Change,
    ) -> Result<(), StoreError> {
        let rows = self.connections.ask(Repeat::Unknown, |_| {
            query("SELECT delete_session($1, $2, $3)")
                .bind(tenant)
                .bind(id.0)
                .bind(change.version.map(signed))
        });
        rows.await?;
        Ok(())
    }

    pub(super) async fn expire_sessions(&self, before_ms: u64, most: u32) -> Result<u32, StoreError> {
        let rows = self.connections.ask(Repeat::Harmless, |_| {
            query("SELECT expire($1, $2) AS expired").bind(signed(before_ms)).bind(i64::from(most))
        });
        Ok(rows::count(&rows::only(rows.await?)?, "expired")?)
    }

    /// Does a step that needs this gateway's row, which it may have to make anew.
    async fn ask_as_gateway<'q>(
        &self,
        step: impl Fn(Uuid, bool) -> Query<'q, Postgres, PgArguments>,
    ) -> Result<Vec<PgRow>, Failure> {
        let mut names = 0;
        loop {
            let gateway = self.gateway.id();
            names += 1;
            match self.connections.ask(Repeat::Harmless, |again| step(gateway, again)).await {
                Err(Failure::Fenced) if names < MOST_NAMES => self.gateway.rename(gateway).await?,
                done => return done,
            }
        }
    }
}

fn column<'r, T>(row: &'r PgRow, name: &str) -> Result<T, Failure>
where
    T: sqlx::Decode<'r, Postgres> + sqlx::Type<Postgres>,
{
    Ok(row.try_get(name)?)
}
