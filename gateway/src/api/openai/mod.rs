//! The OpenAI dialect over HTTP: a translation onto the same path as gRPC, with the same checks and the same errors.

mod answer;
mod error;
mod fields;
mod request;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use asterism_process::metrics::exposition;
use asterism_proto::v1::generate_response::Event as Answered;
use asterism_proto::{Failure, Reason, v1};
use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use futures::{Stream, StreamExt, stream};
use serde_json::{Value, json};

use self::answer::Heading;
use self::error::HttpFailure;
use self::request::{ChatRequest, Form};
use crate::api::MAX_REQUEST_BYTES;
use crate::caller::Caller;
use crate::driver::AnswerStream;
use crate::engine::{Engine, OpenEnd};

/// A comment goes out this often while a stream waits, so that proxies keep it open.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// All routes.
pub fn router(engine: Arc<Engine>) -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .route("/v1/models", get(models))
        .route("/v1/chat/completions", post(chat_completions))
        .fallback(no_such_route)
        .method_not_allowed_fallback(no_such_route)
        .layer(DefaultBodyLimit::max(MAX_REQUEST_BYTES))
        .with_state(engine)
}

async fn no_such_route(method: Method, uri: Uri) -> HttpFailure {
    HttpFailure(Failure::new(Reason::NotFound, format!("{method} {} is not served", uri.path())))
}

async fn health(State(engine): State<Arc<Engine>>) -> Response {
    match engine.readiness() {
        Ok(()) => Json(json!({"status": "ready"})).into_response(),
        Err(failure) => {
            let body = json!({"status": "not ready", "reason": failure.message});
            (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
        }
    }
}

async fn metrics(State(engine): State<Arc<Engine>>) -> Response {
    // A gateway that shuts down has nothing to do.
    let loads = engine.loads().await.unwrap_or_default();
    exposition(engine.metrics().registry(&loads))
}

async fn models(State(engine): State<Arc<Engine>>) -> Json<Value> {
    Json(answer::models(&[engine.model()]))
}

async fn chat_completions(
    State(engine): State<Arc<Engine>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, HttpFailure> {
    let caller = Caller::of_headers(&headers);
    let body = body.map_err(|rejection| Failure::invalid("body", rejection.body_text()))?;
    let ChatRequest { generate, form } = ChatRequest::parse(&body)?;
    let answer = engine.generate(generate, OpenEnd::Context, caller).await?;
    let created = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
    let heading = Heading::new(answer.started(), created);
    Ok(match form {
        Form::Whole => Json(whole(&heading, answer).await?).into_response(),
        Form::Events { usage } => {
            let events = events(heading, answer, usage).map(Ok::<_, std::convert::Infallible>);
            Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response()
        }
    })
}

async fn whole(heading: &Heading, mut answer: AnswerStream) -> Result<Value, Failure> {
    let (mut text, mut logprobs) = (String::new(), Vec::new());
    while let Some(event) = answer.next().await {
        match event? {
            Answered::Started(_) => {}
            Answered::Delta(delta) => {
                text.push_str(&delta.text);
                logprobs.extend(delta.logprobs);
            }
            Answered::Finished(finished) => {
                return Ok(heading.completion(&text, answer::logprobs(&logprobs), &finished));
            }
        }
    }
    Err(Failure::new(Reason::Internal, "the answer ended without an end"))
}

/// The answer as events; dropping them drops the answer, which cancels it. A failed answer ends with the error, not with
/// `[DONE]`.
fn events(heading: Heading, answer: AnswerStream, usage: bool) -> impl Stream<Item = Event> {
    answer.flat_map(move |event| {
        let mut done = None;
        let objects = match event {
            Ok(Answered::Started(_)) => {
                vec![heading.chunk(json!({"role": "assistant", "content": ""}), Value::Null, None)]
            }
            Ok(Answered::Delta(delta)) => delta_chunk(&heading, &delta).into_iter().collect(),
            Ok(Answered::Finished(finished)) => {
                done = Some(Event::default().data("[DONE]"));
                let mut last = vec![heading.chunk(json!({}), Value::Null, Some(finished.reason()))];
                last.extend(usage.then(|| heading.usage_chunk(&finished)));
                last
            }
            Err(failure) => vec![error::body(&failure)],
        };
        let events = objects.into_iter().map(|object| Event::default().data(object.to_string()));
        stream::iter(events.chain(done).collect::<Vec<_>>())
    })
}

fn delta_chunk(heading: &Heading, delta: &v1::Delta) -> Option<Value> {
    let silent = delta.text.is_empty() && delta.logprobs.is_empty();
    (!silent).then(|| heading.chunk(json!({"content": delta.text}), answer::logprobs(&delta.logprobs), None))
}
