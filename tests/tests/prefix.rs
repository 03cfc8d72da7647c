//! What is cached is not computed again, and changes no bit of what follows.

#![allow(clippy::expect_used, reason = "a test that cannot go on should stop and say where")]

use asterism_proto::v1::{GenerateRequest, Output, Sampling};
use asterism_shard::ComputeType;
use asterism_tests::answer::{Answer, generate, greedy, request};
use asterism_tests::cluster::{Cluster, SeenEvidence, Setup};
use asterism_tests::golden::tiny_52b;
use futures::future::join_all;

/// A text of `len` tokens; two stories differ from their second block on.
fn story(story: u32, len: u32) -> Vec<u32> {
    (0..len).map(|i| if i < 20 { i * 31 % 500 } else { (i * 37 + story * 11) % 500 }).collect()
}

fn cold(request: &GenerateRequest) -> GenerateRequest {
    GenerateRequest { bypass_cache: true, ..request.clone() }
}

/// Runs a request with the cache and without; the answers and all evidence must be the same.
async fn cached_as_cold(cluster: &Cluster, request: GenerateRequest) -> Answer {
    let run = async |request| -> (Answer, SeenEvidence) {
        let answer = cluster.generate(request).await.expect("an answer");
        (answer, cluster.take_evidence())
    };
    let (with, evidence) = run(request.clone()).await;
    let (without, cold_evidence) = run(cold(&request)).await;
    assert_eq!(without.cached_tokens, 0);
    assert_eq!(with, without);
    assert!(!evidence.is_empty() && evidence == cold_evidence, "evidence of {}", request.request_id);
    with
}

/// Kinds of requests: greedy, with penalties, sampled with logprobs.
fn of_kind(kind: usize, id: &str, prompt: &[u32], tokens: u32) -> GenerateRequest {
    let penalties = Sampling {
        do_sample: Some(false),
        repetition_penalty: Some(1.2),
        presence_penalty: Some(0.5),
        frequency_penalty: Some(0.25),
        ..Sampling::default()
    };
    let nucleus = Sampling { temperature: Some(0.8), top_p: Some(0.9), ..Sampling::default() };
    let mut request = match kind {
        0 => greedy(id, prompt, tokens),
        1 => request(id, prompt, tokens, penalties),
        _ => GenerateRequest {
            output: Some(Output { logprobs: Some(3) }),
            ..request(id, prompt, tokens, nucleus)
        },
    };
    // The first message tells the seed; one that the gateway drew would differ.
    request.sampling.get_or_insert_default().seed = Some(5);
    request
}

async fn a_conversation_is_the_same_cached_and_cold(compute: ComputeType, shards: usize) {
    let cluster = Cluster::start(Setup { compute, ..Setup::new(tiny_52b(), shards) }).await;
    for kind in 0..3 {
        let mut text = story(100 + kind as u32, 90);
        let mut fed = 0;
        for turn in 0..3 {
            let answer = cached_as_cold(&cluster, of_kind(kind, &format!("{kind}-{turn}"), &text, 25)).await;
            // All rows of the turn before but that of its last token, and never the last row of this prompt.
            let expected = if turn == 0 && kind > 0 { 16 } else { fed / 16 * 16 };
            assert_eq!(answer.cached_tokens, expected, "{compute:?}, kind {kind}, turn {turn}");
            text.extend(&answer.ids);
            fed = text.len() as u32 - 1;
            text.extend(story(kind as u32, 30));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conversation_is_the_same_cached_and_cold_in_f32() {
    a_conversation_is_the_same_cached_and_cold(ComputeType::F32, 1).await;
    a_conversation_is_the_same_cached_and_cold(ComputeType::F32, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conversation_is_the_same_cached_and_cold_in_bf16() {
    a_conversation_is_the_same_cached_and_cold(ComputeType::Bf16, 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prompt_past_4096_tokens_finds_only_what_has_its_rope() {
    let setup = Setup { max_context: Some(8300), max_rows: 512, ..Setup::new(tiny_52b(), 1) };
    let cluster = Cluster::start(setup).await;
    let mut text = story(0, 4080);
    let first = cluster.generate(of_kind(0, "first", &text, 60)).await.expect("an answer");
    cluster.take_evidence();
    text.extend(&first.ids[..10]);
    let within = cached_as_cold(&cluster, of_kind(0, "within", &text, 40)).await;
    assert_eq!(within.cached_tokens, 4080, "its answer crosses, its prompt does not");
    text.extend(&first.ids[10..]);
    let past = cached_as_cold(&cluster, of_kind(0, "past", &text, 2)).await;
    assert_eq!(past.cached_tokens, 0, "4,140 tokens have another rope from the first on");
    let again = cached_as_cold(&cluster, of_kind(0, "again", &text, 2)).await;
    assert_eq!(again.cached_tokens, 4128);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_that_begin_alike_give_the_answers_of_cold_runs() {
    let cluster = Cluster::start(Setup::new(tiny_52b(), 2)).await;
    let requests: Vec<_> = (0..24u32)
        .map(|n| of_kind(n as usize % 3, &format!("r{n}"), &story(n % 4, 40 + 7 * (n % 9)), 10 + n % 13))
        .collect();
    let client = cluster.client().await;
    let together = join_all(requests.iter().map(|request| generate(client.clone(), request.clone()))).await;
    let evidence = cluster.take_evidence();
    let mut hits = 0;
    for (request, together) in requests.iter().zip(together) {
        let together = together.expect("an answer");
        hits += together.cached_tokens;
        let alone = cluster.generate(cold(request)).await.expect("an answer");
        assert_eq!(together, alone);
    }
    assert!(evidence == cluster.take_evidence(), "the same bits");
    println!("{hits} tokens were cached");
}
