//! Sessions and turns as lines of JSON. Ids, times and numbers are those of the record; what is empty or unset is left out.

use asterism_proto::v1;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::record::{Answer, End, NewTurn, Session, SessionId, Settings, Turn};

/// A session, as a line.
pub fn session(session: &Session) -> String {
    let Session { id, version, turns, updated_ms, settings, .. } = session;
    let Settings { title, model, checkpoint_id, preamble, created_ms, .. } = settings;
    line(json!({
        "session_id": id.to_string(),
        "etag": version.to_string(),
        "title": title,
        "model": model,
        "checkpoint_id": checkpoint_id,
        "forked_from": Uuid::from_slice(&settings.forked_from).ok().map(|id| SessionId(id).to_string()),
        "turns": turns,
        "created_ms": created_ms,
        "updated_ms": updated_ms,
        "preamble": messages(preamble),
        "sampling": settings.sampling.as_ref().map(sampling),
        "stopping": settings.stopping.as_ref().map(stopping),
        "history_tokens": settings.history_tokens().as_str(),
        "history_overflow": settings.history_overflow().as_str(),
    }))
}

/// A turn, as a line.
pub fn turn(turn: &Turn) -> String {
    let NewTurn { messages: said, prompt_ids, checkpoint_id, compute, dropped_turns, .. } = &turn.accepted;
    let mut value = json!({
        "turn": turn.index,
        "turn_id": turn.id.to_string(),
        "messages": messages(said),
        "prompt_ids": prompt_ids,
        "dropped_turns": dropped_turns,
        "history_differs_at": turn.accepted.history_differs_at,
        "sampling": turn.accepted.sampling.as_ref().map(sampling),
        "stopping": turn.accepted.stopping.as_ref().map(stopping),
        "priority": turn.accepted.priority,
        "checkpoint_id": checkpoint_id,
        "compute": compute,
        "accepted_ms": turn.accepted.accepted_ms,
    });
    if let Some(answer) = &turn.answer {
        value["answer"] = self::answer(answer);
    }
    line(value)
}

fn answer(answer: &Answer) -> Value {
    let Answer { token_ids, text, response, failure, first_token_ms, ended_ms, .. } = answer;
    let end = match answer.end() {
        End::Whole => "whole",
        End::Stopped => "stopped",
        End::Failed => "failed",
    };
    let finished = answer.finished.clone().unwrap_or_default();
    let usage = finished.usage.map(|usage| {
        json!({
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "cached_tokens": usage.cached_tokens,
        })
    });
    json!({
        "token_ids": token_ids,
        "text": text,
        "response": response,
        "end": end,
        "finish_reason": finished.reason().as_str_name(),
        "failure": failure,
        "usage": usage,
        "first_token_ms": first_token_ms,
        "ended_ms": ended_ms,
    })
}

fn messages(all: &[v1::Message]) -> Value {
    all.iter().map(|message| json!({ "role": message.role, "content": message.content })).collect()
}

fn sampling(sampling: &v1::Sampling) -> Value {
    let bias = sampling.logit_bias.iter().map(|bias| json!([bias.token_id, bias.bias]));
    json!({
        "do_sample": sampling.do_sample,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "logit_bias": bias.collect::<Vec<_>>(),
        // As text: readers of JSON keep 53 bits of a number.
        "seed": sampling.seed.map(|seed| seed.to_string()),
    })
}

fn stopping(stopping: &v1::Stopping) -> Value {
    json!({
        "max_tokens": stopping.max_tokens,
        "stop": stopping.stop,
        "stop_token_ids": stopping.stop_token_ids,
        "ignore_eos": stopping.ignore_eos,
    })
}

/// Without fields that say nothing.
fn line(value: Value) -> String {
    said(value).to_string()
}

fn said(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields = fields.into_iter().map(|(name, value)| (name, said(value)));
            let is_empty = |value: &Value| match value {
                Value::Null => true,
                Value::String(text) => text.is_empty(),
                Value::Array(items) => items.is_empty(),
                _ => false,
            };
            Value::Object(fields.filter(|(_, value)| !is_empty(value)).collect::<Map<_, _>>())
        }
        other => other,
    }
}
