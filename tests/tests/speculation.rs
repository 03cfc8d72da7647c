//! Answers are the same bytes with speculation as without, and so is the evidence that they were drawn from.

#![allow(clippy::expect_used, reason = "a test that cannot go on should stop and say where")]

use asterism_gateway::scheduler::Speculation;
use asterism_proto::v1::{GenerateRequest, Sampling};
use asterism_tests::answer::{self, Answer, request};
use asterism_tests::cluster::{Cluster, Setup};
use asterism_tests::golden::tiny_52b;
use futures::future::join_all;

/// A prompt of `len` ids that says the same again and again; `kind` says what.
fn repeating(kind: u32, len: u32) -> Vec<u32> {
    (0..len).map(|position| 20 + 7 * kind + position % (3 + kind)).collect()
}

/// Greedy and drawn ones, with and without penalties. A tiny random model repeats itself at low temperatures.
fn workload() -> Vec<GenerateRequest> {
    let sampling = |n: u32| match n % 4 {
        0 => penalties(1.0, 0.0),
        1 => Sampling { temperature: Some(0.05), ..Sampling::default() },
        2 => penalties(1.03, 0.1),
        _ => Sampling { temperature: Some(0.7), top_p: Some(0.9), do_sample: None, ..penalties(1.0, -0.3) },
    };
    let of = |n: u32| {
        // The first message tells the seed; one that the gateway drew would differ.
        let sampling = Sampling { seed: Some(u64::from(n)), ..sampling(n) };
        let size = n % 12;
        request(&format!("r{n}"), &repeating(n % 5, 20 + 9 * size), 30 + 5 * size, sampling)
    };
    (0..24).map(of).collect()
}

/// Greedy unless a temperature is set.
fn penalties(repetition: f32, frequency: f32) -> Sampling {
    Sampling {
        repetition_penalty: Some(repetition),
        presence_penalty: Some(frequency / 2.0),
        frequency_penalty: Some(frequency),
        do_sample: Some(false),
        ..Sampling::default()
    }
}

fn without(request: &GenerateRequest) -> GenerateRequest {
    GenerateRequest { bypass_speculation: true, ..request.clone() }
}

/// All at once over one connection.
async fn together(cluster: &Cluster, requests: impl IntoIterator<Item = GenerateRequest>) -> Vec<Answer> {
    let client = cluster.client().await;
    let answers = requests.into_iter().map(|request| answer::generate(client.clone(), request));
    join_all(answers).await.into_iter().map(|answer| answer.expect("an answer")).collect()
}

/// Of a cluster with this setup; how many requests were preempted.
async fn the_same_with_and_without(setup: Setup) -> u64 {
    // What pays is a matter of time, and so of who else uses this machine.
    let cluster = Cluster::start(Setup { speculation: Speculation::Always, ..setup }).await;
    let requests = workload();
    let mut alone = Vec::new();
    for request in &requests {
        alone.push(cluster.generate(without(request)).await.expect("an answer"));
    }
    let evidence = cluster.take_evidence();
    assert_eq!(cluster.count("spec_decode_num_draft_tokens").await, 0, "nothing was proposed");
    assert_eq!(together(&cluster, requests.clone()).await, alone);
    let mut together = cluster.take_evidence();
    // A replay asks for its last row again.
    together.values_mut().for_each(Vec::dedup);
    assert!(together == evidence, "the same bits");
    // By itself, where nobody else takes a step's rows.
    for (request, alone) in requests.into_iter().zip(alone) {
        assert_eq!(cluster.generate(request).await.expect("an answer"), alone);
    }
    assert!(cluster.take_evidence() == evidence, "the same bits");
    let proposed = cluster.count("spec_decode_num_draft_tokens").await;
    let accepted = cluster.count("spec_decode_num_accepted_tokens").await;
    println!("{proposed} proposed, {accepted} accepted");
    assert!(accepted > 0, "some of {proposed} hold");
    cluster.count("num_preemptions").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_the_same_over_one_shard() {
    the_same_with_and_without(Setup::new(tiny_52b(), 1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_the_same_over_two_shards() {
    the_same_with_and_without(Setup::new(tiny_52b(), 2)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_outgrow_the_pool_are_the_same() {
    // The pool holds four of the longest sequences, less than these come to.
    let setup = Setup { max_context: Some(208), ..Setup::new(tiny_52b(), 2) };
    assert!(the_same_with_and_without(setup).await > 0, "some gave way");
}
