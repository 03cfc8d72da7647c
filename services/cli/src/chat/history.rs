//! What was said in a conversation, and the list of conversations, for people.

use std::time::{Duration, SystemTime};

use asterism_proto::v1::Session;
use serde::Deserialize;

/// What an exported line has of a turn; that of the session has none.
#[derive(Debug, Deserialize, PartialEq)]
pub struct Exported {
    /// What was said.
    #[serde(default)]
    pub messages: Vec<Said>,
    /// The answer, once it has ended.
    pub answer: Option<Answer>,
}

/// A message.
#[derive(Debug, Deserialize, PartialEq)]
pub struct Said {
    /// Who said it.
    pub role: String,
    /// What.
    #[serde(default)]
    pub content: String,
}

/// An answer.
#[derive(Debug, Deserialize, PartialEq)]
pub struct Answer {
    /// As it was drawn.
    #[serde(default)]
    pub text: String,
    /// Why it has no proper end.
    #[serde(default)]
    pub failure: String,
}

/// A line of the list.
pub fn listed(number: usize, session: &Session, now: SystemTime) -> String {
    let Session { session_id, turns, title, .. } = session;
    let id = session_id.get(..12).unwrap_or(session_id);
    let age = session.updated.and_then(|at| SystemTime::try_from(at).ok());
    let age = age.map_or_else(String::new, |at| ago(now.duration_since(at).unwrap_or_default()));
    let runs = if session.running_turn.is_some() { ", answering" } else { "" };
    let s = if *turns == 1 { "" } else { "s" };
    format!("{number:>3}  {id}  {age:>10}  {turns} turn{s}{runs}  {}", printable(title))
}

/// A title of a conversation that begins so.
pub fn title(text: &str) -> String {
    const MOST: usize = 60;
    let line = text.lines().next().unwrap_or_default().trim();
    match line.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.to_owned(),
    }
}

/// Without what steers a terminal.
pub fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}

fn ago(age: Duration) -> String {
    match age.as_secs() {
        0..60 => "now".to_owned(),
        seconds @ 60..3_600 => format!("{} min ago", seconds / 60),
        seconds @ 3_600..86_400 => format!("{} h ago", seconds / 3_600),
        seconds => format!("{} d ago", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_list_tells_what_one_looks_for() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(10_000);
        let session = Session {
            session_id: "0193aabbccddeeff0011223344556677".to_owned(),
            turns: 2,
            title: "Who was\u{1b}[2J she?".to_owned(),
            updated: Some((now - Duration::from_secs(7_300)).into()),
            running_turn: Some(1),
            ..Session::default()
        };
        let line = listed(3, &session, now);
        assert_eq!(line, "  3  0193aabbccdd     2 h ago  2 turns, answering  Who was[2J she?");
    }

    #[test]
    fn a_title_is_the_first_line_or_its_beginning() {
        assert_eq!(title("  Hello\nworld"), "Hello");
        let long = title(&"星".repeat(80));
        assert_eq!((long.chars().count(), long.ends_with('…')), (61, true));
    }

    #[test]
    fn exported_lines_are_read() {
        let turn =
            r#"{"turn":0,"messages":[{"role":"user","content":"hi"}],"answer":{"text":"ho","end":"whole"}}"#;
        let read: Exported = serde_json::from_str(turn).unwrap();
        assert_eq!((read.messages[0].content.as_str(), read.answer.unwrap().text.as_str()), ("hi", "ho"));
        let session: Exported = serde_json::from_str(r#"{"session_id":"01","turns":1}"#).unwrap();
        assert_eq!((session.messages.len(), session.answer), (0, None));
    }
}
