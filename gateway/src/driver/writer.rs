//! From drawn tokens to an answer's events: text, stop ids, stop strings, limits. No async, no clock.

use asterism_proto::v1;
use asterism_proto::v1::generate_response::Event;

use crate::text::{Decoder, StopStrings};

/// Where an answer ends.
#[derive(Clone, Debug)]
pub struct Stops {
    /// Ids that end it; their text is not part of it.
    pub ids: Vec<u32>,
    /// Strings that end it; it stops before the first.
    pub strings: Vec<String>,
    /// Watches for them.
    pub scanner: StopStrings,
    /// Its most tokens.
    pub max_tokens: u32,
}

/// Writes one answer.
#[derive(Clone, Debug)]
pub struct Writer {
    decoder: Decoder,
    stops: Stops,
    usage: v1::Usage,
    has_begun: bool,
}

/// What a token led to.
#[derive(Clone, Debug, PartialEq)]
pub struct Written {
    /// The token and the text that became certain with it.
    pub delta: v1::Delta,
    /// Set with the last token.
    pub finished: Option<v1::Finished>,
}

impl Written {
    /// As its reader gets it.
    pub fn into_events(self) -> impl Iterator<Item = Event> {
        let Self { delta, finished } = self;
        let delta = (!delta.token_ids.is_empty() || !delta.text.is_empty()).then_some(Event::Delta(delta));
        delta.into_iter().chain(finished.map(Event::Finished))
    }
}

impl Writer {
    /// For an answer whose prompt `decoder` has seen.
    pub fn new(decoder: Decoder, stops: Stops, prompt_tokens: u32) -> Self {
        let usage = v1::Usage { prompt_tokens, completion_tokens: 0, cached_tokens: 0 };
        Self { decoder, stops, usage, has_begun: false }
    }

    /// Its sequence begins, or begins again, with so many tokens cached.
    pub fn begins(&mut self, cached_tokens: u32) {
        if !std::mem::replace(&mut self.has_begun, true) {
            // A turn that goes on finds tokens of its answer too.
            self.usage.cached_tokens = cached_tokens.min(self.usage.prompt_tokens);
        }
    }

    /// Whether another token follows this one, which comes after `ahead` that are not taken in yet, whatever its text is. False
    /// also where the text may end the answer.
    pub fn continues(&self, id: u32, ahead: u32) -> bool {
        let count = self.usage.completion_tokens.saturating_add(ahead).saturating_add(1);
        self.stops.strings.is_empty() && !self.stops.ids.contains(&id) && count < self.stops.max_tokens
    }

    /// Takes the next token in. Nothing may follow once the answer has finished.
    pub fn token(&mut self, id: u32, logprobs: Option<v1::TokenLogprob>) -> Written {
        self.usage.completion_tokens += 1;
        let mut delta =
            v1::Delta { token_ids: vec![id], text: String::new(), logprobs: logprobs.into_iter().collect() };
        if self.stops.ids.contains(&id) {
            (delta.text, _) = self.rest();
            let matched = v1::finished::Matched::StopTokenId(id);
            let finished = Some(self.finished(v1::FinishReason::StopToken, Some(matched)));
            return Written { delta, finished };
        }
        let piece = self.decoder.push(id);
        let scan = self.stops.scanner.push(&piece);
        delta.text = scan.text;
        let mut stop = scan.matched;
        let full = self.usage.completion_tokens >= self.stops.max_tokens;
        if stop.is_none() && full {
            let (text, matched) = self.rest();
            delta.text.push_str(&text);
            stop = matched;
        }
        let finished = match stop.and_then(|index| self.stops.strings.get(index).cloned()) {
            Some(stop) => {
                let matched = v1::finished::Matched::Stop(stop);
                Some(self.finished(v1::FinishReason::StopString, Some(matched)))
            }
            None => full.then(|| self.finished(v1::FinishReason::Length, None)),
        };
        Written { delta, finished }
    }

    /// Ends the answer from outside, after the text that was held back.
    pub fn abort(&mut self) -> Written {
        let delta = v1::Delta { text: self.rest().0, ..v1::Delta::default() };
        Written { delta, finished: Some(self.finished(v1::FinishReason::Aborted, None)) }
    }

    /// The text that waited for more, and the index of a stop string that it completes.
    fn rest(&mut self) -> (String, Option<usize>) {
        let rest = std::mem::replace(&mut self.decoder, Decoder::silent()).finish();
        let scan = self.stops.scanner.push(&rest);
        let mut text = scan.text;
        if scan.matched.is_none() {
            text.push_str(&self.stops.scanner.clone().finish());
        }
        (text, scan.matched)
    }

    fn finished(&self, reason: v1::FinishReason, matched: Option<v1::finished::Matched>) -> v1::Finished {
        // The reader's side adds the response.
        v1::Finished { reason: reason.into(), matched, usage: Some(self.usage), response: String::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writer(ids: &[u32], max_tokens: u32) -> Writer {
        let scanner = StopStrings::new(&[]).unwrap();
        let stops = Stops { ids: ids.to_vec(), strings: Vec::new(), scanner, max_tokens };
        Writer::new(Decoder::silent(), stops, 3)
    }

    #[test]
    fn the_last_of_max_tokens_finishes() {
        let mut writer = writer(&[], 2);
        writer.begins(2);
        writer.begins(1);
        assert_eq!(writer.token(7, None).finished, None);
        let written = writer.token(8, None);
        let finished = written.finished.unwrap();
        assert_eq!(written.delta.token_ids, [8]);
        assert_eq!(finished.reason(), v1::FinishReason::Length);
        let usage = v1::Usage { prompt_tokens: 3, completion_tokens: 2, cached_tokens: 2 };
        assert_eq!(finished.usage, Some(usage));
    }

    #[test]
    fn what_follows_is_known_before_the_text() {
        let mut writer = writer(&[8], 3);
        assert!(writer.continues(7, 0) && writer.continues(7, 1) && !writer.continues(7, 2));
        assert!(!writer.continues(8, 0), "an id that ends it");
        writer.token(7, None);
        assert!(writer.continues(7, 0) && !writer.continues(7, 1));
        let scanner = StopStrings::new(&["x".to_owned()]).unwrap();
        let stops = Stops { ids: Vec::new(), strings: vec!["x".to_owned()], scanner, max_tokens: 3 };
        assert!(!Writer::new(Decoder::silent(), stops, 3).continues(7, 0), "its text may end it");
    }

    #[test]
    fn a_stop_id_goes_before_the_limit() {
        let mut writer = writer(&[8], 1);
        let finished = writer.token(8, None).finished.unwrap();
        assert_eq!(finished.reason(), v1::FinishReason::StopToken);
        assert_eq!(finished.matched, Some(v1::finished::Matched::StopTokenId(8)));
    }
}
