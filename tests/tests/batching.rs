//! Many requests at once: each answer is the one that its request gets alone, bit for bit.

#![allow(clippy::expect_used, reason = "a test that cannot go on should stop and say where")]

use asterism_shard::ComputeType;
use asterism_tests::answer;
use asterism_tests::cluster::{Cluster, Setup};
use asterism_tests::golden::tiny_52b;
use asterism_tests::workload::nth_request;
use futures::future::join_all;
use futures::stream::{FuturesUnordered, StreamExt as _};

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
