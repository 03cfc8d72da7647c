//! Spans of requests that share steps, from both doors.

use opentelemetry_proto::tonic::trace::v1::Span;
use serde_json::json;
use tonic::Request;

use crate::otlp::Receiver;
use crate::sandbox::{Answer, Sandbox, ids};

fn traceparent(trace: u8) -> String {
    format!("00-{}-2222222222222222-01", format!("{trace:02x}").repeat(16))
}

fn of<'s>(spans: &'s [Span], trace: u8, name: &str) -> Vec<&'s Span> {
    spans.iter().filter(|span| span.trace_id == [trace; 16] && span.name == name).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_share_a_step_each_have_it_in_their_trace() {
    const TOKENS: u32 = 8;
    let mut receiver = Receiver::start().await;
    let sandbox = Sandbox::new(1).await;

    // Both wait for their first tokens; from then on one stage has one group.
    sandbox.shards[0].control.send_modify(|control| control.paused = true);
    let mut answers = Vec::new();
    for trace in [0x11, 0x33] {
        let mut request = Request::new(ids([u32::from(trace)], TOKENS));
        request.metadata_mut().insert("traceparent", traceparent(trace).parse().unwrap());
        answers.push(sandbox.client.clone().generate(request).await.unwrap().into_inner());
    }
    sandbox.shards[0].control.send_modify(|control| control.paused = false);
    for answer in answers {
        Answer::read(answer).await.unwrap();
    }
    // Refused through the other door.
    let body = json!({"messages": [{"role": "user", "content": "xyzzy"}], "max_tokens": 0});
    let request = reqwest::Client::new().post(sandbox.url("/v1/chat/completions")).json(&body);
    let response = request.header("traceparent", traceparent(0x55)).send().await.unwrap();
    assert_eq!(response.status(), 400);

    let expected = TOKENS as usize;
    let complete = |spans: &[Span]| {
        let answered =
            |trace| of(spans, trace, "step").len() >= expected && of(spans, trace, "request").len() == 1;
        answered(0x11) && answered(0x33) && of(spans, 0x55, "request").len() == 1
    };
    let spans = receiver.until(complete).await;
    for trace in [0x11, 0x33] {
        let [request] = *of(&spans, trace, "request") else { panic!("{spans:#?}") };
        let steps = of(&spans, trace, "step");
        assert_eq!(steps.len(), expected);
        assert!(steps.iter().all(|step| step.parent_span_id == request.span_id));
        assert!(request.status.is_none() || request.status.as_ref().unwrap().message.is_empty());
    }
    let ours = [[0x11; 16], [0x33; 16]].map(Vec::from);
    let is_ours = |span: &&Span| span.name == "step" && ours.contains(&span.trace_id);
    let linked: Vec<_> = spans.iter().filter(is_ours).filter(|span| !span.links.is_empty()).collect();
    assert!(!linked.is_empty(), "they shared steps");
    for step in linked {
        let first =
            spans.iter().find(|span| span.span_id == step.links[0].span_id).expect("the first's span");
        assert!(is_ours(&first) && first.trace_id != step.trace_id, "{first:?}");
    }
    let [refused] = *of(&spans, 0x55, "request") else { panic!("{spans:#?}") };
    assert_eq!(refused.status.as_ref().unwrap().message, "INVALID_ARGUMENT");
    assert!(!format!("{spans:?}").contains("xyzzy"), "no text");
}
