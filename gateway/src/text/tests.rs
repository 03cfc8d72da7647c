use proptest::prelude::*;
use serde_json::json;

use super::*;

/// A byte-level tokenizer of the 256 bytes, `ab` and a special token; ids in that order.
fn byte_level() -> serde_json::Value {
    let alphabet = (0u32..0x144).filter_map(char::from_u32).filter(|character| {
        let code = u32::from(*character);
        matches!(code, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0x143)
    });
    let mut vocab: serde_json::Map<String, serde_json::Value> =
        alphabet.zip(0..).map(|(character, id)| (character.to_string(), json!(id))).collect();
    vocab.insert("ab".to_owned(), json!(256));
    json!({
        "added_tokens": [{"id": 257, "content": "<|end|>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true}],
        "truncation": {"max_length": 3, "stride": 0, "strategy": "LongestFirst", "direction": "Right"},
        "padding": {"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
            "pad_type_id": 0, "pad_token": "!"},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": vocab, "merges": [["a", "b"]]},
    })
}

/// A tokenizer with byte fallback: 256 bytes, then `▁`, `a`, `好`, `▁a`; ids in that order.
fn byte_fallback() -> serde_json::Value {
    let bytes = (0..=255u8).map(|byte| (format!("<0x{byte:02X}>"), json!(byte)));
    let words = ["▁", "a", "好", "▁a"].into_iter().zip(256..).map(|(word, id)| (word.to_owned(), json!(id)));
    let vocab: serde_json::Map<String, serde_json::Value> = bytes.chain(words).collect();
    json!({
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "vocab": vocab, "merges": [["▁", "a"]], "byte_fallback": true},
    })
}

fn load(tokenizer: &serde_json::Value) -> ModelText {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    std::fs::write(dir.path().join("generation_config.json"), r#"{"eos_token_id": 257}"#).unwrap();
    ModelText::load(dir.path(), &TextOptions::default()).unwrap()
}

/// The certain text of the prompt, then the deltas of the answer.
fn streamed(tokenizer: &Tokenizer, prompt: &[u32], answer: &[u32]) -> String {
    let mut first = Decoder::new(tokenizer, &[]);
    let mut text: String = prompt.iter().map(|id| first.push(*id)).collect();
    let mut decoder = Decoder::new(tokenizer, prompt);
    text.extend(answer.iter().map(|id| decoder.push(*id)));
    text + &decoder.finish()
}

#[test]
fn the_settings_of_somebodys_batch_are_ignored() {
    let text = load(&byte_level());
    let ids = text.encode("abab <|end|> é").unwrap();
    assert_eq!(ids.len(), 7);
    let tokenizer = text.tokenizer.unwrap();
    assert_eq!(tokenizer.decode(&ids), "abab <|end|> é");
    assert_eq!(tokenizer.token_bytes(256), b"ab");
    assert_eq!(tokenizer.token_bytes(257), b"<|end|>");
    assert_eq!(tokenizer.token_bytes(258), b"");
}

#[test]
fn the_response_ends_before_the_end_id() {
    let text = load(&byte_level());
    let (prompt, answer) = (text.encode("ab").unwrap(), text.encode(" ab é<|end|>x").unwrap());
    assert_eq!(text.response(&prompt, &answer), " ab é");
}

#[test]
fn a_leading_space_of_the_answer_stays() {
    let text = load(&byte_fallback());
    let tokenizer = text.tokenizer.as_ref().unwrap();
    let (prompt, answer) = (text.encode("a").unwrap(), [259, 258]);
    assert_eq!(text.response(&prompt, &answer), " a好");
    assert_eq!(streamed(tokenizer, &[], &answer), "a好");
}

#[test]
fn a_row_of_bytes_that_breaks_late_streams_as_the_whole() {
    let text = load(&byte_fallback());
    let tokenizer = text.tokenizer.unwrap();
    let ids = [257, 0xe5, 0xa5, 0xbd, 0xe5, 257];
    assert_eq!(tokenizer.decode(&ids), "a\u{fffd}\u{fffd}\u{fffd}\u{fffd}a");
    for split in 0..=ids.len() {
        let (prompt, answer) = ids.split_at(split);
        assert_eq!(streamed(&tokenizer, prompt, answer), tokenizer.decode(&ids), "split at {split}");
    }
}

#[test]
fn a_prompt_of_no_ids_is_refused_by_field() {
    let text = load(&byte_level());
    for (prompt, field) in [(Prompt::Text(""), "text"), (Prompt::TokenIds(&[]), "token_ids")] {
        assert_eq!(text.prompt_ids(prompt).unwrap_err().field.as_deref(), Some(field));
    }
    assert_eq!(text.prompt_ids(Prompt::TokenIds(&[7, 8])).unwrap(), [7, 8]);
    assert_eq!(text.prompt_ids(Prompt::Text("ab")).unwrap(), [256]);
    let native = ModelText { template: ChatTemplate::Native, ..text };
    assert_eq!(native.prompt_ids(Prompt::Chat(&[])).unwrap_err().field.as_deref(), Some("chat"));
    assert!(!native.prompt_ids(Prompt::Chat(&[ChatMessage::new("user", "")])).unwrap().is_empty());
}

#[test]
fn a_model_without_a_tokenizer_takes_and_gives_token_ids() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(Tokenizer::load(dir.path()), Err(TextError::NoTokenizer { .. })));
    let text = ModelText::load(dir.path(), &TextOptions::default()).unwrap();
    assert_eq!(text.prompt_ids(Prompt::TokenIds(&[1, 2])).unwrap(), [1, 2]);
    assert_eq!(text.prompt_ids(Prompt::Text("a")).unwrap_err().field.as_deref(), Some("text"));
    let mut decoder = text.decoder(&[1, 2]);
    assert_eq!(decoder.push(3) + &decoder.finish() + &text.response(&[1], &[2]), "");
}

#[test]
fn a_corrupt_file_is_an_error_that_names_it() {
    for (name, bytes) in [
        ("tokenizer.json", &b"{\"model\": {}}"[..]),
        ("tokenizer.json", b"{"),
        ("tokenizer.model", b"not a model"),
        ("tokenizer.model", b""),
        ("tokenizer_config.json", b"["),
        ("generation_config.json", b"\xff"),
        ("chat_template.jinja", b"\xff"),
        ("chat_template.jinja", b"{{"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(name), bytes).unwrap();
        match ModelText::load(dir.path(), &TextOptions::default()) {
            Err(TextError::Corrupt { path, .. }) => assert!(path.ends_with(name), "{}", path.display()),
            other => panic!("{name}: {other:?}"),
        }
    }
}

proptest! {
    #[test]
    fn byte_level_ids_stream_as_the_whole(ids in proptest::collection::vec(0u32..260, 0..80), split in 0usize..80) {
        let tokenizer = load(&byte_level()).tokenizer.unwrap();
        let (prompt, answer) = ids.split_at(split.min(ids.len()));
        prop_assert_eq!(streamed(&tokenizer, prompt, answer), tokenizer.decode(&ids));
    }

    #[test]
    fn windows_stream_as_the_whole(
        rows in proptest::collection::vec((proptest::collection::vec(0u32..256, 0..6), 256u32..262), 0..40),
        split in 0usize..150,
    ) {
        let tokenizer = load(&byte_fallback()).tokenizer.unwrap();
        let ids: Vec<u32> = rows.into_iter().flat_map(|(bytes, word)| bytes.into_iter().chain([word])).collect();
        let (prompt, answer) = ids.split_at(split.min(ids.len()));
        prop_assert_eq!(streamed(&tokenizer, prompt, answer), tokenizer.decode(&ids));
    }
}
