//! A tiny model with random weights that speaks: the golden one with a tokenizer of bytes and a template.

use std::path::Path;

use serde_json::{Map, Value, json};
use tempfile::TempDir;

/// A copy of the checkpoint `tiny-52b` in the golden folder, whose answers end with `end`. Every id has a piece, so that
/// every answer has text: a byte, or its number in angle brackets.
pub fn speaking(golden: &Path, end: u32) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(golden.join("tiny-52b").join(name), folder.path().join(name)).expect("copied");
    }
    let alphabet = (0x21..0x144).filter(|code| matches!(code, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0x143));
    let alphabet = alphabet.filter_map(char::from_u32).map(String::from);
    let pieces = alphabet.chain((256..512).map(|id| format!("<{id}>")));
    let vocab: Map<String, Value> = pieces.zip(0..).map(|(piece, id)| (piece, json!(id))).collect();
    let bytes =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let tokenizer = json!({
        "pre_tokenizer": bytes, "decoder": bytes, "model": {"type": "BPE", "vocab": vocab, "merges": []},
    });
    let template = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}";
    for (name, content) in [
        ("tokenizer.json", tokenizer),
        ("tokenizer_config.json", json!({"chat_template": template})),
        ("generation_config.json", json!({"do_sample": false, "eos_token_id": end})),
    ] {
        std::fs::write(folder.path().join(name), content.to_string()).expect("written");
    }
    folder
}
