//! The golden answers through a real gateway and real shards.

#![allow(clippy::expect_used, reason = "a test that cannot go on should stop and say where")]

use asterism_proto::v1::Sampling;
use asterism_shard::ComputeType;
use asterism_tests::answer::{greedy, layers, request};
use asterism_tests::cluster::{Cluster, SeenEvidence, Setup};
use asterism_tests::golden::{MARGIN, assert_greedy, cases, checkpoints, name, tiny_52b};

/// Twice what bf16 moves a logit of the tiny checkpoints.
const BF16_MARGIN: f32 = 0.6;

/// Runs every case of `sets` through a cluster and compares the answers; returns all evidence.
async fn run(setup: Setup, sets: &[&str]) -> SeenEvidence {
    let margin = if setup.compute == ComputeType::Bf16 { BF16_MARGIN } else { MARGIN };
    let checkpoint = setup.checkpoint.clone();
    let penalised =
        Sampling { do_sample: Some(false), repetition_penalty: Some(1.02), ..Sampling::default() };
    let cluster = Cluster::start(setup).await;
    for set in sets {
        for case in cases(&checkpoint, set) {
            for (kind, golden) in [("greedy", &case.greedy), ("penalised", &case.greedy_penalised)] {
                if golden.is_empty() {
                    continue;
                }
                let id = format!("{set}-{}-{kind}", case.name);
                let tokens = u32::try_from(golden.len()).expect("a short answer");
                let request = match kind {
                    "greedy" => greedy(&id, &case.prompt, tokens),
                    _ => request(&id, &case.prompt, tokens, penalised.clone()),
                };
                let answer = cluster.generate(request).await.expect("an answer");
                assert_greedy(&format!("{} {id}", name(&checkpoint)), &answer.ids, golden, margin);
            }
        }
    }
    cluster.take_evidence()
}

async fn every_split_gives_the_golden_answers(compute: ComputeType) {
    for checkpoint in checkpoints() {
        let layers = layers(&checkpoint);
        let mut whole: Option<SeenEvidence> = None;
        let mut splits = vec![1, 2, 3, layers];
        splits.retain(|shards| *shards <= layers);
        splits.dedup();
        for (shards, threads) in splits.iter().flat_map(|shards| [(*shards, 1), (*shards, 2)]) {
            let setup = Setup { threads, compute, ..Setup::new(&checkpoint, shards) };
            let evidence = run(setup, &["prefill", "stop"]).await;
            let whole = whole.get_or_insert_with(|| evidence.clone());
            assert!(!evidence.is_empty());
            assert!(evidence == *whole, "{}: {shards} shards, {threads} threads", name(&checkpoint));
        }
        println!("golden {} {compute:?} through {splits:?} shards: passed", name(&checkpoint));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn golden_answers_of_every_split_in_f32() {
    every_split_gives_the_golden_answers(ComputeType::F32).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn golden_answers_of_every_split_in_bf16() {
    every_split_gives_the_golden_answers(ComputeType::Bf16).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn golden_answers_across_4096_tokens() {
    let setup =
        |shards, max_rows| Setup { max_context: Some(8300), max_rows, ..Setup::new(tiny_52b(), shards) };
    let one = run(setup(1, 512), &["long"]).await;
    let two = run(setup(2, 300), &["long"]).await;
    assert!(!one.is_empty() && one == two, "the split and the chunks leave no trace");
    println!("golden tiny-52b/long through 1 and 2 shards: passed");
}
