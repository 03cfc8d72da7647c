//! Special tokens in a text: found before the tokenizer's model sees it, each becomes its id.
//!
//! The splitting is that of the reference's (slow) tokenizer classes: the leftmost, then the longest token; the flags
//! `lstrip`, `rstrip` and `single_word` act on the parts beside a token.

use std::borrow::Cow;
use std::collections::HashMap;

use super::tokenizer_config::AddedToken;

/// A stretch of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part<'a> {
    /// A special token.
    Special(u32),
    /// Ordinary text, never empty.
    Text(Cow<'a, str>),
}

/// The special tokens of a tokenizer.
#[derive(Debug, Default)]
pub(super) struct SpecialTokens {
    /// Longest first, so that the first that fits is the longest.
    tokens: Vec<(AddedToken, u32)>,
    contents: HashMap<u32, usize>,
}

impl SpecialTokens {
    /// Of several tokens with the same text, the first counts. An empty text is none.
    pub fn new(tokens: impl IntoIterator<Item = (AddedToken, u32)>) -> Self {
        let mut unique: Vec<(AddedToken, u32)> = Vec::new();
        for (token, id) in tokens {
            if !token.content.is_empty() && unique.iter().all(|(known, _)| known.content != token.content) {
                unique.push((token, id));
            }
        }
        unique.sort_by_key(|(token, _)| std::cmp::Reverse(token.content.len()));
        let contents = unique.iter().enumerate().map(|(index, (_, id))| (*id, index)).collect();
        Self { tokens: unique, contents }
    }

    /// The text of a special id.
    pub fn content(&self, id: u32) -> Option<&str> {
        let index = *self.contents.get(&id)?;
        self.tokens.get(index).map(|(token, _)| token.content.as_str())
    }

    /// Cuts a text into its special tokens and what lies between.
    pub fn split<'a>(&self, text: &'a str) -> Vec<Part<'a>> {
        let mut parts = self.cut(text);
        for index in 0..parts.len() {
            let Part::Special(id) = parts[index] else { continue };
            let Some((token, _)) = self.contents.get(&id).and_then(|index| self.tokens.get(*index)) else {
                continue;
            };
            self.apply_flags(&mut parts, index, token);
        }
        parts.retain(|part| *part != Part::Text(Cow::Borrowed("")));
        parts
    }

    fn cut<'a>(&self, text: &'a str) -> Vec<Part<'a>> {
        let mut parts = Vec::new();
        let mut start = 0;
        let mut at = 0;
        while let Some(rest) = text.get(at..).filter(|rest| !rest.is_empty()) {
            let found = self.tokens.iter().find(|(token, _)| rest.starts_with(&token.content));
            if let Some((token, id)) = found {
                if start < at {
                    parts.push(Part::Text(Cow::Borrowed(&text[start..at])));
                }
                parts.push(Part::Special(*id));
                at += token.content.len();
                start = at;
            } else {
                at += rest.chars().next().map_or(1, char::len_utf8);
            }
        }
        if start < text.len() {
            parts.push(Part::Text(Cow::Borrowed(&text[start..])));
        }
        parts
    }

    fn apply_flags(&self, parts: &mut [Part<'_>], index: usize, token: &AddedToken) {
        let (before, rest) = parts.split_at_mut(index);
        let Some((this, after)) = rest.split_first_mut() else { return };
        let mut left = before.last_mut();
        let mut right = after.first_mut();
        if token.rstrip
            && let Some(Part::Text(text)) = right.as_deref_mut()
        {
            *text = Cow::Owned(text.trim_start().to_owned());
        }
        if token.lstrip
            && let Some(Part::Text(text)) = left.as_deref_mut()
        {
            *text = Cow::Owned(text.trim_end().to_owned());
        }
        if !token.single_word {
            return;
        }
        // A neighbour that is itself a special token is compared, and joined, by its text.
        if let Some(left) = left
            && let Some(text) = self.text_of(left)
            && !text.is_empty()
            && !text.ends_with(' ')
        {
            *left = Part::Text(Cow::Owned(format!("{text}{}", token.content)));
            *this = Part::Text(Cow::Borrowed(""));
        } else if let Some(right) = right
            && let Some(text) = self.text_of(right)
            && !text.is_empty()
            && !text.starts_with(' ')
        {
            *right = Part::Text(Cow::Owned(format!("{}{text}", token.content)));
            *this = Part::Text(Cow::Borrowed(""));
        }
    }

    fn text_of<'a>(&'a self, part: &'a Part<'_>) -> Option<&'a str> {
        match part {
            Part::Special(id) => self.content(*id),
            Part::Text(text) => Some(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(content: &str) -> AddedToken {
        AddedToken { content: content.to_owned(), lstrip: false, rstrip: false, single_word: false }
    }

    fn tokens() -> SpecialTokens {
        SpecialTokens::new([
            (token("<s>"), 1),
            (token("</s>"), 2),
            (token("<s>>"), 3),
            (AddedToken { single_word: true, ..token("<e>") }, 4),
            (AddedToken { lstrip: true, rstrip: true, ..token("<m>") }, 5),
            (token("<s>"), 9),
            (token(""), 10),
        ])
    }

    fn check(text: &str, expected: &[Result<u32, &str>]) {
        let expected: Vec<Part<'_>> = expected
            .iter()
            .map(|part| match part {
                Ok(id) => Part::Special(*id),
                Err(text) => Part::Text(Cow::Borrowed(*text)),
            })
            .collect();
        assert_eq!(tokens().split(text), expected, "{text:?}");
    }

    #[test]
    fn leftmost_longest() {
        check("", &[]);
        check("plain 你好", &[Err("plain 你好")]);
        check("a</s>b", &[Err("a"), Ok(2), Err("b")]);
        check("<s><s>>x", &[Ok(1), Ok(3), Err("x")]);
        check("<s", &[Err("<s")]);
    }

    #[test]
    fn a_single_word_needs_spaces_or_ends() {
        check("<e>", &[Ok(4)]);
        check("a <e> b", &[Err("a "), Ok(4), Err(" b")]);
        check("a<e> b", &[Err("a<e>"), Err(" b")]);
        check("a <e>b", &[Err("a "), Err("<e>b")]);
        check("a<e>b", &[Err("a<e>"), Err("b")]);
    }

    #[test]
    fn stripping_takes_white_space_along() {
        check("a <m>\n b", &[Err("a"), Ok(5), Err("b")]);
        check(" <m> ", &[Ok(5)]);
    }
}
