//! More than the pool holds: answers give way to each other, pause, go on, and are the same.

#![allow(clippy::expect_used, reason = "a test that cannot go on should stop and say where")]

use asterism_proto::v1::LoadsRequest;
use asterism_shard::ComputeType;
use asterism_tests::answer;
use asterism_tests::cluster::{Cluster, Setup};
use asterism_tests::golden::tiny_52b;
use asterism_tests::workload::nth_request_of;
use futures::future::join_all;

async fn outgrown(compute: ComputeType) {
    // The pool holds four of the longest sequences, which is a third of what these come to.
    let setup = Setup { compute, max_context: Some(256), ..Setup::new(tiny_52b(), 2) };
    let cluster = Cluster::start(setup).await;
    let client = cluster.client().await;
    let request = |n| nth_request_of(n, 130);
    let mut alone = Vec::new();
    for n in 0..24 {
        alone.push(answer::generate(client.clone(), request(n)).await.expect("an answer"));
    }
    let evidence = cluster.take_evidence();
    let preemptions = async || {
        let loads = client.clone().loads(LoadsRequest {}).await.expect("the loads");
        loads.into_inner().preemptions
    };
    assert_eq!(preemptions().await, 0, "nobody gives way to nobody");
    let together = join_all((0..24).map(|n| answer::generate(client.clone(), request(n)))).await;
    for (answer, alone) in together.into_iter().zip(alone) {
        assert_eq!(answer.expect("an answer"), alone);
    }
    assert!(preemptions().await > 0, "some gave way");
    let mut together = cluster.take_evidence();
    // A replay asks for its last row again.
    together.values_mut().for_each(Vec::dedup);
    assert!(together == evidence, "and no row shows it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_outgrow_the_pool_are_the_same_in_f32() {
    outgrown(ComputeType::F32).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_outgrow_the_pool_are_the_same_in_bf16() {
    outgrown(ComputeType::Bf16).await;
}
