//! Bytes that arrive piece by piece become characters; an incomplete one waits for its rest.

/// How many U+FFFD stand for bytes that are no UTF-8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Malformed {
    /// One for each byte (SentencePiece).
    PerByte,
    /// One for each maximal part of a character (the Unicode recommendation, `String::from_utf8_lossy`).
    PerPart,
}

/// The bytes of a character that is not complete yet: at most three between two calls.
#[derive(Clone, Debug)]
pub(super) struct Utf8Carry {
    bytes: Vec<u8>,
    malformed: Malformed,
}

impl Utf8Carry {
    pub fn new(malformed: Malformed) -> Self {
        Self { bytes: Vec::with_capacity(4), malformed }
    }

    /// Takes bytes in and appends to `out` what is certain now.
    pub fn push(&mut self, bytes: &[u8], out: &mut String) {
        self.bytes.extend_from_slice(bytes);
        let mut rest = self.bytes.as_slice();
        while !rest.is_empty() {
            let error = match std::str::from_utf8(rest) {
                Ok(text) => {
                    out.push_str(text);
                    rest = &[];
                    break;
                }
                Err(error) => error,
            };
            let (valid, bad) = rest.split_at(error.valid_up_to());
            out.push_str(&String::from_utf8_lossy(valid));
            rest = bad;
            let Some(part) = error.error_len() else { break };
            out.push(char::REPLACEMENT_CHARACTER);
            let dropped = match self.malformed {
                Malformed::PerByte => 1,
                Malformed::PerPart => part,
            };
            rest = rest.get(dropped..).unwrap_or_default();
        }
        let done = self.bytes.len() - rest.len();
        self.bytes.drain(..done);
    }

    /// Nothing more belongs to the character that waits: appends its U+FFFD, if there is one.
    pub fn flush(&mut self, out: &mut String) {
        let count = match self.malformed {
            Malformed::PerByte => self.bytes.len(),
            Malformed::PerPart => self.bytes.len().min(1),
        };
        out.extend(std::iter::repeat_n(char::REPLACEMENT_CHARACTER, count));
        self.bytes.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(malformed: Malformed, chunks: &[&[u8]]) -> String {
        let mut carry = Utf8Carry::new(malformed);
        let mut out = String::new();
        for chunk in chunks {
            carry.push(chunk, &mut out);
        }
        carry.flush(&mut out);
        out
    }

    #[test]
    fn a_character_waits_for_its_last_byte() {
        let mut carry = Utf8Carry::new(Malformed::PerByte);
        let mut out = String::new();
        for byte in &"你".as_bytes()[..2] {
            carry.push(&[*byte], &mut out);
            assert_eq!(out, "");
        }
        carry.push(&"你".as_bytes()[2..], &mut out);
        assert_eq!(out, "你");
    }

    #[test]
    fn broken_characters_count_by_byte_or_by_part() {
        for (bytes, per_byte, per_part) in [
            (&b"\xe4\xbd"[..], "\u{fffd}\u{fffd}", "\u{fffd}"),
            (b"\xe4\xbdA", "\u{fffd}\u{fffd}A", "\u{fffd}A"),
            (b"\xff\xfe", "\u{fffd}\u{fffd}", "\u{fffd}\u{fffd}"),
            (b"\xed\xa0\x80", "\u{fffd}\u{fffd}\u{fffd}", "\u{fffd}\u{fffd}\u{fffd}"),
            (b"\xf0\x9f\x98", "\u{fffd}\u{fffd}\u{fffd}", "\u{fffd}"),
            (b"\xef\xbf\xbd", "\u{fffd}", "\u{fffd}"),
            (b"\0", "\0", "\0"),
        ] {
            assert_eq!(run(Malformed::PerByte, &[bytes]), per_byte, "{bytes:x?}");
            assert_eq!(run(Malformed::PerPart, &[bytes]), per_part, "{bytes:x?}");
        }
    }

    proptest! {
        #[test]
        fn cuts_do_not_matter(bytes in proptest::collection::vec(any::<u8>(), 0..40), cut in 0usize..40) {
            let cut = cut.min(bytes.len());
            let whole = run(Malformed::PerPart, &[&bytes]);
            prop_assert_eq!(&whole, &String::from_utf8_lossy(&bytes));
            prop_assert_eq!(run(Malformed::PerPart, &[&bytes[..cut], &bytes[cut..]]), whole);
            let singles: Vec<&[u8]> = bytes.chunks(1).collect();
            prop_assert_eq!(run(Malformed::PerByte, &singles), run(Malformed::PerByte, &[&bytes]));
        }
    }
}
