//! The generation defaults that a checkpoint brings along: what a request leaves unset comes from here.

use std::path::Path;

use serde::Deserialize;

use super::error::{TextError, read_json};

/// Prompt plus answer where neither the request nor the checkpoint says otherwise, in tokens.
pub const MAX_LENGTH: u32 = 2048;

/// `generation_config.json`, checked. A key that the file lacks has the value that switches it off.
///
/// The end, begin and pad ids come from `config.json` where `generation_config.json` does not tell them.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerationDefaults {
    /// Longest prompt plus answer, in tokens; counts only where nothing else limits the answer.
    pub max_length: u32,
    /// Longest answer, in tokens; comes before `max_length`.
    pub max_new_tokens: Option<u32>,
    /// Whether to draw (else the best token is taken).
    pub do_sample: bool,
    /// Logits are divided by this before the draw; 0 means greedy, 1 is off.
    pub temperature: f32,
    /// Only the k best ids are candidates; 0 is off.
    pub top_k: u32,
    /// Only the best ids that together have this probability are candidates; 1 is off.
    pub top_p: f32,
    /// Only ids with at least this share of the best id's probability are candidates; 0 is off.
    pub min_p: f32,
    /// Divides (multiplies, where negative) the logits of ids that occurred; 1 is off.
    pub repetition_penalty: f32,
    /// Ids that end an answer.
    pub eos_token_ids: Vec<u32>,
    /// The id that begins a text, if the model has one.
    pub bos_token_id: Option<u32>,
    /// The id that fills up batches, if the model has one.
    pub pad_token_id: Option<u32>,
}

impl Default for GenerationDefaults {
    fn default() -> Self {
        Self {
            max_length: MAX_LENGTH,
            max_new_tokens: None,
            do_sample: false,
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            eos_token_ids: Vec::new(),
            bos_token_id: None,
            pad_token_id: None,
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(u32),
    More(Vec<u32>),
}

/// The keys of both files that matter here; either may lack any of them.
#[derive(Deserialize, Default)]
struct File {
    max_length: Option<u32>,
    max_new_tokens: Option<u32>,
    do_sample: Option<bool>,
    temperature: Option<f32>,
    top_k: Option<u32>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    eos_token_id: Option<OneOrMore>,
    bos_token_id: Option<u32>,
    pad_token_id: Option<u32>,
}

#[derive(Deserialize, Default)]
struct ModelConfig {
    eos_token_id: Option<OneOrMore>,
    bos_token_id: Option<u32>,
    pad_token_id: Option<u32>,
}

impl GenerationDefaults {
    /// Reads `generation_config.json` and, for ids it does not tell, `config.json`. Both may be missing.
    pub fn load(dir: &Path) -> Result<Self, TextError> {
        let path = dir.join("generation_config.json");
        let file: File = read_json(&path)?.unwrap_or_default();
        let config: ModelConfig = read_json(&dir.join("config.json"))?.unwrap_or_default();
        let off = Self::default();
        let defaults = Self {
            max_length: file.max_length.unwrap_or(off.max_length),
            max_new_tokens: file.max_new_tokens,
            do_sample: file.do_sample.unwrap_or(off.do_sample),
            temperature: file.temperature.unwrap_or(off.temperature),
            top_k: file.top_k.unwrap_or(off.top_k),
            top_p: file.top_p.unwrap_or(off.top_p),
            min_p: file.min_p.unwrap_or(off.min_p),
            repetition_penalty: file.repetition_penalty.unwrap_or(off.repetition_penalty),
            eos_token_ids: match file.eos_token_id.or(config.eos_token_id) {
                Some(OneOrMore::One(id)) => vec![id],
                Some(OneOrMore::More(ids)) => ids,
                None => Vec::new(),
            },
            bos_token_id: file.bos_token_id.or(config.bos_token_id),
            pad_token_id: file.pad_token_id.or(config.pad_token_id),
        };
        defaults.check(&path)?;
        Ok(defaults)
    }

    fn check(&self, path: &Path) -> Result<(), TextError> {
        let numbers: [(&'static str, f32, bool, &'static str); 4] = [
            ("temperature", self.temperature, self.temperature >= 0.0, "a number of at least 0"),
            ("top_p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "in (0, 1]"),
            ("min_p", self.min_p, (0.0..=1.0).contains(&self.min_p), "in [0, 1]"),
            ("repetition_penalty", self.repetition_penalty, self.repetition_penalty > 0.0, "above 0"),
        ];
        for (field, value, ok, expected) in numbers {
            if !ok || !value.is_finite() {
                let value = value.to_string();
                return Err(TextError::BadValue { path: path.to_owned(), field, value, expected });
            }
        }
        let lengths = [("max_length", Some(self.max_length)), ("max_new_tokens", self.max_new_tokens)];
        for (field, value) in lengths {
            if value == Some(0) {
                let (value, expected) = ("0".to_owned(), "at least 1");
                return Err(TextError::BadValue { path: path.to_owned(), field, value, expected });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(generation: Option<&str>, config: Option<&str>) -> Result<GenerationDefaults, TextError> {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [("generation_config.json", generation), ("config.json", config)] {
            if let Some(text) = text {
                std::fs::write(dir.path().join(name), text).unwrap();
            }
        }
        GenerationDefaults::load(dir.path())
    }

    #[test]
    fn missing_files_mean_greedy_without_an_end_id() {
        assert_eq!(load(None, None).unwrap(), GenerationDefaults::default());
    }

    #[test]
    fn every_key_is_read() {
        let text = r#"{"max_length": 10, "max_new_tokens": 5, "do_sample": true, "temperature": 0.5, "top_k": 3,
            "top_p": 0.85, "min_p": 0.125, "repetition_penalty": 1.02, "eos_token_id": [2, 7], "bos_token_id": 1,
            "pad_token_id": 3, "user_token_id": 20, "use_cache": true}"#;
        let expected = GenerationDefaults {
            max_length: 10,
            max_new_tokens: Some(5),
            do_sample: true,
            temperature: 0.5,
            top_k: 3,
            top_p: 0.85,
            min_p: 0.125,
            repetition_penalty: 1.02,
            eos_token_ids: vec![2, 7],
            bos_token_id: Some(1),
            pad_token_id: Some(3),
        };
        assert_eq!(load(Some(text), None).unwrap(), expected);
    }

    #[test]
    fn ids_come_from_the_config_where_the_generation_config_is_silent() {
        let config = r#"{"eos_token_id": 2, "bos_token_id": 1, "pad_token_id": null}"#;
        let defaults = load(Some(r#"{"bos_token_id": 9}"#), Some(config)).unwrap();
        assert_eq!(
            (defaults.eos_token_ids, defaults.bos_token_id, defaults.pad_token_id),
            (vec![2], Some(9), None)
        );
    }

    #[test]
    fn absurd_values_are_refused_by_name() {
        for (text, field) in [
            (r#"{"temperature": -1}"#, "temperature"),
            (r#"{"top_p": 0}"#, "top_p"),
            (r#"{"top_p": 1.5}"#, "top_p"),
            (r#"{"min_p": 2}"#, "min_p"),
            (r#"{"repetition_penalty": 0}"#, "repetition_penalty"),
            (r#"{"repetition_penalty": 1e300}"#, "repetition_penalty"),
            (r#"{"max_length": 0}"#, "max_length"),
            (r#"{"max_new_tokens": 0}"#, "max_new_tokens"),
        ] {
            match load(Some(text), None) {
                Err(TextError::BadValue { field: found, .. }) => assert_eq!(found, field),
                other => panic!("{text}: {other:?}"),
            }
        }
        for text in ["", "{", "[]", r#"{"top_k": -1}"#, r#"{"eos_token_id": "x"}"#] {
            assert!(matches!(load(Some(text), None), Err(TextError::Corrupt { .. })), "{text}");
        }
    }
}
