//! What a streaming decode must do, whatever the ids.

use asterism_gateway::text::{Decoder, Tokenizer};

/// The certain text of ids: what a decoder has given out before it is told that no more come.
pub fn certain(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let mut decoder = Decoder::new(tokenizer, &[]);
    ids.iter().map(|id| decoder.push(*id)).collect()
}

/// Streams `answer` after `prompt`: in the end all of the whole decode is out.
pub fn check_joined(tokenizer: &Tokenizer, prompt: &[u32], answer: &[u32]) {
    let mut text = certain(tokenizer, prompt);
    let mut decoder = Decoder::new(tokenizer, prompt);
    text.extend(answer.iter().map(|id| decoder.push(*id)));
    text.push_str(&decoder.finish());
    assert_eq!(text, tokenizer.decode(&[prompt, answer].concat()), "prompt {prompt:?}, answer {answer:?}");
}

/// The same, and on the way: what is out is always the whole decode so far but for the incomplete character at its
/// end, and in the end all of it.
pub fn check(tokenizer: &Tokenizer, prompt: &[u32], answer: &[u32]) {
    let mut text = certain(tokenizer, prompt);
    let mut ids = prompt.to_vec();
    let mut decoder = Decoder::new(tokenizer, prompt);
    for id in answer {
        ids.push(*id);
        text.push_str(&decoder.push(*id));
        check_pending(&text, &tokenizer.decode(&ids), &ids);
    }
    text.push_str(&decoder.finish());
    assert_eq!(text, tokenizer.decode(&ids), "prompt {prompt:?}, answer {answer:?}");
}

/// `whole` is `text` and at most one incomplete character.
pub fn check_pending(text: &str, whole: &str, ids: &[u32]) {
    let pending =
        whole.strip_prefix(text).unwrap_or_else(|| panic!("{text:?} does not begin {whole:?}, ids {ids:?}"));
    let incomplete = pending.chars().all(|character| character == char::REPLACEMENT_CHARACTER);
    assert!(incomplete && pending.chars().count() <= 3, "{pending:?} is held back of {whole:?}, ids {ids:?}");
}
