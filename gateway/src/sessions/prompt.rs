//! The prompt of a turn: the whole conversation before it, and what is said now. Pure.
//!
//! By default the conversation is written as one text and encoded at once, as the reference's `chat()` does. Where past answers
//! shall enter with the ids that they were drawn with, only what the template writes between them is encoded.

use asterism_proto::{Failure, Reason, v1};

use super::record::{Answer, HistoryOverflow, HistoryTokens, Settings, Turn};
use crate::text::{ChatMessage, ModelText};

/// The part of a context that is kept for an answer of which nobody says how long it may become: a quarter.
const OPEN_ANSWER: u32 = 4;

/// More ids than a template writes around the messages of a turn.
const MARKS: usize = 64;

/// A conversation, up to what is said now.
#[derive(Clone, Copy, Debug)]
pub struct Conversation<'a> {
    /// What its session was made with.
    pub settings: &'a Settings,
    /// All turns before; each has its answer.
    pub turns: &'a [Turn],
    /// What is said now.
    pub messages: &'a [v1::Message],
}

/// Where a prompt must fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// The longest prompt plus answer, in tokens.
    pub context: u32,
    /// The most tokens of the answer, if that is said.
    pub max_tokens: Option<u32>,
}

/// A turn's prompt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prompt {
    /// Its ids.
    pub ids: Vec<u32>,
    /// How many of the oldest turns it leaves out.
    pub dropped_turns: u32,
    /// The first id that differs from prompt and answer of the turn before, whose blocks are then not found from there on.
    pub differs_at: Option<u32>,
}

impl Conversation<'_> {
    /// The prompt, within its room.
    ///
    /// # Errors
    /// INVALID_ARGUMENT: the messages are none that the template can write, or nothing that fits is left.
    /// FAILED_PRECONDITION: the template does not write past answers as they were drawn.
    pub fn prompt(&self, text: &ModelText, room: Room) -> Result<Prompt, Failure> {
        if self.messages.is_empty() {
            return Err(Failure::invalid("messages", "nothing is said"));
        }
        let most = room.prompt();
        let drops = self.settings.history_overflow() == HistoryOverflow::DropOldestTurns;
        let mut dropped = 0;
        let ids = loop {
            let ids = self.without(dropped).ids(text)?;
            if !drops || ids.len() <= most as usize || dropped == self.turns.len() {
                break ids;
            }
            // Conversations are long where this is needed, so it is worth to guess: no turn has more ids than its bytes.
            dropped = self.next_drop(dropped, ids.len() - most as usize);
        };
        let (dropped_turns, differs_at) = (dropped as u32, self.differs_at(&ids));
        Ok(Prompt { ids, dropped_turns, differs_at })
    }

    fn without(&self, dropped: usize) -> Conversation<'_> {
        Conversation { turns: self.turns.get(dropped..).unwrap_or_default(), ..*self }
    }

    /// How many turns to drop next where so many ids are too many.
    fn next_drop(&self, dropped: usize, excess: usize) -> usize {
        let mut bytes = 0;
        for (index, turn) in self.turns.iter().enumerate().skip(dropped) {
            bytes += turn.accepted.messages.iter().map(|message| message.content.len()).sum::<usize>();
            bytes += turn.answer.as_ref().map_or(0, |answer| answer.response.len()) + MARKS;
            if bytes >= excess {
                return index + 1;
            }
        }
        self.turns.len()
    }

    fn ids(&self, text: &ModelText) -> Result<Vec<u32>, Failure> {
        match self.settings.history_tokens() {
            HistoryTokens::Text => Ok(text.encode_chat(&self.written(self.turns.len()))?.1),
            HistoryTokens::Exact => self.exact(text),
        }
    }

    /// The ids where past answers enter as they were drawn.
    fn exact(&self, text: &ModelText) -> Result<Vec<u32>, Failure> {
        let tokenizer = text
            .tokenizer
            .as_ref()
            .ok_or_else(|| Failure::invalid("session_id", "this model has no tokenizer"))?;
        let (mut before, mut ids) = text.encode_chat(&self.written(0))?;
        for (index, turn) in self.turns.iter().enumerate() {
            let empty = Answer::default();
            let answer = turn.answer.as_ref().unwrap_or(&empty);
            let written = text.template.render(&self.written(index + 1))?;
            let rest = written.strip_prefix(&before).and_then(|rest| rest.strip_prefix(&answer.response));
            let rest = rest.ok_or_else(|| {
                let message = format!(
                    "this model's template does not write the answer of turn {} as it was drawn: use HISTORY_TOKENS_TEXT",
                    turn.index
                );
                Failure::new(Reason::FailedPrecondition, message)
            })?;
            ids.extend(drawn(answer));
            ids.extend(tokenizer.encode_on(rest)?);
            before = written;
        }
        Ok(ids)
    }

    /// The messages of the first `turns` turns with their answers, and what was said after them: by the next turn or, at the
    /// end, now.
    fn written(&self, turns: usize) -> Vec<ChatMessage> {
        let message = |message: &v1::Message| ChatMessage::new(&message.role, &message.content);
        let mut all: Vec<_> = self.settings.preamble.iter().map(message).collect();
        for turn in self.turns.iter().take(turns) {
            all.extend(turn.accepted.messages.iter().map(message));
            let answer = turn.answer.as_ref().map_or("", |answer| &answer.response);
            all.push(ChatMessage::new("assistant", answer));
        }
        let said = self.turns.get(turns).map_or(self.messages, |next| &next.accepted.messages);
        all.extend(said.iter().map(message));
        all
    }

    fn differs_at(&self, ids: &[u32]) -> Option<u32> {
        let last = self.turns.last()?;
        let before = last.accepted.prompt_ids.iter().chain(last.answer.iter().flat_map(drawn));
        let equal = before.clone().zip(ids).take_while(|(a, b)| a == b).count();
        (equal < before.count()).then_some(equal as u32)
    }
}

/// An answer's ids but the one that ended it.
fn drawn(answer: &Answer) -> &[u32] {
    let ended = answer.finished.as_ref().and_then(|finished| finished.matched.as_ref());
    match (answer.token_ids.split_last(), ended) {
        (Some((_, before)), Some(v1::finished::Matched::StopTokenId(_))) => before,
        _ => &answer.token_ids,
    }
}

impl Room {
    /// The most ids of a prompt from which the oldest turns may be dropped.
    fn prompt(self) -> u32 {
        let answer = self.max_tokens.unwrap_or(self.context / OPEN_ANSWER);
        self.context.saturating_sub(answer.max(1))
    }
}
