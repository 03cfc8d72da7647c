//! A turn's answer, from some token on: as it comes while the turn runs, at once when it has ended.

use asterism_proto::{Failure, v1};
use futures::stream::BoxStream;
use futures::{StreamExt as _, stream};

use super::following::Following;
use super::live::{self, News};
use super::{Answer, SessionId, Sessions, Turn};

/// What a reader gets of a turn.
pub struct Reading {
    /// The session.
    pub session: SessionId,
    /// The turn.
    pub turn: Turn,
    /// How many of its tokens are left out.
    pub from: u32,
    /// The rest.
    pub news: BoxStream<'static, Result<News, Failure>>,
}

impl Sessions {
    /// What a turn, the last unless it is named, answers from a token on.
    ///
    /// # Errors
    /// NOT_FOUND, INVALID_ARGUMENT where the session has no such turn or its answer not as many tokens.
    pub async fn resume(
        &self,
        tenant: &str,
        id: SessionId,
        index: Option<u32>,
        from: u32,
    ) -> Result<Reading, Failure> {
        let turn = self.turn(tenant, id, index).await?;
        self.read(tenant, id, turn, from).await
    }

    /// A turn of a session, the last unless it is named.
    pub(super) async fn turn(
        &self,
        tenant: &str,
        id: SessionId,
        index: Option<u32>,
    ) -> Result<Turn, Failure> {
        let session = self.get(tenant, id).await?;
        let last = session.turns.checked_sub(1);
        let index = index.or(last).filter(|index| *index < session.turns);
        let turns = match index {
            Some(index) => self.shared.store.turns(tenant, id, index, 1).await?,
            None => Vec::new(),
        };
        turns.into_iter().next().ok_or_else(|| {
            Failure::invalid("turn", format!("session {id} has {} turns, counted from 0", session.turns))
        })
    }

    /// What a turn answers from a token on.
    pub(super) async fn read(
        &self,
        tenant: &str,
        id: SessionId,
        turn: Turn,
        from: u32,
    ) -> Result<Reading, Failure> {
        let mut turn = turn;
        if turn.answer.is_none() {
            let live = self.shared.running().get(&turn.id).cloned();
            if let Some(live) = live {
                return Ok(Reading { session: id, turn, from, news: live.read(from).boxed() });
            }
            // It has ended meanwhile, or does not run here.
            turn = self.turn(tenant, id, Some(turn.index)).await?;
        }
        let news = match &turn.answer {
            Some(answer) => {
                stream::iter(self.whole(tenant, id, (&turn, answer), from).await?).map(Ok).boxed()
            }
            None => Following::new(self.clone(), tenant, id, (&turn, from)).news(),
        };
        Ok(Reading { session: id, turn, from, news })
    }

    /// What a turn that has ended answers from a token on.
    pub(super) async fn whole(
        &self,
        tenant: &str,
        id: SessionId,
        (turn, answer): (&Turn, &Answer),
        from: u32,
    ) -> Result<Vec<News>, Failure> {
        let etag = self.get(tenant, id).await?.version.to_string();
        let (start, has) = (from as usize, answer.token_ids.len());
        if start > has {
            let message = format!("from_token_index is {from}, and the answer has {has} tokens");
            return Err(Failure::invalid("from_token_index", message));
        }
        let mut deltas = self.shared.engine.replay(&turn.accepted, &answer.token_ids)?.into_deltas();
        let rest = deltas.split_off(start.min(deltas.len()));
        let delta = (!rest.is_empty()).then(|| News::Delta(live::joined(&rest)));
        let (finished, failure) = (answer.finished.clone(), answer.failure.clone());
        let end = News::Finished(v1::TurnFinished { finished, etag, failure });
        Ok(delta.into_iter().chain([end]).collect())
    }
}
