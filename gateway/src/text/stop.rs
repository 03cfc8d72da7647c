//! Stop strings in a stream of text.
//!
//! The text ends before the stop string that is complete first; of those complete at the same place, before the longest.
//! What this answers depends on the joined text alone, never on where the deltas were cut.

use asterism_proto::Failure;

/// Most stop strings of a request.
pub const MOST_STOPS: usize = 16;
/// Longest stop string, in bytes.
pub const LONGEST_STOP: usize = 1024;

/// Watches a stream for stop strings and holds back what may be the beginning of one.
#[derive(Clone, Debug)]
pub struct StopStrings {
    stops: Vec<Stop>,
    /// Text that is not out yet: the longest end of the stream that begins a stop string.
    held: String,
}

/// What a delta led to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopScan {
    /// Text that may go out.
    pub text: String,
    /// The index of the stop string that was met; the stream has ended and `text` is its last.
    pub matched: Option<usize>,
}

/// One stop string, as Knuth, Morris and Pratt match it.
#[derive(Clone, Debug)]
struct Stop {
    bytes: Vec<u8>,
    /// For each length: the longest shorter beginning of the string that ends it too.
    fallback: Vec<usize>,
    /// How many of its bytes end the stream so far.
    matched: usize,
}

impl StopStrings {
    /// Checks the stop strings of a request.
    pub fn new(stops: &[String]) -> Result<Self, Failure> {
        if stops.len() > MOST_STOPS {
            return Err(Failure::invalid(
                "stopping.stop",
                format!("{} stop strings, more than {MOST_STOPS}", stops.len()),
            ));
        }
        for (index, stop) in stops.iter().enumerate() {
            let field = format!("stopping.stop[{index}]");
            if stop.is_empty() {
                return Err(Failure::invalid(field, "a stop string is empty"));
            }
            if stop.len() > LONGEST_STOP {
                let message = format!("a stop string has {} bytes, more than {LONGEST_STOP}", stop.len());
                return Err(Failure::invalid(field, message));
            }
        }
        Ok(Self { stops: stops.iter().map(|stop| Stop::new(stop)).collect(), held: String::new() })
    }

    /// Takes a delta in. After a match the rest of the stream must not be pushed.
    pub fn push(&mut self, delta: &str) -> StopScan {
        for (index, byte) in delta.bytes().enumerate() {
            let mut complete: Option<(usize, usize)> = None;
            for (number, stop) in self.stops.iter_mut().enumerate() {
                let length = stop.bytes.len();
                if stop.push(byte) && complete.is_none_or(|(_, longest)| length > longest) {
                    complete = Some((number, length));
                }
            }
            if let Some((number, length)) = complete {
                let mut text = std::mem::take(&mut self.held);
                // The match ends after a whole stop string, so at a character's end.
                text.push_str(&delta[..=index]);
                text.truncate(text.len() - length);
                return StopScan { text, matched: Some(number) };
            }
        }
        let mut text = std::mem::take(&mut self.held);
        text.push_str(delta);
        let hold = self.stops.iter().map(|stop| stop.matched).max().unwrap_or(0);
        self.held = text.split_off(text.len() - hold);
        StopScan { text, matched: None }
    }

    /// The stream ended otherwise: the text that was held back.
    pub fn finish(self) -> String {
        self.held
    }
}

impl Stop {
    fn new(text: &str) -> Self {
        let bytes = text.as_bytes().to_vec();
        let mut fallback = vec![0; bytes.len() + 1];
        let mut length = 0;
        for end in 1..bytes.len() {
            while length > 0 && bytes[length] != bytes[end] {
                length = fallback[length];
            }
            if bytes[length] == bytes[end] {
                length += 1;
            }
            fallback[end + 1] = length;
        }
        Self { bytes, fallback, matched: 0 }
    }

    /// Whether the string is complete with this byte.
    fn push(&mut self, byte: u8) -> bool {
        while self.matched > 0 && self.bytes.get(self.matched) != Some(&byte) {
            self.matched = self.fallback[self.matched];
        }
        if self.bytes.get(self.matched) == Some(&byte) {
            self.matched += 1;
        }
        self.matched == self.bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn scan(stops: &[&str], deltas: &[&str]) -> (Vec<String>, Option<usize>) {
        let stops: Vec<String> = stops.iter().map(|stop| (*stop).to_owned()).collect();
        let mut strings = StopStrings::new(&stops).unwrap();
        let mut texts = Vec::new();
        for delta in deltas {
            let scan = strings.push(delta);
            texts.push(scan.text);
            if scan.matched.is_some() {
                return (texts, scan.matched);
            }
        }
        texts.push(strings.finish());
        (texts, None)
    }

    /// The definition, by brute force: the first end of a stop string, there the longest.
    fn expected(stops: &[String], text: &str) -> (String, Option<usize>) {
        for end in (0..=text.len()).filter(|end| text.is_char_boundary(*end)) {
            let ending = stops.iter().enumerate().filter(|(_, stop)| text[..end].ends_with(stop.as_str()));
            let longest = ending.max_by(|a, b| a.1.len().cmp(&b.1.len()).then(b.0.cmp(&a.0)));
            if let Some((index, stop)) = longest {
                return (text[..end - stop.len()].to_owned(), Some(index));
            }
        }
        (text.to_owned(), None)
    }

    #[test]
    fn without_stop_strings_everything_passes() {
        assert_eq!(scan(&[], &["a", "", "b"]), (vec!["a".into(), "".into(), "b".into(), "".into()], None));
    }

    #[test]
    fn a_possible_beginning_is_held_back() {
        assert_eq!(
            scan(&["</s>"], &["a<", "/", "b<", "/s>tail"]),
            (vec!["a".into(), "".into(), "</b".into(), "".into()], Some(0))
        );
        assert_eq!(scan(&["</s>"], &["a</s"]), (vec!["a".into(), "</s".into()], None));
    }

    #[test]
    fn the_first_complete_one_counts() {
        assert_eq!(scan(&["abcd", "bc"], &["xabcd"]), (vec!["xa".into()], Some(1)));
        assert_eq!(scan(&["b", "ab"], &["xab"]), (vec!["x".into()], Some(1)));
        assert_eq!(scan(&["aab"], &["aaa", "b"]), (vec!["a".into(), "".into()], Some(0)));
        assert_eq!(scan(&["停止"], &["先停", "停止了"]), (vec!["先".into(), "停".into()], Some(0)));
    }

    #[test]
    fn unusable_stop_strings_are_named() {
        let failure = StopStrings::new(&["a".to_owned(), String::new()]).unwrap_err();
        assert_eq!(failure.field.as_deref(), Some("stopping.stop[1]"));
        assert!(StopStrings::new(&["x".repeat(LONGEST_STOP + 1)]).is_err());
        assert!(StopStrings::new(&vec!["x".to_owned(); MOST_STOPS + 1]).is_err());
    }

    proptest! {
        #[test]
        fn cuts_do_not_matter(
            stops in proptest::collection::vec("[ab好]{1,4}", 0..4),
            deltas in proptest::collection::vec("[ab好]{0,4}", 0..12),
        ) {
            let mut strings = StopStrings::new(&stops).unwrap();
            let mut text = String::new();
            let mut matched = None;
            for delta in &deltas {
                let scan = strings.push(delta);
                text.push_str(&scan.text);
                matched = scan.matched;
                if matched.is_some() {
                    break;
                }
            }
            if matched.is_none() {
                text.push_str(&strings.finish());
            }
            prop_assert_eq!((text, matched), expected(&stops, &deltas.concat()));
        }
    }
}
