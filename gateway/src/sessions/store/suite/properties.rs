//! Random steps, with restarts between them: a store answers as the model does, and keeps what it keeps.

use std::fmt::Debug;

use proptest::prelude::*;
use proptest::sample::select;

use super::super::memory::MemoryStore;
use super::*;

/// A step. Names are few, so that steps meet; a name is used for one turn only, as callers do.
#[derive(Clone, Debug)]
pub enum Op {
    Create {
        tenant: &'static str,
        session: u128,
        key: &'static str,
        title: &'static str,
        sessions: u64,
    },
    Begin {
        tenant: &'static str,
        session: u128,
        key: &'static str,
        version: Option<u64>,
        text: &'static str,
        bytes: u64,
    },
    Discard {
        turn: usize,
    },
    Append {
        turn: usize,
        first: u32,
        token_ids: Vec<u32>,
    },
    Stop {
        turn: usize,
    },
    Stops,
    Tokens {
        turn: usize,
        first: u32,
    },
    Finish {
        turn: usize,
        text: &'static str,
        ended_ms: u64,
    },
    Claim,
    Fork {
        tenant: &'static str,
        source: u128,
        session: u128,
        key: &'static str,
        turns: u32,
    },
    Truncate {
        tenant: &'static str,
        session: u128,
        version: Option<u64>,
        turns: u32,
    },
    Delete {
        tenant: &'static str,
        session: u128,
        version: Option<u64>,
    },
    Expire {
        before_ms: u64,
        most: u32,
    },
    Restart,
}

const TENANTS: [&str; 2] = ["t", "u"];
const SESSIONS: std::ops::Range<u128> = 1..5;

/// A step.
pub fn op() -> impl Strategy<Value = Op> {
    let tenant = || prop_oneof![4 => Just("t"), 1 => Just("u")];
    let key = || prop_oneof![3 => Just(""), 1 => Just("j"), 1 => Just("k")];
    let version = || prop_oneof![3 => Just(None), 1 => (1_u64..6).prop_map(Some)];
    let text = || select(&["a", "a longer text, so that quotas differ"][..]);
    let turn = || 0_usize..4;
    prop_oneof![
        3 => (tenant(), SESSIONS, key(), text(), 2_u64..4).prop_map(|(tenant, session, key, title, sessions)| {
            Op::Create { tenant, session, key, title, sessions }
        }),
        6 => (tenant(), SESSIONS, key(), version(), text(), select(&[100, 100_000][..])).prop_map(
            |(tenant, session, key, version, text, bytes)| Op::Begin { tenant, session, key, version, text, bytes }
        ),
        1 => turn().prop_map(|turn| Op::Discard { turn }),
        4 => (turn(), 0_u32..3, proptest::collection::vec(0_u32..2, 0..3))
            .prop_map(|(turn, first, token_ids)| Op::Append { turn, first, token_ids }),
        1 => turn().prop_map(|turn| Op::Stop { turn }),
        1 => Just(Op::Stops),
        1 => (turn(), 0_u32..4).prop_map(|(turn, first)| Op::Tokens { turn, first }),
        5 => (turn(), text(), 0_u64..20).prop_map(|(turn, text, ended_ms)| Op::Finish { turn, text, ended_ms }),
        2 => Just(Op::Claim),
        2 => (tenant(), SESSIONS, SESSIONS, key(), 0_u32..4).prop_map(|(tenant, source, session, key, turns)| {
            Op::Fork { tenant, source, session, key, turns }
        }),
        1 => (tenant(), SESSIONS, version(), 0_u32..3).prop_map(|(tenant, session, version, turns)| {
            Op::Truncate { tenant, session, version, turns }
        }),
        1 => (tenant(), SESSIONS, version())
            .prop_map(|(tenant, session, version)| Op::Delete { tenant, session, version }),
        1 => (0_u64..20, 0_u32..3).prop_map(|(before_ms, most)| Op::Expire { before_ms, most }),
        1 => Just(Op::Restart),
    ]
}

/// Steps of a script.
pub fn ops() -> impl Strategy<Value = Vec<Op>> {
    proptest::collection::vec(op(), 1..60)
}

/// Does the step that has this place in its script. Turns are named by the place of their beginning; a later step means
/// one of the last few.
pub async fn apply(store: &dyn Store, place: usize, op: &Op) -> String {
    fn told(answer: impl Debug) -> String {
        format!("{answer:?}")
    }
    let latest = |turn: usize| turn_id(place.saturating_sub(turn) as u128);
    let time = place as u64;
    match op.clone() {
        Op::Create { tenant, session, key, title, sessions } => {
            let settings = settings(title, time);
            let quota = Quota { sessions, ..PLENTY };
            let new = NewSession { id: session_id(session), key: key.to_owned(), settings, quota };
            told(store.create(tenant, new).await)
        }
        Op::Begin { tenant, session, key, version, text, bytes } => {
            let (turn, quota) = (said(text, time), Quota { bytes, ..PLENTY });
            let new = BeginTurn { id: turn_id(place as u128), version, key: key.to_owned(), turn, quota };
            told(store.begin(tenant, session_id(session), new).await)
        }
        Op::Discard { turn } => told(store.discard(latest(turn)).await),
        Op::Append { turn, first, token_ids } => {
            let one = Appended { turn: latest(turn), first: 0, token_ids: vec![0] };
            let other = Appended { turn: latest(turn), first, token_ids };
            told(store.append(vec![one, other]).await)
        }
        Op::Stop { turn } => told(store.stop(latest(turn)).await),
        Op::Finish { turn, text, ended_ms } => told(store.finish(latest(turn), answer(text, ended_ms)).await),
        Op::Stops => told(store.stops().await),
        Op::Tokens { turn, first } => told(store.tokens(latest(turn), first).await),
        Op::Claim => told(store.claim().await),
        Op::Fork { tenant, source, session, key, turns } => {
            let (key, settings) = (key.to_owned(), settings("fork", time));
            let fork = Fork { id: session_id(session), key, turns, settings, quota: PLENTY };
            told(store.fork(tenant, session_id(source), fork).await)
        }
        Op::Truncate { tenant, session, version, turns } => {
            let change = Change { version, now_ms: time };
            told(store.truncate(tenant, session_id(session), change, turns).await)
        }
        Op::Delete { tenant, session, version } => {
            told(store.delete(tenant, session_id(session), Change { version, now_ms: time }).await)
        }
        Op::Expire { before_ms, most } => told(store.expire(before_ms, most).await),
        Op::Restart => String::new(),
    }
}

/// All that can be read.
pub async fn everything(store: &dyn Store) -> Vec<String> {
    let mut all = Vec::new();
    for tenant in TENANTS {
        all.push(format!("{:?}", store.sessions(tenant, None, u32::MAX).await));
        for session in SESSIONS {
            all.push(format!("{:?}", store.turns(tenant, session_id(session), 0, u32::MAX).await));
            let nothing = Quota { sessions: 0, bytes: 0 };
            let begin = BeginTurn { quota: nothing, ..new_turn(u128::MAX) };
            all.push(format!("{:?}", store.begin(tenant, session_id(session), begin).await));
        }
        let none = NewSession { quota: Quota { sessions: 0, bytes: 0 }, ..new_session(u128::MAX) };
        all.push(format!("{:?}", store.create(tenant, none).await));
    }
    all
}

/// Each step's answer and, in the end, what is kept.
pub async fn agrees_with_the_model(bed: &dyn Bed, ops: &[Op]) -> Result<(), TestCaseError> {
    let mut model = MemoryStore::default();
    let mut store = bed.open().await;
    for (place, op) in ops.iter().enumerate() {
        if let Op::Restart = op {
            drop(store);
            store = bed.open().await;
            model = model.restarted();
            continue;
        }
        let expected = apply(&model, place, op).await;
        prop_assert_eq!(apply(&*store, place, op).await, expected, "step {}: {:?}", place, op);
    }
    prop_assert_eq!(everything(&*store).await, everything(&model).await);
    drop(store);
    let (store, model) = (bed.open().await, model.restarted());
    prop_assert_eq!(everything(&*store).await, everything(&model).await);
    prop_assert_eq!(store.claim().await, model.claim().await);
    Ok(())
}
