//! Streaming decode: the text of an answer while its ids arrive.
//!
//! Invariant: the certain text of the prompt, then all deltas, is the whole decode of prompt and answer. No delta holds
//! a broken character: bytes wait until their character is complete or cannot be completed any more. Each id costs the
//! same, however long the answer is.

use super::json::JsonRun;
use super::sentencepiece::Run;
use super::tokenizer::{Kind, Tokenizer};

/// Decodes one answer.
///
/// The space that the tokenizer classes of the 12B and TeleChat2 models put *before* a run that a special token ends
/// would have to go in front of text that is out already, so it is left out.
#[derive(Clone, Debug)]
pub struct Decoder {
    tokenizer: Option<Tokenizer>,
    state: State,
}

#[derive(Clone, Debug)]
enum State {
    Silent,
    SentencePiece(Run),
    Json(JsonRun),
}

impl Decoder {
    /// A decoder that stands after the ids of the prompt.
    pub fn new(tokenizer: &Tokenizer, prompt_ids: &[u32]) -> Self {
        let state = match &*tokenizer.kind {
            Kind::SentencePiece(model) => {
                let mut run = Run::new();
                let mut discarded = String::new();
                for id in prompt_ids {
                    model.push(&mut run, *id, &mut discarded);
                    discarded.clear();
                }
                State::SentencePiece(run)
            }
            Kind::Json(model) => State::Json(model.start(prompt_ids)),
        };
        Self { tokenizer: Some(tokenizer.clone()), state }
    }

    /// The decoder of a model without a tokenizer: all its text is empty.
    pub fn silent() -> Self {
        Self { tokenizer: None, state: State::Silent }
    }

    /// Takes the next id in; answers the text that became certain with it, often a word, sometimes nothing.
    pub fn push(&mut self, id: u32) -> String {
        let mut out = String::new();
        match (self.tokenizer.as_ref().map(|tokenizer| &*tokenizer.kind), &mut self.state) {
            (Some(Kind::SentencePiece(model)), State::SentencePiece(run)) => model.push(run, id, &mut out),
            (Some(Kind::Json(model)), State::Json(run)) => model.push(run, id, &mut out),
            _ => {}
        }
        out
    }

    /// No more ids come: the rest of the text (U+FFFD where a character stayed incomplete).
    pub fn finish(mut self) -> String {
        let mut out = String::new();
        match (self.tokenizer.as_ref().map(|tokenizer| &*tokenizer.kind), &mut self.state) {
            (Some(Kind::SentencePiece(model)), State::SentencePiece(run)) => model.finish(run, &mut out),
            (Some(Kind::Json(model)), State::Json(run)) => model.finish(run, &mut out),
            _ => {}
        }
        out
    }
}
