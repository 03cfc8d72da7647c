//! Sessions, without what is in them.

use super::*;

pub async fn a_session_is_kept_as_it_was_made(bed: &dyn Bed) {
    let store = bed.open().await;
    let settings = Settings { model: "m".to_owned(), forked_from: vec![1, 2], ..settings("title", 123) };
    let new = NewSession { settings: settings.clone(), ..new_session(1) };
    let made = store.create("t", new).await.unwrap();
    let expected =
        Session { id: session_id(1), version: 1, turns: 0, running: None, updated_ms: 123, settings };
    assert_eq!(made, expected);
    assert_eq!(store.session("t", made.id).await, Ok(expected.clone()));
    drop(store);
    assert_eq!(bed.open().await.session("t", made.id).await, Ok(expected));
}

pub async fn what_belongs_to_another_is_not_found(bed: &dyn Bed) {
    let store = bed.open().await;
    let id = talked(&*store, 1, &[1]).await;
    let none = StoreError::NoSession(id);
    assert_eq!(store.session("u", id).await, Err(none.clone()));
    assert_eq!(store.turns("u", id, 0, 10).await, Err(none.clone()));
    assert_eq!(store.begin("u", id, new_turn(2)).await, Err(none.clone()));
    assert_eq!(store.fork("u", id, new_fork(2, 1)).await, Err(none.clone()));
    assert_eq!(store.truncate("u", id, ANY, 0).await, Err(none.clone()));
    assert_eq!(store.delete("u", id, ANY).await, Err(none));
    assert_eq!(store.sessions("u", None, 10).await, Ok(vec![]));
    assert_eq!(names(&*store, id).await, [turn_id(1)]);
    let unknown = session_id(9);
    assert_eq!(store.session("t", unknown).await, Err(StoreError::NoSession(unknown)));
}

pub async fn sessions_are_listed_newest_first_and_in_pages(bed: &dyn Bed) {
    let store = bed.open().await;
    for number in [3, 1, 4, 2] {
        store.create("t", new_session(number)).await.unwrap();
    }
    store.create("u", new_session(5)).await.unwrap();
    let listed = async |before: Option<u128>, most| {
        let page = store.sessions("t", before.map(session_id), most).await.unwrap();
        page.into_iter().map(|session| session.id.0.as_u128()).collect::<Vec<_>>()
    };
    assert_eq!(listed(None, 10).await, [4, 3, 2, 1]);
    assert_eq!(listed(None, 2).await, [4, 3]);
    assert_eq!(listed(Some(3), 1).await, [2]);
    assert_eq!(listed(Some(2), 10).await, [1]);
    assert_eq!(listed(Some(1), 10).await, []);
    assert_eq!(listed(None, 0).await, []);
}

pub async fn a_name_is_used_once(bed: &dyn Bed) {
    let store = bed.open().await;
    let id = talked(&*store, 1, &[1]).await;
    let exists = StoreError::SessionExists(id);
    assert_eq!(store.create("t", new_session(1)).await, Err(exists.clone()));
    assert_eq!(store.create("u", new_session(1)).await, Err(exists.clone()));
    assert_eq!(store.fork("t", id, new_fork(1, 1)).await, Err(exists));
    assert_eq!(store.begin("t", id, new_turn(1)).await, Err(StoreError::TurnExists(turn_id(1))));
    let other = talked(&*store, 2, &[]).await;
    assert_eq!(store.begin("t", other, new_turn(1)).await, Err(StoreError::TurnExists(turn_id(1))));
    assert_eq!(names(&*store, id).await, [turn_id(1)]);
    assert_eq!(names(&*store, other).await, []);
}

pub async fn a_tenant_makes_no_more_sessions_than_it_may(bed: &dyn Bed) {
    let store = bed.open().await;
    let quota = Quota { sessions: 2, ..PLENTY };
    let new = |number| NewSession { quota, ..new_session(number) };
    let first = store.create("t", new(1)).await.unwrap().id;
    store.create("t", new(2)).await.unwrap();
    let full = StoreError::Quota { what: "sessions", kept: 2, most: 2 };
    assert_eq!(store.create("t", new(3)).await, Err(full.clone()));
    assert_eq!(store.fork("t", first, Fork { quota, ..new_fork(3, 0) }).await, Err(full));
    store.create("u", new(4)).await.unwrap();
    store.delete("t", first, ANY).await.unwrap();
    store.create("t", new(3)).await.unwrap();
}

pub async fn a_deleted_session_is_gone(bed: &dyn Bed) {
    let store = bed.open().await;
    let id = talked(&*store, 1, &[1, 2]).await;
    let other = talked(&*store, 2, &[]).await;
    assert!(bytes_kept(&*store, other).await > 0);
    store.delete("t", id, ANY).await.unwrap();
    let gone = StoreError::NoSession(id);
    assert_eq!(store.session("t", id).await, Err(gone.clone()));
    assert_eq!(store.delete("t", id, ANY).await, Err(gone));
    assert_eq!(store.sessions("t", None, 10).await.unwrap().len(), 1);
    assert_eq!(bytes_kept(&*store, other).await, 0);
    assert_eq!(store.finish(turn_id(1), answer("", 0)).await, Err(StoreError::NoTurn(turn_id(1))));
}

pub async fn sessions_expire_the_least_recently_changed_first(bed: &dyn Bed) {
    let store = bed.open().await;
    for (number, created_ms) in [(1, 30), (2, 10), (3, 20), (4, 40)] {
        let settings = settings("", created_ms);
        store.create("t", NewSession { settings, ..new_session(number) }).await.unwrap();
    }
    // It runs, and so stays.
    let turn = BeginTurn { turn: said("", 5), ..new_turn(1) };
    store.begin("t", session_id(2), turn).await.unwrap();
    assert_eq!(store.expire(40, 1).await, Ok(1));
    assert_eq!(store.session("t", session_id(3)).await, Err(StoreError::NoSession(session_id(3))));
    assert_eq!(store.expire(40, 10).await, Ok(1));
    assert_eq!(store.session("t", session_id(1)).await, Err(StoreError::NoSession(session_id(1))));
    assert_eq!(store.expire(40, 10).await, Ok(0));
    assert_eq!(store.sessions("t", None, 10).await.unwrap().len(), 2);
    store.finish(turn_id(1), answer("", 39)).await.unwrap();
    assert_eq!(store.expire(39, 10).await, Ok(0));
    assert_eq!(store.expire(40, 10).await, Ok(1));
    assert_eq!(store.session("t", session_id(2)).await, Err(StoreError::NoSession(session_id(2))));
}
