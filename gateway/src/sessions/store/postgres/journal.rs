//! The journal of running turns: a table, one statement per write for all turns, and the only one that does not wait for the
//! server's disk. A gateway that is killed loses nothing of it; a server that is may lose what came in the last moment.
//!
//! Writes go over one connection, one after the other. On each connection a turn's first row has all its tokens, as whatever was
//! on its way when the one before broke may or may not be there.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection, query_scalar};
use tokio::sync::Mutex;
use uuid::Uuid;

use super::connections::{Server, signed, within_a_call};
use super::error::Failure;
use super::gateway::Gateway;
use super::running::{Longer, News, Running};
use crate::sessions::record::TurnId;
use crate::sessions::store::{Appended, StoreError};

const APPEND: &str = "SELECT * FROM append($1, $2, $3, $4, $5, $6, $7)";

/// Turns that have ended are forgotten once a connection has written of so many.
const MOST_WRITTEN: usize = 4096;

/// Writes tokens.
pub struct Journal {
    options: PgConnectOptions,
    gateway: Arc<Gateway>,
    running: Arc<Running>,
    link: Mutex<Link>,
}

/// The connection.
#[derive(Default)]
struct Link {
    /// Taken out while it is used, so that one is not used again on which a call was given up.
    connection: Option<PgConnection>,
    /// The turns of which it wrote a row.
    written: HashSet<TurnId>,
}

/// A write's rows, column by column.
#[derive(Debug, Default)]
struct Rows {
    turns: Vec<Uuid>,
    firsts: Vec<i64>,
    /// Where each row's ids begin and end in those of all.
    starts: Vec<i64>,
    ends: Vec<i64>,
    ids: Vec<i32>,
}

impl Journal {
    /// One without a connection yet.
    pub fn new(server: &Server, gateway: Arc<Gateway>, running: Arc<Running>) -> Self {
        let options = server.options(Some(("synchronous_commit", "off")));
        Self { options, gateway, running, link: Mutex::default() }
    }

    /// See [`Store::append`](crate::sessions::store::Store::append).
    pub async fn append(&self, tokens: Vec<Appended>) -> Result<Vec<TurnId>, StoreError> {
        let mut link = self.link.lock().await;
        let News { mut left_out, turns } = self.running.news(&tokens)?;
        if turns.is_empty() {
            return Ok(left_out);
        }
        let here = within_a_call(self.write(&mut link, &turns)).await?;
        for longer in turns {
            if here.contains(&longer.turn.0) {
                self.running.extend(&longer);
            } else {
                self.running.remove(longer.turn);
                left_out.push(longer.turn);
            }
        }
        Ok(left_out)
    }

    /// Writes; which turns run here.
    async fn write(&self, link: &mut Link, turns: &[Longer]) -> Result<HashSet<Uuid>, Failure> {
        match self.write_once(link, turns).await {
            // It may have broken long before.
            Err(Failure::Lost(_)) => self.write_once(link, turns).await,
            done => done,
        }
    }

    async fn write_once(&self, link: &mut Link, turns: &[Longer]) -> Result<HashSet<Uuid>, Failure> {
        let mut connection = match link.connection.take() {
            Some(connection) => connection,
            None => {
                link.written.clear();
                PgConnection::connect_with(&self.options).await?
            }
        };
        let rows = Rows::of(turns, &link.written, &self.running);
        let write = query_scalar::<_, Uuid>(APPEND)
            .bind(self.gateway.id())
            .bind(self.running.next_attempt())
            .bind(rows.turns)
            .bind(rows.firsts)
            .bind(rows.starts)
            .bind(rows.ends)
            .bind(rows.ids);
        let written = write.fetch_all(&mut connection).await.map_err(Failure::from);
        if matches!(written, Err(Failure::Lost(_))) {
            return written.map(|_| HashSet::new());
        }
        link.connection = Some(connection);
        let here: HashSet<Uuid> = written?.into_iter().collect();
        link.written.extend(here.iter().copied().map(TurnId));
        if link.written.len() > MOST_WRITTEN {
            link.written.retain(|turn| self.running.has(*turn));
        }
        Ok(here)
    }
}

impl Rows {
    /// A row for each turn: what is new or, unless there is a row of it, all.
    fn of(turns: &[Longer], written: &HashSet<TurnId>, running: &Running) -> Self {
        let mut rows = Self::default();
        for longer in turns {
            let is_first = !written.contains(&longer.turn);
            rows.turns.push(longer.turn.0);
            rows.firsts.push(if is_first { 0 } else { signed(longer.has as u64) });
            rows.starts.push(signed(rows.ids.len() as u64));
            let token_ids = if is_first { &running.whole(longer) } else { &longer.new };
            // The same bits, which is all that is asked of them.
            rows.ids.extend(token_ids.iter().map(|id| id.cast_signed()));
            rows.ends.push(signed(rows.ids.len() as u64));
        }
        rows
    }
}

impl fmt::Debug for Journal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Journal").finish_non_exhaustive()
    }
}
