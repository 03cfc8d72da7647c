mod faults;
mod fences;

use std::sync::Mutex;

use futures::future::BoxFuture;
use proptest::prelude::*;
use sqlx::{PgConnection, query, query_scalar};

use super::*;
use crate::sessions::store::suite::{self, Bed, store_suite};

#[allow(dead_code, reason = "others use the rest")]
#[path = "../../../../../tests/pipeline/postgres.rs"]
mod server;

/// A database of its own. Whoever opens it again finds that the gateway before was given up, as after its lease.
struct Database {
    url: String,
}

impl Database {
    /// `None`: there is no server, which was said.
    fn new() -> Option<Self> {
        Some(Self { url: server::Server::shared()?.database() })
    }

    async fn store(&self) -> PostgresStore {
        PostgresStore::open(&DatabaseUrl::parse(&self.url).unwrap()).await.unwrap()
    }

    /// A connection for the test itself.
    async fn connection(&self) -> PgConnection {
        PgConnection::connect(&self.url).await.unwrap()
    }

    async fn run(&self, statement: &'static str) {
        query(statement).execute(&mut self.connection().await).await.unwrap();
    }

    async fn count(&self, statement: &'static str) -> i64 {
        query_scalar(statement).fetch_one(&mut self.connection().await).await.unwrap()
    }

    /// A gateway was taken for dead.
    async fn give_up(&self, store: &PostgresStore) {
        let fence = query("DELETE FROM gateways WHERE id = $1").bind(store.gateway.id());
        fence.execute(&mut self.connection().await).await.unwrap();
    }
}

impl Bed for Database {
    fn open(&self) -> BoxFuture<'_, Arc<dyn Store>> {
        async {
            let store = self.store().await;
            let mut connection = self.connection().await;
            let others = query("DELETE FROM gateways WHERE id <> $1").bind(store.gateway.id());
            others.execute(&mut connection).await.unwrap();
            Arc::new(store) as Arc<dyn Store>
        }
        .boxed()
    }
}

store_suite!(match Database::new() {
    Some(database) => database,
    None => return,
});

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn random_steps_give_what_the_model_gives(ops in suite::ops()) {
        /// One for all, emptied before each.
        static DATABASE: Mutex<Option<String>> = Mutex::new(None);
        let mut database = DATABASE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if database.is_none() {
            *database = Database::new().map(|database| database.url);
        }
        let Some(url) = database.clone() else { return Ok(()) };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let bed = Database { url };
            drop(bed.open().await);
            bed.run("TRUNCATE gateways, sessions, turns, session_turns, running, tokens, usage").await;
            suite::agrees_with_the_model(&bed, &ops).await
        })?;
    }
}

#[test]
fn a_password_is_not_shown() {
    for url in [
        "postgres://someone:secret@db.example:5433/asterism?sslmode=require&password=secret",
        "postgres://someone:secret@:x/y",
    ] {
        let place: crate::sessions::Place = url.parse().unwrap();
        let shown = format!("{place} {place:?}");
        assert!(!shown.contains("secret") && shown.contains("postgres://"), "{shown}");
        let error = match DatabaseUrl::parse(url).map(|url| Server::of(&url)) {
            Some(Err(error)) => error.to_string(),
            Some(Ok(server)) => format!("{server:?}{}", server.unusable("it is away")),
            None => panic!("{url} names a database"),
        };
        assert!(!error.contains("secret"), "{error}");
    }
}

#[tokio::test]
async fn a_server_that_is_away_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let host = folder.path().to_str().unwrap().replace('/', "%2F");
    let url = DatabaseUrl::parse(&format!("postgres://someone:secret@{host}/asterism")).unwrap();
    let error = PostgresStore::open(&url).await.unwrap_err().to_string();
    let name = format!("someone@{}/asterism", folder.path().display());
    assert!(error.contains(&name) && error.contains("No such file") && !error.contains("secret"), "{error}");
}

#[tokio::test]
async fn gateways_that_start_at_once_make_the_tables_once() {
    let Some(database) = Database::new() else { return };
    let stores = futures::future::join_all((0..4).map(|_| database.store())).await;
    assert_eq!(database.count("SELECT count(*) FROM gateways").await, 4);
    drop(stores);
    database.run("INSERT INTO _sqlx_migrations SELECT 1000, '', now(), true, '', 0").await;
    match PostgresStore::open(&DatabaseUrl::parse(&database.url).unwrap()).await {
        Err(OpenError::Newer { found: 1000, known: 4, .. }) => {}
        other => panic!("{other:?}"),
    }
}
