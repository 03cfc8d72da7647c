//! Who is asked, and what comes back.

mod chunk;
mod grpc;
mod openai;
mod session;
mod sse;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use serde::Serialize;

use super::LoadError;
use super::dialogue::{Form, Material, Words};
use super::random::Random;
use super::terms::Terms;

/// Where a server is, and how it is spoken to.
#[derive(Clone, Debug)]
pub struct TargetPlan {
    /// `grpc://host:port` or `http://host:port`.
    pub url: String,
    /// The model's name there; unless given, the server's first.
    pub model: Option<String>,
    /// How prompts are handed over.
    pub form: Form,
    /// Sent as a bearer token, over HTTP.
    pub api_key: Option<String>,
    /// How many ids a prompt may be made of; unless given, as the server says.
    pub vocab: Option<u32>,
    /// Put into the body of every request over HTTP.
    pub extra: serde_json::Map<String, serde_json::Value>,
    /// What is drawn from; unless given, as the server does by itself.
    pub temperature: Option<f32>,
    /// Let answers end where the model ends them.
    pub stop_at_eos: bool,
    /// What else is said of every request.
    pub terms: Terms,
    /// The most requests at once.
    pub most_at_once: usize,
}

/// A server that is there.
#[derive(Debug)]
pub enum Target {
    /// An Asterism gateway.
    Grpc(grpc::Gateway),
    /// A server that speaks the OpenAI dialect.
    OpenAi(openai::Server),
}

/// What a model is asked.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    /// Token ids.
    Ids(Vec<u32>),
    /// Text as it stands.
    Text(String),
    /// Messages for a template.
    Chat(Vec<Message>),
    /// The next messages of a session.
    Session {
        /// Which; `None`: a new one, which a system message may begin.
        id: Option<String>,
        /// What is said.
        messages: Vec<Message>,
    },
}

/// One message of a chat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: &'static str,
    /// What was said.
    pub content: String,
}

/// One request.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// All that was said so far, and the new.
    pub prompt: Prompt,
    /// The most tokens of the answer.
    pub max_tokens: u32,
    /// Which turn of its conversation, from 1.
    pub turn: u32,
    /// New tokens of the prompt, as drawn.
    pub wanted: u32,
    /// Tokens of the prompt that an earlier request had too, as its prompt or its answer, by the server's count; 0 if it
    /// does not count.
    pub repeated: u32,
}

/// What was heard of an answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// When how many tokens came. Where a server does not tell, a message with text counts as one token.
    pub pieces: Vec<Piece>,
    /// The text, to go on with.
    pub text: String,
    /// The ids, where they are told.
    pub ids: Vec<u32>,
    /// The server's own counts.
    pub usage: Option<Usage>,
    /// The session that it belongs to, where there are any.
    pub session: Option<String>,
}

/// Tokens that came together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// When.
    pub at: Instant,
    /// How many.
    pub tokens: u32,
}

/// What a server says it has read and written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens of the answer.
    pub completion_tokens: u32,
    /// Tokens of the prompt that a cache had.
    pub cached_tokens: u32,
}

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// No connection, or it broke before the answer began.
    Connection,
    /// Too many requests: 429, `RESOURCE_EXHAUSTED`.
    Exhausted,
    /// 503, `UNAVAILABLE`.
    Unavailable,
    /// Longer than the client waits, or 504, `DEADLINE_EXCEEDED`.
    TimedOut,
    /// The request is wrong or not allowed: 4xx, `INVALID_ARGUMENT` and the like.
    Refused,
    /// The server's fault: 5xx, `INTERNAL`.
    Server,
    /// The stream ended before the answer.
    BrokenOff,
    /// Not the dialect.
    NotUnderstood,
    /// An answer of no tokens.
    Empty,
}

/// A request that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {message}", kind.name())]
pub struct Failed {
    /// Of which kind.
    pub kind: FailureKind,
    /// In the words of whoever said so.
    pub message: String,
}

/// What all requests together have done so far, to be looked at meanwhile.
#[derive(Debug, Default)]
pub struct Meter {
    /// Messages with tokens, or tokens where they are told.
    pub tokens: AtomicU64,
    /// Requests under way.
    pub running: AtomicU64,
    /// Requests that ended well.
    pub answered: AtomicU64,
    /// Requests that failed.
    pub failed: AtomicU64,
}

/// Listens to one answer. What was heard stays, however it ends.
#[derive(Debug)]
pub struct Listener<'a> {
    meter: &'a Meter,
    answer: Answer,
}

impl Target {
    /// Connects and asks for the model.
    ///
    /// # Errors
    /// The address is none, nobody answers there, or there is no model.
    pub async fn open(plan: &TargetPlan) -> Result<Self, LoadError> {
        match plan.url.split_once("://") {
            Some(("grpc", address)) => grpc::Gateway::open(address, plan).await.map(Self::Grpc),
            Some(("http", _)) => openai::Server::open(plan).await.map(Self::OpenAi),
            _ => {
                let reason = format!("{:?} begins with neither grpc:// nor http://", plan.url);
                Err(LoadError::Field("--target", reason))
            }
        }
    }

    /// The model's name.
    pub fn model(&self) -> &str {
        match self {
            Self::Grpc(gateway) => gateway.model(),
            Self::OpenAi(server) => server.model(),
        }
    }

    /// Asks and listens to the end.
    ///
    /// # Errors
    /// However a request may fail.
    pub async fn ask(&self, request: Request, listener: &mut Listener<'_>) -> Result<(), Failed> {
        match self {
            Self::Grpc(gateway) => gateway.ask(request, listener).await?,
            Self::OpenAi(server) => server.ask(request, listener).await?,
        }
        if listener.answer.pieces.is_empty() {
            return Err(Failed::new(FailureKind::Empty, "the answer has no tokens"));
        }
        Ok(())
    }

    /// Forgets a session that is not needed any more.
    pub async fn forget(&self, session: &str) {
        if let Self::Grpc(gateway) = self {
            gateway.forget(session).await;
        }
    }

    /// What prompts are to be made of. Words are counted by asking twice: the server's own count of more words less that
    /// of fewer leaves its template out.
    ///
    /// # Errors
    /// The server does not answer, or the number of ids is unknown.
    pub async fn material(&self, plan: &TargetPlan) -> Result<(Material, Option<String>), LoadError> {
        if plan.form == Form::Ids {
            let known = match self {
                Self::Grpc(gateway) => Some(gateway.vocab()),
                Self::OpenAi(_) => None,
            };
            return match plan.vocab.or(known) {
                Some(vocab) => Ok((Material::Ids { vocab }, None)),
                None => {
                    Err(LoadError::Field("--vocab", "unknown over HTTP, so token ids need it".to_owned()))
                }
            };
        }
        let counts = [self.count(plan.form, FEW_WORDS).await?, self.count(plan.form, MANY_WORDS).await?];
        let (words, note) = match counts {
            [Some(few), Some(many)] if many > few => {
                let tokens_per_word = f64::from(many - few) / f64::from(MANY_WORDS - FEW_WORDS);
                (Words { tokens_per_word }, None)
            }
            _ => (
                Words { tokens_per_word: 1.0 },
                Some("the server does not count the prompt's tokens: prompt lengths are words".to_owned()),
            ),
        };
        let material = match plan.form {
            Form::Text => Material::Text(words),
            Form::Session => Material::Session(words),
            Form::Chat | Form::Ids => Material::Chat(words),
        };
        Ok((material, note))
    }

    /// The server's count of a prompt of so many words.
    async fn count(&self, form: Form, words: u32) -> Result<Option<u32>, LoadError> {
        let content = Words { tokens_per_word: 1.0 }.write(&mut Random::of(u64::from(words), &[]), words);
        let prompt = match form {
            Form::Chat | Form::Session => Prompt::Chat(vec![Message { role: "user", content }]),
            Form::Ids | Form::Text => Prompt::Text(content),
        };
        let meter = Meter::default();
        let mut listener = Listener::new(&meter);
        let request = Request { prompt, max_tokens: 1, turn: 1, wanted: words, repeated: 0 };
        match self.ask(request, &mut listener).await {
            // Some models' first token has no text.
            Ok(()) | Err(Failed { kind: FailureKind::Empty, .. }) => {
                Ok(listener.answer().usage.map(|usage| usage.prompt_tokens))
            }
            Err(failed) => Err(LoadError::FirstRequest(failed)),
        }
    }
}

const FEW_WORDS: u32 = 32;
const MANY_WORDS: u32 = 160;

impl<'a> Listener<'a> {
    /// Before anything was heard.
    pub fn new(meter: &'a Meter) -> Self {
        Self { meter, answer: Answer::default() }
    }

    /// Some tokens came, now.
    fn tokens(&mut self, tokens: u32) {
        if tokens > 0 {
            self.answer.pieces.push(Piece { at: Instant::now(), tokens });
            self.meter.tokens.fetch_add(u64::from(tokens), Ordering::Relaxed);
        }
    }

    /// What was heard.
    pub fn answer(self) -> Answer {
        self.answer
    }
}

impl Answer {
    /// Tokens of the answer: the server's count, else ours.
    pub fn tokens(&self) -> u32 {
        let heard = self.pieces.iter().map(|piece| piece.tokens).sum();
        self.usage.map(|usage| usage.completion_tokens).filter(|&tokens| tokens > 0).unwrap_or(heard)
    }
}

impl Failed {
    /// A failure in these words, as many of them as a report has room for.
    pub fn new(kind: FailureKind, message: impl AsRef<str>) -> Self {
        const MOST: usize = 300;
        let message = message.as_ref().trim();
        let message = match message.char_indices().nth(MOST) {
            Some((end, _)) => format!("{}…", message.get(..end).unwrap_or_default()),
            None => message.to_owned(),
        };
        Self { kind, message }
    }

    /// Whether the server said so itself.
    fn is_told(&self) -> bool {
        self.kind != FailureKind::NotUnderstood
    }
}

impl FailureKind {
    /// As a report names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connection => "connection",
            Self::Exhausted => "exhausted",
            Self::Unavailable => "unavailable",
            Self::TimedOut => "timed out",
            Self::Refused => "refused",
            Self::Server => "server",
            Self::BrokenOff => "broken off",
            Self::NotUnderstood => "not understood",
            Self::Empty => "empty",
        }
    }
}

/// The cause that a person can act on: transport errors wrap it several times.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
