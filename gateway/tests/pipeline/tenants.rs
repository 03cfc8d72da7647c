//! Whose requests run, in which order, and until when.

use asterism_gateway::tenants::TENANT_HEADER;
use asterism_proto::v1::generate_response::Event;
use asterism_proto::v1::{GenerateRequest, GenerateResponse};
use asterism_proto::{Failure, Reason};
use reqwest::StatusCode;
use serde_json::json;
use tonic::{Request, Status, Streaming};

use crate::sandbox::{Answer, Sandbox, event, ids, shards};
use crate::toy;

/// One sequence at a time, in two stages.
async fn narrow(tenants: &[&str]) -> Sandbox {
    let shards = shards(2, |shard| shard.logits_slots = 1).await;
    let tenants = tenants.iter().map(|tenant| tenant.parse().unwrap()).collect();
    Sandbox::with(shards, |config| config.tenants = tenants).await
}

async fn generate_as(
    sandbox: &Sandbox,
    headers: &[(&'static str, &str)],
    request: GenerateRequest,
) -> Result<Streaming<GenerateResponse>, Status> {
    let mut request = Request::new(request);
    for (name, value) in headers {
        request.metadata_mut().insert(*name, value.parse().unwrap());
    }
    Ok(sandbox.client.clone().generate(request).await?.into_inner())
}

fn timeout(millis: i32) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds: (millis / 1000).into(), nanos: 1_000_000 * (millis % 1000) })
}

#[tokio::test]
async fn tenants_take_turns() {
    let sandbox = narrow(&["a=1", "b=1"]).await;
    sandbox.shards[1].control.send_modify(|control| control.paused = true);
    let mut streams = Vec::new();
    // The first of all runs at once; the others wait.
    for (tenant, prompt) in [("a", 1), ("a", 2), ("a", 3), ("b", 4), ("b", 5)] {
        streams.push(generate_as(&sandbox, &[(TENANT_HEADER, tenant)], ids([prompt], 60)).await.unwrap());
        sandbox.shards[0].until(|seen| !seen.live.is_empty()).await;
    }
    sandbox.shards[1].control.send_modify(|control| control.paused = false);
    let order = std::sync::Mutex::new(Vec::new());
    let readers = streams.into_iter().zip(1..).map(|(stream, prompt)| {
        let order = &order;
        async move {
            assert_eq!(Answer::read(stream).await.unwrap().ids, toy::greedy(&[prompt], 60));
            order.lock().unwrap().push(prompt);
        }
    });
    futures::future::join_all(readers).await;
    assert_eq!(order.into_inner().unwrap(), [1, 4, 2, 5, 3]);
    sandbox.assert_clean().await;
}

#[tokio::test]
async fn tenants_share_no_blocks() {
    let sandbox = narrow(&["a=1", "b=1"]).await;
    let prompt: Vec<u32> = (0..40).collect();
    for (tenant, expected) in [("a", 0), ("b", 0), ("default", 0), ("b", 32), ("a", 32), ("default", 32)] {
        let stream = generate_as(&sandbox, &[(TENANT_HEADER, tenant)], ids(prompt.clone(), 6)).await.unwrap();
        let answer = Answer::read(stream).await.unwrap();
        let cached = answer.finished.usage.unwrap().cached_tokens;
        assert_eq!((cached, answer.ids), (expected, toy::greedy(&prompt, 6)), "{tenant}");
    }
    sandbox.assert_clean().await;
}

#[tokio::test]
async fn a_waiting_request_and_a_running_one_end_at_their_deadlines() {
    let sandbox = narrow(&[]).await;
    sandbox.shards[1].control.send_modify(|control| control.pause_after = Some(2));
    let wanted = |prompt: u32, millis| GenerateRequest { timeout: timeout(millis), ..ids([prompt], 60) };
    let mut running = sandbox.generate(wanted(1, 2000)).await.unwrap();
    sandbox.shards[0].until(|seen| seen.steps == 3).await;
    let waiting = generate_as(&sandbox, &[("grpc-timeout", "1S")], ids([2], 60)).await.unwrap();
    let next = sandbox.generate(ids([3], 60)).await.unwrap();
    let failure = Failure::from(Answer::read(waiting).await.unwrap_err());
    assert_eq!(failure.reason, Reason::DeadlineExceeded);
    let mut drawn = 0;
    let failure = loop {
        match event(&mut running).await {
            Ok(Some(Event::Delta(delta))) => drawn += delta.token_ids.len(),
            Ok(_) => {}
            Err(status) => break Failure::from(status),
        }
    };
    assert_eq!((failure.reason, drawn), (Reason::DeadlineExceeded, 2));
    // The plan that ends it gives its blocks to the next, although the last stage has not reported its last step.
    let seen = sandbox.shards[0].until(|seen| seen.steps > 3).await;
    assert_eq!(seen.live.values().map(|sequence| &sequence.ids[..1]).collect::<Vec<_>>(), [[3]]);
    sandbox.shards[1].control.send_modify(|control| control.pause_after = None);
    assert_eq!(Answer::read(next).await.unwrap().ids, toy::greedy(&[3], 60));
    sandbox.assert_clean().await;
}

#[tokio::test]
async fn a_deadline_holds_while_there_is_no_pipeline() {
    let mut sandbox = narrow(&[]).await;
    sandbox.shards[1].control.send_modify(|control| control.paused = true);
    let _running = sandbox.generate(ids([1], 60)).await.unwrap();
    sandbox.shards[0].until(|seen| !seen.live.is_empty()).await;
    let waiting = GenerateRequest { timeout: timeout(300), ..ids([2], 60) };
    let waiting = sandbox.generate(waiting).await.unwrap();
    sandbox.shards.remove(0).kill().await;
    let failure = Failure::from(Answer::read(waiting).await.unwrap_err());
    assert_eq!(failure.reason, Reason::DeadlineExceeded);
}

#[tokio::test]
async fn unknown_tenants_and_priorities_and_past_deadlines_name_their_fields() {
    let sandbox = narrow(&["gold=3"]).await;
    let refused = |headers: &'static [(&'static str, &'static str)], request| {
        let sandbox = &sandbox;
        async move {
            let failure = Failure::from(generate_as(sandbox, headers, request).await.unwrap_err());
            assert_eq!(failure.reason, Reason::InvalidArgument);
            failure.field.unwrap()
        }
    };
    assert_eq!(refused(&[(TENANT_HEADER, "silver")], ids([1], 1)).await, TENANT_HEADER);
    for priority in [Some(101), Some(i32::MIN)] {
        assert_eq!(refused(&[], GenerateRequest { priority, ..ids([1], 1) }).await, "priority");
    }
    for millis in [0, -5] {
        assert_eq!(
            refused(&[], GenerateRequest { timeout: timeout(millis), ..ids([1], 1) }).await,
            "timeout"
        );
    }
    let best = GenerateRequest { priority: Some(100), timeout: timeout(900_000), ..ids([1], 3) };
    let stream = generate_as(&sandbox, &[(TENANT_HEADER, "gold")], best).await;
    drop(stream.unwrap());
}

#[tokio::test]
async fn the_dialect_has_the_same_fields() {
    let sandbox = narrow(&["gold=3"]).await;
    let post = |tenant: &'static str, more: serde_json::Value| {
        let mut body = json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let request = reqwest::Client::new().post(sandbox.url("/v1/chat/completions"));
        async move {
            let response = request.header(TENANT_HEADER, tenant).json(&body).send().await.unwrap();
            (response.status(), response.json::<serde_json::Value>().await.unwrap()["error"].clone())
        }
    };
    assert_eq!(post("gold", json!({"priority": 5, "timeout": 60.0})).await.0, StatusCode::OK);
    for (tenant, more, param) in [
        ("silver", json!({}), TENANT_HEADER),
        ("gold", json!({"priority": 1000}), "priority"),
        ("gold", json!({"priority": "high"}), "priority"),
        ("gold", json!({"timeout": 0}), "timeout"),
        ("gold", json!({"timeout": -1}), "timeout"),
        ("gold", json!({"timeout": 1e300}), "timeout"),
    ] {
        let (status, error) = post(tenant, more.clone()).await;
        assert_eq!((status, &error["param"]), (StatusCode::BAD_REQUEST, &json!(param)), "{more}: {error}");
    }
    sandbox.shards[1].control.send_modify(|control| control.paused = true);
    let (status, error) = post("gold", json!({"timeout": 0.1})).await;
    assert_eq!((status, &error["type"]), (StatusCode::GATEWAY_TIMEOUT, &json!("timeout_error")));
    sandbox.shards[1].control.send_modify(|control| control.paused = false);
    sandbox.assert_clean().await;
}
