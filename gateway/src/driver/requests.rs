//! The requests that wait or run, by sequence and by the id that their callers know.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

use asterism_proto::v1::generate_response::Event;
use asterism_proto::{Failure, Reason, v1};

use super::answer::{AnswerReader, AnswerSender, AnswerStream, answer};
use super::cancel::Cancelled;
use super::journal::{self, Batch, Entry, Outbox, Place};
use super::writer::Writer;
use crate::metrics::{Metrics, RequestRecord};
use crate::sampler::{Sampling, Token};
use crate::scheduler::{SequenceId, Step, TenantId};
use crate::sessions::TurnId;
use crate::text::ModelText;

/// A checked request.
#[derive(Clone, Debug)]
pub struct NewRequest {
    /// By which its caller can abort it.
    pub id: String,
    /// The model's name, for the caller.
    pub model: String,
    /// The prompt's ids.
    pub prompt: Arc<[u32]>,
    /// The first ids of its answer, drawn before: they are not told again, and meet no end.
    pub given: Vec<u32>,
    /// The turn in whose journal its tokens are before they are told; `None`: in none.
    pub journal: Option<TurnId>,
    /// How its tokens are drawn.
    pub sampling: Sampling,
    /// Writes its answer; stands after the given ids.
    pub writer: Writer,
    /// The most tokens of its answer.
    pub max_tokens: u32,
    /// On whose account it runs.
    pub tenant: TenantId,
    /// Higher goes first among one tenant's.
    pub priority: i32,
    /// When its answer is not wanted any more.
    pub deadline: Option<Instant>,
    /// Whether it shares no blocks with others.
    pub bypass_cache: bool,
    /// Whether no ids are proposed that may follow.
    pub bypass_speculation: bool,
}

/// A request that waits or runs.
#[derive(Debug)]
pub struct Request {
    /// By which its caller knows it.
    pub id: String,
    /// How its tokens are drawn.
    pub sampling: Sampling,
    /// How many candidates its evidence holds.
    pub top_k: u32,
    /// Its times and spans.
    pub record: RequestRecord,
    writer: Writer,
    answer: AnswerSender,
    /// If its tokens are journaled.
    journal: Option<Place>,
    /// Its tokens in [`Requests::unwritten`].
    unwritten: u32,
}

/// What becomes of a sequence after a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivered {
    /// Another token is wanted.
    Continues,
    /// Its answer is over.
    Over,
}

/// All requests that wait or run.
pub struct Requests {
    text: Arc<ModelText>,
    by_sequence: BTreeMap<SequenceId, Request>,
    by_id: HashMap<String, SequenceId>,
    last: SequenceId,
    cancelled: Cancelled,
    /// Drawn tokens that are written once the next step is on its way: whether another follows is known without their text.
    unwritten: Vec<(SequenceId, Token)>,
    /// What readers are to get then.
    unsent: Vec<Unsent>,
    /// Sequences that nobody will read on.
    unread: Vec<SequenceId>,
    metrics: Arc<Metrics>,
    /// The same, of journaled answers.
    batch: Batch,
    journal: Option<Outbox>,
    /// Tokens drawn since the last flush.
    drawn: u64,
    /// When the first of them was.
    drawing_since: Option<Instant>,
}

/// An event that waits for [`Requests::flush`].
struct Unsent {
    sequence: SequenceId,
    answer: AnswerSender,
    event: Event,
}

impl Requests {
    /// None yet, for a model.
    pub fn new(text: Arc<ModelText>, metrics: Arc<Metrics>) -> Self {
        Self {
            text,
            by_sequence: BTreeMap::new(),
            by_id: HashMap::new(),
            last: 0,
            cancelled: Cancelled::default(),
            unwritten: Vec::new(),
            unsent: Vec::new(),
            unread: Vec::new(),
            batch: Batch::new(),
            journal: None,
            metrics,
            drawn: 0,
            drawing_since: None,
        }
    }

    /// With a journal, for answers that want one.
    pub fn journaled(self, journal: Outbox) -> Self {
        Self { journal: Some(journal), ..self }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.by_sequence.is_empty()
    }

    /// Those whose readers went away.
    pub fn cancelled(&self) -> &Cancelled {
        &self.cancelled
    }

    /// The sequence of a request's id.
    pub fn sequence(&self, id: &str) -> Option<SequenceId> {
        self.by_id.get(id).copied()
    }

    /// The request of a sequence.
    pub fn get(&self, sequence: SequenceId) -> Option<&Request> {
        self.by_sequence.get(&sequence)
    }

    /// The same, to change it.
    pub fn get_mut(&mut self, sequence: SequenceId) -> Option<&mut Request> {
        self.by_sequence.get_mut(&sequence)
    }

    /// A name for a sequence, never given before.
    pub fn next_sequence(&mut self) -> SequenceId {
        self.last += 1;
        self.last
    }

    /// Takes a request in under its sequence's name.
    pub fn insert(
        &mut self,
        sequence: SequenceId,
        (new, mut record): (NewRequest, RequestRecord),
        top_k: u32,
    ) -> AnswerStream {
        let prompt_tokens = u32::try_from(new.prompt.len()).unwrap_or(u32::MAX);
        record.queued(&new.id, prompt_tokens, new.given.len());
        let started = v1::Started {
            request_id: new.id.clone(),
            model: new.model,
            prompt_tokens,
            seed: new.sampling.seed(),
        };
        let (text, prompt) = (Arc::clone(&self.text), Arc::clone(&new.prompt));
        let reader = AnswerReader { text, prompt, given: new.given.clone(), started };
        let (sender, stream) = answer(reader, new.max_tokens, self.cancelled.guard(sequence));
        let tokens = u32::try_from(new.given.len()).unwrap_or(u32::MAX);
        let request = Request {
            id: new.id.clone(),
            sampling: new.sampling,
            top_k,
            record,
            writer: new.writer,
            answer: sender,
            journal: new.journal.map(|turn| Place { turn, tokens }),
            unwritten: 0,
        };
        self.by_id.insert(new.id, sequence);
        self.by_sequence.insert(sequence, request);
        stream
    }

    /// Forgets a request whose answer is over.
    pub fn remove(&mut self, sequence: SequenceId) -> Option<Request> {
        let request = self.by_sequence.remove(&sequence)?;
        self.by_id.remove(&request.id);
        Some(request)
    }

    /// Forgets a request that nobody reads on. One that was broken off is none that its caller left.
    pub fn drop_unread(&mut self, sequence: SequenceId) {
        if let Some(mut request) = self.remove(sequence)
            && request.answer.is_broken()
        {
            request.record.broken_off();
        }
    }

    /// Notes whose first rows are in a step that goes out.
    pub fn planned(&mut self, step: &Step, now: Instant) {
        let rows: usize = step.spans.iter().map(|span| span.token_ids.len()).sum();
        if rows > 0 {
            self.metrics.step_rows.observe(rows as f64);
        }
        for span in step.spans.iter().filter(|span| span.start.is_some()) {
            if let Some(request) = self.by_sequence.get_mut(&span.sequence) {
                request.record.planned(now);
                request.writer.begins(span.first_position);
            }
        }
    }

    /// Takes a drawn token for its reader, who gets it with the next [`Requests::flush`]: what a card waits for goes first. A
    /// request that is over with it is forgotten.
    pub fn deliver(&mut self, sequence: SequenceId, token: Token) -> Delivered {
        let Some(request) = self.by_sequence.get_mut(&sequence) else { return Delivered::Over };
        self.drawn += 1;
        self.drawing_since.get_or_insert_with(Instant::now);
        if request.writer.continues(token.id, request.unwritten) {
            request.unwritten += 1;
            self.unwritten.push((sequence, token));
            return Delivered::Continues;
        }
        self.write_drawn();
        self.write(sequence, token)
    }

    /// Writes what was drawn and is not written yet.
    fn write_drawn(&mut self) {
        let mut drawn = std::mem::take(&mut self.unwritten);
        for (sequence, token) in drawn.drain(..) {
            self.write(sequence, token);
        }
        self.unwritten = drawn;
    }

    /// Writes a token.
    fn write(&mut self, sequence: SequenceId, token: Token) -> Delivered {
        // A request whose reader left meanwhile is gone.
        let Some(request) = self.by_sequence.get_mut(&sequence) else { return Delivered::Over };
        request.unwritten = 0;
        request.record.token(*self.drawing_since.get_or_insert_with(Instant::now));
        let logprobs = token.logprobs.map(|logprobs| {
            let told = |(token_id, logprob)| v1::Logprob {
                token_id,
                logprob,
                token: token_bytes(&self.text, token_id).into(),
            };
            v1::TokenLogprob {
                chosen: Some(told((token.id, logprobs.chosen))),
                best: logprobs.best.into_iter().map(told).collect(),
            }
        });
        let written = request.writer.token(token.id, logprobs);
        let over = written.finished.is_some();
        if let Some(finished) = &written.finished {
            request.record.finished(finished);
        }
        let events = written.into_events();
        match &mut request.journal {
            Some(place) => place.add(&mut self.batch, (sequence, &request.answer), token.id, events),
            None => {
                let answer = &request.answer;
                self.unsent.extend(events.map(|event| Unsent { sequence, answer: answer.clone(), event }));
            }
        }
        if !over {
            return Delivered::Continues;
        }
        self.remove(sequence);
        Delivered::Over
    }

    /// How much waits for [`Requests::flush`].
    pub fn unflushed(&self) -> usize {
        self.unwritten.len() + self.unsent.len() + self.batch.len()
    }

    /// Hands readers what was written for them, and returns the sequences that nobody will read on: their readers are gone, or
    /// too slow and were told so.
    #[must_use]
    pub fn flush(&mut self) -> Vec<SequenceId> {
        self.hand_over();
        std::mem::take(&mut self.unread)
    }

    fn hand_over(&mut self) {
        self.write_drawn();
        if self.drawing_since.take().is_some() {
            self.metrics.generation_tokens.inc_by(std::mem::take(&mut self.drawn));
        }
        if let Some(journal) = &self.journal
            && !self.batch.is_empty()
        {
            journal.put(&mut self.batch);
        }
        for Unsent { sequence, answer, event } in self.unsent.drain(..) {
            if answer.send(event).is_err() {
                self.unread.push(sequence);
            }
        }
    }

    /// Ends a request with what it has, at its caller's wish.
    pub fn abort(&mut self, sequence: SequenceId) {
        self.write_drawn();
        if let Some(mut request) = self.remove(sequence) {
            let written = request.writer.abort();
            if let Some(finished) = &written.finished {
                request.record.finished(finished);
            }
            self.end(sequence, request, written.into_events().map(Ok).collect());
        }
    }

    /// Ends a request with a failure.
    pub fn fail(&mut self, sequence: SequenceId, failure: Failure) {
        self.write_drawn();
        if let Some(mut request) = self.remove(sequence) {
            request.record.failed(&failure);
            self.end(sequence, request, vec![Err(failure)]);
        }
    }

    /// Tells the last events of a request, after all that came before.
    fn end(&mut self, sequence: SequenceId, request: Request, events: Vec<Result<Event, Failure>>) {
        let answer = request.answer;
        if let Some(Place { turn, .. }) = request.journal {
            self.batch.push(Entry { sequence, answer, turn, tokens: None, events });
            self.hand_over();
        } else {
            self.hand_over();
            // A reader that is gone needs no end.
            journal::tell(&answer, events);
        }
    }

    /// Ends all requests with a failure; their sequences.
    pub fn fail_all(&mut self, reason: Reason, message: &str) -> Vec<SequenceId> {
        let sequences: Vec<_> = self.by_sequence.keys().copied().collect();
        for sequence in &sequences {
            self.fail(*sequence, Failure::new(reason, message));
        }
        sequences
    }
}

fn token_bytes(text: &ModelText, id: u32) -> Vec<u8> {
    text.tokenizer.as_ref().map_or_else(Vec::new, |tokenizer| tokenizer.token_bytes(id))
}
