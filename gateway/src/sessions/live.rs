//! A turn that runs, as its readers see it: all that was told so far, and what follows as it comes.
//!
//! Readers come and go. Each begins at a token of its own choice, and gets what came meanwhile as one delta. What is kept is
//! the answer itself, so it is bounded by the turn's most tokens.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use asterism_proto::{Failure, v1};
use futures::Stream;
use futures::stream::unfold;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::record::TurnId;

/// A turn that runs.
#[derive(Debug)]
pub struct Live {
    /// Its name.
    pub turn: TurnId,
    /// Cancelled where its owner wants no more of it.
    pub stop: CancellationToken,
    /// Cancelled where it is not to go on from here.
    pub taken: CancellationToken,
    log: Mutex<Log>,
    /// Counts what was added.
    news: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Log {
    /// One a token; the last may have none.
    deltas: Vec<v1::Delta>,
    end: Option<Result<v1::TurnFinished, Failure>>,
}

/// What a reader gets of a turn.
#[derive(Clone, Debug, PartialEq)]
pub enum News {
    /// Tokens, and the text that became certain with them.
    Delta(v1::Delta),
    /// The last.
    Finished(v1::TurnFinished),
}

impl Live {
    /// A turn with what was told of it before.
    pub fn new(turn: TurnId, deltas: Vec<v1::Delta>) -> Self {
        let log = Mutex::new(Log { deltas, end: None });
        let (stop, taken) = (CancellationToken::new(), CancellationToken::new());
        Self { turn, stop, taken, log, news: watch::Sender::new(0) }
    }

    /// Tells its readers of the next token.
    pub fn tell(&self, delta: v1::Delta) {
        self.log().deltas.push(delta);
        self.news.send_modify(|count| *count += 1);
    }

    /// Tells its readers of the end, or why they get no more here.
    pub fn end(&self, end: Result<v1::TurnFinished, Failure>) {
        self.log().end.get_or_insert(end);
        self.news.send_modify(|count| *count += 1);
    }

    /// Returns once its readers heard of an end.
    pub async fn ended(&self) {
        let mut news = self.news.subscribe();
        // Its sender lives here.
        let _ = news.wait_for(|_| self.log().end.is_some()).await;
    }

    /// The ids so far.
    pub fn token_ids(&self) -> Vec<u32> {
        self.log().deltas.iter().flat_map(|delta| &delta.token_ids).copied().collect()
    }

    /// The text so far.
    pub fn text(&self) -> String {
        self.log().deltas.iter().map(|delta| delta.text.as_str()).collect()
    }

    /// What follows its first `from` tokens, those included that are still to come.
    pub fn read(self: Arc<Self>, from: u32) -> impl Stream<Item = Result<News, Failure>> + Send {
        let news = self.news.subscribe();
        let at = Some(usize::try_from(from).unwrap_or(usize::MAX));
        unfold((self, news, at), |(live, mut news, at)| async move {
            let mut at = at?;
            loop {
                // Seen before the log is, so that nothing is missed.
                news.borrow_and_update();
                let next = live.log().next(&mut at);
                match next {
                    Some(Ok(told)) => {
                        let at = matches!(told, News::Delta(_)).then_some(at);
                        return Some((Ok(told), (live, news, at)));
                    }
                    Some(Err(failure)) => return Some((Err(failure), (live, news, None))),
                    // Its sender lives in the turn that is held here.
                    None => news.changed().await.ok()?,
                }
            }
        })
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Log {
    /// What a reader of the first `at` entries gets next.
    fn next(&self, at: &mut usize) -> Option<Result<News, Failure>> {
        if let Some(new) = self.deltas.get(*at..).filter(|new| !new.is_empty()) {
            *at = self.deltas.len();
            return Some(Ok(News::Delta(joined(new))));
        }
        Some(self.end.clone()?.map(News::Finished))
    }
}

/// Deltas as one.
pub fn joined(deltas: &[v1::Delta]) -> v1::Delta {
    v1::Delta {
        token_ids: deltas.iter().flat_map(|delta| &delta.token_ids).copied().collect(),
        text: deltas.iter().map(|delta| delta.text.as_str()).collect(),
        logprobs: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt as _, StreamExt as _};

    use super::*;

    fn delta(id: u32) -> v1::Delta {
        v1::Delta { token_ids: vec![id], text: format!("{id} "), ..v1::Delta::default() }
    }

    fn ids(news: Option<Result<News, Failure>>) -> Vec<u32> {
        match news {
            Some(Ok(News::Delta(delta))) => delta.token_ids,
            other => panic!("{other:?} is no delta"),
        }
    }

    #[tokio::test]
    async fn a_reader_gets_what_it_lacks_and_what_comes() {
        let live = Arc::new(Live::new(TurnId::fresh(), vec![delta(5), delta(6)]));
        let mut late = Box::pin(Arc::clone(&live).read(1));
        let mut ahead = Box::pin(Arc::clone(&live).read(4));
        assert_eq!(ids(late.next().await), [6]);
        assert!(late.next().now_or_never().is_none() && ahead.next().now_or_never().is_none());
        for id in [7, 8, 9] {
            live.tell(delta(id));
        }
        assert_eq!(ids(late.next().await), [7, 8, 9]);
        assert_eq!(ids(ahead.next().await), [9], "its reader has more than was told here");
        live.end(Ok(v1::TurnFinished::default()));
        live.end(Err(Failure::invalid("x", "the first end counts")));
        for reader in [&mut late, &mut ahead] {
            assert_eq!(reader.next().await, Some(Ok(News::Finished(v1::TurnFinished::default()))));
            assert_eq!(reader.next().await, None);
        }
        assert_eq!((live.token_ids(), live.text()), (vec![5, 6, 7, 8, 9], "5 6 7 8 9 ".to_owned()));
    }
}
