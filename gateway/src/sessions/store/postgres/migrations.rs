//! The tables, and the functions that are the steps. A migration that was published is never changed: another follows it.

use std::borrow::Cow;

use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::{PgConnection, SqlSafeStr};

use super::connections::Server;
use super::error::OpenError;

const MIGRATIONS: [(&str, &str); 4] = [
    ("tables", include_str!("migrations/1_tables.sql")),
    ("gateways", include_str!("migrations/2_gateways.sql")),
    ("sessions", include_str!("migrations/3_sessions.sql")),
    ("turns", include_str!("migrations/4_turns.sql")),
];

/// Makes what is missing. Gateways that start at once do so one after the other.
///
/// # Errors
/// [`OpenError::Newer`], [`OpenError::Unusable`].
pub async fn run(server: &Server, connection: &mut PgConnection) -> Result<(), OpenError> {
    let migration = |(version, (name, text)): (i64, (&'static str, &'static str))| {
        Migration::new(version, Cow::Borrowed(name), MigrationType::Simple, text.into_sql_str(), false)
    };
    let migrator = Migrator::with_migrations((1..).zip(MIGRATIONS).map(migration).collect());
    let known = MIGRATIONS.len() as i64;
    // As `run`, which makes of any borrow of a connection a future that is not `Send`.
    let made = migrator.run_direct(None, connection, false).await;
    made.map_err(|error| OpenError::of_migrations(server.name(), error, known))
}
