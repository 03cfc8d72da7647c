//! Hugging Face `tokenizer.json`, carried out by the `tokenizers` crate.

use std::path::Path;

use tokenizers::decoders::DecoderWrapper;

use super::error::TextError;
use super::utf8::{Malformed, Utf8Carry};

/// A loaded `tokenizer.json`.
pub(super) struct JsonTokenizer {
    tokenizer: tokenizers::Tokenizer,
    byte_level: bool,
}

/// The state between two ids of a streaming decode.
#[derive(Clone, Debug)]
pub(super) enum JsonRun {
    /// Byte-level tokens are bytes; only incomplete characters wait.
    Bytes(Utf8Carry),
    /// Any other decoder sees a window of the last ids.
    Window(Window),
}

/// The last ids, and how much of their text is out.
#[derive(Clone, Debug, Default)]
pub(super) struct Window {
    ids: Vec<u32>,
    text: String,
}

/// A window that grew to this many ids is cut ...
const LONGEST_WINDOW: usize = 32;
/// ... to this many: more than one character's bytes, so that its first ids see the same context as before.
const SHORTEST_WINDOW: usize = 12;
/// A row of byte tokens is awaited up to this many.
const LONGEST_ROW: usize = 512;
/// An incomplete character is at most three bytes, each of which some decoders show as one U+FFFD.
const UNCERTAIN: usize = 3;

impl JsonTokenizer {
    pub fn load(path: &Path, bytes: &[u8]) -> Result<Self, TextError> {
        let mut tokenizer =
            tokenizers::Tokenizer::from_bytes(bytes).map_err(|error| TextError::corrupt(path, error))?;
        // A file may carry the settings of somebody's batch; a prompt is neither cut nor filled up.
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|error| TextError::corrupt(path, error))?;
        let byte_level = matches!(tokenizer.get_decoder(), Some(DecoderWrapper::ByteLevel(_)));
        Ok(Self { tokenizer, byte_level })
    }

    /// Number of ids, those of added tokens included.
    pub fn len(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }

    /// The ids of a text; none are added before or after.
    pub fn encode(&self, text: &str) -> tokenizers::Result<Vec<u32>> {
        Ok(self.tokenizer.encode_fast(text, false)?.get_ids().to_vec())
    }

    /// The text of ids, special tokens included, as the file's decoder has it.
    pub fn decode(&self, ids: &[u32]) -> String {
        // The decoders of the crate fail on nothing that ids can bring about; a failure would decode to nothing.
        self.tokenizer.decode(ids, false).unwrap_or_default()
    }

    /// The bytes of one id by itself; none for an id without a token.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        match self.tokenizer.id_to_token(id) {
            None => Vec::new(),
            Some(token) if self.byte_level => byte_level_bytes(&token),
            Some(_) => self.decode(&[id]).into_bytes(),
        }
    }

    /// The state after the ids of a prompt; only its last ones matter.
    pub fn start(&self, prompt_ids: &[u32]) -> JsonRun {
        if self.byte_level {
            let mut carry = Utf8Carry::new(Malformed::PerPart);
            let (_, tail) = prompt_ids.split_at(prompt_ids.len().saturating_sub(SHORTEST_WINDOW));
            let bytes: Vec<u8> = tail.iter().flat_map(|id| self.token_bytes(*id)).collect();
            carry.push(&bytes, &mut String::new());
            return JsonRun::Bytes(carry);
        }
        let is_open = |id: &&u32| self.tokenizer.id_to_token(**id).is_none_or(|token| is_byte(&token));
        let row = prompt_ids.iter().rev().take_while(is_open).take(LONGEST_ROW).count();
        let certain_ids = prompt_ids.len() - row;
        let first = certain_ids.saturating_sub(SHORTEST_WINDOW);
        let text = prompt_ids.get(first..certain_ids).map(|ids| self.decode(ids)).unwrap_or_default();
        let ids = prompt_ids.get(first..).unwrap_or_default().to_vec();
        JsonRun::Window(Window { ids, text: certain(&text).to_owned() })
    }

    /// Takes one id in and appends what is certain now.
    pub fn push(&self, run: &mut JsonRun, id: u32, out: &mut String) {
        match run {
            JsonRun::Bytes(carry) => carry.push(&self.token_bytes(id), out),
            JsonRun::Window(window) => {
                let Some(token) = self.tokenizer.id_to_token(id) else { return };
                window.ids.push(id);
                // Some decoders show a whole row of byte tokens as U+FFFD if its end is broken, so its end is awaited.
                if is_byte(&token) && window.ids.len() < LONGEST_ROW {
                    return;
                }
                let whole = self.decode(&window.ids);
                if let Some(new) = certain(&whole).strip_prefix(window.text.as_str()) {
                    out.push_str(new);
                    window.text.push_str(new);
                }
                if window.ids.len() >= LONGEST_WINDOW {
                    window.ids.drain(..window.ids.len() - SHORTEST_WINDOW);
                    window.text = certain(&self.decode(&window.ids)).to_owned();
                }
            }
        }
    }

    /// No more ids come: appends what still waits.
    pub fn finish(&self, run: &mut JsonRun, out: &mut String) {
        match run {
            JsonRun::Bytes(carry) => carry.flush(out),
            JsonRun::Window(window) => {
                let whole = self.decode(&window.ids);
                out.push_str(whole.strip_prefix(window.text.as_str()).unwrap_or_default());
                *window = Window::default();
            }
        }
    }
}

/// Whether a token is one byte of a byte fallback.
fn is_byte(token: &str) -> bool {
    token.len() == 6 && token.starts_with("<0x") && token.ends_with('>')
}

/// A text without those U+FFFD at its end that the next id may turn into a character.
fn certain(text: &str) -> &str {
    let mut certain = text;
    for _ in 0..UNCERTAIN {
        certain = certain.strip_suffix(char::REPLACEMENT_CHARACTER).unwrap_or(certain);
    }
    certain
}

/// The bytes of a byte-level token; a token with a character outside that alphabet (an added one) stands for its text.
fn byte_level_bytes(token: &str) -> Vec<u8> {
    token
        .chars()
        .map(byte_level_byte)
        .collect::<Option<Vec<u8>>>()
        .unwrap_or_else(|| token.as_bytes().to_vec())
}

/// The byte that a character of the byte-level alphabet stands for: printable Latin-1 for itself, the 68 other bytes
/// in ascending order from U+0100 on.
fn byte_level_byte(character: char) -> Option<u8> {
    let code = u32::from(character);
    match code {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => u8::try_from(code).ok(),
        0x100..=0x120 => u8::try_from(code - 0x100).ok(),
        0x121..=0x142 => u8::try_from(code - 0x121 + 0x7f).ok(),
        0x143 => Some(0xad),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_level_alphabet_has_every_byte_once() {
        let mut bytes: Vec<u8> = (0..0x200).filter_map(char::from_u32).filter_map(byte_level_byte).collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        assert_eq!(byte_level_bytes("Ġthe"), b" the");
        assert_eq!(byte_level_bytes("Ċ"), b"\n");
        assert_eq!(byte_level_bytes("<｜end｜>"), "<｜end｜>".as_bytes());
    }
}
