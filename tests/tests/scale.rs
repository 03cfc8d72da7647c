//! A thousand streams at once, and all of them gone at once.

#![allow(clippy::expect_used, reason = "a test that cannot go on should stop and say where")]

use asterism_proto::v1::{LoadsRequest, LoadsResponse};
use asterism_tests::answer::{self, Client};
use asterism_tests::cluster::{Cluster, Setup};
use asterism_tests::golden::tiny_52b;
use asterism_tests::workload::nth_request_of;
use futures::future::join_all;

const STREAMS: u64 = 1000;
/// Different ones of them.
const KINDS: u64 = 24;
const TOKENS: u32 = 32;
/// Over so many connections.
const CONNECTIONS: u64 = 10;
/// What a stream may take of this process, in KiB, in which gateway, shards and clients run.
const MOST_KIB: u64 = 256;

/// Resident memory of this process in KiB: now and at most so far. `None` where the system does not tell.
fn resident() -> Option<(u64, u64)> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let value = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().trim_end_matches(" kB").trim().parse().ok()
    };
    Some((value("VmRSS:")?, value("VmHWM:")?))
}

async fn clients(cluster: &Cluster) -> Vec<Client> {
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        clients.push(cluster.client().await);
    }
    clients
}

async fn loads(cluster: &Cluster) -> LoadsResponse {
    cluster.client().await.loads(LoadsRequest {}).await.expect("the loads").into_inner()
}

fn used_blocks(loads: &LoadsResponse) -> u32 {
    loads.kv_cache.map_or(u32::MAX, |kv| kv.used_blocks)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_thousand_streams_none_is_lost() {
    let cluster = Cluster::start(Setup::new(tiny_52b(), 2)).await;
    let request = |n: u64| {
        let mut request = nth_request_of(n % KINDS, TOKENS);
        request.request_id = format!("s{n}");
        request
    };
    let mut alone = Vec::new();
    for n in 0..KINDS {
        alone.push(cluster.generate(request(n)).await.expect("an answer"));
    }
    cluster.take_evidence();
    let clients = clients(&cluster).await;
    let before = resident();
    let all = (0..STREAMS).map(|n| answer::generate(clients[(n % CONNECTIONS) as usize].clone(), request(n)));
    let answers = join_all(all).await;
    let after = resident();
    for (n, answer) in (0..).zip(answers) {
        let (answer, alone) = (answer.expect("none is lost"), &alone[(n % KINDS) as usize]);
        assert_eq!((&answer.ids, &answer.text), (&alone.ids, &alone.text), "stream {n}");
    }
    assert_eq!(used_blocks(&loads(&cluster).await), 0, "all blocks are free");
    if let (Some((before, _)), Some((_, most))) = (before, after) {
        let grown = most.saturating_sub(before);
        println!("{STREAMS} streams: from {before} to {most} KiB resident, {} KiB each", grown / STREAMS);
        assert!(grown < STREAMS * MOST_KIB, "{grown} KiB more");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_all_clients_vanish_nothing_is_left() {
    let cluster = Cluster::start(Setup::new(tiny_52b(), 2)).await;
    let mut streams = Vec::new();
    for mut client in clients(&cluster).await {
        for n in 0..20 {
            let request = nth_request_of(n, 3000);
            let request = asterism_proto::v1::GenerateRequest { request_id: String::new(), ..request };
            streams.push(client.generate(request).await.expect("a stream").into_inner());
        }
    }
    let before = loads(&cluster).await;
    assert!(used_blocks(&before) > 0, "they run");
    drop(streams);
    let after = loop {
        let loads = loads(&cluster).await;
        if loads.prefilling + loads.decoding + loads.waiting + loads.replaying == 0 {
            break loads;
        }
    };
    assert_eq!(used_blocks(&after), 0, "as soon as the last is gone");
    let tokens = after.generation_tokens;
    assert!(tokens < 200 * 3000 / 2, "{tokens} tokens were drawn for nobody");
    assert_eq!(loads(&cluster).await.generation_tokens, tokens, "nothing more is drawn");
}
