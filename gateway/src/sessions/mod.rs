//! Conversations that the gateway owns.
//!
//! A *session* is a list of *turns*. A turn is what was said to the model, the exact ids of prompt and answer, how the answer
//! was drawn and how it ended. A [`Store`] keeps them: a turn is durable before its first token leaves, an answer's tokens are
//! in a journal before they leave, and an answer is committed once. A turn that was accepted runs to its end, read or not, and
//! readers may leave and come again at any token; see [`live`] and [`turn`].

mod append;
mod export;
mod failure;
mod following;
pub mod journal;
pub mod keeper;
pub mod live;
pub mod prompt;
mod reading;
pub mod record;
pub mod store;
pub mod turn;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use asterism_proto::Failure;
use futures::stream::BoxStream;
use futures::{StreamExt as _, stream};
use tokio_util::task::TaskTracker;

pub use append::Append;
pub use keeper::Place;
pub use reading::Reading;
pub use record::{Answer, End, NewTurn, Session, SessionId, Settings, Turn, TurnId};

use crate::driver::AnswerStream;
use crate::engine::Engine;
use live::Live;
use store::{Change, Claimed, Fork, NewSession, Quota, Store};
use turn::Run;

/// Turns that are read from a store at once.
const PAGE: u32 = 64;

/// Sessions that are forgotten in one step of the store.
const EXPIRED_AT_ONCE: u32 = 256;

/// The sessions of a gateway.
#[derive(Clone, Debug)]
pub struct Sessions {
    shared: Arc<Shared>,
}

struct Shared {
    engine: Arc<Engine>,
    store: Arc<dyn Store>,
    quota: Quota,
    /// The turns that run here.
    running: Mutex<HashMap<TurnId, Arc<Live>>>,
    tasks: TaskTracker,
}

impl Sessions {
    /// Those of a store; tenants may keep as much as `quota`.
    pub fn new(engine: Arc<Engine>, store: Arc<dyn Store>, quota: Quota) -> Self {
        let (running, tasks) = (Mutex::default(), TaskTracker::new());
        Self { shared: Arc::new(Shared { engine, store, quota, running, tasks }) }
    }

    /// Goes on with the turns that run under nobody; how many there are.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn claim(&self) -> Result<usize, Failure> {
        let claimed = self.shared.store.claim().await?;
        let count = claimed.len();
        for Claimed { tenant, turn, token_ids, stop, .. } in claimed {
            // It was taken from this gateway meanwhile, which may not know it yet.
            let before = self.shared.running().get(&turn.id).cloned();
            if let Some(before) = before {
                before.taken.cancel();
                before.ended().await;
            }
            let told = self.shared.engine.replay(&turn.accepted, &token_ids);
            let live = Arc::new(Live::new(turn.id, told.map(|told| told.deltas).unwrap_or_default()));
            if stop {
                live.stop.cancel();
            }
            self.run(live, tenant, turn.accepted, None);
        }
        Ok(count)
    }

    /// Ends the turns that run here and were noted to end, as by another gateway.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn heed_stops(&self) -> Result<(), Failure> {
        for turn in self.shared.store.stops().await? {
            if let Some(live) = self.shared.running().get(&turn) {
                live.stop.cancel();
            }
        }
        Ok(())
    }

    /// Waits until the turns that run here have ended or were left for the next gateway, which may have them then.
    pub async fn ended(&self) {
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
        if let Err(error) = self.shared.store.leave().await {
            tracing::warn!(%error, "other gateways do not hear that this one leaves");
        }
    }

    /// Forgets sessions that were last changed so long ago; how many.
    ///
    /// # Errors
    /// The store cannot forget now.
    pub async fn expire(&self, retention: Duration) -> Result<u64, Failure> {
        let retention = u64::try_from(retention.as_millis()).unwrap_or(u64::MAX);
        let before = now_ms().saturating_sub(retention);
        let mut forgotten = 0;
        loop {
            let some = self.shared.store.expire(before, EXPIRED_AT_ONCE).await?;
            forgotten += u64::from(some);
            if some < EXPIRED_AT_ONCE {
                return Ok(forgotten);
            }
        }
    }

    /// Whether there is a tenant of this name.
    ///
    /// # Errors
    /// INVALID_ARGUMENT: there is none.
    pub fn check_tenant(&self, name: Option<&str>) -> Result<(), Failure> {
        self.shared.engine.tenant(name).map(drop)
    }

    /// Makes a session for the model that is served.
    ///
    /// # Errors
    /// What is wrong with it, or why it cannot be kept.
    pub async fn create(&self, tenant: &str, key: String, settings: Settings) -> Result<Session, Failure> {
        let engine = &self.shared.engine;
        engine.check_model(&settings.model)?;
        append::check_key(&key)?;
        let settings = Settings {
            model: engine.name().to_owned(),
            checkpoint_id: engine.pipeline()?.checkpoint_id,
            created_ms: now_ms(),
            ..settings
        };
        let session = NewSession { id: SessionId::fresh(), key, settings, quota: self.shared.quota };
        Ok(self.shared.store.create(tenant, session).await?)
    }

    /// A session.
    ///
    /// # Errors
    /// NOT_FOUND, or the store does not answer.
    pub async fn get(&self, tenant: &str, id: SessionId) -> Result<Session, Failure> {
        Ok(self.shared.store.session(tenant, id).await?)
    }

    /// The newest sessions that are older than `before`.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn list(
        &self,
        tenant: &str,
        before: Option<SessionId>,
        most: u32,
    ) -> Result<Vec<Session>, Failure> {
        Ok(self.shared.store.sessions(tenant, before, most).await?)
    }

    /// Ends a running turn with what it has. False: it had ended.
    ///
    /// # Errors
    /// NOT_FOUND, or it cannot be noted now.
    pub async fn stop(&self, tenant: &str, id: SessionId, index: Option<u32>) -> Result<bool, Failure> {
        let turn = self.turn(tenant, id, index).await?;
        if turn.answer.is_some() {
            return Ok(false);
        }
        self.shared.store.stop(turn.id).await?;
        let live = self.shared.running().get(&turn.id).cloned();
        if let Some(live) = live {
            live.stop.cancel();
        }
        Ok(true)
    }

    /// Makes a session of another's first turns, all unless it is said how many.
    ///
    /// # Errors
    /// NOT_FOUND, ABORTED while the last of the turns runs, INVALID_ARGUMENT where there are fewer.
    pub async fn fork(
        &self,
        tenant: &str,
        source: SessionId,
        (turns, title, key): (Option<u32>, String, String),
    ) -> Result<Session, Failure> {
        append::check_key(&key)?;
        let session = self.get(tenant, source).await?;
        let title = if title.is_empty() { session.settings.title.clone() } else { title };
        let forked_from = source.0.as_bytes().to_vec();
        let settings = Settings { title, forked_from, created_ms: now_ms(), ..session.settings };
        let turns = turns.unwrap_or(session.turns);
        let fork = Fork { id: SessionId::fresh(), key, turns, settings, quota: self.shared.quota };
        Ok(self.shared.store.fork(tenant, source, fork).await?)
    }

    /// Forgets all but a session's first turns.
    ///
    /// # Errors
    /// NOT_FOUND, ABORTED while a turn runs or after another change, INVALID_ARGUMENT where there are fewer.
    pub async fn truncate(
        &self,
        tenant: &str,
        id: SessionId,
        (version, turns): (Option<u64>, u32),
    ) -> Result<Session, Failure> {
        let change = Change { version, now_ms: now_ms() };
        Ok(self.shared.store.truncate(tenant, id, change, turns).await?)
    }

    /// Forgets a session.
    ///
    /// # Errors
    /// NOT_FOUND, ABORTED while a turn runs or after another change.
    pub async fn delete(&self, tenant: &str, id: SessionId, version: Option<u64>) -> Result<(), Failure> {
        let change = Change { version, now_ms: now_ms() };
        Ok(self.shared.store.delete(tenant, id, change).await?)
    }

    /// The session and then its turns, each as a line of JSON.
    ///
    /// # Errors
    /// NOT_FOUND; the stream ends with a failure where the store does not answer.
    pub async fn export(
        &self,
        tenant: &str,
        id: SessionId,
    ) -> Result<BoxStream<'static, Result<String, Failure>>, Failure> {
        let session = self.get(tenant, id).await?;
        let head = stream::iter([Ok(export::session(&session))]);
        let (store, tenant) = (Arc::clone(&self.shared.store), tenant.to_owned());
        let turns = stream::try_unfold(0, move |first| {
            let (store, tenant) = (Arc::clone(&store), tenant.clone());
            async move {
                let turns = store.turns(&tenant, id, first, PAGE).await.map_err(Failure::from)?;
                let next = first.saturating_add(PAGE);
                Ok::<_, Failure>((!turns.is_empty()).then_some((turns, next)))
            }
        });
        let lines = turns.flat_map(|page| match page {
            Ok(turns) => stream::iter(turns).map(|turn| Ok(export::turn(&turn))).boxed(),
            Err(failure) => stream::iter([Err(failure)]).boxed(),
        });
        Ok(head.chain(lines).boxed())
    }

    /// Runs a turn in a task of its own.
    fn run(&self, live: Arc<Live>, tenant: String, accepted: NewTurn, begun: Option<AnswerStream>) {
        let shared = Arc::clone(&self.shared);
        shared.running().insert(live.turn, Arc::clone(&live));
        let run = Run {
            engine: Arc::clone(&shared.engine),
            store: Arc::clone(&shared.store),
            live,
            tenant,
            accepted,
        };
        let live = Arc::clone(&run.live);
        self.shared.tasks.spawn(async move {
            run.run(begun).await;
            shared.no_longer_runs(&live);
        });
    }
}

impl Shared {
    fn running(&self) -> MutexGuard<'_, HashMap<TurnId, Arc<Live>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets a turn that ran here, unless it runs here once more.
    fn no_longer_runs(&self, live: &Arc<Live>) {
        let mut running = self.running();
        if running.get(&live.turn).is_some_and(|now| Arc::ptr_eq(now, live)) {
            running.remove(&live.turn);
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Sessions").field("store", &self.store).finish_non_exhaustive()
    }
}

/// The time, in milliseconds since 1970.
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
