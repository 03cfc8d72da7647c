//! The conversation that the user is in, and what can be done with it and with others.

use std::collections::VecDeque;
use std::io::Write as _;
use std::time::SystemTime;

use asterism_proto::v1::{
    AppendTurnRequest, CreateSessionRequest, DeleteSessionRequest, ExportSessionRequest, ForkSessionRequest,
    GetSessionRequest, Message, Sampling, Session, SessionSettings, Stopping, TruncateSessionRequest,
};
use uuid::Uuid;

use super::ChatError;
use super::gateway::Gateway;
use super::history::{self, Exported};
use super::printer::Printer;
use super::turn::{self, Source, Turn};

/// How a conversation begins, and how its turns are drawn.
#[derive(Clone, Debug, Default)]
pub struct Manner {
    /// A system message.
    pub system: Option<String>,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// When an answer ends.
    pub stopping: Stopping,
    /// Answers are printed as they are, also in a terminal.
    pub plain: bool,
}

/// The conversation that the user is in; the gateway knows of it once something was said.
pub struct Conversation {
    gateway: Gateway,
    manner: Manner,
    session: Option<String>,
}

impl Conversation {
    /// One in which nothing was said yet.
    pub fn new(gateway: Gateway, manner: Manner) -> Self {
        Self { gateway, manner, session: None }
    }

    /// Whether the gateway knows of it.
    pub fn is_begun(&self) -> bool {
        self.session.is_some()
    }

    /// Leaves it and begins another.
    pub fn renew(&mut self) {
        self.session = None;
    }

    /// Says something, and prints the answer.
    ///
    /// # Errors
    /// What the gateway says.
    pub async fn say(&mut self, text: &str) -> Result<Turn, ChatError> {
        let mut printer = Printer::new(self.manner.plain);
        let session = match &self.session {
            Some(session) => session.clone(),
            None => tokio::select! {
                created = self.create(history::title(text), &mut printer) => created?,
                _ = tokio::signal::ctrl_c() => {
                    printer.end()?;
                    return Ok(Turn::unsaid());
                }
            },
        };
        self.session = Some(session.clone());
        let request = AppendTurnRequest {
            session_id: session.clone(),
            messages: vec![Message { role: "user".to_owned(), content: text.to_owned() }],
            sampling: Some(self.manner.sampling.clone()),
            stopping: Some(self.manner.stopping.clone()),
            idempotency_key: key(),
            ..AppendTurnRequest::default()
        };
        turn::follow(&self.gateway, &session, Source::Said(Box::new(request)), &mut printer).await
    }

    async fn create(&self, title: String, printer: &mut Printer) -> Result<String, ChatError> {
        let system = self.manner.system.clone();
        let preamble = system.map(|content| Message { role: "system".to_owned(), content });
        let settings = SessionSettings {
            preamble: preamble.into_iter().collect(),
            sampling: Some(self.manner.sampling.clone()),
            stopping: Some(self.manner.stopping.clone()),
            ..SessionSettings::default()
        };
        let request = CreateSessionRequest {
            title,
            settings: Some(settings),
            idempotency_key: key(),
            ..CreateSessionRequest::default()
        };
        let call = self.gateway.insist(
            &request,
            async |sessions, request| sessions.create(request).await,
            |status| printer.note(&turn::waiting(status)),
        );
        Ok(call.await?.session_id)
    }

    /// Goes on with another, showing its last turns; a turn that runs is followed to its end.
    ///
    /// # Errors
    /// There is none of this name, or what the gateway says.
    pub async fn open(&mut self, name: &str) -> Result<Option<Turn>, ChatError> {
        const SHOWN: usize = 3;
        let session = self.gateway.find(name).await?;
        self.session = Some(session.session_id.clone());
        let hidden = (session.turns as usize).saturating_sub(SHOWN);
        if hidden > 0 {
            eprintln!("[{hidden} turns before; /history shows all]");
        }
        self.show(&session.session_id, SHOWN).await?;
        let Some(turn) = session.running_turn else { return Ok(None) };
        let mut printer = Printer::new(self.manner.plain);
        turn::follow(&self.gateway, &session.session_id, Source::Running(turn), &mut printer).await.map(Some)
    }

    /// Shows all that was said.
    ///
    /// # Errors
    /// Nothing was said, or what the gateway says.
    pub async fn history(&self) -> Result<(), ChatError> {
        self.show(self.said()?, usize::MAX).await
    }

    /// Goes on in a copy of its first turns, or of all.
    ///
    /// # Errors
    /// Nothing was said, or what the gateway says.
    pub async fn fork(&mut self, turns: Option<u32>) -> Result<Session, ChatError> {
        let session_id = self.said()?.to_owned();
        let request =
            ForkSessionRequest { session_id, turns, idempotency_key: key(), ..ForkSessionRequest::default() };
        let fork = self.gateway.once(request, async |sessions, request| sessions.fork(request).await).await?;
        self.session = Some(fork.session_id.clone());
        Ok(fork)
    }

    /// Forgets its last turn; so many are left.
    ///
    /// # Errors
    /// Nothing was said, or what the gateway says.
    pub async fn undo(&mut self) -> Result<u32, ChatError> {
        let request = GetSessionRequest { session_id: self.said()?.to_owned() };
        let session =
            self.gateway.once(request, async |sessions, request| sessions.get(request).await).await?;
        let turns = session.turns.checked_sub(1).ok_or(ChatError::NothingSaid)?;
        let request = TruncateSessionRequest { session_id: session.session_id, etag: session.etag, turns };
        let call = self.gateway.once(request, async |sessions, request| sessions.truncate(request).await);
        Ok(call.await?.turns)
    }

    /// Forgets a conversation, this one unless it is named.
    ///
    /// # Errors
    /// There is none of this name, or what the gateway says.
    pub async fn delete(&mut self, name: Option<&str>) -> Result<(), ChatError> {
        let session_id = match name {
            Some(name) => self.gateway.find(name).await?.session_id,
            None => self.said()?.to_owned(),
        };
        let is_this = self.session.as_ref() == Some(&session_id);
        let request = DeleteSessionRequest { session_id, ..DeleteSessionRequest::default() };
        self.gateway.once(request, async |sessions, request| sessions.delete(request).await).await?;
        if is_this {
            self.session = None;
        }
        Ok(())
    }

    /// The newest conversations, a line each; this one is marked.
    ///
    /// # Errors
    /// What the gateway says.
    pub async fn list(&self) -> Result<Vec<String>, ChatError> {
        let now = SystemTime::now();
        let sessions = self.gateway.list().await?;
        let lines = sessions.iter().enumerate().map(|(index, session)| {
            let here = self.session.as_ref() == Some(&session.session_id);
            format!("{}{}", if here { "*" } else { " " }, history::listed(index + 1, session, now))
        });
        Ok(lines.collect())
    }

    fn said(&self) -> Result<&str, ChatError> {
        self.session.as_deref().ok_or(ChatError::NothingSaid)
    }

    /// Prints a conversation's last turns.
    async fn show(&self, session: &str, turns: usize) -> Result<(), ChatError> {
        let request = ExportSessionRequest { session_id: session.to_owned() };
        let mut lines =
            self.gateway.once(request, async |sessions, request| sessions.export(request).await).await?;
        let mut last = VecDeque::new();
        while let Some(line) = lines.message().await? {
            let turn: Exported = serde_json::from_str(&line.line)?;
            if turn.messages.is_empty() {
                continue;
            }
            if last.len() == turns {
                last.pop_front();
            }
            last.push_back(turn);
        }
        for Exported { messages, answer } in last {
            for message in messages {
                let text = message.content.lines().map(history::printable).collect::<Vec<_>>().join("\n  ");
                let role = history::printable(&message.role);
                let by = if role == "user" { String::new() } else { format!("{role}: ") };
                writeln!(std::io::stdout(), "> {by}{text}")?;
            }
            if let Some(answer) = answer {
                let mut printer = Printer::new(self.manner.plain);
                printer.print(&answer.text)?;
                printer.end()?;
                if !answer.failure.is_empty() {
                    eprintln!("[interrupted: {}]", history::printable(&answer.failure));
                }
            }
        }
        Ok(())
    }
}

/// Names an attempt.
fn key() -> String {
    Uuid::new_v4().simple().to_string()
}
