//! Reading a turn that does not run here: another gateway has it, or nobody yet. What is in the journal is told at once, what
//! follows as it is seen there, and then the end, so that its reader does not see where it runs.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use asterism_proto::{Failure, Reason};
use futures::StreamExt as _;
use futures::stream::{BoxStream, unfold};

use super::live::{self, News};
use super::turn::SHUTTING_DOWN;
use super::{SessionId, Sessions, Turn};
use crate::driver::PipelineState;

/// How often it is looked for news of a turn.
const PAUSE: Duration = Duration::from_millis(200);

/// A reader of a turn that does not run here.
#[derive(Debug)]
pub struct Following {
    sessions: Sessions,
    tenant: String,
    session: SessionId,
    /// As it was when it was looked for.
    turn: Turn,
    /// The ids that were seen.
    token_ids: Vec<u32>,
    /// How many the reader has.
    at: u32,
    /// It is not the first look.
    looked: bool,
}

/// What is found of a turn.
enum Found {
    /// Perhaps more of it; it goes on elsewhere.
    More(Option<News>),
    /// It runs here: the rest comes from there.
    Here(BoxStream<'static, Result<News, Failure>>),
    /// The rest.
    End(VecDeque<News>),
}

/// What a reader gets next.
enum Next {
    Look(Box<Following>),
    Rest(BoxStream<'static, Result<News, Failure>>),
}

impl Following {
    /// Of a turn, from a token on.
    pub fn new(sessions: Sessions, tenant: &str, session: SessionId, (turn, from): (&Turn, u32)) -> Self {
        let (tenant, turn) = (tenant.to_owned(), turn.clone());
        Self { sessions, tenant, session, turn, token_ids: Vec::new(), at: from, looked: false }
    }

    /// All that comes of it.
    pub fn news(self) -> BoxStream<'static, Result<News, Failure>> {
        let first = Some(Next::Look(Box::new(self)));
        let news = unfold(first, |next| async move {
            let mut following = match next? {
                Next::Look(following) => following,
                Next::Rest(mut rest) => return Some((rest.next().await?, Some(Next::Rest(rest)))),
            };
            if std::mem::replace(&mut following.looked, true)
                && let Err(failure) = following.pause().await
            {
                return Some((Err(failure), None));
            }
            loop {
                let mut rest = match following.look().await {
                    Ok(Found::More(Some(news))) => return Some((Ok(news), Some(Next::Look(following)))),
                    Ok(Found::More(None)) => match following.pause().await {
                        Ok(()) => continue,
                        Err(failure) => return Some((Err(failure), None)),
                    },
                    Ok(Found::Here(rest)) => rest,
                    Ok(Found::End(rest)) => futures::stream::iter(rest).map(Ok).boxed(),
                    Err(failure) => return Some((Err(failure), None)),
                };
                return Some((rest.next().await?, Some(Next::Rest(rest))));
            }
        });
        news.boxed()
    }

    async fn look(&mut self) -> Result<Found, Failure> {
        let shared = &self.sessions.shared;
        let live = shared.running().get(&self.turn.id).map(Arc::clone);
        if let Some(live) = live {
            return Ok(Found::Here(live.read(self.at).boxed()));
        }
        let seen = u32::try_from(self.token_ids.len()).unwrap_or(u32::MAX);
        if let Some(more) = shared.store.tokens(self.turn.id, seen).await? {
            self.token_ids.extend(more);
            return Ok(Found::More(self.untold()?));
        }
        let turns = shared.store.turns(&self.tenant, self.session, self.turn.index, 1).await?;
        let Some(turn) = turns.into_iter().find(|turn| turn.id == self.turn.id) else {
            let message = format!("turn {} of session {} is gone", self.turn.index, self.session);
            return Err(Failure::new(Reason::NotFound, message));
        };
        // Without an end it is just about to run here.
        let Some(answer) = &turn.answer else { return Ok(Found::More(None)) };
        let rest = self.sessions.whole(&self.tenant, self.session, (&turn, answer), self.at).await?;
        Ok(Found::End(rest.into()))
    }

    /// Lets a while pass, unless the gateway ends.
    async fn pause(&self) -> Result<(), Failure> {
        let mut state = self.sessions.shared.engine.state();
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => Ok(()),
            _ = state.wait_for(|state| *state == PipelineState::Leaving) => {
                Err(Failure::new(Reason::Unavailable, SHUTTING_DOWN))
            }
        }
    }

    /// What was seen and not told. An answer is replayed from its first token, so not more often than looked.
    fn untold(&mut self) -> Result<Option<News>, Failure> {
        let seen = u32::try_from(self.token_ids.len()).unwrap_or(u32::MAX);
        if seen <= self.at {
            return Ok(None);
        }
        let told = self.sessions.shared.engine.replay(&self.turn.accepted, &self.token_ids)?;
        let rest = told.deltas.get(self.at as usize..).unwrap_or_default();
        self.at = seen;
        Ok(Some(News::Delta(live::joined(rest))))
    }
}
