//! The driver's life: find the shards, take the pipeline, drive it until that ends, begin again.

use std::time::{Duration, Instant};

use asterism_proto::shard::v1::Holder;
use asterism_proto::{Failure, Reason};

use super::backoff::Backoff;
use super::desk::Desk;
use super::end::EpochEnd;
use super::epoch::Epoch;
use super::join::{Joined, Shards};
use super::membership::Pipeline;
use super::mismatch::Mismatch;
use super::{DriverError, PipelineInfo, PipelineState};
use crate::scheduler::Limits;

/// An epoch that lasted this long was a good one.
const STABLE: Duration = Duration::from_secs(10);
/// When a caller may ask again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The driver's own task.
pub struct Runner {
    desk: Desk,
    shards: Shards,
    driver_id: String,
    take_over: bool,
    backoff: Backoff,
    /// Of the latest pipeline that was joined.
    numbers: Option<Numbers>,
}

/// What decides a pipeline's numbers: where it differs, an answer that has begun cannot go on.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Numbers {
    checkpoint_id: String,
    compute: i32,
    path: String,
}

/// Why a pipeline was not taken this time.
enum NotTaken {
    /// It may go better later.
    Waiting(String),
    /// Another gateway has it, and nobody knows for how long.
    Held(String),
    /// All shards answered and disagree.
    Mismatch(Vec<Mismatch>),
}

impl Runner {
    /// With nothing joined. `seed` decides the jitter.
    pub fn new(desk: Desk, shards: Shards, driver_id: String, seed: u64) -> Self {
        let take_over = desk.settings.take_over;
        Self { desk, shards, driver_id, take_over, backoff: Backoff::new(seed), numbers: None }
    }

    /// Drives until the gateway shuts down.
    ///
    /// # Errors
    /// The shards answered, and do not make a pipeline.
    pub async fn run(mut self) -> Result<(), DriverError> {
        let ended = self.drive().await;
        self.desk.state.send_replace(PipelineState::Leaving);
        self.desk.requests.fail_all(Reason::Unavailable, "the gateway is shutting down");
        // Those who ask from now on find nobody: the receiver goes with this.
        ended
    }

    async fn drive(&mut self) -> Result<(), DriverError> {
        let mut delay = None;
        while let Some(joined) = self.take_pipeline(delay).await? {
            let began = Instant::now();
            // Told once: a driver that was fenced does not take the pipeline back by itself.
            self.take_over = false;
            let epoch = joined.holder.epoch;
            let stages = joined.pipeline.members.len();
            let info = self.begin(&joined);
            tracing::info!(epoch, stages, context = info.max_context, "the pipeline is joined");
            self.desk.state.send_replace(PipelineState::Joined(info));
            let end = Epoch::new(&mut self.desk, joined).run().await;
            let why = end.to_string();
            if matches!(end, EpochEnd::Left) {
                return Ok(());
            }
            tracing::warn!(epoch, %why, "the epoch ended");
            self.desk.state.send_replace(PipelineState::Waiting(why.clone()));
            self.desk.end(&why);
            // A pipeline that breaks as soon as it is joined is joined more and more slowly.
            if began.elapsed() >= STABLE {
                self.backoff.reset();
            }
            delay = Some(self.backoff.next_delay());
        }
        Ok(())
    }

    fn begin(&mut self, joined: &Joined) -> PipelineInfo {
        let (pipeline, capacity) = (&joined.pipeline, joined.pipeline.capacity());
        let limits = Limits {
            stages: u32::try_from(pipeline.members.len()).unwrap_or(u32::MAX),
            blocks: capacity.blocks,
            rows: capacity.rows,
            evidence_rows: capacity.evidence_rows,
            logits_slots: capacity.logits_slots,
            steps_in_flight: capacity.steps_in_flight,
            max_context: self.desk.settings.max_context.unwrap_or(u32::MAX).min(capacity.positions),
            row_kinds: pipeline.row_kinds(),
        };
        let numbers = Numbers::of(pipeline);
        if self.numbers.as_ref().is_some_and(|before| *before != numbers) {
            self.desk.give_up(
                "the pipeline came back with other numbers: a model, type or device that is not the same",
            );
        }
        self.numbers = Some(numbers);
        self.desk.begin(limits);
        PipelineInfo {
            epoch: joined.holder.epoch,
            checkpoint_id: pipeline.checkpoint_id.clone(),
            vocab_size: pipeline.model.vocab_size,
            max_context: limits.context(),
            compute: pipeline.compute(),
        }
    }

    /// Tries until it has a pipeline; meanwhile callers are told why there is none. `None`: the gateway shuts down.
    async fn take_pipeline(&mut self, mut delay: Option<Duration>) -> Result<Option<Joined>, DriverError> {
        loop {
            let (shards, driver_id) = (self.shards.clone(), self.driver_id.clone());
            let take_over = self.take_over;
            let attempt = async {
                if let Some(delay) = delay {
                    tokio::time::sleep(delay).await;
                }
                take(shards, driver_id, take_over).await
            };
            match serve_until(&mut self.desk, attempt).await {
                None => return Ok(None),
                Some(Ok(joined)) => return Ok(Some(joined)),
                Some(Err(NotTaken::Mismatch(mismatch))) => return Err(DriverError::Mismatch(mismatch)),
                Some(Err(NotTaken::Waiting(why))) => self.wait_because(why),
                Some(Err(NotTaken::Held(why))) => {
                    self.desk.give_up(&why);
                    self.wait_because(why);
                }
            }
            delay = Some(self.backoff.next_delay());
        }
    }

    fn wait_because(&self, why: String) {
        let news = PipelineState::Waiting(why);
        self.desk.state.send_if_modified(|state| {
            let is_news = *state != news;
            if is_news {
                tracing::info!(state = ?news, "no pipeline yet");
                *state = news;
            }
            is_news
        });
    }
}

/// Answers callers until `done`; `None` once the gateway shuts down.
async fn serve_until<T>(desk: &mut Desk, done: impl Future<Output = T>) -> Option<T> {
    tokio::pin!(done);
    let cancelled = desk.requests.cancelled().clone();
    let shutdown = desk.shutdown.clone();
    loop {
        let deadline = desk.deadline();
        tokio::select! {
            result = &mut done => return Some(result),
            () = shutdown.cancelled() => return None,
            Some(command) = desk.commands.recv() => desk.answer(command),
            () = cancelled.wait() => desk.drop_cancelled(),
            () = deadline => desk.expire(),
        }
    }
}

/// One attempt to take the pipeline.
async fn take(shards: Shards, driver_id: String, take_over: bool) -> Result<Joined, NotTaken> {
    let waiting = |why: &dyn std::fmt::Display| NotTaken::Waiting(why.to_string());
    let members = shards.describe().await.map_err(|refusal| waiting(&refusal))?;
    let pipeline = Pipeline::check(members).map_err(NotTaken::Mismatch)?;
    if let (Some((holder, address)), false) = (pipeline.held_by_another(&driver_id), take_over) {
        return Err(NotTaken::Held(format!("{address} is held by another gateway, driver {holder}")));
    }
    if let Some(address) = pipeline.draining() {
        return Err(waiting(&format!("{address} is about to leave")));
    }
    let holder = Holder { epoch: pipeline.highest_epoch().saturating_add(1), driver_id };
    shards.join(pipeline, holder, take_over).await.map_err(|refusal| waiting(&refusal))
}

impl Numbers {
    fn of(pipeline: &Pipeline) -> Self {
        // Stages agree in these.
        let shard = pipeline.members.first().map(|first| &first.description);
        Self {
            checkpoint_id: pipeline.checkpoint_id.clone(),
            compute: shard.map_or(0, |shard| shard.compute),
            path: shard.map(|shard| shard.path.clone()).unwrap_or_default(),
        }
    }
}

impl PipelineState {
    /// The pipeline, if one is joined and takes requests.
    ///
    /// # Errors
    /// UNAVAILABLE, with the reason.
    pub fn joined(&self) -> Result<&PipelineInfo, Failure> {
        let why = match self {
            Self::Joined(info) => return Ok(info),
            Self::Waiting(why) => format!("no pipeline is joined: {why}"),
            Self::Draining(address) => format!("the pipeline takes no requests: {address} is about to leave"),
            Self::Leaving => "the gateway is shutting down".to_owned(),
        };
        Err(Failure { retry_after: Some(RETRY_AFTER), ..Failure::new(Reason::Unavailable, why) })
    }
}
