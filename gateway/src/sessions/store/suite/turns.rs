//! Turns of one session.

use super::*;

pub async fn turns_follow_one_another(bed: &dyn Bed) {
    let store = bed.open().await;
    let id = talked(&*store, 1, &[7]).await;
    let begun = store.begin("t", id, BeginTurn { turn: said("next", 250), ..new_turn(3) }).await.unwrap();
    let accepted = said("next", 250);
    assert_eq!(begun.turn, Turn { id: turn_id(3), index: 1, accepted, answer: None });
    let session = begun.session;
    assert_eq!((session.turns, session.running, session.updated_ms), (2, Some(turn_id(3)), 250));
    store.finish(turn_id(3), answer("whole", 280)).await.unwrap();
    drop(store);
    let store = bed.open().await;
    let turns = store.turns("t", id, 0, 10).await.unwrap();
    assert_eq!(
        turns.iter().map(|turn| (turn.id, turn.index)).collect::<Vec<_>>(),
        [(turn_id(7), 0), (turn_id(3), 1)]
    );
    assert_eq!(turns[1].answer, Some(answer("whole", 280)));
    let session = store.session("t", id).await.unwrap();
    assert_eq!((session.turns, session.running, session.updated_ms), (2, None, 280));
}

pub async fn turns_are_read_in_parts(bed: &dyn Bed) {
    let store = bed.open().await;
    let id = talked(&*store, 1, &[1, 2, 3]).await;
    let part = async |first, most| {
        let turns = store.turns("t", id, first, most).await.unwrap();
        turns.into_iter().map(|turn| turn.id.0.as_u128()).collect::<Vec<_>>()
    };
    assert_eq!(part(0, 2).await, [1, 2]);
    assert_eq!(part(1, u32::MAX).await, [2, 3]);
    assert_eq!(part(2, 1).await, [3]);
    assert_eq!(part(3, 10).await, []);
    assert_eq!(part(u32::MAX, u32::MAX).await, []);
    assert_eq!(part(0, 0).await, []);
}

pub async fn versions_grow_with_every_change(bed: &dyn Bed) {
    let store = bed.open().await;
    let id = talked(&*store, 1, &[]).await;
    let version = async || store.session("t", id).await.unwrap().version;
    assert_eq!(version().await, 1);
    assert_eq!(store.begin("t", id, new_turn(1)).await.unwrap().session.version, 2);
    assert_eq!(store.finish(turn_id(1), answer("", 0)).await, Ok(3));
    store.begin("t", id, new_turn(2)).await.unwrap();
    store.discard(turn_id(2)).await.unwrap();
    assert_eq!(version().await, 5);
    assert_eq!(store.truncate("t", id, ANY, 1).await.unwrap().version, 6);
    store.fork("t", id, new_fork(2, 1)).await.unwrap();
    assert_eq!(version().await, 6);
}

pub async fn a_change_of_another_version_is_refused(bed: &dyn Bed) {
    let store = bed.open().await;
    let id = talked(&*store, 1, &[1]).await;
    let changed = StoreError::Conflict { session: id, version: 3, why: Conflict::Version };
    let begin = |version| BeginTurn { version: Some(version), ..new_turn(2) };
    let old = Change { version: Some(2), now_ms: 0 };
    assert_eq!(store.begin("t", id, begin(2)).await, Err(changed.clone()));
    assert_eq!(store.truncate("t", id, old, 0).await, Err(changed.clone()));
    assert_eq!(store.delete("t", id, old).await, Err(changed));
    assert_eq!(names(&*store, id).await, [turn_id(1)]);
    store.begin("t", id, begin(3)).await.unwrap();
}

pub async fn a_turn_begins_only_after_the_last_has_ended(bed: &dyn Bed) {
    let store = bed.open().await;
    let id = talked(&*store, 1, &[]).await;
    store.begin("t", id, new_turn(1)).await.unwrap();
    let runs = StoreError::Conflict { session: id, version: 2, why: Conflict::Running };
    assert_eq!(store.begin("t", id, new_turn(2)).await, Err(runs));
    store.finish(turn_id(1), answer("", 0)).await.unwrap();
    store.begin("t", id, new_turn(2)).await.unwrap();
}

pub async fn of_two_begun_at_once_one_is(bed: &dyn Bed) {
    let store = bed.open().await;
    let id = talked(&*store, 1, &[1]).await;
    let begin = |number| BeginTurn { version: Some(3), ..new_turn(number) };
    let (one, other) = tokio::join!(store.begin("t", id, begin(2)), store.begin("t", id, begin(3)));
    let runs = StoreError::Conflict { session: id, version: 4, why: Conflict::Running };
    let (begun, refused) = if one.is_ok() { (one, other) } else { (other, one) };
    assert_eq!(refused, Err(runs));
    assert_eq!(names(&*store, id).await, [turn_id(1), begun.unwrap().turn.id]);
}

pub async fn an_answer_is_committed_once(bed: &dyn Bed) {
    let store = bed.open().await;
    let id = talked(&*store, 1, &[]).await;
    store.begin("t", id, new_turn(1)).await.unwrap();
    assert_eq!(store.finish(turn_id(1), answer("one", 300)).await, Ok(3));
    let kept = bytes_kept(&*store, id).await;
    assert_eq!(store.finish(turn_id(1), answer("one", 300)).await, Ok(3));
    let taken = StoreError::Taken(turn_id(1));
    assert_eq!(store.finish(turn_id(1), answer("another", 400)).await, Err(taken));
    store.discard(turn_id(1)).await.unwrap();
    store.stop(turn_id(1)).await.unwrap();
    assert_eq!(bytes_kept(&*store, id).await, kept);
    let turns = store.turns("t", id, 0, 10).await.unwrap();
    assert_eq!(turns[0].answer, Some(answer("one", 300)));
    let session = store.session("t", id).await.unwrap();
    assert_eq!((session.version, session.updated_ms, session.turns), (3, 300, 1));
    assert_eq!(store.finish(turn_id(9), answer("", 0)).await, Err(StoreError::NoTurn(turn_id(9))));
}

pub async fn truncation_forgets_later_turns(bed: &dyn Bed) {
    let store = bed.open().await;
    let id = talked(&*store, 1, &[1, 2, 3]).await;
    let few = StoreError::TooFewTurns { session: id, has: 3, wanted: 4 };
    assert_eq!(store.truncate("t", id, ANY, 4).await, Err(few));
    let session = store.truncate("t", id, ANY, 1).await.unwrap();
    assert_eq!((session.turns, session.version, session.updated_ms), (1, 8, 500));
    assert_eq!(names(&*store, id).await, [turn_id(1)]);
    assert_eq!(store.finish(turn_id(2), answer("", 0)).await, Err(StoreError::NoTurn(turn_id(2))));
    talk(&*store, id, 4).await;
    assert_eq!(names(&*store, id).await, [turn_id(1), turn_id(4)]);
}

pub async fn turns_fill_a_tenants_bytes(bed: &dyn Bed) {
    use prost::Message;
    let store = bed.open().await;
    let (one, other) = (talked(&*store, 1, &[]).await, talked(&*store, 2, &[]).await);
    let turn = said("hello", 200).encoded_len() as u64;
    let whole = answer("hi", 300).encoded_len() as u64;
    let quota = Quota { bytes: 2 * turn + whole, ..PLENTY };
    let begin = |number| BeginTurn { quota, ..new_turn(number) };
    store.begin("t", one, begin(1)).await.unwrap();
    store.begin("t", other, begin(2)).await.unwrap();
    store.finish(turn_id(1), answer("hi", 300)).await.unwrap();
    let kept = 2 * turn + whole;
    let full = Err(StoreError::Quota { what: "bytes", kept, most: kept });
    assert_eq!(store.begin("t", one, begin(3)).await, full);
    // An answer is never refused.
    store.finish(turn_id(2), answer("hi", 300)).await.unwrap();
    assert_eq!(bytes_kept(&*store, one).await, 2 * (turn + whole));
    store.truncate("t", one, ANY, 0).await.unwrap();
    assert_eq!(bytes_kept(&*store, one).await, turn + whole);
    drop(store);
    let store = bed.open().await;
    store.begin("t", one, begin(3)).await.unwrap();
    assert_eq!(bytes_kept(&*store, other).await, 2 * turn + whole);
}
