//! A store in a PostgreSQL database, which several gateways may share.
//!
//! Each durable step is one statement, a function that the [migrations](self::migrations) made: it is there whole or not at all,
//! whenever a gateway, its connection or the server goes. Which gateway runs a turn is fenced in the database by its clock alone,
//! see [`gateway`]; the journal of running turns is a table, see [`journal`].

mod calls;
mod connections;
mod error;
mod gateway;
mod journal;
mod migrations;
mod rows;
mod running;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use futures::FutureExt;
use sqlx::Connection;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use self::connections::{Connections, Repeat, Server};
pub use self::error::OpenError;
use self::gateway::Gateway;
use self::journal::Journal;
use self::running::Running;
use super::{
    Answer, Appended, BeginTurn, Begun, Change, Claimed, Fork, NewSession, Session, SessionId, Store,
    StoreError, Stored, Turn, TurnId,
};

pub use self::connections::DatabaseUrl;

/// Keeps sessions in a database. Dropping it gives up the turns that run under it.
#[derive(Debug)]
pub struct PostgresStore {
    connections: Connections,
    gateway: Arc<Gateway>,
    running: Arc<Running>,
    journal: Journal,
    left: CancellationToken,
    /// Renews the lease, until this leaves.
    keeping: tokio::sync::Mutex<Option<JoinHandle<()>>>,
    _left_on_drop: DropGuard,
}

impl PostgresStore {
    /// Opens the store in a database, or makes it there.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn open(url: &DatabaseUrl) -> Result<Self, OpenError> {
        let server = Server::of(url)?;
        let mut connection = server.connect_to_change().await?;
        migrations::run(&server, &mut connection).await?;
        let opened = Gateway::register(&server, &mut connection).await;
        let gateway = Arc::new(opened.map_err(|failure| server.unusable(StoreError::from(failure)))?);
        // What could not be said at the end is no hindrance.
        let _ = connection.close().await;
        let left = CancellationToken::new();
        let keeping = tokio::spawn(Arc::clone(&gateway).keep(left.clone()));
        let keeping = tokio::sync::Mutex::new(Some(keeping));
        let running = Arc::<Running>::default();
        let journal = Journal::new(&server, Arc::clone(&gateway), Arc::clone(&running));
        let connections = Connections::new(&server);
        let _left_on_drop = left.clone().drop_guard();
        Ok(Self { connections, gateway, running, journal, left, keeping, _left_on_drop })
    }
}

impl Store for PostgresStore {
    fn create(&self, tenant: &str, session: NewSession) -> Stored<'_, Session> {
        let tenant = tenant.to_owned();
        async move { self.make_session(&tenant, calls::Making::of_new(&session)).await }.boxed()
    }

    fn session(&self, tenant: &str, id: SessionId) -> Stored<'_, Session> {
        let tenant = tenant.to_owned();
        async move { self.read_session(&tenant, id).await }.boxed()
    }

    fn sessions(&self, tenant: &str, before: Option<SessionId>, most: u32) -> Stored<'_, Vec<Session>> {
        let tenant = tenant.to_owned();
        async move { self.read_sessions(&tenant, before, most).await }.boxed()
    }

    fn turns(&self, tenant: &str, id: SessionId, first: u32, most: u32) -> Stored<'_, Vec<Turn>> {
        let tenant = tenant.to_owned();
        async move { self.read_turns(&tenant, id, first, most).await }.boxed()
    }

    fn begin(&self, tenant: &str, id: SessionId, turn: BeginTurn) -> Stored<'_, Begun> {
        let tenant = tenant.to_owned();
        async move { self.begin_turn(&tenant, id, turn).await }.boxed()
    }

    fn discard(&self, turn: TurnId) -> Stored<'_, ()> {
        async move { self.discard_turn(turn).await }.boxed()
    }

    fn append(&self, tokens: Vec<Appended>) -> Stored<'_, Vec<TurnId>> {
        self.journal.append(tokens).boxed()
    }

    fn stop(&self, turn: TurnId) -> Stored<'_, ()> {
        async move { self.stop_turn(turn).await }.boxed()
    }

    fn stops(&self) -> Stored<'_, Vec<TurnId>> {
        async move { self.read_stops().await }.boxed()
    }

    fn finish(&self, turn: TurnId, answer: Answer) -> Stored<'_, u64> {
        async move { self.finish_turn(turn, &answer).await }.boxed()
    }

    fn leave(&self) -> Stored<'_, ()> {
        async move {
            self.left.cancel();
            if let Some(keeping) = self.keeping.lock().await.take() {
                // It says by itself what it could not do.
                let _ = keeping.await;
            }
            Ok(())
        }
        .boxed()
    }

    fn tokens(&self, turn: TurnId, first: u32) -> Stored<'_, Option<Vec<u32>>> {
        async move { self.read_tokens(turn, first).await }.boxed()
    }

    fn claim(&self) -> Stored<'_, Vec<Claimed>> {
        async move { self.claim_turns().await }.boxed()
    }

    fn fork(&self, tenant: &str, source: SessionId, fork: Fork) -> Stored<'_, Session> {
        let tenant = tenant.to_owned();
        async move { self.make_session(&tenant, calls::Making::of_fork(source, &fork)).await }.boxed()
    }

    fn truncate(&self, tenant: &str, id: SessionId, change: Change, turns: u32) -> Stored<'_, Session> {
        let tenant = tenant.to_owned();
        async move { self.truncate_session(&tenant, id, change, turns).await }.boxed()
    }

    fn delete(&self, tenant: &str, id: SessionId, change: Change) -> Stored<'_, ()> {
        let tenant = tenant.to_owned();
        async move { self.delete_session(&tenant, id, change).await }.boxed()
    }

    fn expire(&self, before_ms: u64, most: u32) -> Stored<'_, u32> {
        async move { self.expire_sessions(before_ms, most).await }.boxed()
    }
}
