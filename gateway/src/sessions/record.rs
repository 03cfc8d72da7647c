//! What is kept of sessions and turns.
//!
//! [`Settings`], [`NewTurn`] and [`Answer`] are kept as protobuf messages, so that a later gateway reads what an earlier one
//! wrote: a tag is never used again for something else. What a store must find, order or change by itself stands beside them,
//! in [`Session`] and [`Turn`].

use std::fmt;
use std::str::FromStr;

use asterism_proto::v1;
use uuid::Uuid;

/// Names a session; ids of later sessions are greater, to the millisecond.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub Uuid);

/// Names a turn, in whichever sessions it is; ids of later turns are greater, to the millisecond.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TurnId(pub Uuid);

/// A session as it is now.
#[derive(Clone, Debug, PartialEq)]
pub struct Session {
    /// Its name.
    pub id: SessionId,
    /// Grows by one with every change.
    pub version: u64,
    /// How many turns it has, the one that runs included.
    pub turns: u32,
    /// The turn that runs, always its last.
    pub running: Option<TurnId>,
    /// When it was last changed, in milliseconds since 1970.
    pub updated_ms: u64,
    /// What it was made with.
    pub settings: Settings,
}

/// What a session is made with, and never changes.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Settings {
    /// For people; may be empty.
    #[prost(string, tag = "1")]
    pub title: String,
    /// The model's name.
    #[prost(string, tag = "2")]
    pub model: String,
    /// The checkpoint that answers it.
    #[prost(string, tag = "3")]
    pub checkpoint_id: String,
    /// What the model is told before the first turn; empty: nothing.
    #[prost(message, repeated, tag = "4")]
    pub preamble: Vec<v1::Message>,
    /// What a turn leaves unset.
    #[prost(message, optional, tag = "5")]
    pub sampling: Option<v1::Sampling>,
    /// What a turn leaves unset.
    #[prost(message, optional, tag = "6")]
    pub stopping: Option<v1::Stopping>,
    /// How past answers enter a prompt.
    #[prost(enumeration = "HistoryTokens", tag = "7")]
    pub history_tokens: i32,
    /// What becomes of a history that outgrows the context.
    #[prost(enumeration = "HistoryOverflow", tag = "8")]
    pub history_overflow: i32,
    /// When it was made, in milliseconds since 1970.
    #[prost(uint64, tag = "9")]
    pub created_ms: u64,
    /// The session that it was forked from; empty: none.
    #[prost(bytes = "vec", tag = "10")]
    pub forked_from: Vec<u8>,
}

impl Settings {
    /// Whether the same was asked for, though at another time.
    pub fn same_request(&self, other: &Self) -> bool {
        *self == Self { created_ms: self.created_ms, ..other.clone() }
    }
}

/// How past answers enter a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum HistoryTokens {
    /// The whole conversation is written as text and encoded at once, as the reference does.
    Text = 0,
    /// The stored ids are put in as they were drawn.
    Exact = 1,
}

/// What becomes of a history that outgrows the context.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum HistoryOverflow {
    /// The turn is refused.
    Refuse = 0,
    /// The oldest turns are left out of the prompt until the rest fits.
    DropOldestTurns = 1,
}

impl HistoryTokens {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Exact => "exact",
        }
    }
}

impl HistoryOverflow {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Refuse => "refuse",
            Self::DropOldestTurns => "drop_oldest_turns",
        }
    }
}

/// One turn of a session.
#[derive(Clone, Debug, PartialEq)]
pub struct Turn {
    /// Its name.
    pub id: TurnId,
    /// Its place in the session, from 0.
    pub index: u32,
    /// What was accepted.
    pub accepted: NewTurn,
    /// What came of it; `None`: it runs.
    pub answer: Option<Answer>,
}

/// What a turn's answer is made from: enough to draw it again, token by token.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NewTurn {
    /// What is said, after all turns before.
    #[prost(message, repeated, tag = "1")]
    pub messages: Vec<v1::Message>,
    /// The prompt's ids, history included.
    #[prost(uint32, repeated, tag = "2")]
    pub prompt_ids: Vec<u32>,
    /// How tokens are drawn, every field set.
    #[prost(message, optional, tag = "3")]
    pub sampling: Option<v1::Sampling>,
    /// Where the answer ends, every field set.
    #[prost(message, optional, tag = "4")]
    pub stopping: Option<v1::Stopping>,
    /// The checkpoint that answers it.
    #[prost(string, tag = "5")]
    pub checkpoint_id: String,
    /// The numbers that it is computed in, as `Describe` names them.
    #[prost(string, tag = "6")]
    pub compute: String,
    /// How many of the oldest turns the prompt leaves out.
    #[prost(uint32, tag = "7")]
    pub dropped_turns: u32,
    /// From which id on the prompt differs from prompt and answer of the turn before; unset: nowhere.
    #[prost(uint32, optional, tag = "8")]
    pub history_differs_at: Option<u32>,
    /// From -100 to 100.
    #[prost(int32, tag = "9")]
    pub priority: i32,
    /// When it was accepted, in milliseconds since 1970.
    #[prost(uint64, tag = "10")]
    pub accepted_ms: u64,
}

/// An answer, whole or interrupted.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Answer {
    /// Its ids, the one that ended it included.
    #[prost(uint32, repeated, tag = "1")]
    pub token_ids: Vec<u32>,
    /// Its text, as joined deltas give it.
    #[prost(string, tag = "2")]
    pub text: String,
    /// The reply as the reference cuts it: what the next turn's prompt has of it.
    #[prost(string, tag = "3")]
    pub response: String,
    /// How it ended.
    #[prost(enumeration = "End", tag = "4")]
    pub end: i32,
    /// The end as its reader got it.
    #[prost(message, optional, tag = "5")]
    pub finished: Option<v1::Finished>,
    /// Why it was interrupted; empty: it was not, or by its owner.
    #[prost(string, tag = "6")]
    pub failure: String,
    /// When its first token came, in milliseconds since 1970; 0: none did.
    #[prost(uint64, tag = "7")]
    pub first_token_ms: u64,
    /// When it ended, in milliseconds since 1970.
    #[prost(uint64, tag = "8")]
    pub ended_ms: u64,
}

/// How an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum End {
    /// By itself.
    Whole = 0,
    /// Its owner stopped it.
    Stopped = 1,
    /// It could not go on; [`Answer::failure`] says why.
    Failed = 2,
}

macro_rules! id {
    ($name:ident) => {
        impl $name {
            /// A new one.
            pub fn fresh() -> Self {
                Self(Uuid::now_v7())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.simple().fmt(formatter)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, uuid::Error> {
                text.parse().map(Self)
            }
        }
    };
}

id!(SessionId);
id!(TurnId);
