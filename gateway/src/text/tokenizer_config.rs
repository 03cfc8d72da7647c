//! What `tokenizer_config.json` tells: the class that defines the behaviour, the special tokens, the chat template.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use super::error::{TextError, read_json};

/// A token that is found in a text before the tokenizer's model sees it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct AddedToken {
    /// Its text.
    pub content: String,
    /// Whether it takes the white space before it along.
    #[serde(default)]
    pub lstrip: bool,
    /// Whether it takes the white space after it along.
    #[serde(default)]
    pub rstrip: bool,
    /// Whether it counts only between spaces or at an end of the text.
    #[serde(default)]
    pub single_word: bool,
}

/// A token as the files write it: its text alone, or with its flags.
#[derive(Deserialize)]
#[serde(untagged)]
enum TokenEntry {
    Text(String),
    Full(AddedToken),
}

impl From<TokenEntry> for AddedToken {
    fn from(entry: TokenEntry) -> Self {
        match entry {
            TokenEntry::Text(content) => Self { content, lstrip: false, rstrip: false, single_word: false },
            TokenEntry::Full(token) => token,
        }
    }
}

/// One template, or several with names, of which the one named `default` counts.
#[derive(Deserialize)]
#[serde(untagged)]
enum TemplateEntry {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

/// The keys of `tokenizer_config.json` that matter here, and those that `special_tokens_map.json` shares with it.
#[derive(Deserialize, Default)]
struct File {
    tokenizer_class: Option<String>,
    #[serde(default)]
    added_tokens_decoder: BTreeMap<u32, AddedToken>,
    bos_token: Option<TokenEntry>,
    eos_token: Option<TokenEntry>,
    unk_token: Option<TokenEntry>,
    pad_token: Option<TokenEntry>,
    chat_template: Option<TemplateEntry>,
}

#[derive(Deserialize, Default)]
struct ModelConfig {
    tokenizer_class: Option<String>,
}

/// `tokenizer_config.json`, completed from `special_tokens_map.json` and `config.json`; all may be missing.
#[derive(Debug, Default)]
pub(super) struct TokenizerConfig {
    /// The name of the reference's tokenizer class.
    pub class: Option<String>,
    /// Tokens listed with their ids.
    pub added: BTreeMap<u32, AddedToken>,
    /// The token that begins a text.
    pub bos: Option<AddedToken>,
    /// The token that ends an answer.
    pub eos: Option<AddedToken>,
    /// The token of what is unknown.
    pub unk: Option<AddedToken>,
    /// The token that fills up batches.
    pub pad: Option<AddedToken>,
    /// The jinja chat template.
    pub chat_template: Option<String>,
}

impl TokenizerConfig {
    pub fn load(dir: &Path) -> Result<Self, TextError> {
        let path = dir.join("tokenizer_config.json");
        let file: File = read_json(&path)?.unwrap_or_default();
        let map: File = read_json(&dir.join("special_tokens_map.json"))?.unwrap_or_default();
        let model: ModelConfig = read_json(&dir.join("config.json"))?.unwrap_or_default();
        let chat_template = match file.chat_template {
            None => None,
            Some(TemplateEntry::One(template)) => Some(template),
            Some(TemplateEntry::Named(templates)) => {
                let default = templates.into_iter().find(|named| named.name == "default");
                let default = default.ok_or_else(|| {
                    TextError::unsupported(&path, "of several chat templates none is named \"default\"")
                })?;
                Some(default.template)
            }
        };
        let either =
            |first: Option<TokenEntry>, second: Option<TokenEntry>| first.or(second).map(AddedToken::from);
        Ok(Self {
            class: file.tokenizer_class.or(model.tokenizer_class),
            added: file.added_tokens_decoder,
            bos: either(file.bos_token, map.bos_token),
            eos: either(file.eos_token, map.eos_token),
            unk: either(file.unk_token, map.unk_token),
            pad: either(file.pad_token, map.pad_token),
            chat_template,
        })
    }

    /// Whether the reference's TeleChat-52B tokenizer class is named.
    pub fn is_telechat_52b(&self) -> bool {
        self.class.as_deref() == Some("TELECHATTokenizer")
    }
}
