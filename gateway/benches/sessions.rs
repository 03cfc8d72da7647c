//! Durable steps of the session store in a folder or a PostgreSQL database, by one writer and by 64, and writes of the journal of
//! 64 running turns, beside what the folder's disk can sync, measured in the same run:
//! `cargo bench -p asterism-gateway --bench sessions [-- FOLDER|postgres://…]`.
#![allow(clippy::unwrap_used, reason = "a bench that fails says where")]

use std::env;
use std::fs::OpenOptions;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use asterism_gateway::sessions::record::{Answer, NewTurn, SessionId, Settings, TurnId};
use asterism_gateway::sessions::store::local::LocalStore;
use asterism_gateway::sessions::store::postgres::{DatabaseUrl, PostgresStore};
use asterism_gateway::sessions::store::{Appended, BeginTurn, Key, NewSession, Quota, Store};
use asterism_proto::v1;
use futures::future::join_all;
use tokio::runtime::Runtime;

const WRITERS: usize = 64;
/// Ids of a turn's prompt and answer.
const PROMPT_IDS: u32 = 512;
const ANSWER_IDS: u32 = 128;
/// How long is counted, and how often.
const ROUND: Duration = Duration::from_secs(1);
const ROUNDS: usize = 9;

const PLENTY: Quota = Quota { sessions: u64::MAX, bytes: u64::MAX };

fn main() {
    let argument = env::args().skip(1).find(|argument| !argument.starts_with("--"));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    println!("turns of {PROMPT_IDS} and {ANSWER_IDS} ids, medians of {ROUNDS}");
    if let Some(url) = argument.as_deref().and_then(DatabaseUrl::parse) {
        println!("{url}");
        let store: Arc<dyn Store> = Arc::new(runtime.block_on(PostgresStore::open(&url)).unwrap());
        measure(&runtime, || Arc::clone(&store));
        runtime.block_on(store.leave()).unwrap();
        return;
    }
    let folder = match argument {
        Some(folder) => tempfile::tempdir_in(folder),
        None => tempfile::tempdir(),
    };
    let folder = folder.unwrap();
    println!("{}", folder.path().display());
    let syncs = median((0..ROUNDS).map(|_| syncs(folder.path())));
    println!("{syncs:>9.0} syncs/s of a block that is written over");
    let mut stores = 0;
    measure(&runtime, || {
        stores += 1;
        Arc::new(LocalStore::open(&folder.path().join(stores.to_string())).unwrap())
    });
}

/// Measures stores, each of which may be the same.
fn measure(runtime: &Runtime, mut store: impl FnMut() -> Arc<dyn Store>) {
    for writers in [1, WRITERS] {
        let store = store();
        let sessions: Vec<SessionId> = (0..writers).map(|_| runtime.block_on(session(&*store))).collect();
        let steps = median((0..ROUNDS).map(|_| {
            let begun = Instant::now();
            let counts = join_all(sessions.iter().map(|session| steps(&*store, *session, begun)));
            f64::from(runtime.block_on(counts).iter().sum::<u32>()) / begun.elapsed().as_secs_f64()
        }));
        println!("{steps:>9.0} durable steps/s of {writers} writers, {:.0} turns/s", steps / 2.0);
    }
    let store = store();
    let mut first = 0;
    let turns: Vec<TurnId> = (0..WRITERS).map(|_| runtime.block_on(running(&*store))).collect();
    let writes = median((0..ROUNDS).map(|_| {
        let (begun, before) = (Instant::now(), first);
        while begun.elapsed() < ROUND {
            let token = |turn: &TurnId| Appended { turn: *turn, first, token_ids: vec![first] };
            runtime.block_on(store.append(turns.iter().map(token).collect())).unwrap();
            first += 1;
        }
        f64::from(first - before) / begun.elapsed().as_secs_f64()
    }));
    println!("{writes:>9.0} journal writes/s, each of a token of {WRITERS} turns");
    for turn in turns {
        runtime.block_on(store.finish(turn, Answer::default())).unwrap();
    }
}

/// A turn that runs.
async fn running(store: &dyn Store) -> TurnId {
    let (id, session) = (TurnId::fresh(), session(store).await);
    let turn = BeginTurn { id, version: None, key: Key::new(), turn: NewTurn::default(), quota: PLENTY };
    store.begin("bench", session, turn).await.unwrap();
    id
}

/// Blocks written and synced in a second.
fn syncs(folder: &Path) -> f64 {
    let mut file =
        OpenOptions::new().create(true).truncate(false).write(true).open(folder.join("block")).unwrap();
    let begun = Instant::now();
    let mut count = 0_u32;
    while begun.elapsed() < ROUND {
        file.seek(SeekFrom::Start(0)).unwrap();
        file.write_all(&[count as u8; 4096]).unwrap();
        file.sync_data().unwrap();
        count += 1;
    }
    f64::from(count) / begun.elapsed().as_secs_f64()
}

async fn session(store: &dyn Store) -> SessionId {
    let (id, key, settings) = (SessionId::fresh(), Key::new(), Settings::default());
    store.create("bench", NewSession { id, key, settings, quota: PLENTY }).await.unwrap().id
}

/// Accepts turns and commits their answers, one after another: how many steps in a round.
async fn steps(store: &dyn Store, session: SessionId, begun: Instant) -> u32 {
    let said = v1::Message { role: "user".to_owned(), content: "What is the capital of France?".to_owned() };
    let prompt_ids = (0..PROMPT_IDS).map(|id| id * 251 % 130_000).collect();
    let turn = NewTurn { messages: vec![said], prompt_ids, ..NewTurn::default() };
    let token_ids = (0..ANSWER_IDS).map(|id| id * 509 % 130_000).collect();
    let answer = Answer { token_ids, text: "Paris. ".repeat(ANSWER_IDS as usize / 2), ..Answer::default() };
    let mut count = 0;
    while begun.elapsed() < ROUND {
        let id = TurnId::fresh();
        let turn = BeginTurn { id, version: None, key: Key::new(), turn: turn.clone(), quota: PLENTY };
        store.begin("bench", session, turn).await.unwrap();
        store.finish(id, answer.clone()).await.unwrap();
        count += 2;
    }
    count
}

fn median(rates: impl Iterator<Item = f64>) -> f64 {
    let mut rates: Vec<f64> = rates.collect();
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}
