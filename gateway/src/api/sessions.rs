//! `asterism.v1.Sessions`: conversations that the gateway owns.

use std::pin::Pin;
use std::str::FromStr;

use asterism_proto::v1::sessions_server::{Sessions as Contract, SessionsServer};
use asterism_proto::v1::turn_event::Event;
use asterism_proto::{Failure, Reason, v1};
use futures::{Stream, StreamExt, stream};
use tonic::{Request, Response, Status};

use super::MAX_REQUEST_BYTES;
use crate::caller::Caller;
use crate::sessions::live::News;
use crate::sessions::record::{HistoryOverflow, HistoryTokens};
use crate::sessions::{Append, Reading, Session, SessionId, Sessions, Settings};
use crate::tenants::DEFAULT_TENANT;

/// Sessions of a page, unless it is said how many, and at most.
const PAGE: u32 = 50;
const LONGEST_PAGE: u32 = 1000;
/// The longest title, in bytes.
const LONGEST_TITLE: usize = 1024;

/// The service on the sessions of a gateway; tenants are checked by it.
pub fn service(sessions: Sessions) -> SessionsServer<impl Contract> {
    SessionsServer::new(Door { sessions }).max_decoding_message_size(MAX_REQUEST_BYTES)
}

struct Door {
    sessions: Sessions,
}

type Events = Pin<Box<dyn Stream<Item = Result<v1::TurnEvent, Status>> + Send>>;
type Lines = Pin<Box<dyn Stream<Item = Result<v1::ExportSessionResponse, Status>> + Send>>;

impl Door {
    /// What is asked, and of which tenant.
    fn opened<T>(&self, request: Request<T>) -> Result<(String, T), Failure> {
        let tenant = Caller::of_headers(request.metadata().as_ref()).tenant;
        self.sessions.check_tenant(tenant.as_deref())?;
        Ok((tenant.unwrap_or_else(|| DEFAULT_TENANT.to_owned()), request.into_inner()))
    }
}

#[tonic::async_trait]
impl Contract for Door {
    type AppendTurnStream = Events;
    type ResumeTurnStream = Events;
    type ExportStream = Lines;

    async fn create(
        &self,
        request: Request<v1::CreateSessionRequest>,
    ) -> Result<Response<v1::Session>, Status> {
        let (tenant, request) = self.opened(request)?;
        let settings = settings(request.model, request.title, request.settings.unwrap_or_default())?;
        let session = self.sessions.create(&tenant, request.idempotency_key, settings).await?;
        Ok(Response::new(told(session)))
    }

    async fn get(&self, request: Request<v1::GetSessionRequest>) -> Result<Response<v1::Session>, Status> {
        let (tenant, request) = self.opened(request)?;
        let session = self.sessions.get(&tenant, id(&request.session_id)?).await?;
        Ok(Response::new(told(session)))
    }

    async fn list(
        &self,
        request: Request<v1::ListSessionsRequest>,
    ) -> Result<Response<v1::ListSessionsResponse>, Status> {
        let (tenant, request) = self.opened(request)?;
        let most = request.page_size.unwrap_or(PAGE);
        if !(1..=LONGEST_PAGE).contains(&most) {
            let message = format!("page_size is {most}, not from 1 to {LONGEST_PAGE}");
            return Err(Failure::invalid("page_size", message).into());
        }
        let before = match request.page_token.as_str() {
            "" => None,
            token => Some(SessionId::from_str(token).map_err(|_| {
                Failure::invalid("page_token", format!("page_token {token:?} is that of no page"))
            })?),
        };
        // One more than wanted tells whether there is another page.
        let mut sessions = self.sessions.list(&tenant, before, most + 1).await?;
        let more = sessions.len() > most as usize;
        sessions.truncate(most as usize);
        let next = sessions.last().filter(|_| more).map(|last| last.id.to_string());
        let sessions = sessions.into_iter().map(told).collect();
        Ok(Response::new(v1::ListSessionsResponse { sessions, next_page_token: next.unwrap_or_default() }))
    }

    async fn append_turn(
        &self,
        request: Request<v1::AppendTurnRequest>,
    ) -> Result<Response<Self::AppendTurnStream>, Status> {
        let (tenant, request) = self.opened(request)?;
        let append = Append {
            version: version(&request.etag)?,
            key: request.idempotency_key,
            messages: request.messages,
            sampling: request.sampling.unwrap_or_default(),
            stopping: request.stopping.unwrap_or_default(),
            priority: request.priority,
            accept_other_checkpoint: request.accept_other_checkpoint,
        };
        let reading = self.sessions.append(&tenant, id(&request.session_id)?, append).await?;
        Ok(Response::new(events(reading)))
    }

    async fn resume_turn(
        &self,
        request: Request<v1::ResumeTurnRequest>,
    ) -> Result<Response<Self::ResumeTurnStream>, Status> {
        let (tenant, request) = self.opened(request)?;
        let (session, from) = (id(&request.session_id)?, request.from_token_index);
        let reading = self.sessions.resume(&tenant, session, request.turn, from).await?;
        Ok(Response::new(events(reading)))
    }

    async fn stop_turn(
        &self,
        request: Request<v1::StopTurnRequest>,
    ) -> Result<Response<v1::StopTurnResponse>, Status> {
        let (tenant, request) = self.opened(request)?;
        let stopped = self.sessions.stop(&tenant, id(&request.session_id)?, request.turn).await?;
        Ok(Response::new(v1::StopTurnResponse { stopped }))
    }

    async fn fork(&self, request: Request<v1::ForkSessionRequest>) -> Result<Response<v1::Session>, Status> {
        let (tenant, request) = self.opened(request)?;
        check_title(&request.title)?;
        let fork = (request.turns, request.title, request.idempotency_key);
        let session = self.sessions.fork(&tenant, id(&request.session_id)?, fork).await?;
        Ok(Response::new(told(session)))
    }

    async fn truncate(
        &self,
        request: Request<v1::TruncateSessionRequest>,
    ) -> Result<Response<v1::Session>, Status> {
        let (tenant, request) = self.opened(request)?;
        let change = (version(&request.etag)?, request.turns);
        let session = self.sessions.truncate(&tenant, id(&request.session_id)?, change).await?;
        Ok(Response::new(told(session)))
    }

    async fn export(
        &self,
        request: Request<v1::ExportSessionRequest>,
    ) -> Result<Response<Self::ExportStream>, Status> {
        let (tenant, request) = self.opened(request)?;
        let lines = self.sessions.export(&tenant, id(&request.session_id)?).await?;
        let lines = lines.map(|line| Ok(v1::ExportSessionResponse { line: line? }));
        Ok(Response::new(Box::pin(lines)))
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteSessionRequest>,
    ) -> Result<Response<v1::DeleteSessionResponse>, Status> {
        let (tenant, request) = self.opened(request)?;
        self.sessions.delete(&tenant, id(&request.session_id)?, version(&request.etag)?).await?;
        Ok(Response::new(v1::DeleteSessionResponse {}))
    }
}

/// What is no id is that of no session.
fn id(text: &str) -> Result<SessionId, Failure> {
    text.parse().map_err(|_| {
        let shown: String = text.chars().take(64).collect();
        Failure::new(Reason::NotFound, format!("there is no session {shown:?}"))
    })
}

fn version(etag: &str) -> Result<Option<u64>, Failure> {
    match etag {
        "" => Ok(None),
        etag => match etag.parse() {
            Ok(version) => Ok(Some(version)),
            Err(_) => Err(Failure::invalid("etag", format!("{etag:?} is no etag that was given"))),
        },
    }
}

fn check_title(title: &str) -> Result<(), Failure> {
    match title.len() {
        0..=LONGEST_TITLE => Ok(()),
        bytes => {
            let message = format!("the title has {bytes} bytes, more than {LONGEST_TITLE}");
            Err(Failure::invalid("title", message))
        }
    }
}

fn settings(model: String, title: String, wire: v1::SessionSettings) -> Result<Settings, Failure> {
    check_title(&title)?;
    let unknown = |field: &'static str, value| {
        Failure::invalid(format!("settings.{field}"), format!("{field} {value} is not known"))
    };
    let tokens = match v1::HistoryTokens::try_from(wire.history_tokens) {
        Ok(v1::HistoryTokens::Exact) => HistoryTokens::Exact,
        Ok(_) => HistoryTokens::Text,
        Err(_) => return Err(unknown("history_tokens", wire.history_tokens)),
    };
    let overflow = match v1::HistoryOverflow::try_from(wire.history_overflow) {
        Ok(v1::HistoryOverflow::DropOldestTurns) => HistoryOverflow::DropOldestTurns,
        Ok(_) => HistoryOverflow::Refuse,
        Err(_) => return Err(unknown("history_overflow", wire.history_overflow)),
    };
    Ok(Settings {
        title,
        model,
        preamble: wire.preamble,
        sampling: wire.sampling,
        stopping: wire.stopping,
        history_tokens: tokens.into(),
        history_overflow: overflow.into(),
        ..Settings::default()
    })
}

fn told(session: Session) -> v1::Session {
    let Session { id, version, turns, running, updated_ms, settings } = session;
    let tokens = match settings.history_tokens() {
        HistoryTokens::Text => v1::HistoryTokens::Text,
        HistoryTokens::Exact => v1::HistoryTokens::Exact,
    };
    let overflow = match settings.history_overflow() {
        HistoryOverflow::Refuse => v1::HistoryOverflow::Refuse,
        HistoryOverflow::DropOldestTurns => v1::HistoryOverflow::DropOldestTurns,
    };
    let forked_from = uuid::Uuid::from_slice(&settings.forked_from).ok().map(|id| SessionId(id).to_string());
    v1::Session {
        session_id: id.to_string(),
        etag: version.to_string(),
        title: settings.title,
        model: settings.model,
        checkpoint_id: settings.checkpoint_id,
        turns,
        running_turn: running.and(turns.checked_sub(1)),
        created: Some(time(settings.created_ms)),
        updated: Some(time(updated_ms)),
        settings: Some(v1::SessionSettings {
            preamble: settings.preamble,
            sampling: settings.sampling,
            stopping: settings.stopping,
            history_tokens: tokens.into(),
            history_overflow: overflow.into(),
        }),
        forked_from: forked_from.unwrap_or_default(),
    }
}

fn time(ms: u64) -> prost_types::Timestamp {
    let seconds = i64::try_from(ms / 1000).unwrap_or(i64::MAX);
    prost_types::Timestamp { seconds, nanos: (ms % 1000) as i32 * 1_000_000 }
}

fn events(reading: Reading) -> Events {
    let Reading { session, turn, from, news } = reading;
    let accepted = turn.accepted;
    let started = v1::TurnStarted {
        session_id: session.to_string(),
        turn: turn.index,
        prompt_tokens: u32::try_from(accepted.prompt_ids.len()).unwrap_or(u32::MAX),
        seed: accepted.sampling.and_then(|sampling| sampling.seed).unwrap_or_default(),
        from_token_index: from,
        dropped_turns: accepted.dropped_turns,
        history_differs_at: accepted.history_differs_at,
    };
    let event = |event| v1::TurnEvent { event: Some(event) };
    let first = stream::iter([Ok(event(Event::Started(started)))]);
    let rest = news.map(move |news| match news {
        Ok(News::Delta(delta)) => Ok(event(Event::Delta(delta))),
        Ok(News::Finished(finished)) => Ok(event(Event::Finished(finished))),
        Err(failure) => Err(Status::from(failure)),
    });
    Box::pin(first.chain(rest))
}
