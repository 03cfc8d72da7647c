//! What every store does, as tests of any: a sentence of the trait's, a test; and random steps, compared with the model.

pub mod keys;
pub mod properties;
pub mod running;
pub mod sessions;
pub mod sharing;
pub mod turns;

use std::sync::Arc;

use asterism_proto::v1;
use futures::future::BoxFuture;
use uuid::Uuid;

use super::*;
use crate::sessions::record::End;

pub use properties::{Op, agrees_with_the_model, apply, everything, op, ops};

/// Where a store lies.
pub trait Bed: Sync {
    /// The store, as a new process finds it. The one before was dropped.
    fn open(&self) -> BoxFuture<'_, Arc<dyn Store>>;
}

/// A test of each sentence, of the store in a bed.
macro_rules! store_suite {
    ($bed:expr) => {
        $crate::sessions::store::suite::store_suite!(@ $bed;
            sessions: a_session_is_kept_as_it_was_made, what_belongs_to_another_is_not_found,
                sessions_are_listed_newest_first_and_in_pages, a_name_is_used_once,
                a_tenant_makes_no_more_sessions_than_it_may, a_deleted_session_is_gone,
                sessions_expire_the_least_recently_changed_first;
            turns: turns_follow_one_another, turns_are_read_in_parts, versions_grow_with_every_change,
                a_change_of_another_version_is_refused, a_turn_begins_only_after_the_last_has_ended,
                of_two_begun_at_once_one_is, an_answer_is_committed_once,
                truncation_forgets_later_turns, turns_fill_a_tenants_bytes;
            keys: a_key_makes_one_session, a_key_accepts_one_turn, a_key_goes_with_what_it_made,
                a_key_of_a_fork_is_no_key_of_a_session;
            running: running_turns_are_claimed_once_after_a_restart, tokens_and_stops_outlive_a_restart,
                tokens_follow_one_another, tokens_of_ended_turns_are_left_out, what_nobody_runs_is_nobodys, a_turn_taken_back_leaves_nothing,
                a_running_turn_holds_its_session;
            sharing: a_fork_has_the_turns_of_its_source, a_fork_cannot_have_what_its_source_has_not,
                shared_turns_stay_until_no_session_has_them, a_shared_turn_counts_once,
                an_answer_is_of_the_session_that_began_it;
        );
    };
    (@ $bed:expr; $($module:ident: $($name:ident),+;)+) => {
        $($(
            #[tokio::test]
            async fn $name() {
                $crate::sessions::store::suite::$module::$name(&$bed).await;
            }
        )+)+
    };
}
pub(crate) use store_suite;

/// More than any test keeps.
pub const PLENTY: Quota = Quota { sessions: 1_000, bytes: 1 << 40 };

pub fn session_id(number: u128) -> SessionId {
    SessionId(Uuid::from_u128(number))
}

pub fn turn_id(number: u128) -> TurnId {
    TurnId(Uuid::from_u128(number))
}

pub fn settings(title: &str, created_ms: u64) -> Settings {
    Settings { title: title.to_owned(), created_ms, ..Settings::default() }
}

pub fn new_session(number: u128) -> NewSession {
    let settings = settings("a", 100);
    NewSession { id: session_id(number), key: Key::new(), settings, quota: PLENTY }
}

pub fn said(text: &str, accepted_ms: u64) -> NewTurn {
    let message = v1::Message { content: text.to_owned(), ..v1::Message::default() };
    NewTurn { messages: vec![message], prompt_ids: vec![1, 2, 3], accepted_ms, ..NewTurn::default() }
}

pub fn new_turn(number: u128) -> BeginTurn {
    let (id, key) = (turn_id(number), Key::new());
    BeginTurn { id, version: None, key, turn: said("hello", 200), quota: PLENTY }
}

pub fn answer(text: &str, ended_ms: u64) -> Answer {
    let (token_ids, text) = (vec![7, 8, 9], text.to_owned());
    Answer { token_ids, text, end: End::Whole.into(), ended_ms, ..Answer::default() }
}

pub fn new_fork(number: u128, turns: u32) -> Fork {
    let settings = settings("fork", 400);
    Fork { id: session_id(number), key: Key::new(), turns, settings, quota: PLENTY }
}

pub const ANY: Change = Change { version: None, now_ms: 500 };

/// A session of "t", with these turns, all ended.
pub async fn talked(store: &dyn Store, number: u128, turns: &[u128]) -> SessionId {
    let id = store.create("t", new_session(number)).await.unwrap().id;
    for turn in turns {
        talk(store, id, *turn).await;
    }
    id
}

/// Adds a turn, and ends it.
pub async fn talk(store: &dyn Store, id: SessionId, turn: u128) {
    store.begin("t", id, new_turn(turn)).await.unwrap();
    store.finish(turn_id(turn), answer("hi", 300)).await.unwrap();
}

/// The names of a session's turns.
pub async fn names(store: &dyn Store, id: SessionId) -> Vec<TurnId> {
    store.turns("t", id, 0, u32::MAX).await.unwrap().into_iter().map(|turn| turn.id).collect()
}

/// How many bytes a tenant keeps, as a refusal says it.
pub async fn bytes_kept(store: &dyn Store, id: SessionId) -> u64 {
    let nothing = Quota { bytes: 0, ..PLENTY };
    match store.begin("t", id, BeginTurn { quota: nothing, ..new_turn(u128::MAX) }).await {
        Err(StoreError::Quota { what: "bytes", kept, most: 0 }) => kept,
        other => panic!("a turn that no quota lets in: {other:?}"),
    }
}
