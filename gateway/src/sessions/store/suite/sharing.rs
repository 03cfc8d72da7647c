//! Turns that several sessions have.

use super::*;

pub async fn a_fork_has_the_turns_of_its_source(bed: &dyn Bed) {
    let store = bed.open().await;
    let source = talked(&*store, 1, &[1, 2, 3]).await;
    let fork = store.fork("t", source, new_fork(2, 2)).await.unwrap();
    let expected = Session {
        id: session_id(2),
        version: 1,
        turns: 2,
        running: None,
        updated_ms: 400,
        settings: settings("fork", 400),
    };
    assert_eq!(fork, expected);
    let turns = store.turns("t", source, 0, 2).await;
    assert_eq!(store.turns("t", fork.id, 0, 10).await, turns);
    // Each goes its own way from there.
    talk(&*store, fork.id, 4).await;
    talk(&*store, source, 5).await;
    assert_eq!(names(&*store, fork.id).await, [1, 2, 4].map(turn_id));
    assert_eq!(names(&*store, source).await, [1, 2, 3, 5].map(turn_id));
    let empty = store.fork("t", source, new_fork(3, 0)).await.unwrap();
    assert_eq!(names(&*store, empty.id).await, []);
}

pub async fn a_fork_cannot_have_what_its_source_has_not(bed: &dyn Bed) {
    let store = bed.open().await;
    let source = talked(&*store, 1, &[1]).await;
    let few = StoreError::TooFewTurns { session: source, has: 1, wanted: 2 };
    assert_eq!(store.fork("t", source, new_fork(2, 2)).await, Err(few));
    let unknown = session_id(9);
    assert_eq!(store.fork("t", unknown, new_fork(2, 0)).await, Err(StoreError::NoSession(unknown)));
    assert_eq!(store.session("t", session_id(2)).await, Err(StoreError::NoSession(session_id(2))));
}

pub async fn shared_turns_stay_until_no_session_has_them(bed: &dyn Bed) {
    let store = bed.open().await;
    let source = talked(&*store, 1, &[1, 2]).await;
    let fork = store.fork("t", source, new_fork(2, 2)).await.unwrap().id;
    let of_fork = store.fork("t", fork, new_fork(3, 1)).await.unwrap().id;
    let turns = store.turns("t", source, 0, 10).await;
    store.truncate("t", source, ANY, 1).await.unwrap();
    assert_eq!(store.turns("t", fork, 0, 10).await, turns);
    store.delete("t", source, ANY).await.unwrap();
    drop(store);
    let store = bed.open().await;
    assert_eq!(store.turns("t", fork, 0, 10).await, turns);
    store.delete("t", fork, ANY).await.unwrap();
    assert_eq!(names(&*store, of_fork).await, [turn_id(1)]);
    // Nobody has it, so that its name is free.
    talk(&*store, of_fork, 2).await;
}

pub async fn a_shared_turn_counts_once(bed: &dyn Bed) {
    let store = bed.open().await;
    let source = talked(&*store, 1, &[1, 2]).await;
    let kept = bytes_kept(&*store, source).await;
    let fork = store.fork("t", source, new_fork(2, 2)).await.unwrap().id;
    assert_eq!(bytes_kept(&*store, source).await, kept);
    store.truncate("t", source, ANY, 1).await.unwrap();
    assert_eq!(bytes_kept(&*store, source).await, kept);
    store.truncate("t", fork, ANY, 1).await.unwrap();
    assert_eq!(bytes_kept(&*store, source).await, kept / 2);
    store.delete("t", source, ANY).await.unwrap();
    assert_eq!(bytes_kept(&*store, fork).await, kept / 2);
    assert_eq!(store.expire(u64::MAX, 10).await, Ok(1));
    let empty = talked(&*store, 3, &[]).await;
    assert_eq!(bytes_kept(&*store, empty).await, 0);
}

pub async fn an_answer_is_of_the_session_that_began_it(bed: &dyn Bed) {
    let store = bed.open().await;
    let source = talked(&*store, 1, &[1, 2]).await;
    let fork = store.fork("t", source, new_fork(2, 2)).await.unwrap().id;
    talk(&*store, source, 3).await;
    assert_eq!(store.finish(turn_id(1), answer("hi", 300)).await, Ok(7));
    store.truncate("t", source, ANY, 1).await.unwrap();
    talk(&*store, source, 4).await;
    assert_eq!(store.finish(turn_id(2), answer("", 0)).await, Err(StoreError::NoTurn(turn_id(2))));
    store.delete("t", source, ANY).await.unwrap();
    assert_eq!(store.finish(turn_id(1), answer("", 0)).await, Err(StoreError::NoTurn(turn_id(1))));
    assert_eq!(names(&*store, fork).await, [turn_id(1), turn_id(2)]);
}
