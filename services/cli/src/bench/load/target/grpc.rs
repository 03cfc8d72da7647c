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

use super::{Answer, Failed, FailureKind, Listener, Prompt, Request, TargetPlan, Usage, innermost};
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
    connections: Vec<InferenceClient<Channel>>,
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
            connections.push(InferenceClient::new(channel));
        }
        let mut models = Vec::new();
        if let Some(client) = connections.first_mut() {
            let listed = client.list_models(ListModelsRequest {}).await;
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
        let turn = self.next.fetch_add(1, Ordering::Relaxed) % self.connections.len().max(1);
        let Some(client) = self.connections.get(turn) else {
            return Err(Failed::new(FailureKind::Connection, "there is no connection"));
        };
        let mut request = tonic::Request::new(self.request(request));
        if let Some(tenant) = &self.tenant {
            request.metadata_mut().insert(TENANT_HEADER, tenant.clone());
        }
        let stream = client.clone().generate(request).await;
        let mut stream = stream.map_err(failed)?.into_inner();
        while let Some(message) = stream.message().await.map_err(failed)? {
            match message.event {
                Some(Event::Delta(delta)) => {
                    listener.tokens(u32::try_from(delta.token_ids.len()).unwrap_or(u32::MAX));
                    let Answer { ids, text, .. } = &mut listener.answer;
                    ids.extend(delta.token_ids);
                    text.push_str(&delta.text);
                }
                Some(Event::Finished(finished)) => {
                    listener.answer.usage = finished.usage.map(|usage| Usage {
                        prompt_tokens: usage.prompt_tokens,
                        completion_tokens: usage.completion_tokens,
                        cached_tokens: usage.cached_tokens,
                    });
                    return Ok(());
                }
                Some(Event::Started(_)) | None => {}
            }
        }
        Err(Failed::new(FailureKind::BrokenOff, "the gateway closed the stream before the answer's end"))
    }

    fn request(&self, request: Request) -> GenerateRequest {
        let prompt = match request.prompt {
            Prompt::Ids(ids) => Asked::TokenIds(TokenIds { ids }),
            Prompt::Text(text) => Asked::Text(text),
            Prompt::Chat(messages) => {
                let message = |message: super::Message| v1::Message {
                    role: message.role.to_owned(),
                    content: message.content,
                };
                Asked::Chat(Chat { messages: messages.into_iter().map(message).collect() })
            }
        };
        GenerateRequest {
            model: self.model.name.clone(),
            prompt: Some(prompt),
            sampling: Some(self.sampling.clone()),
            stopping: Some(Stopping {
                max_tokens: Some(request.max_tokens),
                ignore_eos: self.ignore_eos,
                ..Stopping::default()
            }),
            priority: self.terms.priority,
            timeout: self.terms.timeout(),
            bypass_cache: self.terms.bypass_cache,
            ..GenerateRequest::default()
        }
    }
}

fn failed(status: Status) -> Failed {
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
