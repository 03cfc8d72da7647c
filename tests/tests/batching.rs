//! Many requests at once: each answer is the one that its request gets alone, bit for bit.

#![allow(clippy::expect_used, reason = "a test that cannot go on should stop and say where")]

use asterism_proto::v1::{GenerateRequest, Sampling};
use asterism_shard::ComputeType;
use asterism_tests::answer::{self, greedy, request};
use asterism_tests::cluster::{Cluster, Setup};
use asterism_tests::golden::tiny_52b;
use futures::future::join_all;
use futures::stream::{FuturesUnordered, StreamExt as _};

/// A cheap fixed sequence of numbers.
fn scramble(seed: u64) -> u64 {
    let mut x = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xD1B5_4A32_D192_ED03;
    x ^= x >> 29;
    x = x.wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x ^ (x >> 32)
}

/// Requests of many lengths and settings; the n-th is always the same.
fn nth_request(n: u64) -> GenerateRequest {
    let length = 1 + scramble(n) % 90;
    let prompt: Vec<u32> = (0..length).map(|i| (scramble(n * 1000 + i) % 512) as u32).collect();
    let tokens = 1 + (scramble(n + 77) % 24) as u32;
    let id = format!("r{n}");
    let mut request = of_kind(n % 4, &id, &prompt, tokens);
    // The first message tells the seed; one that the gateway drew would differ.
    request.sampling.get_or_insert_default().seed = Some(n);
    request
}

fn of_kind(kind: u64, id: &str, prompt: &[u32], tokens: u32) -> GenerateRequest {
    match kind {
        0 => greedy(id, prompt, tokens),
        1 => {
            let penalties = Sampling {
                do_sample: Some(false),
                repetition_penalty: Some(1.1),
                presence_penalty: Some(0.5),
                frequency_penalty: Some(0.25),
                ..Sampling::default()
            };
            request(id, prompt, tokens, penalties)
        }
        2 => {
            let nucleus =
                Sampling { temperature: Some(0.8), top_k: Some(20), top_p: Some(0.9), ..Sampling::default() };
            request(id, prompt, tokens, nucleus)
        }
        // No certificate without truncation: such rows are sometimes fetched whole.
        _ => {
            let plain = Sampling {
                do_sample: Some(true),
                temperature: Some(2.0),
                top_k: Some(0),
                top_p: Some(1.0),
                ..Sampling::default()
            };
            request(id, prompt, tokens, plain)
        }
    }
}

async fn sixteen_at_once(compute: ComputeType) {
    let setup = |shards, threads| Setup { threads, compute, ..Setup::new(tiny_52b(), shards) };
    let alone = Cluster::start(setup(1, 1)).await;
    let mut answers = Vec::new();
    for n in 0..48 {
        answers.push(alone.generate(nth_request(n)).await.expect("an answer"));
    }
    let evidence = alone.take_evidence();
    drop(alone);
    for (shards, threads) in [(1, 2), (2, 1), (3, 2), (6, 1)] {
        let cluster = Cluster::start(setup(shards, threads)).await;
        let client = cluster.client().await;
        let one = |n| {
            let client = client.clone();
            async move { (n, answer::generate(client, nth_request(n)).await) }
        };
        // As one ends the next begins: they join and leave at all points of each other's lives.
        let mut running: FuturesUnordered<_> = (0..16).map(one).collect();
        let mut next = 16;
        while let Some((n, answer)) = running.next().await {
            let answer = answer.expect("an answer");
            assert_eq!(answer, answers[n as usize], "request {n} with {shards} shards, {threads} threads");
            if next < 48 {
                running.push(one(next));
                next += 1;
            }
        }
        let together = cluster.take_evidence();
        assert!(together == evidence, "evidence with {shards} shards, {threads} threads");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixteen_joining_and_leaving_leave_no_trace_in_f32() {
    sixteen_at_once(ComputeType::F32).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixteen_joining_and_leaving_leave_no_trace_in_bf16() {
    sixteen_at_once(ComputeType::Bf16).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_streams_finish_as_if_alone() {
    let cluster = Cluster::start(Setup::new(tiny_52b(), 2)).await;
    let client = cluster.client().await;
    let all = (0..200).map(|n| answer::generate(client.clone(), nth_request(n)));
    let together: Vec<_> = join_all(all).await.into_iter().map(|answer| answer.expect("an answer")).collect();
    for (n, answer) in (0..200).zip(&together) {
        let alone = cluster.generate(nth_request(n)).await.expect("an answer");
        assert_eq!(*answer, alone, "request {n}");
    }
}
