//! A failure as the dialect's error body, through the one table of errors.

use asterism_proto::Failure;
use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// A failure on its way out over HTTP.
#[derive(Clone, Debug)]
pub struct HttpFailure(pub Failure);

impl From<Failure> for HttpFailure {
    fn from(failure: Failure) -> Self {
        Self(failure)
    }
}

impl IntoResponse for HttpFailure {
    fn into_response(self) -> Response {
        let reason = self.0.reason;
        let status = StatusCode::from_u16(reason.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(body(&self.0))).into_response();
        if let Some(delay) = self.0.retry_after {
            let seconds = delay.as_secs() + u64::from(delay.subsec_nanos() > 0);
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// `{"error": {message, type, param, code}}`.
pub fn body(failure: &Failure) -> Value {
    json!({"error": {
        "message": failure.message,
        "type": failure.reason.openai_type(),
        "param": failure.field.as_deref().map(param),
        "code": failure.reason.name().to_ascii_lowercase(),
    }})
}

/// The dialect's name of a field of the gateway's own request.
fn param(field: &str) -> &str {
    match field {
        "output.logprobs" => "top_logprobs",
        "chat" => "messages",
        _ => ["sampling.", "stopping.", "chat."]
            .into_iter()
            .find_map(|prefix| field.strip_prefix(prefix))
            .unwrap_or(field),
    }
}
