//! Text in, token ids out, and back: tokenizer, chat template, streaming decode, stop strings, generation defaults.
//!
//! Everything here is loaded once from a model folder and is pure from then on. No shard ever sees text.

mod decoder;
mod defaults;
mod error;
mod json;
mod sentencepiece;
mod special;
mod stop;
mod template;
#[cfg(test)]
mod tests;
mod tokenizer;
mod tokenizer_config;
mod utf8;

use std::path::{Path, PathBuf};

use asterism_proto::Failure;

pub use decoder::Decoder;
pub use defaults::{GenerationDefaults, MAX_LENGTH};
pub use error::TextError;
pub use stop::{LONGEST_STOP, MOST_STOPS, StopScan, StopStrings};
pub use template::{ChatMessage, ChatTemplate, JinjaTemplate, cut_response};
pub use tokenizer::Tokenizer;
use tokenizer_config::TokenizerConfig;

/// Choices at load.
#[derive(Clone, Debug, Default)]
pub struct TextOptions {
    /// A jinja template that takes the place of the model's own.
    pub chat_template: Option<PathBuf>,
}

/// What a request may bring as its prompt.
#[derive(Clone, Copy, Debug)]
pub enum Prompt<'a> {
    /// Encoded as it stands.
    Text(&'a str),
    /// Taken as they are; whether the model knows them is checked elsewhere.
    TokenIds(&'a [u32]),
    /// Written by the chat template, then encoded as one text.
    Chat(&'a [ChatMessage]),
}

/// All of a model's text side.
#[derive(Debug)]
pub struct ModelText {
    /// Missing in a model folder without one: such a model takes and gives token ids only.
    pub tokenizer: Option<Tokenizer>,
    /// How chats are written.
    pub template: ChatTemplate,
    /// What a request leaves unset.
    pub defaults: GenerationDefaults,
}

impl ModelText {
    /// Loads what a model folder holds. A missing tokenizer is said in the log; a corrupt file is an error.
    pub fn load(dir: &Path, options: &TextOptions) -> Result<Self, TextError> {
        let config = TokenizerConfig::load(dir)?;
        let tokenizer = match Tokenizer::load_with(dir, &config) {
            Ok(tokenizer) => Some(tokenizer),
            Err(TextError::NoTokenizer { dir }) => {
                tracing::warn!(dir = %dir.display(), "the model has no tokenizer: token ids only");
                None
            }
            Err(error) => return Err(error),
        };
        Ok(Self {
            tokenizer,
            template: ChatTemplate::load_with(dir, options.chat_template.as_deref(), &config)?,
            defaults: GenerationDefaults::load(dir)?,
        })
    }

    /// The ids of a text, none for an empty one.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, Failure> {
        self.encode_field("text", text)
    }

    /// The text of a chat's prompt and its ids.
    pub fn encode_chat(&self, messages: &[ChatMessage]) -> Result<(String, Vec<u32>), Failure> {
        let text = self.template.render(messages)?;
        let ids = self.encode_field("chat", &text)?;
        Ok((text, ids))
    }

    /// The ids of a request's prompt; a prompt of no ids is refused.
    pub fn prompt_ids(&self, prompt: Prompt<'_>) -> Result<Vec<u32>, Failure> {
        let (field, ids) = match prompt {
            Prompt::Text(text) => ("text", self.encode(text)?),
            Prompt::TokenIds(ids) => ("token_ids", ids.to_vec()),
            Prompt::Chat(messages) => ("chat", self.encode_chat(messages)?.1),
        };
        if ids.is_empty() {
            return Err(Failure::invalid(field, "the prompt has no token ids"));
        }
        Ok(ids)
    }

    /// The decoder of an answer to a prompt.
    pub fn decoder(&self, prompt_ids: &[u32]) -> Decoder {
        self.tokenizer.as_ref().map_or_else(Decoder::silent, |tokenizer| Decoder::new(tokenizer, prompt_ids))
    }

    /// The reply as the reference cuts it: of a native chat model, [`cut_response`] of the whole decode; of any other,
    /// the answer's text up to its end id.
    pub fn response(&self, prompt_ids: &[u32], answer_ids: &[u32]) -> String {
        let Some(tokenizer) = &self.tokenizer else { return String::new() };
        if matches!(self.template, ChatTemplate::Native) {
            let whole = [prompt_ids, answer_ids].concat();
            return cut_response(&tokenizer.decode(&whole)).to_owned();
        }
        let mut decoder = Decoder::new(tokenizer, prompt_ids);
        let until_end = answer_ids.iter().take_while(|id| !self.defaults.eos_token_ids.contains(id));
        let mut text: String = until_end.map(|id| decoder.push(*id)).collect();
        text.push_str(&decoder.finish());
        text
    }

    fn encode_field(&self, field: &str, text: &str) -> Result<Vec<u32>, Failure> {
        match &self.tokenizer {
            Some(tokenizer) => tokenizer.encode(text),
            None => Err(Failure::invalid(field, "this model has no tokenizer; send token ids")),
        }
    }
}
