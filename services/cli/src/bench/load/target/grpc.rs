//! An Asterism gateway, over gRPC.

use std::sync::atomic::{AtomicUsize, Ordering};

use asterism_gateway::tenants::TENANT_HEADER;
use asterism_process::channel::{self, Traffic};
use asterism_proto::v1::generate_request::Prompt as Asked;
use asterism_proto::v1::generate_response::Event;
use asterism_proto::v1::inference_client::InferenceClient;
use asterism_proto::v1::{self, Chat, GenerateRequest, ListModelsRequest, Sampling, Stopping, TokenIds};
use asterism_proto::{Failure, Reason};
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::session::Sessions;
use super::{Answer, Failed, FailureKind, Listener, Message, Prompt, Request, TargetPlan, Usage, innermost};
use crate::bench::load::LoadError;
use crate::bench::load::terms::Terms;

/// Streams that share a connection without waiting for each other; a server takes 1,024.
const STREAMS: usize = 256;
/// More connections than these no client has.
const MOST_CONNECTIONS: usize = 16;

/// A gateway and its model.
#[derive(Debug)]
pub struct Gateway {
    /// Used in turn.
    connections: Vec<Channel>,
    next: AtomicUsize,
    model: v1::Model,
    sampling: Sampling,
    ignore_eos: bool,
    terms: Terms,
    tenant: Option<AsciiMetadataValue>,
}

impl Gateway {
    /// Connects to `address` and asks for the model.
    ///
    /// # Errors
    /// The address is none, nobody answers there, or there is no such model.
    pub async fn open(address: &str, plan: &TargetPlan) -> Result<Self, LoadError> {
        let endpoint = channel::endpoint(address, Traffic::Public)?;
        let unreachable = |reason| LoadError::Unreachable { url: plan.url.clone(), reason };
        let mut connections = Vec::new();
        for _ in 0..plan.most_at_once.div_ceil(STREAMS).clamp(1, MOST_CONNECTIONS) {
            let channel = endpoint.connect().await.map_err(|error| unreachable(innermost(&error)))?;
            connections.push(channel);
        }
        let mut models = Vec::new();
        if let Some(channel) = connections.first() {
            let listed = InferenceClient::new(channel.clone()).list_models(ListModelsRequest {}).await;
            models = listed.map_err(|status| unreachable(failed(status).message))?.into_inner().models;
        }
        let wanted = |model: &v1::Model| plan.model.as_ref().is_none_or(|name| *name == model.name);
        let Some(model) = models.into_iter().find(wanted) else {
            return Err(LoadError::NoModel { url: plan.url.clone(), model: plan.model.clone() });
        };
        let sampling = Sampling {
            do_sample: plan.temperature.map(|temperature| temperature > 0.0),
            temperature: plan.temperature.filter(|&temperature| temperature > 0.0),
            ..Sampling::default()
        };
        let tenant = plan.terms.tenant.as_deref().map(str::parse).transpose();
        let tenant = tenant.map_err(|_| LoadError::Field("--tenant", "no text for a header".to_owned()))?;
        Ok(Self {
            connections,
            next: AtomicUsize::new(0),
            model,
            sampling,
            ignore_eos: !plan.stop_at_eos,
            terms: plan.terms.clone(),
            tenant,
        })
    }

    /// The model's name.
    pub fn model(&self) -> &str {
        &self.model.name
    }

    /// How many token ids there are.
    pub fn vocab(&self) -> u32 {
        self.model.vocab_size
    }

    /// Asks and listens to the end.
    pub async fn ask(&self, request: Request, listener: &mut Listener<'_>) -> Result<(), Failed> {
        let channel = self.connection()?;
        let request = match request.prompt {
            Prompt::Session { id, messages } => {
                let stopping = self.stopping(request.max_tokens);
                return self.sessions(channel).ask(id, messages, stopping, listener).await;
            }
            _ => self.labelled(self.request(request)),
        };
        let stream = InferenceClient::new(channel).generate(request).await;
        let mut stream = stream.map_err(failed)?.into_inner();
        while let Some(message) = stream.message().await.map_err(failed)? {
            match message.event {
                Some(Event::Delta(delta)) => listener.delta(delta),
                Some(Event::Finished(finished)) => {
                    listener.finished(&finished);
                    return Ok(());
                }
                Some(Event::Started(_)) | None => {}
            }
        }
        Err(broken_off())
    }

    /// Forgets a session. It is kept where that fails, which spoils nothing that is measured.
    pub async fn forget(&self, session: &str) {
        if let Ok(channel) = self.connection() {
            self.sessions(channel).forget(session).await;
        }
    }

    fn connection(&self) -> Result<Channel, Failed> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed) % self.connections.len().max(1);
        let channel = self.connections.get(turn).cloned();
        channel.ok_or_else(|| Failed::new(FailureKind::Connection, "there is no connection"))
    }

    fn sessions(&self, channel: Channel) -> Sessions<'_> {
        Sessions::new(self, channel)
    }

    /// A message with the tenant's name.
    pub(super) fn labelled<M>(&self, message: M) -> tonic::Request<M> {
        let mut request = tonic::Request::new(message);
        if let Some(tenant) = &self.tenant {
            request.metadata_mut().insert(TENANT_HEADER, tenant.clone());
        }
        request
    }

    /// How answers are drawn, and with which priority.
    pub(super) fn manner(&self) -> (Sampling, Option<i32>) {
        (self.sampling.clone(), self.terms.priority)
    }

    fn stopping(&self, max_tokens: u32) -> Stopping {
        Stopping { max_tokens: Some(max_tokens), ignore_eos: self.ignore_eos, ..Stopping::default() }
    }

    fn request(&self, request: Request) -> GenerateRequest {
        let prompt = match request.prompt {
            Prompt::Ids(ids) => Asked::TokenIds(TokenIds { ids }),
            Prompt::Text(text) => Asked::Text(text),
            Prompt::Chat(messages) | Prompt::Session { messages, .. } => {
                Asked::Chat(Chat { messages: messages.into_iter().map(message).collect() })
            }
        };
        GenerateRequest {
            model: self.model.name.clone(),
            prompt: Some(prompt),
            sampling: Some(self.sampling.clone()),
            stopping: Some(self.stopping(request.max_tokens)),
            priority: self.terms.priority,
            timeout: self.terms.timeout(),
            bypass_cache: self.terms.bypass_cache,
            ..GenerateRequest::default()
        }
    }
}

/// As it goes over the wire.
pub(super) fn message(message: Message) -> v1::Message {
    v1::Message { role: message.role.to_owned(), content: message.content }
}

pub(super) fn broken_off() -> Failed {
    Failed::new(FailureKind::BrokenOff, "the gateway closed the stream before the answer's end")
}

impl Listener<'_> {
    /// More of a gateway's answer.
    pub(super) fn delta(&mut self, delta: v1::Delta) {
        self.tokens(u32::try_from(delta.token_ids.len()).unwrap_or(u32::MAX));
        let Answer { ids, text, .. } = &mut self.answer;
        ids.extend(delta.token_ids);
        text.push_str(&delta.text);
    }

    /// Its end.
    pub(super) fn finished(&mut self, finished: &v1::Finished) {
        self.answer.usage = finished.usage.map(|usage| Usage {
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: usage.completion_tokens,
            cached_tokens: usage.cached_tokens,
        });
    }
}

/// The failure that a status tells.
pub(super) fn failed(status: Status) -> Failed {
    // A broken connection has no row in the gateway's table.
    if status.code() == Code::Unknown {
        return Failed::new(FailureKind::Connection, innermost(&status));
    }
    let failure = Failure::from(status);
    let kind = match failure.reason {
        Reason::Exhausted => FailureKind::Exhausted,
        Reason::Unavailable => FailureKind::Unavailable,
        Reason::DeadlineExceeded => FailureKind::TimedOut,
        Reason::Cancelled => FailureKind::BrokenOff,
        Reason::Internal => FailureKind::Server,
        Reason::InvalidArgument | Reason::NotFound | Reason::FailedPrecondition | Reason::Conflict => {
            FailureKind::Refused
        }
    };
    Failed::new(kind, failure.message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_have_their_kinds() {
        for (code, kind) in [
            (Code::ResourceExhausted, FailureKind::Exhausted),
            (Code::Unavailable, FailureKind::Unavailable),
            (Code::DeadlineExceeded, FailureKind::TimedOut),
            (Code::InvalidArgument, FailureKind::Refused),
            (Code::Internal, FailureKind::Server),
            (Code::Unknown, FailureKind::Connection),
        ] {
            assert_eq!(failed(Status::new(code, "why")).kind, kind, "{code:?}");
        }
    }
}
