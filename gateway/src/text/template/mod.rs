//! Chat templates: messages become the text of a prompt.

mod jinja;
mod native;

use std::path::{Path, PathBuf};

use asterism_proto::Failure;

pub use jinja::JinjaTemplate;
pub use native::cut_response;

use super::error::{TextError, read_if_there};
use super::tokenizer_config::TokenizerConfig;

/// One message of a chat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatMessage {
    /// Who speaks: `system`, `user` or `assistant`; what else a template knows is its own affair.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl ChatMessage {
    /// A message of a role.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// How a model wants its chats written.
#[derive(Debug)]
pub enum ChatTemplate {
    /// As the reference's `chat()` of TeleChat-52B.
    Native,
    /// By a jinja template.
    Jinja(Box<JinjaTemplate>),
    /// Not told: such a model takes text and token ids only.
    Missing,
}

impl ChatTemplate {
    /// The template of `file` if given, else the folder's `chat_template.jinja`, else the one in
    /// `tokenizer_config.json`, else the native one where the tokenizer is that of TeleChat-52B.
    pub fn load(dir: &Path, file: Option<&Path>) -> Result<Self, TextError> {
        Self::load_with(dir, file, &TokenizerConfig::load(dir)?)
    }

    pub(super) fn load_with(
        dir: &Path,
        file: Option<&Path>,
        config: &TokenizerConfig,
    ) -> Result<Self, TextError> {
        let path = file.map_or_else(|| dir.join("chat_template.jinja"), Path::to_owned);
        let bytes = match (read_if_there(&path)?, file) {
            (None, Some(_)) => {
                let source = std::io::ErrorKind::NotFound.into();
                return Err(TextError::Read { path, source });
            }
            (bytes, _) => bytes,
        };
        let (path, source): (PathBuf, String) = match (bytes, &config.chat_template) {
            (Some(bytes), _) => {
                let source = String::from_utf8(bytes).map_err(|error| TextError::corrupt(&path, error))?;
                (path, source)
            }
            (None, Some(template)) => (dir.join("tokenizer_config.json"), template.clone()),
            (None, None) if config.is_telechat_52b() => return Ok(Self::Native),
            (None, None) => return Ok(Self::Missing),
        };
        Ok(Self::Jinja(Box::new(JinjaTemplate::new(&path, source, config)?)))
    }

    /// The text of a prompt that asks for the next answer. A failure names the field of the request.
    pub fn render(&self, messages: &[ChatMessage]) -> Result<String, Failure> {
        match self {
            Self::Native => native::render(messages),
            Self::Jinja(template) => template.render(messages),
            Self::Missing => {
                Err(Failure::invalid("chat", "this model has no chat template; send text or token ids"))
            }
        }
    }
}

#[cfg(test)]
mod tests;
