//! The OpenAI dialect.

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::sandbox::{Sandbox, shards};
use crate::toy;

/// The prompt of one user message, as the toy model's template has it.
fn prompt(content: &str) -> Vec<u32> {
    format!("[user]{content}[assistant]").bytes().map(u32::from).collect()
}

fn chat(content: &str, more: Value) -> Value {
    let mut body =
        json!({"model": "toy", "messages": [{"role": "user", "content": content}], "max_tokens": 8});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

async fn post(sandbox: &Sandbox, body: &Value) -> (StatusCode, Value) {
    let url = sandbox.url("/v1/chat/completions");
    let response = reqwest::Client::new().post(url).json(body).send().await.unwrap();
    (response.status(), response.json().await.unwrap())
}

/// All data of a stream of events.
async fn events(sandbox: &Sandbox, body: &Value) -> Vec<String> {
    let url = sandbox.url("/v1/chat/completions");
    let response = reqwest::Client::new().post(url).json(body).send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let text = response.text().await.unwrap();
    text.lines().filter_map(|line| line.strip_prefix("data: ")).map(str::to_owned).collect()
}

fn expected_text(content: &str, count: usize) -> String {
    let ids = toy::greedy(&prompt(content), count);
    let bytes: Vec<u8> = ids.iter().filter_map(|id| u8::try_from(*id).ok()).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[tokio::test]
async fn a_whole_chat_completion() {
    let sandbox = Sandbox::new(2).await;
    let (status, body) = post(&sandbox, &chat("hi", json!({}))).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    assert_eq!(body["object"], "chat.completion");
    assert_eq!(body["model"], "toy");
    let choice = &body["choices"][0];
    assert_eq!(choice["message"]["role"], "assistant");
    assert_eq!(choice["message"]["content"], expected_text("hi", 8));
    assert_eq!(choice["finish_reason"], "length");
    assert_eq!(choice["logprobs"], Value::Null);
    let usage = &body["usage"];
    assert_eq!(
        (&usage["prompt_tokens"], &usage["completion_tokens"], &usage["total_tokens"]),
        (&json!(19), &json!(8), &json!(27))
    );
    sandbox.assert_clean().await;
}

#[tokio::test]
async fn a_streamed_chat_completion_joins_to_the_whole_one() {
    let sandbox = Sandbox::new(2).await;
    let request = chat("hey", json!({"stream": true, "stream_options": {"include_usage": true}}));
    let mut events = events(&sandbox, &request).await;
    assert_eq!(events.pop().unwrap(), "[DONE]");
    let events: Vec<Value> = events.iter().map(|data| serde_json::from_str(data).unwrap()).collect();
    assert_eq!(events[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    let (usage, chunks) = events.split_last().unwrap();
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"]["completion_tokens"], 8);
    let (last, _) = chunks.split_last().unwrap();
    assert_eq!(last["choices"][0]["finish_reason"], "length");
    let text: String =
        chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(text, expected_text("hey", 8));
    assert!(
        chunks.iter().all(|chunk| chunk["object"] == "chat.completion.chunk" && chunk["id"] == usage["id"])
    );
}

#[tokio::test]
async fn content_may_come_in_parts_and_logprobs_come_with_tokens() {
    let sandbox = Sandbox::new(1).await;
    let parts = json!([{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]);
    let request = json!({
        "messages": [{"role": "user", "content": parts}],
        "max_completion_tokens": 3,
        "logprobs": true,
        "top_logprobs": 2,
        "user": "ignored",
        "unknown": {"ignored": true},
        "temperature": null,
    });
    let (status, body) = post(&sandbox, &request).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    assert_eq!(body["choices"][0]["message"]["content"], expected_text("hi", 3));
    let logprobs = body["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(logprobs.len(), 3);
    for token in logprobs {
        let best = token["top_logprobs"].as_array().unwrap();
        assert_eq!(best.len(), 2);
        assert_eq!(best[0]["logprob"], token["logprob"], "greedy takes the best");
        assert!(best[1]["logprob"].as_f64() < best[0]["logprob"].as_f64());
    }
}

#[tokio::test]
async fn without_max_tokens_the_context_is_the_limit() {
    let sandbox = Sandbox::new(1).await;
    let mut request = chat("hi", json!({"logit_bias": {"256": -100}}));
    request.as_object_mut().unwrap().remove("max_tokens");
    let (status, body) = post(&sandbox, &request).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    assert_eq!(body["usage"]["total_tokens"], 256);
}

#[tokio::test]
async fn errors_have_the_dialects_shape_and_name_the_field() {
    let sandbox = Sandbox::new(1).await;
    let cases = [
        (json!({"model": "other"}), "model"),
        (json!({"n": 2}), "n"),
        (json!({"tools": [{"type": "function"}]}), "tools"),
        (json!({"response_format": {"type": "json_object"}}), "response_format"),
        (json!({"temperature": "hot"}), "temperature"),
        (json!({"temperature": -1}), "temperature"),
        (json!({"top_p": 2}), "top_p"),
        (json!({"max_tokens": -1}), "max_tokens"),
        (json!({"max_tokens": 0}), "max_tokens"),
        (json!({"stop": 3}), "stop"),
        (json!({"stop": ""}), "stop[0]"),
        (json!({"logit_bias": {"x": 1}}), "logit_bias"),
        (json!({"top_logprobs": 3}), "top_logprobs"),
        (json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs"),
        (json!({"messages": "hi"}), "messages"),
        (json!({"messages": [{"content": "hi"}]}), "messages[0].role"),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
            "messages[0].content[0].type",
        ),
        (json!({"messages": [{"role": "tool", "content": "hi"}]}), "messages"),
    ];
    for (change, param) in cases {
        let (status, body) = post(&sandbox, &chat("hi", change.clone())).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{change}: {body}");
        assert_eq!(body["error"]["param"], param, "{change}: {body}");
        assert_eq!(body["error"]["type"], "invalid_request_error", "{body}");
    }
    let endless = " ".repeat(9 << 20);
    for body in ["", "[]", "{\"messages\":", &endless] {
        let url = sandbox.url("/v1/chat/completions");
        let response = reqwest::Client::new().post(url).body(body.to_owned()).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::BAD_REQUEST);
        assert_eq!(response.json::<Value>().await.unwrap()["error"]["param"], "body");
    }
    let response = reqwest::get(sandbox.url("/v1/nothing")).await.unwrap();
    assert_eq!(response.status(), StatusCode::NOT_FOUND);
    assert_eq!(response.json::<Value>().await.unwrap()["error"]["type"], "not_found_error");
}

#[tokio::test]
async fn models_and_health() {
    let mut sandbox = Sandbox::new(1).await;
    let models: Value = reqwest::get(sandbox.url("/v1/models")).await.unwrap().json().await.unwrap();
    assert_eq!(models["object"], "list");
    assert_eq!(models["data"][0]["id"], "toy");
    assert_eq!(reqwest::get(sandbox.url("/health")).await.unwrap().status(), StatusCode::OK);
    let mut state = sandbox.gateway.state();
    sandbox.shards.remove(0).kill().await;
    let waiting = |state: &asterism_gateway::driver::PipelineState| {
        matches!(state, asterism_gateway::driver::PipelineState::Waiting(_))
    };
    state.wait_for(waiting).await.unwrap();
    let health = reqwest::get(sandbox.url("/health")).await.unwrap();
    assert_eq!(health.status(), StatusCode::SERVICE_UNAVAILABLE);
    let (status, body) = post(&sandbox, &chat("hi", json!({}))).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{body}");
    assert_eq!(body["error"]["type"], "unavailable_error");
}

#[tokio::test]
async fn a_full_queue_is_429_with_a_delay() {
    let shards = shards(1, |shard| shard.logits_slots = 1).await;
    let sandbox = Sandbox::with(shards, |config| config.queue_requests = 1).await;
    sandbox.shards[0].control.send_modify(|control| control.paused = true);
    let _running = sandbox.generate(crate::sandbox::ids([1], 60)).await.unwrap();
    sandbox.shards[0].until(|seen| !seen.live.is_empty()).await;
    let _queued = sandbox.generate(crate::sandbox::ids([2], 60)).await.unwrap();
    let url = sandbox.url("/v1/chat/completions");
    let request = reqwest::Client::new().post(url).json(&chat("hi", json!({})));
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(response.headers()["retry-after"].to_str().unwrap().parse::<u64>().unwrap() >= 1);
}

#[tokio::test]
async fn a_client_that_goes_away_frees_its_blocks() {
    let sandbox = Sandbox::new(2).await;
    for stream in [false, true] {
        sandbox.shards[1].control.send_modify(|control| control.paused = true);
        let request = chat("hi", json!({"stream": stream, "max_tokens": 200}));
        let url = sandbox.url("/v1/chat/completions");
        let sending = tokio::spawn(async move {
            let response = reqwest::Client::new().post(url).json(&request).send().await.unwrap();
            response.text().await.unwrap()
        });
        sandbox.shards[0].until(|seen| !seen.live.is_empty()).await;
        sending.abort();
        assert!(sending.await.unwrap_err().is_cancelled());
        // No row is reported meanwhile, so only the client's going can end it.
        sandbox.shards[0].until(|seen| seen.live.is_empty()).await;
        sandbox.shards[1].control.send_modify(|control| control.paused = false);
        sandbox.assert_clean().await;
    }
}
