//! A sequence that grows past 4,096 tokens, where the rope changes, is the same however it is computed: with tokens computed
//! ahead, in chunks, from the cache, and again after it gave way to others.

#![allow(clippy::expect_used, reason = "a test that cannot go on should stop and say where")]

use asterism_gateway::scheduler::Speculation;
use asterism_process::config::Bytes;
use asterism_proto::v1::{GenerateRequest, LoadsRequest};
use asterism_tests::answer;
use asterism_tests::chatter::{alone, chatter, prompt};
use asterism_tests::cluster::{Cluster, SeenRow, Setup};
use asterism_tests::golden::tiny_52b;
use futures::future::join_all;

/// Blocks of the pool that they run in: what they share fits, and half of what they grow.
const BLOCKS: u32 = 275;

/// Of its rope, in positions.
const BOUNDARY: u32 = 4096;

/// Tokens that all begin with.
const ALIKE: u32 = 4048;

/// Sequences that cross in their answers.
fn crossing() -> Vec<GenerateRequest> {
    let request = |n| {
        let prompt = [prompt(1, ALIKE), prompt(9 + n, 2 + 5 * n)].concat();
        chatter(n, &format!("crossing {n}"), &prompt, 140)
    };
    (0..5).map(request).collect()
}

fn setup(shards: usize, max_rows: usize, memory: Option<Bytes>) -> Setup {
    let (speculation, max_context) = (Speculation::Always, Some(4224));
    Setup { max_context, max_rows, memory, speculation, ..Setup::new(tiny_52b(), shards) }
}

async fn blocks(cluster: &Cluster) -> u32 {
    let loads = cluster.client().await.loads(LoadsRequest {}).await.expect("the loads");
    loads.into_inner().kv_cache.map_or(0, |cache| cache.blocks)
}

/// Memory of each shard with which the pool has so many blocks: weights and buffers take some, each block the same.
async fn memory_for(setup: impl Fn(Bytes) -> Setup, wanted: u32) -> Bytes {
    let (less, more) = (16 << 20, 24 << 20);
    let with_less = blocks(&Cluster::start(setup(Bytes(less))).await).await;
    let with_more = blocks(&Cluster::start(setup(Bytes(more))).await).await;
    let block = (more - less) / u64::from(with_more - with_less);
    Bytes((less + block * u64::from(wanted)).saturating_sub(block * u64::from(with_less)))
}

/// Whether two tokens in a row were drawn from one step's rows on both sides of the boundary.
fn is_across(rows: &[SeenRow]) -> bool {
    let is_across =
        |a: SeenRow, b: SeenRow| a.step == b.step && (a.position, b.position) == (BOUNDARY - 1, BOUNDARY);
    rows.windows(2).any(|pair| is_across(pair[0], pair[1]))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sequence_that_crosses_4096_is_the_same_computed_ahead_cached_and_replayed() {
    let requests = crossing();
    let plain = Cluster::start(setup(1, 512, None)).await;
    let mut answers = Vec::new();
    for request in &requests {
        answers.push(plain.generate(alone(request)).await.expect("an answer"));
    }
    let evidence = plain.take_evidence();
    assert_eq!(plain.count("spec_decode_num_draft_tokens").await, 0);
    drop(plain);

    let narrow = |memory| setup(2, 144, Some(memory));
    let cluster = Cluster::start(narrow(memory_for(narrow, BLOCKS).await)).await;
    let client = cluster.client().await;
    println!("{} blocks", blocks(&cluster).await);
    cluster.generate(chatter(0, "first", &prompt(1, ALIKE + 1), 1)).await.expect("an answer");
    cluster.take_evidence();
    let together = join_all(requests.iter().map(|it| answer::generate(client.clone(), it.clone()))).await;
    let mut cached = 0;
    for (together, alone) in together.into_iter().zip(&answers) {
        let together = together.expect("an answer");
        cached += together.cached_tokens;
        assert_eq!(together, *alone);
    }
    let across = cluster.take_rows().values().filter(|rows| is_across(rows)).count();
    let preemptions = cluster.count("num_preemptions").await;
    println!("{across} steps across, {preemptions} gave way, {cached} tokens cached");
    assert!(across > 0 && preemptions > 0 && cached > 0, "all that this is about has happened");
    let mut seen = cluster.take_evidence();
    // A replay asks for its last row again.
    seen.values_mut().for_each(Vec::dedup);
    assert!(seen == evidence, "the same bits");
}
