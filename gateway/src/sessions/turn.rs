//! One turn, from its acceptance to its committed answer.
//!
//! A turn that was accepted runs to its end whoever reads it: through a pipeline that breaks, a queue that is full for a while,
//! a store that cannot be written for a while. Only the gateway's own end leaves it, to be claimed by the next, or another gateway
//! that has claimed it, as where this one was not heard of for too long.

use std::sync::Arc;
use std::time::Duration;

use asterism_proto::v1::generate_response::Event;
use asterism_proto::{Failure, Reason, v1};
use futures::StreamExt as _;

use super::live::Live;
use super::now_ms;
use super::record::{Answer, End, NewTurn};
use super::store::{Store, StoreError};
use crate::driver::{AnswerStream, PipelineState, TAKEN};
use crate::engine::Engine;

/// Between two attempts at the same, at first and at most.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A turn's task.
#[derive(Debug)]
pub struct Run {
    /// Draws its tokens.
    pub engine: Arc<Engine>,
    /// Keeps them.
    pub store: Arc<dyn Store>,
    /// Tells its readers.
    pub live: Arc<Live>,
    /// On whose account it runs.
    pub tenant: String,
    /// What was accepted.
    pub accepted: NewTurn,
}

/// How an answer ended.
struct Ended {
    end: End,
    finished: v1::Finished,
    failure: String,
}

/// What readers are told whose turn does not end here.
pub const SHUTTING_DOWN: &str = "the gateway is shutting down; the answer goes on when it is back";

/// Why nothing is drawn now.
enum Halt {
    /// The answer is over.
    Ended(Ended),
    /// It was not taken.
    Refused(Failure),
    /// The gateway ends before the answer does.
    Leaving,
}

impl Run {
    /// Runs to the end, from `begun` on if that is given. Whatever happens, its readers hear of an end.
    pub async fn run(self, begun: Option<AnswerStream>) {
        tokio::select! {
            biased;
            () = self.live.taken.cancelled() => self.leave(TAKEN),
            () = self.to_the_end(begun) => {}
        }
    }

    async fn to_the_end(&self, begun: Option<AnswerStream>) {
        let mut first_token_ms = 0;
        let ended = match self.answer(begun, &mut first_token_ms).await {
            Ok(ended) => ended,
            Err(why) => return self.leave(why),
        };
        let failure = ended.failure.clone();
        if ended.end == End::Failed {
            tracing::warn!(turn = %self.live.turn, why = %failure, "a turn is interrupted");
            self.engine.metrics().sessions.interrupted();
        }
        let answer = Answer {
            token_ids: self.live.token_ids(),
            text: self.live.text(),
            response: ended.finished.response.clone(),
            end: ended.end.into(),
            finished: Some(ended.finished.clone()),
            failure: ended.failure,
            first_token_ms,
            ended_ms: now_ms(),
        };
        match self.commit(answer).await {
            Some(Ok(version)) => {
                let finished = Some(ended.finished);
                self.live.end(Ok(v1::TurnFinished { finished, etag: version.to_string(), failure }));
            }
            Some(Err(StoreError::Taken(_))) => self.leave(TAKEN),
            Some(Err(error)) => self.live.end(Err(error.into())),
            None => self.leave(SHUTTING_DOWN),
        }
    }

    /// Tells readers to come again, and why.
    fn leave(&self, why: &str) {
        tracing::info!(turn = %self.live.turn, why, "a turn is left");
        self.live.end(Err(Failure::new(Reason::Unavailable, why)));
    }

    /// Draws the answer to its end, or tells why it is left before.
    async fn answer(
        &self,
        mut begun: Option<AnswerStream>,
        first_token_ms: &mut u64,
    ) -> Result<Ended, &'static str> {
        let mut pause = SHORTEST_PAUSE;
        loop {
            let stream = match begun.take() {
                Some(stream) => Ok(stream),
                None => self.go_on().await,
            };
            let failure = match stream {
                Ok(stream) => match self.read(stream, first_token_ms).await {
                    Ok(ended) => return Ok(ended),
                    Err(failure) => failure,
                },
                Err(Halt::Refused(failure)) => failure,
                Err(Halt::Ended(ended)) => return Ok(ended),
                Err(Halt::Leaving) => return Err(SHUTTING_DOWN),
            };
            match failure.reason {
                Reason::Conflict => return Err(TAKEN),
                Reason::Unavailable | Reason::Exhausted => {
                    tracing::info!(turn = %self.live.turn, why = %failure, "the answer waits to go on");
                    tokio::select! {
                        () = tokio::time::sleep(failure.retry_after.unwrap_or(pause)) => {}
                        () = self.live.stop.cancelled() => {}
                    }
                    pause = (2 * pause).min(LONGEST_PAUSE);
                }
                _ => return Ok(self.cut(End::Failed, failure.message)),
            }
        }
    }

    /// Reads an answer to its end.
    async fn read(&self, mut stream: AnswerStream, first_token_ms: &mut u64) -> Result<Ended, Failure> {
        let request = stream.started().request_id.clone();
        let mut stopped = false;
        loop {
            let event = tokio::select! {
                event = stream.next() => event,
                () = self.live.stop.cancelled(), if !stopped => {
                    stopped = true;
                    // Its end comes through the stream; a driver that is gone ends that too.
                    let _ = self.engine.abort(request.clone()).await;
                    continue;
                }
            };
            match event {
                Some(Ok(Event::Started(_))) => {}
                Some(Ok(Event::Delta(delta))) => {
                    if *first_token_ms == 0 {
                        *first_token_ms = now_ms();
                    }
                    self.live.tell(delta);
                }
                Some(Ok(Event::Finished(finished))) => {
                    let aborted = finished.reason() == v1::FinishReason::Aborted;
                    let end = if aborted { End::Stopped } else { End::Whole };
                    return Ok(Ended { end, finished, failure: String::new() });
                }
                Some(Err(failure)) => return Err(failure),
                None => return Err(Failure::new(Reason::Unavailable, "the answer broke off")),
            }
        }
    }

    /// Submits what is left of the answer, once there is a pipeline.
    async fn go_on(&self) -> Result<AnswerStream, Halt> {
        let mut state = self.engine.state();
        let ready =
            |state: &PipelineState| matches!(state, PipelineState::Joined(_) | PipelineState::Leaving);
        let joined = tokio::select! {
            biased;
            () = self.live.stop.cancelled() => {
                return Err(Halt::Ended(self.cut(End::Stopped, String::new())));
            }
            state = state.wait_for(ready) => match state.as_deref() {
                Ok(PipelineState::Joined(info)) => info.clone(),
                _ => return Err(Halt::Leaving),
            },
        };
        let replayed = self.engine.replay(&self.accepted, &self.live.token_ids());
        let replayed = replayed.map_err(|failure| Halt::Refused(internal(&failure)))?;
        if let Some(finished) = replayed.finished {
            let failure = String::new();
            return Err(Halt::Ended(Ended { end: End::Whole, finished, failure }));
        }
        if joined.checkpoint_id != self.accepted.checkpoint_id {
            let (before, now) = (&self.accepted.checkpoint_id, &joined.checkpoint_id);
            let message = format!("checkpoint {before} began this answer, and {now} is served now");
            return Err(Halt::Ended(self.cut(End::Failed, message)));
        }
        let submitted = self.engine.run_turn(self.live.turn, &self.accepted, &self.tenant, replayed).await;
        submitted.map_err(Halt::Refused)
    }

    /// Ends the answer with the tokens that it has.
    fn cut(&self, end: End, failure: String) -> Ended {
        let token_ids = self.live.token_ids();
        let (delta, finished) = match self.engine.replay(&self.accepted, &token_ids) {
            Ok(replayed) => replayed.end(),
            Err(_) => (v1::Delta::default(), v1::Finished::default()),
        };
        if !delta.text.is_empty() {
            self.live.tell(delta);
        }
        let reason = match end {
            End::Failed => v1::FinishReason::Interrupted,
            _ => v1::FinishReason::Aborted,
        };
        let response = self.engine.text().response(&self.accepted.prompt_ids, &token_ids);
        let finished = v1::Finished { reason: reason.into(), response, ..finished };
        Ended { end, finished, failure }
    }

    /// Commits the answer, as soon as the store can; `None`: the gateway ends before.
    async fn commit(&self, answer: Answer) -> Option<Result<u64, StoreError>> {
        let mut state = self.engine.state();
        let mut pause = SHORTEST_PAUSE;
        loop {
            match self.store.finish(self.live.turn, answer.clone()).await {
                Ok(version) => return Some(Ok(version)),
                Err(error @ (StoreError::Unwritable(_) | StoreError::Unreachable(_))) => {
                    tracing::error!(turn = %self.live.turn, %error, "an answer waits to be committed");
                }
                Err(error) => {
                    tracing::error!(turn = %self.live.turn, %error, "an answer is not committed");
                    return Some(Err(error));
                }
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = state.wait_for(|state| *state == PipelineState::Leaving) => return None,
            }
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
    }
}

fn internal(failure: &Failure) -> Failure {
    Failure::new(Reason::Internal, failure.message.clone())
}
