//! An answer that ends within tokens that were computed ahead is the one that it would be without them, and nothing sees
//! what stands behind its end.

#![allow(clippy::expect_used, reason = "a test that cannot go on should stop and say where")]

use asterism_gateway::scheduler::Speculation;
use asterism_proto::v1::{FinishReason, GenerateRequest, Stopping};
use asterism_tests::answer::Answer;
use asterism_tests::chatter::{SELDOM, alone, chatter, prompt};
use asterism_tests::cluster::{Cluster, Setup};
use asterism_tests::golden::root;
use asterism_tests::speaking::speaking;

/// Tokens of a prompt, and of an answer that nothing ends before.
const PROMPT: u32 = 60;
const MOST: u32 = 40;

/// What ends an answer.
const STOPS: [&str; 5] = ["end id", "stop id", "limit", "whole text", "last words"];

/// A model that speaks, before which tokens are computed ahead wherever there is room.
async fn speaker() -> (Cluster, tempfile::TempDir) {
    let folder = speaking(&root(), SELDOM[0]);
    let setup = Setup { speculation: Speculation::Always, ..Setup::new(folder.path(), 1) };
    (Cluster::start(setup).await, folder)
}

async fn answer(cluster: &Cluster, request: &GenerateRequest) -> Answer {
    cluster.generate(request.clone()).await.expect("an answer")
}

/// The n-th request with a stop of this kind, and how it should end.
async fn ending(cluster: &Cluster, n: u32, stop: usize) -> (GenerateRequest, FinishReason) {
    let mut request = chatter(n, &format!("r{n}-{stop}"), &prompt(n, PROMPT), MOST);
    let free = Stopping { max_tokens: Some(MOST), ignore_eos: true, ..Stopping::default() };
    let limit = 6 + n % 30;
    let short = Stopping { max_tokens: Some(limit), ..free.clone() };
    request.stopping = Some(short.clone());
    let said = answer(cluster, &alone(&request)).await.text;
    let tail = said.char_indices().rev().nth(4).map_or(0, |(index, _)| index);
    let (stopping, reason) = match stop {
        0 => (Stopping { ignore_eos: false, ..free }, FinishReason::StopToken),
        1 => (Stopping { stop_token_ids: vec![SELDOM[1]], ..free }, FinishReason::StopToken),
        2 => (short, FinishReason::Length),
        3 => (Stopping { stop: vec![said], ..free }, FinishReason::StopString),
        _ => (Stopping { stop: vec![said[tail..].to_owned()], ..free }, FinishReason::StopString),
    };
    request.stopping = Some(stopping);
    (request, reason)
}

/// The same answer and evidence with tokens computed ahead as without; and whether it ended as it should, within these.
async fn ends_the_same(cluster: &Cluster, request: &GenerateRequest, reason: FinishReason) -> (Answer, bool) {
    cluster.take_evidence();
    let plain = answer(cluster, &alone(request)).await;
    let evidence = cluster.take_evidence();
    cluster.take_rows();
    let ahead = answer(cluster, request).await;
    assert_eq!(ahead, plain, "{request:?}");
    assert!(cluster.take_evidence() == evidence, "no other row was looked at for {request:?}");
    let usage = ahead.finished.usage.expect("usage");
    assert_eq!(usage.completion_tokens as usize, ahead.ids.len());
    assert_eq!(ahead.logprobs.len(), ahead.ids.len());
    let rows = cluster.take_rows().remove(&request.request_id).unwrap_or_default();
    let last = rows.last().map(|row| row.step);
    let in_last = rows.iter().filter(|row| Some(row.step) == last).count();
    let within = ahead.finished.reason() == reason && in_last > 1;
    (ahead, within)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_ends_within_what_was_accepted_as_it_would_without() {
    let (cluster, _folder) = speaker().await;
    let mut within = [0; STOPS.len()];
    for n in 0..24 {
        for (stop, within) in within.iter_mut().enumerate() {
            let (request, reason) = ending(&cluster, n, stop).await;
            *within += usize::from(ends_the_same(&cluster, &request, reason).await.1);
        }
    }
    let told: Vec<_> = STOPS.iter().zip(within).collect();
    println!("of 24 of each, so many ended within what was accepted: {told:?}");
    assert!(within.iter().all(|within| *within > 1), "{told:?}");
    let proposed = cluster.count("spec_decode_num_draft_tokens").await;
    let accepted = cluster.count("spec_decode_num_accepted_tokens").await;
    assert!(proposed > accepted, "some did not hold, or came after the end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_goes_on_from_an_answer_finds_nothing_behind_its_end() {
    let (cluster, _folder) = speaker().await;
    let mut within = 0;
    for n in 0..40 {
        let whole = chatter(n, "whole", &prompt(n, PROMPT), MOST);
        let text = [prompt(n, PROMPT), answer(&cluster, &alone(&whole)).await.ids].concat();
        let (request, reason) = ending(&cluster, n, n as usize % STOPS.len()).await;
        let (ended, is_within) = ends_the_same(&cluster, &request, reason).await;
        within += usize::from(is_within);
        // The text as it would have gone on, which proposals knew.
        let next = chatter(n, "next", &[text, prompt(n, 20)].concat(), 12);
        let cached = answer(&cluster, &next).await;
        let fed = PROMPT + ended.ids.len() as u32 - 1;
        assert_eq!(cached.cached_tokens, fed / 16 * 16, "{n}: the rows of {} tokens", ended.ids.len());
        let evidence = cluster.take_evidence();
        assert_eq!(cached, answer(&cluster, &alone(&next)).await);
        assert!(cluster.take_evidence() == evidence, "{n}: KV and counts of penalties are those of the text");
    }
    println!("{within} of 40 ended within what was accepted");
    assert!(within > 5);
}
