//! One turn, from what is said to the end of its answer, through gateways that come and go.

use std::pin::pin;
use std::time::{Duration, Instant};

use asterism_proto::v1::turn_event::Event;
use asterism_proto::v1::{
    AppendTurnRequest, FinishReason, ResumeTurnRequest, StopTurnRequest, TurnEvent, TurnFinished,
};
use tokio::sync::watch;
use tonic::{Status, Streaming};

use super::ChatError;
use super::gateway::{Gateway, is_passing};
use super::printer::Printer;

/// Before a stream is opened again that broke without a token.
const BROKEN_AGAIN: Duration = Duration::from_secs(1);

/// Where a turn's answer comes from.
pub enum Source {
    /// It is said now.
    Said(Box<AppendTurnRequest>),
    /// It was said before, as this turn.
    Running(u32),
}

/// How a turn went.
#[derive(Clone, Debug, PartialEq)]
pub struct Turn {
    tokens: u32,
    took: Duration,
    /// How it ended.
    pub end: TurnEnd,
}

/// How a turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TurnEnd {
    /// With its answer.
    Finished(FinishReason),
    /// The user stopped it.
    Stopped,
    /// The user did not wait for its end.
    Left,
    /// The user did not wait until the gateway had it.
    Unsaid,
}

impl Turn {
    /// One that the gateway did not get.
    pub fn unsaid() -> Self {
        Self { tokens: 0, took: Duration::ZERO, end: TurnEnd::Unsaid }
    }
}

/// Prints a turn's answer to its end. The first Ctrl-C stops it, the second leaves it to go on alone.
///
/// # Errors
/// The gateway refuses the turn, or is away for long.
pub async fn follow(
    gateway: &Gateway,
    session: &str,
    source: Source,
    printer: &mut Printer,
) -> Result<Turn, ChatError> {
    let began = Instant::now();
    let (accepted, was_accepted) = watch::channel(None);
    let is_accepted = was_accepted.clone();
    let tokens = watch::Sender::new(0);
    let mut printed = Ok(());
    let answered = {
        let answer = Answer { gateway, session, printer: &mut *printer, accepted, tokens: tokens.clone() };
        let mut answer = pin!(answer.read(source));
        tokio::select! {
            finished = &mut answer => finished.map(|finished| Some((finished, false))),
            _ = tokio::signal::ctrl_c() => {
                let stop = stop(gateway, session, was_accepted);
                let stopped = async { tokio::try_join!(answer, stop) };
                tokio::select! {
                    stopped = stopped => stopped.map(|(finished, stopped)| Some((finished, stopped))),
                    _ = tokio::signal::ctrl_c() => Ok(None),
                }
            }
        }
    };
    if !matches!(answered, Err(ChatError::Output(_))) {
        printed = printer.end();
    }
    let seen = *tokens.borrow();
    let turn = match answered? {
        None if is_accepted.borrow().is_none() => Turn::unsaid(),
        None => Turn { tokens: seen, took: began.elapsed(), end: TurnEnd::Left },
        Some((TurnFinished { failure, .. }, _)) if !failure.is_empty() => {
            return Err(ChatError::Interrupted(failure));
        }
        Some((TurnFinished { finished, .. }, stopped)) => {
            let finished = finished.unwrap_or_default();
            let tokens = finished.usage.map_or(seen, |usage| usage.completion_tokens);
            let end = if stopped { TurnEnd::Stopped } else { TurnEnd::Finished(finished.reason()) };
            Turn { tokens, took: began.elapsed(), end }
        }
    };
    printed?;
    Ok(turn)
}

/// Stops the turn as soon as it is accepted. False: it had ended.
async fn stop(
    gateway: &Gateway,
    session: &str,
    mut accepted: watch::Receiver<Option<u32>>,
) -> Result<bool, ChatError> {
    let turn = match accepted.wait_for(Option::is_some).await {
        Ok(turn) => *turn,
        // It ended before it was accepted.
        Err(_) => return Ok(false),
    };
    let request = StopTurnRequest { session_id: session.to_owned(), turn };
    let call =
        gateway.insist(&request, async |sessions, request| sessions.stop_turn(request).await, |_| Ok(()));
    Ok(call.await?.stopped)
}

struct Answer<'a> {
    gateway: &'a Gateway,
    session: &'a str,
    printer: &'a mut Printer,
    /// The turn's number once it is accepted.
    accepted: watch::Sender<Option<u32>>,
    /// How many tokens came so far.
    tokens: watch::Sender<u32>,
}

impl Answer<'_> {
    async fn read(mut self, source: Source) -> Result<TurnFinished, ChatError> {
        let mut stream = match source {
            Source::Said(request) => self.say(*request).await?,
            Source::Running(turn) => self.resume(Some(turn)).await?,
        };
        let mut before = None;
        loop {
            let status = match stream.message().await {
                Ok(Some(event)) => match self.take(event)? {
                    Some(finished) => return Ok(finished),
                    None => continue,
                },
                Ok(None) => Status::unavailable("the stream ended early"),
                Err(status) => status,
            };
            if !is_passing(&status) {
                return Err(status.into());
            }
            self.printer.note(&waiting(&status))?;
            // Whatever breaks streams as soon as they open is not to be met as fast as it goes.
            let tokens = *self.tokens.borrow();
            if before.replace(tokens) == Some(tokens) {
                tokio::time::sleep(BROKEN_AGAIN).await;
            }
            let turn = *self.accepted.borrow();
            stream = self.resume(turn).await?;
        }
    }

    fn take(&mut self, event: TurnEvent) -> Result<Option<TurnFinished>, ChatError> {
        match event.event {
            Some(Event::Started(started)) => self.accepted.send_modify(|turn| *turn = Some(started.turn)),
            Some(Event::Delta(delta)) => {
                let more = u32::try_from(delta.token_ids.len()).unwrap_or(u32::MAX);
                self.tokens.send_modify(|tokens| *tokens = tokens.saturating_add(more));
                self.printer.print(&delta.text)?;
            }
            Some(Event::Finished(finished)) => return Ok(Some(finished)),
            None => {}
        }
        Ok(None)
    }

    async fn say(&mut self, request: AppendTurnRequest) -> Result<Streaming<TurnEvent>, ChatError> {
        let printer = &mut *self.printer;
        let call = self.gateway.insist(
            &request,
            async |sessions, request| sessions.append_turn(request).await,
            |status| printer.note(&waiting(status)),
        );
        call.await
    }

    /// Goes on after the tokens that came. Without the turn's number it is the session's last.
    async fn resume(&mut self, turn: Option<u32>) -> Result<Streaming<TurnEvent>, ChatError> {
        let from_token_index = *self.tokens.borrow();
        let request = ResumeTurnRequest { session_id: self.session.to_owned(), turn, from_token_index };
        let printer = &mut *self.printer;
        let call = self.gateway.insist(
            &request,
            async |sessions, request| sessions.resume_turn(request).await,
            |status| printer.note(&waiting(status)),
        );
        call.await
    }
}

/// What is shown while a call is made again.
pub fn waiting(status: &Status) -> String {
    format!("[waiting for the gateway: {}]", super::history::printable(&super::error::innermost(status)))
}

impl std::fmt::Display for Turn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seconds = self.took.as_secs_f64();
        if self.end == TurnEnd::Unsaid {
            return f.write_str("[the gateway may not have got it]");
        }
        write!(f, "[{} tokens in {seconds:.1} s", self.tokens)?;
        match self.end {
            TurnEnd::Left => f.write_str("; it goes on without you]"),
            TurnEnd::Unsaid => Ok(()),
            TurnEnd::Stopped => f.write_str(", stopped]"),
            TurnEnd::Finished(FinishReason::Length) => f.write_str(", cut at the length limit]"),
            TurnEnd::Finished(FinishReason::Aborted) => f.write_str(", aborted]"),
            TurnEnd::Finished(FinishReason::Interrupted) => f.write_str(", interrupted]"),
            TurnEnd::Finished(_) => f.write_str("]"),
        }
    }
}
