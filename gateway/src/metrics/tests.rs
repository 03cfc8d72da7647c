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

/// All names of a family prefix with their types, sorted.
fn names(text: &str, prefix: &str) -> Vec<String> {
    let told = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_prefix(prefix));
    let mut names: Vec<String> = told.map(str::to_owned).collect();
    names.sort_unstable();
    names
}

#[test]
fn these_names_are_built_in_elsewhere() {
    let metrics = Metrics::new("toy");
    let text = text(&metrics, &Loads { blocks: 8, ..Loads::default() });
    // Endpoint pickers of the Gateway API Inference Extension and of llm-d, but for LoRA's, as there are no adapters.
    let pickers = [
        "cache_config_info gauge",
        "kv_cache_usage_perc gauge",
        "num_requests_running gauge",
        "num_requests_waiting gauge",
    ];
    // llm-d's workload variant autoscaler, beside those.
    let autoscaler = [
        "inter_token_latency_seconds histogram",
        "prefix_cache_hits counter",
        "prefix_cache_queries counter",
        "request_generation_tokens histogram",
        "request_prompt_tokens histogram",
        "request_success counter",
        "time_to_first_token_seconds histogram",
    ];
    let mut expected: Vec<&str> = pickers.into_iter().chain(autoscaler).collect();
    expected.sort_unstable();
    assert_eq!(names(&text, "vllm:"), expected);
    let own = names(&text, "asterism_");
    assert!(expected.iter().all(|name| own.iter().any(|own| own == name)), "{own:#?}");
    // Everything else of vLLM's that means the same here.
    for name in [
        "prompt_tokens counter",
        "generation_tokens counter",
        "e2e_request_latency_seconds histogram",
        "request_queue_time_seconds histogram",
        "request_prefill_time_seconds histogram",
        "request_decode_time_seconds histogram",
        "request_inference_time_seconds histogram",
        "iteration_tokens_total histogram",
        "num_preemptions counter",
        "spec_decode_num_drafts counter",
        "spec_decode_num_draft_tokens counter",
        "spec_decode_num_accepted_tokens counter",
    ] {
        assert!(own.iter().any(|own| own == name), "{name} in {own:#?}");
    }
}

#[test]
fn the_caches_size_is_told_as_it_is_now() {
    let metrics = Metrics::new("toy");
    for blocks in [0, 64, 63] {
        let text = text(&metrics, &Loads { blocks, ..Loads::default() });
        for prefix in ["asterism_", "vllm:"] {
            let told: Vec<&str> = text
                .lines()
                .filter(|line| line.starts_with(&format!("{prefix}cache_config_info{{")))
                .collect();
            let labels = format!("model_name=\"toy\",block_size=\"16\",num_gpu_blocks=\"{blocks}\"");
            assert_eq!(told, [format!("{prefix}cache_config_info{{{labels}}} 1")]);
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
    record.queued("id", 7, 0);
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
