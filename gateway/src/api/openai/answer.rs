//! Answers in the dialect's shapes.

use asterism_proto::v1;
use serde_json::{Value, json};

/// What is the same in every object of one answer.
#[derive(Clone, Debug)]
pub struct Heading {
    id: String,
    model: String,
    /// Seconds since 1970.
    created: u64,
}

impl Heading {
    /// Of an answer that began at `created`, in seconds since 1970.
    pub fn new(started: &v1::Started, created: u64) -> Self {
        Self { id: format!("chatcmpl-{}", started.request_id), model: started.model.clone(), created }
    }

    /// The whole answer.
    pub fn completion(&self, text: &str, logprobs: Value, finished: &v1::Finished) -> Value {
        json!({
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.model,
            "choices": [{
                "index": 0,
                "message": {"role": "assistant", "content": text, "refusal": null},
                "logprobs": logprobs,
                "finish_reason": finish_reason(finished.reason()),
            }],
            "usage": finished.usage.as_ref().map(usage),
        })
    }

    /// One event: a piece of the message, and at the end the reason.
    pub fn chunk(&self, delta: Value, logprobs: Value, reason: Option<v1::FinishReason>) -> Value {
        json!({
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "choices": [{
                "index": 0,
                "delta": delta,
                "logprobs": logprobs,
                "finish_reason": reason.map(finish_reason),
            }],
        })
    }

    /// The event that tells the usage.
    pub fn usage_chunk(&self, finished: &v1::Finished) -> Value {
        json!({
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "choices": [],
            "usage": finished.usage.as_ref().map(usage),
        })
    }
}

fn finish_reason(reason: v1::FinishReason) -> &'static str {
    match reason {
        v1::FinishReason::StopToken | v1::FinishReason::StopString | v1::FinishReason::Unspecified => "stop",
        v1::FinishReason::Length => "length",
        v1::FinishReason::Aborted | v1::FinishReason::Interrupted => "abort",
    }
}

fn usage(usage: &v1::Usage) -> Value {
    json!({
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": u64::from(usage.prompt_tokens) + u64::from(usage.completion_tokens),
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    })
}

/// `{"content": [...]}`, or null where there are none.
pub fn logprobs(tokens: &[v1::TokenLogprob]) -> Value {
    if tokens.is_empty() {
        return Value::Null;
    }
    let content: Vec<Value> = tokens
        .iter()
        .map(|token| {
            let mut content = token.chosen.as_ref().map_or(Value::Null, logprob);
            if let Some(object) = content.as_object_mut() {
                object.insert("top_logprobs".to_owned(), token.best.iter().map(logprob).collect());
            }
            content
        })
        .collect();
    json!({"content": content, "refusal": null})
}

fn logprob(of: &v1::Logprob) -> Value {
    json!({
        "token": String::from_utf8_lossy(&of.token),
        "logprob": of.logprob,
        "bytes": of.token.to_vec(),
    })
}

/// The list of models.
pub fn models(models: &[v1::Model]) -> Value {
    let data: Vec<Value> = models
        .iter()
        .map(|model| {
            json!({
                "id": model.name,
                "object": "model",
                "created": 0,
                "owned_by": "asterism",
                "max_model_len": model.max_context,
                "ready": model.ready,
            })
        })
        .collect();
    json!({"object": "list", "data": data})
}
