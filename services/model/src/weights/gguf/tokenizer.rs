//! The tokenizer of a GGUF file, as the files of a checkpoint folder.

use std::path::Path;

use serde_json::{Value, json};

use super::file::{GgufFile, Metadata};
use crate::ModelError;

/// Token types in `tokenizer.ggml.token_type`.
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// An answer's default length, unless a request says otherwise.
const MAX_NEW_TOKENS: u64 = 256;

/// `tokenizer.json` of a byte-level BPE tokenizer.
pub(super) fn tokenizer(path: &Path, file: &GgufFile) -> Result<Value, ModelError> {
    let refuse = |what: String| ModelError::malformed(path, what);
    let model = file.text("tokenizer.ggml.model").unwrap_or_default();
    if model != "gpt2" {
        return Err(refuse(format!("tokenizer `{model}` is not read, only `gpt2`, byte-level BPE")));
    }
    let split = file.text("tokenizer.ggml.pre").unwrap_or_default();
    let byte_level =
        json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    let pre_tokenizer = match split {
        "smollm" => {
            json!({ "type": "Sequence", "pretokenizers": [{ "type": "Digits", "individual_digits": true }, byte_level] })
        }
        "gpt-2" => byte_level,
        other => {
            return Err(refuse(format!("pre-tokenizer `{other}` is not read, only `smollm` and `gpt-2`")));
        }
    };
    let texts = |key: &str| match file.metadata.get(key) {
        Some(Metadata::Texts(texts)) => Ok(texts),
        _ => Err(refuse(format!("metadata `{key}` is missing"))),
    };
    let tokens = texts("tokenizer.ggml.tokens")?;
    let kinds = match file.metadata.get("tokenizer.ggml.token_type") {
        Some(Metadata::Integers(kinds)) if kinds.len() == tokens.len() => kinds,
        _ => return Err(refuse("metadata `tokenizer.ggml.token_type` does not match the tokens".into())),
    };
    let merges: Vec<Value> = texts("tokenizer.ggml.merges")?
        .iter()
        .map(|merge| {
            let (left, right) =
                merge.split_once(' ').ok_or_else(|| refuse(format!("merge `{merge}` is no pair")))?;
            Ok(json!([left, right]))
        })
        .collect::<Result<_, ModelError>>()?;
    let added: Vec<Value> = tokens
        .iter()
        .zip(kinds)
        .enumerate()
        .filter(|(_, (_, kind))| matches!(**kind, CONTROL | USER_DEFINED))
        .map(|(id, (token, kind))| {
            json!({
                "id": id,
                "content": token,
                "single_word": false,
                "lstrip": false,
                "rstrip": false,
                "normalized": false,
                "special": *kind == CONTROL
            })
        })
        .collect();
    let vocab: serde_json::Map<String, Value> =
        tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
    if vocab.len() != tokens.len() {
        return Err(refuse("metadata `tokenizer.ggml.tokens` holds a token twice".into()));
    }
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": null,
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": false,
            "vocab": vocab,
            "merges": merges
        }
    }))
}

/// `tokenizer_config.json`, with the chat template. `positions` is the longest sequence.
pub(super) fn tokenizer_config(file: &GgufFile, positions: u64) -> Value {
    let token = |name: &str| {
        let id = usize::try_from(file.number(&format!("tokenizer.ggml.{name}_token_id"))?).ok()?;
        match file.metadata.get("tokenizer.ggml.tokens") {
            Some(Metadata::Texts(tokens)) => tokens.get(id),
            _ => None,
        }
    };
    let flag = |key: &str| file.metadata.get(key) == Some(&Metadata::Bool(true));
    let mut config = serde_json::Map::new();
    for (field, name) in
        [("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"), ("pad_token", "padding")]
    {
        if let Some(token) = token(name) {
            config.insert(field.into(), json!(token));
        }
    }
    config.insert("add_bos_token".into(), json!(flag("tokenizer.ggml.add_bos_token")));
    config.insert("add_prefix_space".into(), json!(flag("tokenizer.ggml.add_space_prefix")));
    config.insert("clean_up_tokenization_spaces".into(), json!(false));
    config.insert("model_max_length".into(), json!(positions));
    config.insert("tokenizer_class".into(), json!("PreTrainedTokenizerFast"));
    if let Some(template) = file.text("tokenizer.chat_template") {
        config.insert("chat_template".into(), json!(template));
    }
    Value::Object(config)
}

/// `generation_config.json`: greedy, as a GGUF file names no sampling.
pub(super) fn generation_config(config: &Value) -> Value {
    json!({
        "bos_token_id": config["bos_token_id"],
        "eos_token_id": config["eos_token_id"],
        "pad_token_id": config["pad_token_id"],
        "max_new_tokens": MAX_NEW_TOKENS,
        "do_sample": false
    })
}
