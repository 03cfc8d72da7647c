//! Bad input gets INVALID_ARGUMENT, with the field named.

use asterism_proto::v1::generate_request::Prompt;
use asterism_proto::v1::{self, GenerateRequest};
use asterism_proto::{Failure, Reason};
use tonic::Code;

use crate::sandbox::{Sandbox, ids};
use crate::toy;

async fn assert_refused(sandbox: &Sandbox, request: GenerateRequest, field: &str) {
    let shown = format!("{request:?}");
    let failure = Failure::from(sandbox.generate(request).await.expect_err(&shown));
    assert_eq!(failure.reason, Reason::InvalidArgument, "{failure:?} for {shown}");
    assert_eq!(failure.field.as_deref(), Some(field), "{failure:?} for {shown}");
}

#[tokio::test]
async fn prompts() {
    let sandbox = Sandbox::new(1).await;
    let with = |prompt| GenerateRequest { prompt, ..ids([1], 1) };
    let chat = |role: &str| {
        let message = v1::Message { role: role.to_owned(), content: "x".to_owned() };
        with(Some(Prompt::Chat(v1::Chat { messages: vec![message] })))
    };
    assert_refused(&sandbox, with(None), "prompt").await;
    assert_refused(&sandbox, ids([], 1), "token_ids").await;
    assert_refused(&sandbox, with(Some(Prompt::Text(String::new()))), "text").await;
    assert_refused(&sandbox, ids([1, toy::VOCAB], 1), "token_ids").await;
    assert_refused(&sandbox, ids(vec![1; 256], 1), "token_ids").await;
    assert_refused(&sandbox, with(Some(Prompt::Text("x".repeat(300)))), "text").await;
    assert_refused(&sandbox, chat("tool"), "chat").await;
    // A prompt past max_length is refused only where that decides.
    let mut long = ids(vec![1; 100], 1);
    sandbox.answer(long.clone()).await.unwrap();
    long.stopping.as_mut().unwrap().max_tokens = None;
    assert_refused(&sandbox, long, "token_ids").await;
    sandbox.assert_clean().await;
}

#[tokio::test]
async fn names_and_lengths() {
    let sandbox = Sandbox::new(1).await;
    assert_refused(&sandbox, GenerateRequest { model: "other".to_owned(), ..ids([1], 1) }, "model").await;
    assert_refused(&sandbox, GenerateRequest { request_id: "x".repeat(1000), ..ids([1], 1) }, "request_id")
        .await;
    assert_refused(&sandbox, ids([1], 0), "stopping.max_tokens").await;
    let stopping = |change: fn(&mut v1::Stopping)| {
        let mut request = ids([1], 1);
        change(request.stopping.as_mut().unwrap());
        request
    };
    assert_refused(&sandbox, stopping(|s| s.stop = vec!["a".into(), String::new()]), "stopping.stop[1]")
        .await;
    let id = stopping(|stopping| stopping.stop_token_ids = vec![1, toy::VOCAB]);
    assert_refused(&sandbox, id, "stopping.stop_token_ids").await;
    let unknown = v1::TokenizeRequest { model: "other".to_owned(), input: None };
    let failure = Failure::from(sandbox.client.clone().tokenize(unknown).await.unwrap_err());
    assert_eq!(failure.field.as_deref(), Some("model"));
    let missing = v1::TokenizeRequest::default();
    let failure = Failure::from(sandbox.client.clone().tokenize(missing).await.unwrap_err());
    assert_eq!(failure.field.as_deref(), Some("input"));
}

#[tokio::test]
async fn sampling_values() {
    let sandbox = Sandbox::new(1).await;
    let sampling = |change: fn(&mut v1::Sampling)| {
        let mut sampling = v1::Sampling::default();
        change(&mut sampling);
        GenerateRequest { sampling: Some(sampling), ..ids([1], 1) }
    };
    for (field, change) in [
        ("temperature", (|s| s.temperature = Some(-1.0)) as fn(&mut v1::Sampling)),
        ("temperature", |s| s.temperature = Some(f32::NAN)),
        ("temperature", |s| s.temperature = Some(f32::INFINITY)),
        ("top_p", |s| s.top_p = Some(1.5)),
        ("top_p", |s| s.top_p = Some(f32::NAN)),
        ("min_p", |s| s.min_p = Some(-0.1)),
        ("repetition_penalty", |s| s.repetition_penalty = Some(0.0)),
        ("repetition_penalty", |s| s.repetition_penalty = Some(f32::NEG_INFINITY)),
        ("presence_penalty", |s| s.presence_penalty = Some(f32::NAN)),
        ("frequency_penalty", |s| s.frequency_penalty = Some(f32::INFINITY)),
    ] {
        assert_refused(&sandbox, sampling(change), &format!("sampling.{field}")).await;
    }
    let bias = |token_id, bias| GenerateRequest {
        sampling: Some(v1::Sampling {
            logit_bias: vec![v1::LogitBias { token_id, bias }],
            ..Default::default()
        }),
        ..ids([1], 1)
    };
    for request in [bias(toy::VOCAB, 1.0), bias(1, f32::NAN)] {
        let failure = Failure::from(sandbox.generate(request).await.unwrap_err());
        assert_eq!(failure.reason, Reason::InvalidArgument);
        assert!(failure.field.unwrap().starts_with("sampling.logit_bias"));
    }
}

/// A message that holds a string of invalid UTF-8, as a client in another language may send it.
#[derive(Clone, PartialEq, prost::Message)]
struct Broken {
    #[prost(bytes = "vec", tag = "3")]
    text: Vec<u8>,
}

#[tokio::test]
async fn invalid_utf8() {
    let sandbox = Sandbox::new(1).await;
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{}", sandbox.gateway.grpc_address));
    let mut client = tonic::client::Grpc::new(channel.unwrap().connect().await.unwrap());
    client.ready().await.unwrap();
    let codec = asterism_proto::codec::StrictCodec::<Broken, v1::GenerateResponse>::default();
    let path = "/asterism.v1.Inference/Generate".parse().unwrap();
    let request = tonic::Request::new(Broken { text: vec![0xff, 0xfe] });
    let refused = client.server_streaming(request, path, codec).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
}
