//! A model's tokenizer, from whichever file it has.

use std::path::Path;
use std::sync::Arc;

use asterism_proto::{Failure, Reason};

use super::error::{TextError, read_if_there};
use super::json::JsonTokenizer;
use super::sentencepiece::SentencePiece;
use super::tokenizer_config::TokenizerConfig;

/// Text to ids and back. Cheap to clone.
#[derive(Clone)]
pub struct Tokenizer {
    pub(super) kind: Kind,
}

#[derive(Clone)]
pub(super) enum Kind {
    SentencePiece(Arc<SentencePiece>),
    Json(Arc<JsonTokenizer>),
}

impl Tokenizer {
    /// Loads `tokenizer.model` (what the reference reads), else `tokenizer.json`.
    ///
    /// `tokenizer_config.json`, where it lies beside them, tells the special tokens of the former.
    pub fn load(dir: &Path) -> Result<Self, TextError> {
        Self::load_with(dir, &TokenizerConfig::load(dir)?)
    }

    pub(super) fn load_with(dir: &Path, config: &TokenizerConfig) -> Result<Self, TextError> {
        let path = dir.join("tokenizer.model");
        let kind = if let Some(bytes) = read_if_there(&path)? {
            Kind::SentencePiece(Arc::new(SentencePiece::load(&path, &bytes, config)?))
        } else {
            let path = dir.join("tokenizer.json");
            let bytes =
                read_if_there(&path)?.ok_or_else(|| TextError::NoTokenizer { dir: dir.to_owned() })?;
            Kind::Json(Arc::new(JsonTokenizer::load(&path, &bytes)?))
        };
        Ok(Self { kind })
    }

    /// Number of ids; a model's vocabulary may be larger.
    pub fn vocab_size(&self) -> usize {
        match &self.kind {
            Kind::SentencePiece(model) => model.len(),
            Kind::Json(model) => model.len(),
        }
    }

    /// The ids of a text. Nothing is added before or after it; an empty text has none.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, Failure> {
        self.ids(text, false)
    }

    /// The ids of a text that goes on from others: the space that some models put before a text is not put before this.
    pub fn encode_on(&self, text: &str) -> Result<Vec<u32>, Failure> {
        self.ids(text, true)
    }

    fn ids(&self, text: &str, goes_on: bool) -> Result<Vec<u32>, Failure> {
        let ids = match &self.kind {
            Kind::SentencePiece(model) => model.encode(text, goes_on),
            Kind::Json(model) => model.encode(text),
        };
        ids.map_err(|error| Failure::new(Reason::Internal, format!("the tokenizer failed: {error}")))
    }

    /// The text of ids, special tokens included, exactly as the reference decodes them.
    ///
    /// Bytes that are no character become U+FFFD; an id without a piece becomes nothing.
    pub fn decode(&self, ids: &[u32]) -> String {
        match &self.kind {
            Kind::SentencePiece(model) => model.decode(ids),
            Kind::Json(model) => model.decode(ids),
        }
    }

    /// The bytes of one id by itself (not always valid UTF-8), its leading space included; none for an id without a
    /// piece.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        match &self.kind {
            Kind::SentencePiece(model) => model.token_bytes(id),
            Kind::Json(model) => model.token_bytes(id),
        }
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match &self.kind {
            Kind::SentencePiece(_) => "SentencePiece",
            Kind::Json(_) => "tokenizer.json",
        };
        formatter
            .debug_struct("Tokenizer")
            .field("kind", &kind)
            .field("vocab_size", &self.vocab_size())
            .finish()
    }
}
