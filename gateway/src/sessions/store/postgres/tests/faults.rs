//! Connections that break and servers that fail: no step is lost, and none is done twice.

use super::*;
use crate::sessions::store::memory::MemoryStore;
use crate::sessions::store::suite::{Op, answer, apply, everything, new_turn, session_id, talked, turn_id};

const KILL: &str = "
    SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()";

fn tokens(turn: u128, first: u32, token_ids: &[u32]) -> Appended {
    Appended { turn: turn_id(turn), first, token_ids: token_ids.to_vec() }
}

#[tokio::test]
async fn connections_that_break_between_steps_are_not_noticed() {
    let Some(database) = Database::new() else { return };
    let store = database.store().await;
    let model = MemoryStore::default();
    let steps = |place: usize| match place % 6 {
        0 => Op::Create { tenant: "t", session: place as u128, key: "", title: "a", sessions: 100 },
        1 => Op::Begin {
            tenant: "t",
            session: place as u128 - 1,
            key: "k",
            version: Some(1),
            text: "a",
            bytes: 1 << 20,
        },
        2 => Op::Append { turn: 1, first: 0, token_ids: vec![0, 1] },
        3 => Op::Append { turn: 2, first: 2, token_ids: vec![1, 0] },
        4 => Op::Finish { turn: 3, text: "a", ended_ms: 9 },
        _ => Op::Fork { tenant: "t", source: place as u128 - 5, session: place as u128, key: "", turns: 1 },
    };
    for place in 0..36 {
        let op = steps(place);
        database.count(KILL).await;
        assert_eq!(apply(&store, place, &op).await, apply(&model, place, &op).await, "{op:?}");
    }
    assert_eq!(everything(&store).await, everything(&model).await);
}

#[tokio::test]
async fn connections_that_break_within_steps_lose_and_double_nothing() {
    let Some(database) = Database::new() else { return };
    let store = database.store().await;
    // Steps that were done; at the end as many as there can be.
    let steps = std::cell::Cell::new(0_u32);
    let work = async {
        for number in 0..40_u128 {
            let id = talked(&store, number, &[]).await;
            steps.set(steps.get() + 1);
            store.begin("t", id, new_turn(number)).await.unwrap();
            for first in 0..4 {
                // As an answer does, that was broken off.
                while store.append(vec![tokens(number, first, &[first])]).await.is_err() {}
                steps.set(steps.get() + 1);
            }
            if number % 2 == 0 {
                store.finish(turn_id(number), answer("hi", 300)).await.unwrap();
            }
        }
        steps.set(u32::MAX);
    };
    let breaks = async {
        let mut connection = database.connection().await;
        while steps.get() < u32::MAX {
            let before = steps.get();
            let _: i64 = query_scalar(KILL).fetch_one(&mut connection).await.unwrap();
            while steps.get() == before {
                tokio::task::yield_now().await;
            }
        }
    };
    tokio::join!(work, breaks);
    drop(store);
    database.run("DELETE FROM gateways").await;
    let store = database.store().await;
    let claimed = store.claim().await.unwrap();
    assert_eq!(claimed.len(), 20);
    assert!(claimed.iter().all(|claimed| claimed.token_ids == [0, 1, 2, 3]));
    for number in 0..40 {
        let turns = store.turns("t", session_id(number), 0, 10).await.unwrap();
        assert_eq!((turns.len(), turns[0].answer.is_some()), (1, number % 2 == 0), "{number}");
    }
    assert_eq!(database.count("SELECT sum(sessions)::bigint FROM usage").await, 40);
}

/// Whose step may or may not have been done, as nobody said; it is claimed if it was.
#[tokio::test]
async fn a_turn_that_was_begun_without_an_answer_is_claimed() {
    let Some(database) = Database::new() else { return };
    let store = database.store().await;
    let id = talked(&store, 1, &[]).await;
    store.begin("t", id, new_turn(1)).await.unwrap();
    store.running.remove(turn_id(1));
    let claimed = store.claim().await.unwrap();
    assert_eq!(claimed.iter().map(|claimed| claimed.turn.id).collect::<Vec<_>>(), [turn_id(1)]);
    assert_eq!(store.claim().await, Ok(vec![]));
}

#[tokio::test]
async fn a_later_attempt_counts() {
    let Some(database) = Database::new() else { return };
    let store = database.store().await;
    let id = talked(&store, 1, &[]).await;
    store.begin("t", id, new_turn(1)).await.unwrap();
    store.append(vec![tokens(1, 0, &[10, 11])]).await.unwrap();
    // What was on its way when a connection broke, and came late.
    database.run("INSERT INTO tokens SELECT turn, attempt + 1, 2, '{98, 99}' FROM tokens").await;
    store.running.next_attempt();
    database.count(KILL).await;
    store.append(vec![tokens(1, 2, &[12])]).await.unwrap();
    drop(store);
    database.run("DELETE FROM gateways").await;
    let store = database.store().await;
    assert_eq!(store.claim().await.unwrap()[0].token_ids, [10, 11, 12]);
    store.append(vec![tokens(1, 3, &[13])]).await.unwrap();
    drop(store);
    database.run("DELETE FROM gateways").await;
    assert_eq!(database.store().await.claim().await.unwrap()[0].token_ids, [10, 11, 12, 13]);
}

#[tokio::test]
async fn a_server_that_fails_keeps_what_it_answered() {
    let Some(server) = server::Server::start() else { return };
    let database = Database { url: server.database() };
    let store = database.store().await;
    let (one, other) = (talked(&store, 1, &[11, 12]).await, talked(&store, 2, &[]).await);
    store.begin("t", other, new_turn(21)).await.unwrap();
    for first in 0..50 {
        store.append(vec![tokens(21, first, &[first])]).await.unwrap();
    }
    server.fail();
    let away = store.session("t", one).await.unwrap_err();
    assert!(matches!(away, StoreError::Unreachable(_)), "{away:?}");
    assert!(matches!(store.append(vec![tokens(21, 50, &[50])]).await, Err(StoreError::Unreachable(_))));
    server.go();
    assert_eq!(suite::names(&store, one).await, [11, 12].map(turn_id));
    // On the new connection all is written once more, so that nothing of it is lost.
    store.append(vec![tokens(21, 50, &[50])]).await.unwrap();
    drop(store);
    database.run("DELETE FROM gateways").await;
    let store = database.store().await;
    assert_eq!(store.claim().await.unwrap()[0].token_ids, (0..51).collect::<Vec<u32>>());
    server.fail();
    server.go();
    drop(store);
    database.run("DELETE FROM gateways").await;
    let claimed = database.store().await.claim().await.unwrap();
    let told = &claimed[0].token_ids;
    assert!(
        told[..] == (0..told.len() as u32).collect::<Vec<u32>>()[..],
        "the last may be missing: {told:?}"
    );
}

#[tokio::test]
async fn a_database_that_only_reads_refuses_steps() {
    let Some(database) = Database::new() else { return };
    let id = talked(&database.store().await, 1, &[1]).await;
    let url = format!("{}?options=-c%20default_transaction_read_only%3Don", database.url);
    let server = Server::of(&DatabaseUrl::parse(&url).unwrap()).unwrap();
    let store = PostgresStore { connections: Connections::new(&server), ..database.store().await };
    let refused = store.begin("t", id, new_turn(2)).await.unwrap_err();
    assert!(matches!(refused, StoreError::Unwritable(_)), "{refused:?}");
    assert_eq!(suite::names(&store, id).await, [turn_id(1)]);
}
