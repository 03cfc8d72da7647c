//! Stores that fail while answers are drawn, and turns that another gateway takes: whoever reads gets every token once, or is told
//! to come again.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use asterism_gateway::sessions::TurnId;
use asterism_gateway::sessions::record::{Answer, Session, SessionId, Turn};
use asterism_gateway::sessions::store::memory::MemoryStore;
use asterism_gateway::sessions::store::{
    Appended, BeginTurn, Begun, Change, Claimed, Fork, NewSession, Store, StoreError, Stored,
};
use asterism_proto::v1;
use futures::FutureExt as _;
use tonic::Code;

use crate::sandbox::{Sandbox, shards};
use crate::sessions::{append, bytes, client, create, get, read, resume, says};
use crate::toy;

/// What becomes of a write of tokens.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// It fails, and nothing is written.
    Fails,
    /// It fails, and all is written.
    IsLost,
    /// Another gateway has all turns, from then on.
    Taken,
}

/// A store in memory whose writes of tokens meet faults: that of a place in the list, the next.
#[derive(Debug, Default)]
struct Faulty {
    kept: MemoryStore,
    faults: Mutex<Vec<(usize, Fault)>>,
    /// What is claimed next.
    orphans: Mutex<Vec<Claimed>>,
    writes: AtomicUsize,
    commits: AtomicUsize,
}

impl Faulty {
    fn new(faults: &[(usize, Fault)]) -> Arc<Self> {
        Arc::new(Self { faults: Mutex::new(faults.to_vec()), ..Self::default() })
    }
}

impl Store for Faulty {
    fn append(&self, tokens: Vec<Appended>) -> Stored<'_, Vec<TurnId>> {
        let write = self.writes.fetch_add(1, Ordering::Relaxed);
        let fault = self.faults.lock().unwrap().iter().find(|(place, _)| *place == write).copied();
        let turns = tokens.iter().map(|added| added.turn).collect();
        async move {
            match fault {
                None => self.kept.append(tokens).await,
                Some((_, Fault::Fails)) => Err(StoreError::Unwritable("the disk is full".to_owned())),
                Some((_, Fault::IsLost)) => {
                    self.kept.append(tokens).await.unwrap();
                    Err(StoreError::Unreachable("the connection broke".to_owned()))
                }
                Some((_, Fault::Taken)) => Ok(turns),
            }
        }
        .boxed()
    }

    fn finish(&self, turn: TurnId, answer: Answer) -> Stored<'_, u64> {
        self.commits.fetch_add(1, Ordering::Relaxed);
        self.kept.finish(turn, answer)
    }

    fn create(&self, tenant: &str, session: NewSession) -> Stored<'_, Session> {
        self.kept.create(tenant, session)
    }

    fn session(&self, tenant: &str, id: SessionId) -> Stored<'_, Session> {
        self.kept.session(tenant, id)
    }

    fn sessions(&self, tenant: &str, before: Option<SessionId>, most: u32) -> Stored<'_, Vec<Session>> {
        self.kept.sessions(tenant, before, most)
    }

    fn turns(&self, tenant: &str, id: SessionId, first: u32, most: u32) -> Stored<'_, Vec<Turn>> {
        self.kept.turns(tenant, id, first, most)
    }

    fn begin(&self, tenant: &str, id: SessionId, turn: BeginTurn) -> Stored<'_, Begun> {
        self.kept.begin(tenant, id, turn)
    }

    fn discard(&self, turn: TurnId) -> Stored<'_, ()> {
        self.kept.discard(turn)
    }

    fn stop(&self, turn: TurnId) -> Stored<'_, ()> {
        self.kept.stop(turn)
    }

    fn stops(&self) -> Stored<'_, Vec<TurnId>> {
        self.kept.stops()
    }

    fn tokens(&self, turn: TurnId, first: u32) -> Stored<'_, Option<Vec<u32>>> {
        self.kept.tokens(turn, first)
    }

    fn claim(&self) -> Stored<'_, Vec<Claimed>> {
        let orphans = std::mem::take(&mut *self.orphans.lock().unwrap());
        async move { Ok([self.kept.claim().await?, orphans].concat()) }.boxed()
    }

    fn fork(&self, tenant: &str, source: SessionId, fork: Fork) -> Stored<'_, Session> {
        self.kept.fork(tenant, source, fork)
    }

    fn truncate(&self, tenant: &str, id: SessionId, change: Change, turns: u32) -> Stored<'_, Session> {
        self.kept.truncate(tenant, id, change, turns)
    }

    fn delete(&self, tenant: &str, id: SessionId, change: Change) -> Stored<'_, ()> {
        self.kept.delete(tenant, id, change)
    }

    fn expire(&self, before_ms: u64, most: u32) -> Stored<'_, u32> {
        self.kept.expire(before_ms, most)
    }
}

async fn sandbox(store: &Arc<Faulty>) -> Sandbox {
    Sandbox::set_up(shards(2, |_| {}).await, |setup| {
        setup.surroundings.store = Some(Arc::clone(store) as Arc<dyn Store>);
    })
    .await
}

#[tokio::test]
async fn writes_that_fail_are_a_pause_and_no_end() {
    let store = Faulty::new(&[(0, Fault::Fails), (4, Fault::IsLost), (5, Fault::Fails), (9, Fault::IsLost)]);
    let sandbox = sandbox(&store).await;
    let mut client = client(&sandbox).await;
    let session = create(&mut client, v1::SessionSettings::default()).await;
    let told = append(&mut client, says(&session, "hi", 24)).await.unwrap();
    assert_eq!(told.ids, toy::greedy(&bytes("[user]hi[assistant]"), 24), "no gap, no repeat");
    assert_eq!(told.finished.failure, "");
    let again = resume(&mut client, &session, None, 0).await.unwrap();
    assert_eq!((again.ids, again.text, again.finished), (told.ids, told.text, told.finished));
    assert!(store.writes.load(Ordering::Relaxed) > 9, "every fault was met");
    assert_eq!(store.commits.load(Ordering::Relaxed), 1);
    sandbox.assert_clean().await;
}

#[tokio::test]
async fn a_turn_that_another_gateway_has_is_left() {
    let store = Faulty::new(&[(3, Fault::Taken)]);
    let sandbox = sandbox(&store).await;
    let mut client = client(&sandbox).await;
    let session = create(&mut client, v1::SessionSettings::default()).await;
    let left = append(&mut client, says(&session, "hi", 24)).await.unwrap_err();
    assert_eq!(left.code(), Code::Unavailable, "{left}");
    assert!(left.message().contains("another gateway"), "{left}");
    sandbox.assert_clean().await;
    assert_eq!(
        get(&mut client, &session).await.unwrap().running_turn,
        Some(0),
        "it is not this one's to end"
    );
    assert_eq!(store.commits.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_turn_that_was_taken_and_is_claimed_again_goes_on_once() {
    let store = Faulty::new(&[]);
    let sandbox = sandbox(&store).await;
    let mut client = client(&sandbox).await;
    let session = create(&mut client, v1::SessionSettings::default()).await;
    sandbox.shards[1].control.send_modify(|control| control.pause_after = Some(4));
    let stream = client.append_turn(says(&session, "hi", 20)).await.unwrap().into_inner();
    sandbox.shards[1].until(|seen| seen.steps == 5).await;
    // As a gateway does that was not heard of for a while, before it knows.
    let id: SessionId = session.session_id.parse().unwrap();
    let turn = store.kept.turns("default", id, 0, 1).await.unwrap().remove(0);
    let token_ids = toy::greedy(&bytes("[user]hi[assistant]"), 2);
    let tenant = "default".to_owned();
    store.orphans.lock().unwrap().push(Claimed { tenant, session: id, turn, token_ids, stop: false });
    let left = read(stream).await.unwrap_err();
    assert_eq!(left.code(), Code::Unavailable, "{left}");
    sandbox.shards[1].control.send_modify(|control| control.pause_after = None);
    let told = resume(&mut client, &session, None, 0).await.unwrap();
    assert_eq!(told.ids, toy::greedy(&bytes("[user]hi[assistant]"), 20), "no gap, no repeat");
    assert_eq!(store.commits.load(Ordering::Relaxed), 1);
    sandbox.assert_clean().await;
}
