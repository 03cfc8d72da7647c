//! Two gateways on one database: which of them runs a turn.

use super::*;
use crate::sessions::store::suite::{answer, new_turn, talked, turn_id};

fn tokens(turn: u128, first: u32, token_ids: &[u32]) -> Appended {
    Appended { turn: turn_id(turn), first, token_ids: token_ids.to_vec() }
}

fn taken<T>(turn: u128) -> Result<T, StoreError> {
    Err(StoreError::Taken(turn_id(turn)))
}

/// What was claimed: turns and their tokens.
fn shown(claimed: Vec<Claimed>) -> Vec<(u128, Vec<u32>)> {
    claimed.into_iter().map(|claim| (claim.turn.id.0.as_u128(), claim.token_ids)).collect()
}

/// A session of its own with a turn that runs.
async fn runs(store: &PostgresStore, number: u128) -> SessionId {
    let id = talked(store, number, &[]).await;
    store.begin("t", id, new_turn(number)).await.unwrap();
    id
}

#[tokio::test]
async fn a_gateway_that_was_given_up_changes_nothing() {
    let Some(database) = Database::new() else { return };
    let (one, other) = (database.store().await, database.store().await);
    let session = runs(&one, 1).await;
    one.append(vec![tokens(1, 0, &[10, 11])]).await.unwrap();
    database.give_up(&one).await;
    assert_eq!(shown(other.claim().await.unwrap()), [(1, vec![10, 11])]);

    assert_eq!(one.append(vec![tokens(1, 2, &[99])]).await, Ok(vec![turn_id(1)]));
    assert_eq!(one.finish(turn_id(1), answer("stale", 300)).await, taken(1));
    one.discard(turn_id(1)).await.unwrap();
    assert_eq!(other.append(vec![tokens(1, 2, &[12])]).await, Ok(vec![]));
    assert_eq!(other.finish(turn_id(1), answer("whole", 300)).await, Ok(3));
    assert_eq!(one.finish(turn_id(1), answer("stale", 300)).await, taken(1));
    let turns = one.turns("t", session, 0, 9).await.unwrap();
    assert_eq!(turns[0].answer, Some(answer("whole", 300)));

    // Under another name it is as good as any.
    assert_eq!(one.claim().await, Ok(vec![]));
    one.begin("t", session, new_turn(2)).await.unwrap();
    assert_eq!(one.append(vec![tokens(2, 0, &[20])]).await, Ok(vec![]));
    assert_eq!(other.claim().await, Ok(vec![]));
    one.finish(turn_id(2), answer("", 400)).await.unwrap();
}

#[tokio::test]
async fn only_what_nobody_runs_is_claimed() {
    let Some(database) = Database::new() else { return };
    let (one, other, third) = (database.store().await, database.store().await, database.store().await);
    runs(&one, 1).await;
    runs(&other, 2).await;
    assert_eq!(third.claim().await, Ok(vec![]));
    database.give_up(&one).await;
    // Both at once, and one of them does.
    let (second, third) = tokio::join!(other.claim(), third.claim());
    assert_eq!(shown([second.unwrap(), third.unwrap()].concat()), [(1, vec![])]);
}

#[tokio::test]
async fn a_lease_is_renewed_by_the_databases_clock_and_ends_with_the_gateway() {
    let Some(database) = Database::new() else { return };
    let url = format!("{}?options=-c%20asterism.lease%3D600ms", database.url);
    let short = Database { url };
    let (one, other) = (short.store().await, short.store().await);
    runs(&one, 1).await;
    let until = "SELECT (extract(epoch FROM min(lease_until)) * 1000)::bigint FROM gateways";
    let first = database.count(until).await;
    // As long as it takes to be renewed twice; if it were not, the other would claim it.
    let mut renewed = first;
    while renewed < first + 400 {
        renewed = database.count(until).await;
        assert_eq!(other.claim().await, Ok(vec![]));
    }
    drop(one);
    let mut claimed = Vec::new();
    while claimed.is_empty() {
        claimed = other.claim().await.unwrap();
        tokio::task::yield_now().await;
    }
    assert_eq!(shown(claimed), [(1, vec![])]);
}

#[tokio::test]
async fn a_lease_that_is_over_is_a_gateway_given_up() {
    let Some(database) = Database::new() else { return };
    let store = database.store().await;
    runs(&store, 1).await;
    runs(&store, 2).await;
    store.append(vec![tokens(1, 0, &[10])]).await.unwrap();
    database.run("INSERT INTO gateways VALUES (gen_random_uuid(), '-infinity', '-infinity')").await;
    database
        .run(
            "UPDATE running SET gateway = (SELECT id FROM gateways WHERE lease_until = '-infinity')
                WHERE turn = '00000000-0000-0000-0000-000000000001'",
        )
        .await;
    // It was not there for long enough itself.
    assert_eq!(store.claim().await, Ok(vec![]));
    database.run("UPDATE gateways SET since = '-infinity'").await;
    assert_eq!(shown(store.claim().await.unwrap()), [(1, vec![10])]);
    assert_eq!(database.count("SELECT count(*) FROM gateways").await, 1);
}

#[tokio::test]
async fn after_the_server_was_away_nobody_is_taken_for_dead() {
    let Some(database) = Database::new() else { return };
    let (one, other) = (database.store().await, database.store().await);
    runs(&one, 1).await;
    // All leases are over, and one gateway comes first.
    database.run("UPDATE gateways SET lease_until = '-infinity', since = '-infinity'").await;
    assert_eq!(other.claim().await, Ok(vec![]));
    other.gateway.keep_once().await;
    assert_eq!(other.claim().await, Ok(vec![]));
    one.gateway.keep_once().await;
    assert_eq!(one.finish(turn_id(1), answer("", 300)).await, Ok(3));
}

#[tokio::test]
async fn what_a_gateway_leaves_is_claimed_at_once() {
    let Some(database) = Database::new() else { return };
    let (one, other) = (database.store().await, database.store().await);
    runs(&one, 1).await;
    one.leave().await.unwrap();
    assert_eq!(shown(other.claim().await.unwrap()), [(1, vec![])]);
    one.leave().await.unwrap();
}

#[tokio::test]
async fn a_claim_sees_all_that_was_written_before_it() {
    let Some(database) = Database::new() else { return };
    let (one, other) = (database.store().await, database.store().await);
    runs(&one, 1).await;
    let (mut written, mut claimed) = (0, Vec::new());
    // Whatever comes first, what was written here is there then.
    let write = async {
        while one.append(vec![tokens(1, written, &[written])]).await.unwrap().is_empty() {
            written += 1;
        }
    };
    let claim = async {
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        database.give_up(&one).await;
        claimed = other.claim().await.unwrap();
    };
    tokio::join!(write, claim);
    assert_eq!(shown(claimed), [(1, (0..written).collect::<Vec<u32>>())]);
}

#[tokio::test]
async fn a_stop_reaches_whoever_runs_the_turn() {
    let Some(database) = Database::new() else { return };
    let (one, other) = (database.store().await, database.store().await);
    runs(&one, 1).await;
    other.stop(turn_id(1)).await.unwrap();
    assert_eq!(other.stops().await, Ok(vec![]));
    assert_eq!(one.stops().await, Ok(vec![turn_id(1)]));
    one.finish(turn_id(1), answer("", 300)).await.unwrap();
    assert_eq!(one.stops().await, Ok(vec![]));
}

#[tokio::test]
async fn steps_of_many_tenants_and_gateways_agree_in_the_end() {
    let Some(database) = Database::new() else { return };
    let stores = [database.store().await, database.store().await];
    let talk = async |number: u128| {
        let store = &stores[(number % 2) as usize];
        let id = talked(store, 1000 + number, &[2 * number + 1, 2 * number + 2]).await;
        let fork = suite::new_fork(2000 + number, 1);
        store.fork("t", id, fork).await.unwrap();
        let other = &stores[(number + 1) as usize % 2];
        let (source, fork) = tokio::join!(
            store.delete("t", id, suite::ANY),
            other.delete("t", suite::session_id(2000 + number), suite::ANY)
        );
        source.unwrap();
        fork.unwrap();
    };
    futures::future::join_all((0..24).map(talk)).await;
    for rows in ["turns", "session_turns", "running", "tokens", "sessions"] {
        let count: i64 = query_scalar(sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {rows}")))
            .fetch_one(&mut database.connection().await)
            .await
            .unwrap();
        assert_eq!(count, 0, "{rows}");
    }
    assert_eq!(database.count("SELECT (sum(bytes) + sum(sessions))::bigint FROM usage").await, 0);
}
