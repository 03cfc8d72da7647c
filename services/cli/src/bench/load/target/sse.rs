//! Server-sent events, as the WHATWG specifies them and as servers of the dialect bend them.
//!
//! Lines end with LF, CR LF or CR; a block of lines up to an empty one is an event. Two liberties: an event that the stream's
//! end cuts off before its empty line is taken, and the field `error`, which older llama.cpp servers write, is one of data.

/// One event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// The event's name; empty if it has none.
    pub name: String,
    /// Its lines of data, joined.
    pub data: String,
}

/// Longer than any event of an answer.
const MOST: usize = 16 << 20;

/// An event that has no end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event of more than {MOST} bytes")]
pub struct TooLong;

/// Bytes in, events out.
#[derive(Debug, Default)]
pub struct Parser {
    /// A line whose end has not come.
    line: Vec<u8>,
    /// An LF right after a CR belongs to it.
    after_cr: bool,
    event: Event,
    /// Whether the event has a line of data, be it an empty one.
    has_data: bool,
    begun: bool,
}

impl Parser {
    /// Takes the next bytes and returns the events that end in them.
    ///
    /// # Errors
    /// An event is too long.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<Event>, TooLong> {
        let mut events = Vec::new();
        for &byte in bytes {
            let after_cr = std::mem::replace(&mut self.after_cr, byte == b'\r');
            match byte {
                b'\n' if after_cr => {}
                b'\n' | b'\r' => events.extend(self.end_line()),
                _ => self.line.push(byte),
            }
            if self.line.len() + self.event.data.len() > MOST {
                return Err(TooLong);
            }
        }
        Ok(events)
    }

    /// The event that the stream's end cut off.
    pub fn finish(mut self) -> Option<Event> {
        if !self.line.is_empty() {
            self.end_line();
        }
        self.dispatch()
    }

    fn end_line(&mut self) -> Option<Event> {
        let line = std::mem::take(&mut self.line);
        let mut line = String::from_utf8_lossy(&line);
        if !std::mem::replace(&mut self.begun, true) {
            // A byte order mark may stand at the very beginning.
            line = line.strip_prefix('\u{feff}').map(|rest| rest.to_owned().into()).unwrap_or(line);
        }
        if line.is_empty() {
            return self.dispatch();
        }
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "data" | "error" => {
                if std::mem::replace(&mut self.has_data, true) {
                    self.event.data.push('\n');
                }
                self.event.data.push_str(value);
                if field == "error" {
                    self.event.name = "error".to_owned();
                }
            }
            "event" => self.event.name = value.to_owned(),
            // A comment's field is empty; ids and delays are for who comes back.
            _ => {}
        }
        None
    }

    fn dispatch(&mut self) -> Option<Event> {
        let event = std::mem::take(&mut self.event);
        std::mem::take(&mut self.has_data).then_some(event)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(pieces: &[&[u8]]) -> Vec<(String, String)> {
        let mut parser = Parser::default();
        let mut events: Vec<Event> = Vec::new();
        for piece in pieces {
            events.extend(parser.push(piece).unwrap());
        }
        events.extend(parser.finish());
        events.into_iter().map(|event| (event.name, event.data)).collect()
    }

    fn data(text: &str) -> Vec<String> {
        parse(&[text.as_bytes()]).into_iter().map(|(_, data)| data).collect()
    }

    #[test]
    fn events_end_at_empty_lines() {
        assert_eq!(data("data: a\n\ndata:b\n\n"), ["a", "b"]);
        assert_eq!(data("data: a\r\n\r\ndata: b\r\rdata: c\n\n"), ["a", "b", "c"]);
        assert_eq!(data("\u{feff}data: a\n\n"), ["a"]);
    }

    #[test]
    fn lines_of_one_event_are_joined() {
        assert_eq!(data("data: a\ndata:\ndata:  b\n\n"), ["a\n\n b"]);
    }

    #[test]
    fn comments_ids_and_empty_events_are_none() {
        assert_eq!(data(": ping\n\nid: 3\nretry: 10\n\ndata: a\n\n\n\n:\n\n"), ["a"]);
    }

    #[test]
    fn an_event_cut_off_by_the_end_is_taken() {
        assert_eq!(data("data: a\n\ndata: [DONE]"), ["a", "[DONE]"]);
        assert_eq!(data("data: a\n\ndata: [DONE]\n"), ["a", "[DONE]"]);
    }

    #[test]
    fn names_tell_errors() {
        assert_eq!(parse(&[b"event: error\ndata: a\n\n"]), [("error".to_owned(), "a".to_owned())]);
        assert_eq!(parse(&[b"error: a\n\n"]), [("error".to_owned(), "a".to_owned())]);
    }

    #[test]
    fn an_endless_event_is_refused() {
        let mut parser = Parser::default();
        let line = [b"data: ".as_slice(), &vec![b'x'; MOST]].concat();
        assert_eq!(parser.push(&line), Err(TooLong));
    }

    proptest! {
        #[test]
        fn where_bytes_are_cut_does_not_matter(
            events in prop::collection::vec("[a-z: 好]{0,12}", 0..6),
            ending in prop::sample::select(vec!["\n", "\r\n", "\r"]),
            size in 1usize..9,
        ) {
            let text: String =
                events.iter().map(|data| format!("data: {data}{ending}: c{ending}{ending}")).collect();
            let pieces: Vec<&[u8]> = text.as_bytes().chunks(size).collect();
            let found: Vec<String> = parse(&pieces).into_iter().map(|(_, data)| data).collect();
            prop_assert_eq!(found, events);
        }
    }
}
