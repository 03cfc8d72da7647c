//! Streaming decode: the text of an answer while its ids arrive.
//!
//! Invariant: the certain text of the prompt, then all deltas, is the whole decode of prompt and answer. No delta holds
//! a broken character: bytes wait until their character is complete or cannot be completed any more. Each id costs the
//! same, however long the answer is.

use std::sync::Arc;

use super::json::{JsonRun, JsonTokenizer};
use super::sentencepiece::{Run, SentencePiece};
use super::tokenizer::{Kind, Tokenizer};

/// Decodes one answer.
///
/// The space that the tokenizer classes of the 12B and TeleChat2 models put *before* a run that a special token ends
/// would have to go in front of text that is out already, so it is left out.
#[derive(Clone)]
pub struct Decoder {
    state: State,
}

#[derive(Clone)]
enum State {
    Silent,
    SentencePiece(Arc<SentencePiece>, Run),
    Json(Arc<JsonTokenizer>, JsonRun),
}

impl Decoder {
    /// A decoder that stands after the ids of the prompt.
    pub fn new(tokenizer: &Tokenizer, prompt_ids: &[u32]) -> Self {
        let state = match &tokenizer.kind {
            Kind::SentencePiece(model) => {
                let mut run = Run::new();
                let mut discarded = String::new();
                for id in prompt_ids {
                    model.push(&mut run, *id, &mut discarded);
                    discarded.clear();
                }
                State::SentencePiece(Arc::clone(model), run)
            }
            Kind::Json(model) => State::Json(Arc::clone(model), model.start(prompt_ids)),
        };
        Self { state }
    }

    /// The decoder of a model without a tokenizer: all its text is empty.
    pub fn silent() -> Self {
        Self { state: State::Silent }
    }

    /// Takes the next id in; answers the text that became certain with it, often a word, sometimes nothing.
    pub fn push(&mut self, id: u32) -> String {
        let mut out = String::new();
        match &mut self.state {
            State::Silent => {}
            State::SentencePiece(model, run) => model.push(run, id, &mut out),
            State::Json(model, run) => model.push(run, id, &mut out),
        }
        out
    }

    /// No more ids come: the rest of the text (U+FFFD where a character stayed incomplete).
    pub fn finish(self) -> String {
        let mut out = String::new();
        match self.state {
            State::Silent => {}
            State::SentencePiece(model, mut run) => model.finish(&mut run, &mut out),
            State::Json(model, mut run) => model.finish(&mut run, &mut out),
        }
        out
    }
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut out = formatter.debug_tuple("Decoder");
        match &self.state {
            State::Silent => out.field(&"silent"),
            State::SentencePiece(_, run) => out.field(run),
            State::Json(_, run) => out.field(run),
        };
        out.finish()
    }
}
