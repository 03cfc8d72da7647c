//! One request's answer on its way from the driver to its reader.
//!
//! The buffer holds the whole remaining answer, so the driver never waits for a reader. A reader that leaves it lying
//! until it passes [`BYTE_LIMIT`] loses it: the stream ends RESOURCE_EXHAUSTED.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use asterism_proto::v1::generate_response::Event;
use asterism_proto::{Failure, Reason, v1};
use futures::Stream;
use prost::Message;
use tokio::sync::mpsc;

use super::cancel::CancelOnDrop;
use crate::text::ModelText;

/// The most bytes that may wait for one reader.
pub const BYTE_LIMIT: usize = 16 << 20;

/// The events of one answer: [`v1::Started`], deltas, [`v1::Finished`], or a failure in the place of what is left.
/// Dropping it cancels the request.
#[derive(Debug)]
pub struct AnswerStream {
    reader: AnswerReader,
    begun: bool,
    /// All ids so far.
    ids: Vec<u32>,
    events: mpsc::Receiver<Buffered>,
    waiting_bytes: Arc<AtomicUsize>,
    /// Gone once the answer is over.
    cancel: Option<CancelOnDrop>,
}

/// What the reader's side knows of an answer from the start, and adds at its end, so that the driver need not.
#[derive(Debug)]
pub struct AnswerReader {
    /// Cuts the response.
    pub text: Arc<ModelText>,
    /// The prompt's ids.
    pub prompt: Arc<[u32]>,
    /// The answer's first ids, which are not told here.
    pub given: Vec<u32>,
    /// The first event.
    pub started: v1::Started,
}

/// The driver's end of an [`AnswerStream`].
#[derive(Clone, Debug)]
pub struct AnswerSender {
    events: mpsc::Sender<Buffered>,
    waiting_bytes: Arc<AtomicUsize>,
    broken: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Buffered {
    event: Result<Event, Failure>,
    bytes: usize,
}

/// Why an answer cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Undeliverable {
    /// The reader is gone.
    Gone,
    /// The reader is too slow, and was told so.
    Full,
}

/// Both ends of an answer of at most `max_tokens` tokens.
pub fn answer(reader: AnswerReader, max_tokens: u32, cancel: CancelOnDrop) -> (AnswerSender, AnswerStream) {
    // A delta for each token and one for an abort, the end, and a failure. The channel grows as it is used.
    let most = usize::try_from(max_tokens).unwrap_or(usize::MAX).saturating_add(3);
    let (sender, events) = mpsc::channel(most.min(tokio::sync::Semaphore::MAX_PERMITS));
    let waiting_bytes = Arc::new(AtomicUsize::new(0));
    let broken = Arc::default();
    let sender = AnswerSender { events: sender, waiting_bytes: Arc::clone(&waiting_bytes), broken };
    let ids = reader.given.clone();
    (sender, AnswerStream { reader, begun: false, ids, events, waiting_bytes, cancel: Some(cancel) })
}

// === impl AnswerSender ===

impl AnswerSender {
    /// Buffers an event.
    ///
    /// # Errors
    /// Nobody will read it.
    pub fn send(&self, event: Event) -> Result<(), Undeliverable> {
        let bytes = match &event {
            Event::Started(started) => started.encoded_len(),
            Event::Delta(delta) => delta.encoded_len(),
            Event::Finished(finished) => finished.encoded_len(),
        };
        let waiting = self.waiting_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if waiting > BYTE_LIMIT {
            let message = format!("more than {BYTE_LIMIT} bytes of the answer were not read in time");
            self.fail(Failure::exhausted(message, Duration::from_secs(1)));
            return Err(Undeliverable::Full);
        }
        self.events.try_send(Buffered { event: Ok(event), bytes }).map_err(|_| Undeliverable::Gone)
    }

    /// Ends the answer with a failure that whoever writes it does not know of, so that nothing comes after.
    pub fn break_off(&self, failure: Failure) {
        self.broken.store(true, Ordering::Relaxed);
        self.fail(failure);
    }

    /// Whether it was broken off.
    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    /// Ends the answer with a failure.
    pub fn fail(&self, failure: Failure) {
        // Fails only where nobody reads any more.
        let _ = self.events.try_send(Buffered { event: Err(failure), bytes: 0 });
    }
}

// === impl AnswerStream ===

impl AnswerStream {
    /// What is known from the start.
    pub fn started(&self) -> &v1::Started {
        &self.reader.started
    }

    /// Keeps the ids, and completes the end with the response that they make.
    fn complete(&mut self, event: &mut Event) {
        match event {
            Event::Started(_) => {}
            Event::Delta(delta) => self.ids.extend(&delta.token_ids),
            Event::Finished(finished) => {
                finished.response = self.reader.text.response(&self.reader.prompt, &self.ids);
            }
        }
    }
}

impl Stream for AnswerStream {
    type Item = Result<Event, Failure>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if !self.begun {
            self.begun = true;
            return Poll::Ready(Some(Ok(Event::Started(self.reader.started.clone()))));
        }
        if self.cancel.is_none() {
            return Poll::Ready(None);
        }
        let mut event = match std::task::ready!(self.events.poll_recv(context)) {
            Some(Buffered { event, bytes }) => {
                self.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
                event
            }
            None => Err(Failure::new(Reason::Unavailable, "the gateway stopped before the answer's end")),
        };
        if let Ok(event) = &mut event {
            self.complete(event);
        }
        if matches!(event, Err(_) | Ok(Event::Finished(_)))
            && let Some(cancel) = self.cancel.take()
        {
            cancel.disarm();
        }
        Poll::Ready(Some(event))
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, StreamExt};

    use super::super::cancel::Cancelled;
    use super::*;
    use crate::text::{ChatTemplate, GenerationDefaults};

    fn ends(cancelled: &Cancelled) -> (AnswerSender, AnswerStream) {
        let defaults = GenerationDefaults::default();
        let text = ModelText { tokenizer: None, template: ChatTemplate::Missing, defaults };
        let reader = AnswerReader {
            text: Arc::new(text),
            prompt: Arc::from([1]),
            given: Vec::new(),
            started: v1::Started::default(),
        };
        answer(reader, 100, cancelled.guard(7))
    }

    fn delta(bytes: usize) -> Event {
        Event::Delta(v1::Delta { text: "x".repeat(bytes), ..v1::Delta::default() })
    }

    fn next(stream: &mut AnswerStream) -> Option<Result<Event, Failure>> {
        stream.next().now_or_never().expect("it does not wait")
    }

    #[test]
    fn a_dropped_stream_cancels_unless_its_answer_is_over() {
        let cancelled = Cancelled::default();
        let (sender, stream) = ends(&cancelled);
        drop(stream);
        assert_eq!(cancelled.take(), [7]);
        assert_eq!(sender.send(delta(1)), Err(Undeliverable::Gone));

        let (sender, mut stream) = ends(&cancelled);
        sender.send(Event::Finished(v1::Finished::default())).unwrap();
        assert!(matches!(next(&mut stream), Some(Ok(Event::Started(_)))));
        assert!(matches!(next(&mut stream), Some(Ok(Event::Finished(_)))));
        assert_eq!(next(&mut stream), None);
        drop(stream);
        assert!(cancelled.take().is_empty());
    }

    #[test]
    fn a_reader_that_leaves_too_much_lying_loses_the_rest() {
        let (sender, mut stream) = ends(&Cancelled::default());
        let half = BYTE_LIMIT / 2;
        sender.send(delta(half)).unwrap();
        assert!(matches!(next(&mut stream), Some(Ok(Event::Started(_)))));
        assert!(matches!(next(&mut stream), Some(Ok(Event::Delta(_)))));
        sender.send(delta(half)).unwrap(); // What was read does not count.
        assert_eq!(sender.send(delta(half)), Err(Undeliverable::Full));
        assert!(matches!(next(&mut stream), Some(Ok(Event::Delta(_)))));
        assert_eq!(next(&mut stream).unwrap().unwrap_err().reason, Reason::Exhausted);
        assert_eq!(next(&mut stream), None);
    }

    #[test]
    fn an_answer_that_nobody_writes_any_more_fails() {
        let (sender, mut stream) = ends(&Cancelled::default());
        drop(sender);
        assert!(matches!(next(&mut stream), Some(Ok(Event::Started(_)))));
        assert_eq!(next(&mut stream).unwrap().unwrap_err().reason, Reason::Unavailable);
    }
}
