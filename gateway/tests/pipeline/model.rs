//! The folder of the toy model, as the gateway reads it: a byte-level tokenizer whose ids 0..=255 are the bytes.

use std::path::Path;

use serde_json::{Map, Value, json};
use tempfile::TempDir;

/// The id that ends an answer; its text is `<|end|>`.
pub const END: u32 = 256;

/// A folder with tokenizer, ChatML-like template and generation defaults.
pub fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "tokenizer.json", &tokenizer());
    let template = "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}\
                    [{{ m.role }}]{{ m.content }}{% endfor %}[assistant]";
    write(folder.path(), "tokenizer_config.json", &json!({"chat_template": template}));
    write(folder.path(), "generation_config.json", &json!({"max_length": 100, "eos_token_id": END}));
    folder
}

fn write(folder: &Path, name: &str, value: &Value) {
    std::fs::write(folder.join(name), value.to_string()).unwrap();
}

fn tokenizer() -> Value {
    let vocab: Map<String, Value> =
        (0..=255).map(|byte: u8| (character(byte).to_string(), json!(byte))).collect();
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [{
            "id": END, "content": "<|end|>", "special": true,
            "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        }],
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": null,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    })
}

/// The byte-level alphabet: printable Latin-1 stands for itself, the other bytes, ascending, for U+0100 on.
fn character(byte: u8) -> char {
    let itself = |byte: u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let others = (0..byte).filter(|byte| !itself(*byte)).count() as u32;
    if itself(byte) { char::from(byte) } else { char::from_u32(0x100 + others).unwrap() }
}
