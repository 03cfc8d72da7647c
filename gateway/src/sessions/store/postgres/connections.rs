//! Connections to the server: how they are made, how long a call may take, and when it is tried again.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use sqlx::postgres::{PgArguments, PgConnectOptions, PgPool, PgPoolOptions, PgRow};
use sqlx::query::Query;
use sqlx::{ConnectOptions, Connection, PgConnection, Postgres};

use super::error::{Failure, OpenError};
use crate::sessions::store::StoreError;

/// The most connections of a gateway's steps; its journal and its lease have their own.
const MOST_CONNECTIONS: u32 = 32;
/// How long a call may take, waiting for a connection included.
pub const LONGEST_CALL: Duration = Duration::from_secs(10);
/// How long the server works on a statement. Less than a call may take, so that the server answers first.
const LONGEST_STATEMENT: Duration = Duration::from_secs(8);
/// How long a step waits for a connection, as after a restart of the server.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// After how long of nothing a connection is tried before it is used.
const IDLE: Duration = Duration::from_secs(1);
/// How often a step is tried that collides with others.
const MOST_COLLISIONS: u32 = 8;

/// Where a database is, as `postgres://user:password@host:port/database`. Its password is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct DatabaseUrl(String);

/// A server's database, and how to connect to it.
#[derive(Clone)]
pub struct Server {
    options: PgConnectOptions,
    name: String,
}

/// Connections that steps share.
#[derive(Debug)]
pub struct Connections {
    pool: PgPool,
}

/// Whether a step may be tried again that may have been done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// It finds what it did, or does nothing twice.
    Harmless,
    /// It would not know what it did.
    Unknown,
}

// === impl DatabaseUrl ===

impl DatabaseUrl {
    /// That text, if it names a database.
    pub fn parse(text: &str) -> Option<Self> {
        let is_one = text.starts_with("postgres://") || text.starts_with("postgresql://");
        is_one.then(|| Self(text.to_owned()))
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match PgConnectOptions::from_str(&self.0) {
            Ok(options) => write!(formatter, "postgres://{}", name(&options)),
            Err(_) => formatter.write_str("postgres://…"),
        }
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "DatabaseUrl({self})")
    }
}

// === impl Server ===

impl Server {
    /// The database of that name.
    ///
    /// # Errors
    /// [`OpenError::Url`].
    pub fn of(url: &DatabaseUrl) -> Result<Self, OpenError> {
        let options =
            PgConnectOptions::from_str(&url.0).map_err(|error| OpenError::Url(error.to_string()))?;
        let name = name(&options);
        // Steps rely on it that a statement sees what was committed before it.
        let isolation = [("default_transaction_isolation", "read committed")];
        let options = options.application_name("asterism").options(isolation).disable_statement_logging();
        Ok(Self { options, name })
    }

    /// Its name for people, without secrets.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Why it is of no use.
    pub fn unusable(&self, error: impl fmt::Display) -> OpenError {
        OpenError::Unusable { database: self.name.clone(), why: error.to_string() }
    }

    /// A connection whose statements may take long.
    ///
    /// # Errors
    /// [`OpenError::Unusable`].
    pub async fn connect_to_change(&self) -> Result<PgConnection, OpenError> {
        match tokio::time::timeout(LONGEST_CALL, PgConnection::connect_with(&self.options)).await {
            Ok(connected) => connected.map_err(|error| self.unusable(error)),
            Err(_) => Err(self.unusable(format!("no answer in {} s", LONGEST_CALL.as_secs()))),
        }
    }

    /// How steps connect, with such a setting beside.
    pub fn options(&self, setting: Option<(&str, &str)>) -> PgConnectOptions {
        let longest = LONGEST_STATEMENT.as_millis();
        let limits = ["statement_timeout", "idle_in_transaction_session_timeout"];
        let options = self.options.clone().options(limits.map(|limit| (limit, longest)));
        options.options(setting)
    }

    /// Connections that are made when they are needed.
    pub fn pool(&self, most: u32) -> PgPool {
        let options = PgPoolOptions::new().max_connections(most).acquire_timeout(LONGEST_WAIT);
        // Asking each time would be as much as many a step.
        let options = options.test_before_acquire(false).before_acquire(|connection, known| {
            Box::pin(async move {
                if known.idle_for > IDLE {
                    connection.ping().await?;
                }
                Ok(true)
            })
        });
        options.connect_lazy_with(self.options(None))
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Server({})", self.name)
    }
}

fn name(options: &PgConnectOptions) -> String {
    let host = match options.get_socket() {
        Some(socket) => socket.display().to_string(),
        None => format!("{}:{}", options.get_host(), options.get_port()),
    };
    let database = options.get_database().unwrap_or_else(|| options.get_username());
    format!("{}@{host}/{database}", options.get_username())
}

// === impl Connections ===

impl Connections {
    /// None yet.
    pub fn new(server: &Server) -> Self {
        Self { pool: server.pool(MOST_CONNECTIONS) }
    }

    /// Does a step, and tries it again where that may help; `step` is told whether an attempt before may have done it.
    ///
    /// # Errors
    /// Why it is not done or, with [`Failure::Lost`], may be.
    pub async fn ask<'q>(
        &self,
        repeat: Repeat,
        step: impl Fn(bool) -> Query<'q, Postgres, PgArguments>,
    ) -> Result<Vec<PgRow>, Failure> {
        let asking = async {
            let (mut collisions, mut losses, mut again) = (0, 0, false);
            loop {
                match step(again).fetch_all(&self.pool).await.map_err(Failure::from) {
                    Err(Failure::Collided(_)) if collisions < MOST_COLLISIONS => collisions += 1,
                    // Each was a connection that had broken before, at most as many as there are.
                    Err(Failure::Lost(_)) if repeat == Repeat::Harmless && losses < MOST_CONNECTIONS => {
                        losses += 1;
                        again = true;
                    }
                    done => return done,
                }
            }
        };
        within_a_call(asking).await
    }
}

/// Ends a call that takes too long.
///
/// # Errors
/// [`Failure::Lost`], or its own.
pub async fn within_a_call<T>(call: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let no_answer = |_| Failure::Lost(format!("no answer in {} s", LONGEST_CALL.as_secs()));
    tokio::time::timeout(LONGEST_CALL, call).await.map_err(no_answer)?
}

/// As the database counts.
pub fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// As the gateway counts.
///
/// # Errors
/// [`StoreError::Damaged`].
pub fn unsigned(number: i64) -> Result<u64, StoreError> {
    u64::try_from(number).map_err(|_| StoreError::Damaged(format!("{number} is stored, a number below 0")))
}
