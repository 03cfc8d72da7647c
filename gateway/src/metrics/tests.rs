use std::time::Duration;

use prometheus_client::encoding::text::encode;

use super::*;

fn text(metrics: &Metrics, loads: &Loads) -> String {
    let mut text = String::new();
    encode(&mut text, metrics.registry(loads)).unwrap();
    text
}

#[test]
fn autoscalers_find_the_names_that_they_have_built_in() {
    let metrics = Metrics::new("toy");
    let loads =
        Loads { waiting: 3, prefilling: 1, decoding: 4, blocks: 8, free_blocks: 6, ..Loads::default() };
    let text = text(&metrics, &loads);
    for prefix in ["asterism_", "vllm:"] {
        for (name, value) in
            [("num_requests_waiting", "3"), ("num_requests_running", "5"), ("kv_cache_usage_perc", "0.25")]
        {
            let line = format!("{prefix}{name}{{model_name=\"toy\"}} {value}\n");
            assert!(text.contains(&line), "{line} in\n{text}");
        }
    }
}

#[test]
fn bounds_ascend_and_are_vllms_too() {
    let all = [
        bounds::FIRST_TOKEN,
        bounds::INTER_TOKEN,
        bounds::REQUEST,
        bounds::REQUEST_TOKENS,
        bounds::STEP_ROWS,
    ];
    assert!(all.iter().all(|bounds| bounds.is_sorted_by(|a, b| a < b)));
    let vllm =
        [0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0];
    assert!(vllm.iter().all(|bound| bounds::REQUEST.contains(bound)));
}

#[test]
fn a_requests_life_is_told_in_its_parts() {
    let metrics = Arc::new(Metrics::new("toy"));
    let mut record = RequestRecord::arrived(&metrics, &Default::default());
    let start = std::time::Instant::now();
    let at = |ms| start + Duration::from_millis(ms);
    record.queued("id", 7);
    record.planned(at(100));
    record.planned(at(500)); // A replay is not queued again.
    for ms in [400, 450, 1450] {
        record.token(at(ms));
    }
    let usage = v1::Usage { prompt_tokens: 7, completion_tokens: 3, cached_tokens: 0 };
    let reason = v1::FinishReason::Length.into();
    record.finished(&v1::Finished { reason, usage: Some(usage), ..v1::Finished::default() });
    let text = text(&metrics, &Loads::default());
    let value = |name: &str| -> f64 {
        let line =
            text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name} in\n{text}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    let close =
        |name: &str, expected: f64| assert!((value(name) - expected).abs() < 0.01, "{name} in\n{text}");
    assert_eq!(value("asterism_time_to_first_token_seconds_count"), 1.0);
    assert_eq!(value("asterism_inter_token_latency_seconds_count"), 2.0);
    close("asterism_inter_token_latency_seconds_sum", 1.05);
    close("asterism_request_prefill_time_seconds_sum", 0.3);
    close("asterism_request_decode_time_seconds_sum", 1.05);
    close("asterism_request_inference_time_seconds_sum", 1.35);
    assert_eq!(value("asterism_request_queue_time_seconds_count"), 1.0);
    assert_eq!(value("asterism_prompt_tokens_total"), 7.0);
    assert_eq!(value("asterism_request_generation_tokens_sum"), 3.0);
    assert!(
        text.contains("request_success_total{model_name=\"toy\",finished_reason=\"length\"} 1\n"),
        "{text}"
    );
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn loads_tell_what_was_counted() {
    let metrics = Metrics::new("toy");
    metrics.generation_tokens.inc_by(5);
    let loads = Loads { blocks: 8, free_blocks: 6, cached_blocks: 2, preemptions: 1, ..Loads::default() };
    let told = metrics.loads(&loads);
    let cache = told.kv_cache.unwrap();
    assert_eq!((cache.blocks, cache.used_blocks, cache.cached_blocks), (8, 2, 2));
    assert_eq!((told.generation_tokens, told.preemptions), (5, 1));
    assert_eq!(told.time_to_first_token, Some(v1::Latency::default()));
}
