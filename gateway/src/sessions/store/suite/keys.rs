//! Trying again under a key.

use super::*;

pub async fn a_key_makes_one_session(bed: &dyn Bed) {
    let store = bed.open().await;
    let new = |number, title, created_ms| {
        let settings = settings(title, created_ms);
        NewSession { key: "k".to_owned(), settings, ..new_session(number) }
    };
    let made = store.create("t", new(1, "a", 100)).await.unwrap();
    assert_eq!(store.create("t", new(2, "a", 200)).await, Ok(made.clone()));
    let reused = StoreError::KeyReused("k".to_owned());
    assert_eq!(store.create("t", new(3, "b", 100)).await, Err(reused));
    talk(&*store, made.id, 1).await;
    drop(store);
    let store = bed.open().await;
    let again = store.create("t", new(2, "a", 300)).await.unwrap();
    assert_eq!((again.id, again.version, again.turns), (made.id, 3, 1));
    // Even where nothing more may be made.
    let nothing = Quota { sessions: 0, bytes: 0 };
    store.create("t", NewSession { quota: nothing, ..new(2, "a", 300) }).await.unwrap();
    // Another tenant's keys are its own.
    assert_eq!(store.create("u", new(4, "b", 100)).await.unwrap().id, session_id(4));
    assert_eq!(store.sessions("t", None, 10).await.unwrap().len(), 1);
}

pub async fn a_key_accepts_one_turn(bed: &dyn Bed) {
    let store = bed.open().await;
    let id = talked(&*store, 1, &[]).await;
    let begin = |number, text| {
        let (version, key) = (Some(1), "k".to_owned());
        BeginTurn { version, key, turn: said(text, number), ..new_turn(number.into()) }
    };
    let begun = store.begin("t", id, begin(1, "hello")).await.unwrap();
    // Though a turn runs and the version is another.
    assert_eq!(store.begin("t", id, begin(2, "hello")).await, Ok(begun));
    let reused = StoreError::KeyReused("k".to_owned());
    assert_eq!(store.begin("t", id, begin(2, "goodbye")).await, Err(reused));
    store.finish(turn_id(1), answer("hi", 300)).await.unwrap();
    drop(store);
    let store = bed.open().await;
    let again = store.begin("t", id, begin(3, "hello")).await.unwrap();
    assert_eq!(again.turn.answer, Some(answer("hi", 300)));
    assert_eq!(again.session, store.session("t", id).await.unwrap());
    assert_eq!(names(&*store, id).await, [turn_id(1)]);
    // Another session's keys are its own.
    let other = talked(&*store, 2, &[]).await;
    assert_eq!(store.begin("t", other, begin(4, "hello")).await.unwrap().turn.id, turn_id(4));
}

pub async fn a_key_goes_with_what_it_made(bed: &dyn Bed) {
    let store = bed.open().await;
    let new = |number| NewSession { key: "k".to_owned(), ..new_session(number) };
    let begin = |number| BeginTurn { key: "k".to_owned(), ..new_turn(number) };
    let id = store.create("t", new(1)).await.unwrap().id;
    store.begin("t", id, begin(1)).await.unwrap();
    store.discard(turn_id(1)).await.unwrap();
    assert_eq!(store.begin("t", id, begin(2)).await.unwrap().turn.id, turn_id(2));
    store.finish(turn_id(2), answer("", 0)).await.unwrap();
    store.truncate("t", id, ANY, 0).await.unwrap();
    assert_eq!(store.begin("t", id, begin(3)).await.unwrap().turn.id, turn_id(3));
    store.finish(turn_id(3), answer("", 0)).await.unwrap();
    store.delete("t", id, ANY).await.unwrap();
    assert_eq!(store.create("t", new(2)).await.unwrap().id, session_id(2));
    // The key of a session that another has the place of names no turn of the one before.
    store.delete("t", session_id(2), ANY).await.unwrap();
    let id = store.create("t", new(1)).await.unwrap().id;
    assert_eq!(store.begin("t", id, begin(4)).await.unwrap().turn.id, turn_id(4));
}

pub async fn a_key_of_a_fork_is_no_key_of_a_session(bed: &dyn Bed) {
    let store = bed.open().await;
    let source = talked(&*store, 1, &[1, 2]).await;
    let other = talked(&*store, 2, &[3]).await;
    let fork = |number, turns| Fork { key: "k".to_owned(), ..new_fork(number, turns) };
    let made = store.fork("t", source, fork(3, 1)).await.unwrap();
    talk(&*store, made.id, 4).await;
    let now = store.session("t", made.id).await;
    assert_eq!(store.fork("t", source, fork(4, 1)).await, now);
    let reused = StoreError::KeyReused("k".to_owned());
    assert_eq!(store.fork("t", source, fork(4, 2)).await, Err(reused.clone()));
    assert_eq!(store.fork("t", other, fork(4, 1)).await, Err(reused.clone()));
    let settings = settings("fork", 0);
    let plain = NewSession { key: "k".to_owned(), settings, ..new_session(4) };
    assert_eq!(store.create("t", plain).await, Err(reused));
    // Also where the source is gone.
    store.delete("t", source, ANY).await.unwrap();
    assert_eq!(store.fork("t", source, fork(4, 1)).await, now);
}
