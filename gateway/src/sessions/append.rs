//! Accepting a turn: its prompt is made of the whole conversation, every choice is made, and all of it is durable before the
//! first token is drawn.

use std::sync::Arc;

use asterism_proto::{Failure, Reason, v1};

use super::live::Live;
use super::prompt::{Conversation, Prompt, Room};
use super::record::{NewTurn, Session, SessionId, Turn, TurnId};
use super::store::BeginTurn;
use super::{PAGE, Reading, Sessions, now_ms};
use crate::engine::{self, blocking};

/// The longest idempotency key, in bytes.
const LONGEST_KEY: usize = 256;
/// A version that no session has: they begin at 1.
const NO_VERSION: u64 = 0;
/// The most messages of a turn.
const MOST_MESSAGES: usize = 1024;

/// What is said in a session.
#[derive(Clone, Debug, Default)]
pub struct Append {
    /// The version that the session must have; `None`: any.
    pub version: Option<u64>,
    /// Names the attempt; empty: nothing does.
    pub key: String,
    /// After all turns before.
    pub messages: Vec<v1::Message>,
    /// What is unset comes from the session, then from the model.
    pub sampling: v1::Sampling,
    /// The same.
    pub stopping: v1::Stopping,
    /// From -100 to 100.
    pub priority: Option<i32>,
    /// Whether another checkpoint may go on with the session.
    pub accept_other_checkpoint: bool,
}

impl Sessions {
    /// Accepts a turn and begins its answer. It runs to its end whoever reads it, even if the caller goes away in here.
    ///
    /// # Errors
    /// What is wrong with it; ABORTED while a turn runs or after another change; FAILED_PRECONDITION where another checkpoint
    /// answered before; why it is not taken now. Nothing was accepted then.
    pub async fn append(&self, tenant: &str, id: SessionId, append: Append) -> Result<Reading, Failure> {
        let (sessions, tenant) = (self.clone(), tenant.to_owned());
        // What was accepted has somebody who runs it, so a caller cannot cancel this half-way.
        let accepting = self.shared.tasks.spawn(async move { sessions.accept(&tenant, id, append).await });
        accepting
            .await
            .map_err(|error| Failure::new(Reason::Internal, format!("appending failed: {error}")))?
    }

    async fn accept(&self, tenant: &str, id: SessionId, append: Append) -> Result<Reading, Failure> {
        check_key(&append.key)?;
        engine::priority(append.priority)?;
        if append.messages.len() > MOST_MESSAGES {
            let message = format!("{} messages, more than {MOST_MESSAGES}", append.messages.len());
            return Err(Failure::invalid("messages", message));
        }
        let session = self.get(tenant, id).await?;
        let accepted = if session.running.is_some() {
            // Only a key that was used before can be meant; everything else is refused below.
            NewTurn { messages: append.messages.clone(), ..NewTurn::default() }
        } else {
            self.resolve(tenant, &session, &append).await?
        };
        // The prompt was made for this version and no other, whatever the caller expects to come.
        let version = append.version.is_none_or(|version| version == session.version);
        let version = if version { session.version } else { NO_VERSION };
        let differs = accepted.history_differs_at.is_some();
        let turn = TurnId::fresh();
        let begin = BeginTurn {
            id: turn,
            version: Some(version),
            key: append.key,
            turn: accepted,
            quota: self.shared.quota,
        };
        // Known before it is durable, so that whoever sees it in the store finds it here.
        let live = Arc::new(Live::new(turn, Vec::new()));
        self.shared.running().insert(turn, Arc::clone(&live));
        let begun = match self.shared.store.begin(tenant, id, begin).await {
            Ok(begun) if begun.turn.id == turn => begun.turn,
            other => {
                self.shared.running().remove(&turn);
                live.end(Err(Failure::new(Reason::Unavailable, "the turn was not accepted")));
                return self.read(tenant, id, other?.turn, 0).await;
            }
        };
        let engine = &self.shared.engine;
        let stream = match engine.replay(&begun.accepted, &[]) {
            Ok(nothing) => engine.run_turn(turn, &begun.accepted, tenant, nothing).await,
            Err(failure) => Err(failure),
        };
        let stream = match stream {
            Ok(stream) => Some(stream),
            Err(failure) => match self.shared.store.discard(turn).await {
                Ok(()) => {
                    self.shared.no_longer_runs(&live);
                    live.end(Err(failure.clone()));
                    return Err(failure);
                }
                // What cannot be taken back is accepted, and waits to begin.
                Err(error) => {
                    tracing::warn!(%turn, %error, why = %failure, "a refused turn cannot be taken back");
                    None
                }
            },
        };
        engine.metrics().sessions.turn(differs);
        self.run(Arc::clone(&live), tenant.to_owned(), begun.accepted.clone(), stream);
        Ok(Reading { session: id, turn: begun, from: 0, news: Box::pin(live.read(0)) })
    }

    /// The turn with everything that its answer depends on.
    async fn resolve(&self, tenant: &str, session: &Session, append: &Append) -> Result<NewTurn, Failure> {
        let engine = &self.shared.engine;
        let pipeline = engine.pipeline()?;
        let turns = self.all_turns(tenant, session).await?;
        let last = turns.last().map(|turn| &turn.accepted.checkpoint_id);
        let before = last.unwrap_or(&session.settings.checkpoint_id);
        if *before != pipeline.checkpoint_id && !append.accept_other_checkpoint {
            let now = &pipeline.checkpoint_id;
            let message =
                format!("checkpoint {before} answered session {} so far, and {now} is served", session.id);
            return Err(Failure::new(Reason::FailedPrecondition, message));
        }
        let sampling = over(&append.sampling, &session.settings.sampling.clone().unwrap_or_default());
        let stopping =
            over_stopping(&append.stopping, &session.settings.stopping.clone().unwrap_or_default());
        let room = Room { context: pipeline.max_context, max_tokens: stopping.max_tokens };
        let (text, settings, messages) =
            (Arc::clone(engine.text()), session.settings.clone(), append.messages.clone());
        let prompt = blocking(move || {
            Conversation { settings: &settings, turns: &turns, messages: &messages }.prompt(&text, room)
        });
        let Prompt { ids, dropped_turns, differs_at } = prompt.await?;
        let (sampling, stopping) = engine.resolve_turn(&sampling, stopping, &ids)?;
        Ok(NewTurn {
            messages: append.messages.clone(),
            prompt_ids: ids,
            sampling: Some(sampling),
            stopping: Some(stopping),
            checkpoint_id: pipeline.checkpoint_id,
            compute: pipeline.compute.to_owned(),
            dropped_turns,
            history_differs_at: differs_at,
            priority: append.priority.unwrap_or_default(),
            accepted_ms: now_ms(),
        })
    }

    async fn all_turns(&self, tenant: &str, session: &Session) -> Result<Vec<Turn>, Failure> {
        let mut turns = Vec::with_capacity(session.turns as usize);
        while (turns.len() as u32) < session.turns {
            let page = self.shared.store.turns(tenant, session.id, turns.len() as u32, PAGE).await?;
            if page.is_empty() {
                break; // Truncated meanwhile: the version will tell.
            }
            turns.extend(page);
        }
        Ok(turns)
    }
}

/// Refuses a key that is too long.
pub(super) fn check_key(key: &str) -> Result<(), Failure> {
    if key.len() > LONGEST_KEY {
        let message = format!("the key has {} bytes, more than {LONGEST_KEY}", key.len());
        return Err(Failure::invalid("idempotency_key", message));
    }
    Ok(())
}

/// A request's fields over those of its session.
fn over(request: &v1::Sampling, session: &v1::Sampling) -> v1::Sampling {
    let bias = if request.logit_bias.is_empty() { session } else { request };
    v1::Sampling {
        do_sample: request.do_sample.or(session.do_sample),
        temperature: request.temperature.or(session.temperature),
        top_k: request.top_k.or(session.top_k),
        top_p: request.top_p.or(session.top_p),
        min_p: request.min_p.or(session.min_p),
        repetition_penalty: request.repetition_penalty.or(session.repetition_penalty),
        presence_penalty: request.presence_penalty.or(session.presence_penalty),
        frequency_penalty: request.frequency_penalty.or(session.frequency_penalty),
        logit_bias: bias.logit_bias.clone(),
        seed: request.seed.or(session.seed),
    }
}

fn over_stopping(request: &v1::Stopping, session: &v1::Stopping) -> v1::Stopping {
    let stop = if request.stop.is_empty() { session } else { request };
    let ids = if request.stop_token_ids.is_empty() { session } else { request };
    v1::Stopping {
        max_tokens: request.max_tokens.or(session.max_tokens),
        stop: stop.stop.clone(),
        stop_token_ids: ids.stop_token_ids.clone(),
        ignore_eos: request.ignore_eos || session.ignore_eos,
    }
}
