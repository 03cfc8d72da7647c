use asterism_proto::v1;
use asterism_proto::v1::generate_request::Prompt;
use serde_json::json;

use super::request::{ChatRequest, Form};

fn parse(body: serde_json::Value) -> ChatRequest {
    ChatRequest::parse(body.to_string().as_bytes()).unwrap()
}

#[test]
fn every_served_field_arrives() {
    let request = parse(json!({
        "model": "m",
        "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "u"}]}],
        "max_tokens": 1,
        "max_completion_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.25,
        "top_k": 5,
        "min_p": 0.125,
        "repetition_penalty": 1.5,
        "presence_penalty": -0.5,
        "frequency_penalty": 0.75,
        "seed": -1,
        "stop": ["a", "b"],
        "ignore_eos": true,
        "logit_bias": {"17": -100, "5": 2.5},
        "logprobs": true,
        "top_logprobs": 3,
        "n": 1,
        "priority": -3,
        "timeout": 2.5,
        "bypass_cache": true,
        "bypass_speculation": true,
        "stream": true,
        "stream_options": {"include_usage": true},
    }));
    let message = |role: &str, content: &str| v1::Message { role: role.into(), content: content.into() };
    let messages = vec![message("system", "s"), message("user", "u")];
    let bias = |token_id, bias| v1::LogitBias { token_id, bias };
    let expected = v1::GenerateRequest {
        model: "m".into(),
        request_id: String::new(),
        prompt: Some(Prompt::Chat(v1::Chat { messages })),
        sampling: Some(v1::Sampling {
            do_sample: None,
            temperature: Some(0.5),
            top_k: Some(5),
            top_p: Some(0.25),
            min_p: Some(0.125),
            repetition_penalty: Some(1.5),
            presence_penalty: Some(-0.5),
            frequency_penalty: Some(0.75),
            logit_bias: vec![bias(17, -100.0), bias(5, 2.5)],
            seed: Some(u64::MAX),
        }),
        stopping: Some(v1::Stopping {
            max_tokens: Some(7),
            stop: vec!["a".into(), "b".into()],
            stop_token_ids: Vec::new(),
            ignore_eos: true,
        }),
        output: Some(v1::Output { logprobs: Some(3) }),
        priority: Some(-3),
        timeout: Some(prost_types::Duration { seconds: 2, nanos: 500_000_000 }),
        bypass_cache: true,
        bypass_speculation: true,
    };
    assert_eq!(request, ChatRequest { generate: expected, form: Form::Events { usage: true } });
}

#[test]
fn what_is_absent_null_or_off_stays_unset() {
    let absent = parse(json!({"messages": []}));
    let off = parse(json!({
        "messages": [], "model": null, "temperature": null, "stop": null, "logprobs": false, "stream": false,
        "stream_options": null, "tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "n": 1,
        "modalities": ["text"], "logit_bias": {}, "store": false, "metadata": {"any": "thing"},
    }));
    assert_eq!(absent, off);
    assert_eq!(absent.form, Form::Whole);
    assert_eq!(absent.generate.sampling, Some(v1::Sampling::default()));
    assert_eq!(absent.generate.stopping, Some(v1::Stopping::default()));
}

#[test]
fn top_k_of_minus_one_is_off() {
    let request = parse(json!({"messages": [], "top_k": -1}));
    assert_eq!(request.generate.sampling.unwrap().top_k, Some(0));
}
