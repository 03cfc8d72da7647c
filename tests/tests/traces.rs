//! Spans from a caller through the gateway to every stage, as an OTLP receiver gets them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::{BTreeSet, HashMap};

use asterism_proto::v1::generate_response::Event;
use asterism_proto::v1::{GenerateRequest, LoadsRequest};
use asterism_tests::answer::greedy;
use asterism_tests::cluster::{Cluster, Setup};
use asterism_tests::golden::tiny_52b;
use asterism_tests::otlp::Receiver;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use tonic::Request;

const TOKENS: u32 = 6;
const STAGES: usize = 2;
/// Of a request without company: itself, its wait, and for each token a step with its stages.
const SPANS: usize = 2 + TOKENS as usize * (1 + STAGES);

/// All that spans may say, none of it a prompt's or an answer's.
const KEYS: [&str; 17] = [
    "asterism.epoch",
    "asterism.span.first_position",
    "asterism.span.rows",
    "asterism.stage",
    "asterism.stage.busy",
    "asterism.stage.wait_input",
    "asterism.stage.wait_output",
    "asterism.stage.wait_plan",
    "asterism.step",
    "asterism.step.rows",
    "gen_ai.latency.time_to_first_token",
    "gen_ai.operation.name",
    "gen_ai.request.id",
    "gen_ai.response.finish_reasons",
    "gen_ai.usage.cache_read.input_tokens",
    "gen_ai.usage.input_tokens",
    "gen_ai.usage.output_tokens",
];

async fn generate(cluster: &Cluster, request: GenerateRequest, traceparent: &str) {
    let mut request = Request::new(request);
    request.metadata_mut().insert("traceparent", traceparent.parse().unwrap());
    let mut answer = cluster.client().await.generate(request).await.unwrap().into_inner();
    let mut last = None;
    while let Some(response) = answer.message().await.unwrap() {
        last = response.event;
    }
    assert!(matches!(last, Some(Event::Finished(_))), "{last:?}");
}

fn named<'s>(spans: &'s [Span], name: &str) -> Vec<&'s Span> {
    spans.iter().filter(|span| span.name == name).collect()
}

fn attribute<'s>(span: &'s Span, key: &str) -> &'s Value {
    let found = span.attributes.iter().find(|attribute| attribute.key == key);
    found
        .and_then(|found| found.value.as_ref()?.value.as_ref())
        .unwrap_or_else(|| panic!("{key} in {span:?}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_seen_from_its_caller_to_every_stage() {
    let mut receiver = Receiver::start().await;
    let cluster = Cluster::start(Setup::new(tiny_52b(), STAGES)).await;

    let not_sampled = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
    let sampled = "00-11111111111111111111111111111111-2222222222222222-01";
    generate(&cluster, greedy("a", &[1, 2, 3], TOKENS), not_sampled).await;
    generate(&cluster, greedy("b", &[1, 2, 3], TOKENS), sampled).await;
    let spans = receiver.until(|spans| spans.len() >= SPANS).await;
    assert_eq!(spans.len(), SPANS, "{spans:#?}");
    assert!(spans.iter().all(|span| span.trace_id == [0x11; 16]), "only the sampled trace, and all of it");

    let [request] = *named(&spans, "request") else { panic!("{spans:#?}") };
    assert_eq!(request.parent_span_id, [0x22; 8]);
    assert_eq!(*attribute(request, "gen_ai.usage.output_tokens"), Value::IntValue(i64::from(TOKENS)));
    let [queue] = *named(&spans, "queue") else { panic!("{spans:#?}") };
    assert_eq!(queue.parent_span_id, request.span_id);
    let mut stages: HashMap<&[u8], BTreeSet<i64>> = HashMap::new();
    for stage in named(&spans, "stage") {
        let Value::IntValue(index) = attribute(stage, "asterism.stage") else { panic!("{stage:?}") };
        assert!(matches!(attribute(stage, "asterism.stage.busy"), Value::DoubleValue(busy) if *busy > 0.0));
        stages.entry(&stage.parent_span_id).or_default().insert(*index);
    }
    for step in named(&spans, "step") {
        assert_eq!(step.parent_span_id, request.span_id);
        assert_eq!(stages.get(&*step.span_id), Some(&BTreeSet::from([0, 1])), "{step:?}");
    }
    let keys = spans.iter().flat_map(|span| &span.attributes).map(|attribute| attribute.key.as_str());
    assert_eq!(Vec::from_iter(BTreeSet::from_iter(keys)), KEYS);

    let loads = cluster.client().await.loads(LoadsRequest {}).await.unwrap().into_inner();
    assert_eq!(loads.generation_tokens, 2 * u64::from(TOKENS));
    assert!(loads.stages.len() == STAGES && loads.stages.iter().all(|stage| stage.busy > 0.0), "{loads:?}");
    for stage in 0..STAGES {
        let text = reqwest::get(format!("http://{}/metrics", cluster.metrics(stage))).await.unwrap();
        let text = text.text().await.unwrap();
        let steps = format!("asterism_shard_steps_total{{pipeline=\"default\",stage=\"{stage}\"}}");
        assert!(text.contains(&steps), "{text}");
    }
}
