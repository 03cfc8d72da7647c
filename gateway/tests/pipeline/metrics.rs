//! What is counted, through `/metrics` and `Loads`.

use asterism_proto::v1::{self, GenerateRequest};

use crate::sandbox::{Sandbox, ids};

async fn scrape(sandbox: &Sandbox) -> String {
    let response = reqwest::get(sandbox.url("/metrics")).await.unwrap();
    assert!(response.status().is_success());
    let kind = response.headers()["content-type"].to_str().unwrap().to_owned();
    assert!(kind.starts_with("application/openmetrics-text"), "{kind}");
    response.text().await.unwrap()
}

fn value(text: &str, series: &str) -> f64 {
    let line = text.lines().find(|line| line.starts_with(series) && !line.starts_with('#'));
    let line = line.unwrap_or_else(|| panic!("{series} in\n{text}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn answers_are_counted_without_their_words() {
    let sandbox = Sandbox::new(2).await;
    for _ in 0..3 {
        let request = GenerateRequest { request_id: "secret-id".to_owned(), ..ids([10, 20, 30], 12) };
        sandbox.answer(request).await.unwrap();
    }
    let refused = ids([1; 300], 1);
    sandbox.answer(refused).await.unwrap_err();
    sandbox.assert_clean().await;
    let text = scrape(&sandbox).await;
    for (series, expected) in [
        ("asterism_prompt_tokens_total{", 9.0),
        ("asterism_generation_tokens_total{", 36.0),
        ("asterism_request_success_total{model_name=\"toy\",finished_reason=\"length\"}", 3.0),
        ("asterism_request_failure_total{model_name=\"toy\",reason=\"INVALID_ARGUMENT\"}", 1.0),
        ("asterism_time_to_first_token_seconds_count", 3.0),
        ("asterism_inter_token_latency_seconds_count", 33.0),
        ("asterism_e2e_request_latency_seconds_count", 3.0),
        ("asterism_request_queue_time_seconds_count", 3.0),
        ("asterism_request_prompt_tokens_sum", 9.0),
        ("asterism_request_generation_tokens_sum", 36.0),
        ("asterism_num_requests_running", 0.0),
        ("vllm:num_requests_waiting", 0.0),
        ("asterism_num_requests_replaying", 0.0),
        ("vllm:kv_cache_usage_perc", 0.0),
        ("asterism_kv_cache_blocks{model_name=\"toy\",state=\"used\"}", 0.0),
        ("asterism_iteration_tokens_total_sum", 42.0),
    ] {
        assert_eq!(value(&text, series), expected, "{series} in\n{text}");
    }
    for stage in 0..2 {
        let busy =
            format!("asterism_stage_seconds_total{{model_name=\"toy\",stage=\"{stage}\",doing=\"busy\"}}");
        assert!(value(&text, &busy) >= 0.0);
    }
    assert!(!text.contains("secret-id"), "ids are not labels");
}

#[tokio::test]
async fn loads_are_those_of_this_moment() {
    let sandbox = Sandbox::new(2).await;
    let loads = || {
        let mut client = sandbox.client.clone();
        async move { client.loads(v1::LoadsRequest {}).await.unwrap().into_inner() }
    };
    let idle = loads().await;
    assert_eq!((idle.waiting, idle.prefilling + idle.decoding, idle.stages.len()), (0, 0, 2));
    sandbox.shards[1].control.send_modify(|control| control.paused = true);
    let running = sandbox.generate(ids([6], 100)).await.unwrap();
    sandbox.shards[1].until(|seen| !seen.live.is_empty()).await;
    let busy = loads().await;
    assert_eq!((busy.prefilling + busy.decoding, busy.prompt_tokens), (1, 1));
    assert!(busy.kv_cache.unwrap().used_blocks > 0 && busy.steps_in_flight > 0);
    let text = scrape(&sandbox).await;
    assert_eq!(value(&text, "vllm:num_requests_running"), 1.0);
    drop(running);
    sandbox.shards[1].control.send_modify(|control| control.paused = false);
    sandbox.assert_clean().await;
    assert_eq!(loads().await.kv_cache.unwrap().used_blocks, 0);
}

#[tokio::test]
async fn what_an_epochs_end_interrupted_is_told_until_it_goes_on() {
    let mut sandbox = Sandbox::new(2).await;
    sandbox.shards[1].control.send_modify(|control| control.paused = true);
    let _running = sandbox.generate(ids([6], 100)).await.unwrap();
    sandbox.shards[1].until(|seen| !seen.live.is_empty()).await;
    sandbox.shards.remove(0).kill().await;
    let mut client = sandbox.client.clone();
    let interrupted = loop {
        let loads = client.loads(v1::LoadsRequest {}).await.unwrap().into_inner();
        if loads.replaying > 0 {
            break loads;
        }
    };
    let (running, waiting) = (interrupted.prefilling + interrupted.decoding, interrupted.waiting);
    assert_eq!((interrupted.replaying, running, waiting), (1, 0, 0));
    assert_eq!(value(&scrape(&sandbox).await, "asterism_num_requests_replaying"), 1.0);
}
