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

/// Tokens of an answer that nothing ends before.
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

/// After how many tokens the n-th request ends by all but ids.
fn limit(n: u32) -> u32 {
    6 + n % 30
}

/// The n-th request, of so many tokens, with a stop of this kind, and how it should end.
async fn ending(cluster: &Cluster, n: u32, len: u32, stop: usize) -> (GenerateRequest, FinishReason) {
    let mut request = chatter(n, &format!("r{n}-{stop}"), &prompt(n, len), MOST);
    let free = Stopping { max_tokens: Some(MOST), ignore_eos: true, ..Stopping::default() };
    let short = Stopping { max_tokens: Some(limit(n)), ..free.clone() };
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
            let (request, reason) = ending(&cluster, n, 60, stop).await;
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
        // The answer ends with the last row of a block: were its last token's row kept, the block would be too.
        let len = 80 - limit(n) % 16;
        let whole = chatter(n, "whole", &prompt(n, len), MOST);
        let text = [prompt(n, len), answer(&cluster, &alone(&whole)).await.ids].concat();
        let (request, reason) = ending(&cluster, n, len, 3).await;
        let (ended, is_within) = ends_the_same(&cluster, &request, reason).await;
        within += usize::from(is_within);
        let tokens = len + ended.ids.len() as u32;
        assert_eq!(tokens % 16, 0);
        // The text as it would have gone on, which proposals knew.
        let next = chatter(n, "next", &[text, prompt(n, 20)].concat(), 12);
        let cached = answer(&cluster, &next).await;
        assert_eq!(cached.cached_tokens, tokens - 16, "{n}: all but the block of the last token");
        let evidence = cluster.take_evidence();
        assert_eq!(cached, answer(&cluster, &alone(&next)).await);
        assert!(cluster.take_evidence() == evidence, "{n}: KV and counts of penalties are those of the text");
    }
    println!("{within} of 40 ended within what was accepted");
    assert!(within > 5);
}
