//! A server that speaks the OpenAI dialect: streamed completions and chat completions over HTTP.

use asterism_gateway::tenants::TENANT_HEADER;
use futures::StreamExt as _;
use reqwest::{Client, RequestBuilder, Response, StatusCode};
use serde_json::{Map, Value, json};

use super::chunk::{self, error_message, kind_of_status};
use super::{Failed, FailureKind, Listener, Prompt, Request, TargetPlan, innermost, sse};
use crate::bench::load::LoadError;

/// What ends a stream.
const DONE: &str = "[DONE]";

/// A server and its model.
#[derive(Debug)]
pub struct Server {
    client: Client,
    /// Up to and with `/v1`.
    base: String,
    model: String,
    api_key: Option<String>,
    tenant: Option<String>,
    /// What every body holds.
    body: Map<String, Value>,
}

impl Server {
    /// Looks for the server and asks for its first model, unless one is named.
    ///
    /// # Errors
    /// The address is none, nobody answers there, or the list of models is none.
    pub async fn open(plan: &TargetPlan) -> Result<Self, LoadError> {
        let unreachable = |reason| LoadError::Unreachable { url: plan.url.clone(), reason };
        // Straight to the server: a proxy would be measured too.
        let client = Client::builder()
            .no_proxy()
            .tcp_nodelay(true)
            .pool_max_idle_per_host(plan.most_at_once)
            .connect_timeout(asterism_process::channel::CONNECT_TIMEOUT)
            .build()
            .map_err(|error| unreachable(innermost(&error)))?;
        let base = plan.url.trim_end_matches('/');
        let base = if base.ends_with("/v1") { base.to_owned() } else { format!("{base}/v1") };
        let mut server = Self {
            client,
            base,
            model: plan.model.clone().unwrap_or_default(),
            api_key: plan.api_key.clone(),
            tenant: plan.terms.tenant.clone(),
            body: Map::new(),
        };
        if plan.model.is_none() {
            server.model = server.first_model().await.map_err(|failed| unreachable(failed.message))?;
        }
        server.body = server.body_of(plan);
        Ok(server)
    }

    /// The model's name.
    pub fn model(&self) -> &str {
        &self.model
    }

    fn body_of(&self, plan: &TargetPlan) -> Map<String, Value> {
        let mut body = Map::new();
        let mut set = |name: &str, value: Value| body.insert(name.to_owned(), value);
        set("model", json!(self.model));
        set("stream", json!(true));
        set("stream_options", json!({"include_usage": true}));
        if !plan.stop_at_eos {
            set("ignore_eos", json!(true));
        }
        if let Some(temperature) = plan.temperature {
            set("temperature", json!(temperature));
        }
        body.extend(plan.terms.body());
        // Null takes a field out, for servers that do not want it.
        for (name, value) in &plan.extra {
            match value {
                Value::Null => body.remove(name),
                value => body.insert(name.clone(), value.clone()),
            };
        }
        body
    }

    async fn first_model(&self) -> Result<String, Failed> {
        let response = self.send(self.client.get(format!("{}/models", self.base))).await?;
        let models: Value = response.json().await.map_err(|error| {
            Failed::new(FailureKind::NotUnderstood, format!("the list of models: {}", innermost(&error)))
        })?;
        let first = models.pointer("/data/0/id").and_then(Value::as_str);
        first.map(str::to_owned).ok_or_else(|| {
            Failed::new(FailureKind::NotUnderstood, "the list of models has none: name it with --model")
        })
    }

    /// Asks and listens to the end.
    pub async fn ask(&self, request: Request, listener: &mut Listener<'_>) -> Result<(), Failed> {
        let mut body = self.body.clone();
        body.insert("max_tokens".to_owned(), json!(request.max_tokens));
        let (path, name, prompt) = match request.prompt {
            Prompt::Ids(ids) => ("completions", "prompt", json!(ids)),
            Prompt::Text(text) => ("completions", "prompt", json!(text)),
            Prompt::Chat(messages) | Prompt::Session { messages, .. } => {
                ("chat/completions", "messages", json!(messages))
            }
        };
        body.insert(name.to_owned(), prompt);
        let post = self.client.post(format!("{}/{path}", self.base)).json(&body);
        let response = self.send(post).await?;
        listen(response, listener).await
    }

    async fn send(&self, mut request: RequestBuilder) -> Result<Response, Failed> {
        if let Some(key) = &self.api_key {
            request = request.bearer_auth(key);
        }
        if let Some(tenant) = &self.tenant {
            request = request.header(TENANT_HEADER, tenant);
        }
        let response =
            request.send().await.map_err(|error| Failed::new(FailureKind::Connection, innermost(&error)))?;
        let status = response.status();
        if status == StatusCode::OK {
            return Ok(response);
        }
        let body = response.text().await.unwrap_or_default();
        let message = serde_json::from_str(&body).ok().and_then(|body| error_message(&body)).unwrap_or(body);
        Err(Failed::new(kind_of_status(status.as_u16()), format!("{status}: {message}")))
    }
}

async fn listen(response: Response, listener: &mut Listener<'_>) -> Result<(), Failed> {
    let kind = response.headers().get(reqwest::header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    if kind.is_some_and(|kind| kind.starts_with("application/json")) {
        let why = "the server does not stream: its answer is one JSON object";
        return Err(Failed::new(FailureKind::NotUnderstood, why));
    }
    let (mut parser, mut reader) = (sse::Parser::default(), Reader::default());
    let mut bytes = response.bytes_stream();
    while let Some(bytes) = bytes.next().await {
        let bytes = match bytes {
            Ok(bytes) => bytes,
            Err(error) => return Err(Failed::new(FailureKind::BrokenOff, innermost(&error))),
        };
        let events = parser.push(&bytes);
        for event in events.map_err(|error| Failed::new(FailureKind::NotUnderstood, error.to_string()))? {
            reader.read(&event, listener)?;
        }
    }
    if let Some(event) = parser.finish() {
        reader.read(&event, listener)?;
    }
    reader.end()
}

/// Follows the events of one answer.
#[derive(Debug, Default)]
struct Reader {
    finished: bool,
}

impl Reader {
    fn read(&mut self, event: &sse::Event, listener: &mut Listener<'_>) -> Result<(), Failed> {
        let data = event.data.trim();
        if data == DONE {
            self.finished = true;
            return Ok(());
        }
        if data.is_empty() {
            return Ok(());
        }
        let chunk = chunk::read(data);
        if event.name == "error" {
            return Err(chunk
                .err()
                .filter(Failed::is_told)
                .unwrap_or(Failed::new(FailureKind::Server, data)));
        }
        let chunk = chunk?;
        if chunk.spoken {
            listener.tokens(u32::try_from(chunk.ids.len()).unwrap_or(u32::MAX).max(1));
        }
        listener.answer.text.push_str(&chunk.text);
        listener.answer.ids.extend(chunk.ids);
        // The last count is the whole one where every object tells a count.
        listener.answer.usage = chunk.usage.or(listener.answer.usage);
        self.finished |= chunk.finished;
        Ok(())
    }

    /// Some servers leave out `[DONE]`, some the reason; one of them must have come.
    fn end(&self) -> Result<(), Failed> {
        if self.finished {
            return Ok(());
        }
        Err(Failed::new(FailureKind::BrokenOff, "the server closed the stream before the answer's end"))
    }
}

#[cfg(test)]
mod tests;
