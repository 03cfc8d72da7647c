//! Shards that die, readers that go away, a second gateway.

#![allow(clippy::expect_used, reason = "a test that cannot go on should stop and say where")]

use asterism_gateway::GatewayConfig;
use asterism_gateway::driver::PipelineState;
use asterism_gateway::service::{Gateway, Listeners};
use asterism_proto::v1::generate_response::Event;
use asterism_proto::v1::{AbortRequest, FinishReason, GenerateRequest};
use asterism_shard::ComputeType;
use asterism_tests::answer::{self, greedy};
use asterism_tests::cluster::{Cluster, SeenEvidence, Setup, Transport};
use asterism_tests::golden::tiny_52b;
use asterism_tests::workload::nth_request_of;
use tonic::Code;

/// Sixteen requests of all kinds, whose answers take a while, and one whose answer crosses 4,096 positions.
fn seventeen() -> Vec<GenerateRequest> {
    let long: Vec<u32> = (0..4080).map(|i| i * 7 % 512).collect();
    let mut long = greedy("long", &long, 40);
    // The first message tells the seed; one that the gateway drew would differ.
    long.sampling.get_or_insert_default().seed = Some(0);
    (0..16).map(|n| nth_request_of(n, 120)).chain([long]).collect()
}

/// Evidence without the rows that came twice: a replay asks for its last one again.
fn once(mut evidence: SeenEvidence) -> SeenEvidence {
    evidence.values_mut().for_each(Vec::dedup);
    evidence
}

async fn killed_in_the_middle(compute: ComputeType, transport: Transport) {
    let setup = Setup { compute, transport, max_context: Some(4200), ..Setup::new(tiny_52b(), 3) };
    let mut cluster = Cluster::start(setup).await;
    let mut undisturbed = Vec::new();
    for request in seventeen() {
        undisturbed.push(cluster.generate(request).await.expect("an answer"));
    }
    let evidence = cluster.take_evidence();
    for stage in [0, 1, 2] {
        let mut client = cluster.client().await;
        let mut streams = Vec::new();
        for request in seventeen() {
            streams.push(client.generate(request).await.expect("a stream").into_inner());
        }
        // All are taken; the first has some tokens.
        let mut first = streams.remove(0);
        let mut begun = Vec::new();
        while begun.len() < 5 {
            begun.push(first.message().await.expect("a message").expect("it goes on"));
        }
        cluster.kill(stage).await;
        cluster.revive(stage).await;
        let first = answer::read_on(begun, first).await.expect("it goes on where it paused");
        assert_eq!(first, undisturbed[0], "the first after stage {stage} came back");
        for (stream, undisturbed) in streams.into_iter().zip(&undisturbed[1..]) {
            let answer = answer::read(stream).await.expect("an answer");
            assert_eq!(answer, *undisturbed, "after stage {stage} came back");
        }
        assert!(once(cluster.take_evidence()) == evidence, "evidence after stage {stage} came back");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_that_dies_is_a_pause_in_f32() {
    killed_in_the_middle(ComputeType::F32, Transport::Sockets).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_that_dies_is_a_pause_within_a_process_too() {
    killed_in_the_middle(ComputeType::F32, Transport::Memory).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_that_dies_is_a_pause_in_bf16() {
    killed_in_the_middle(ComputeType::Bf16, Transport::Sockets).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_goes_away_makes_room_for_the_next() {
    for transport in Transport::ALL {
        // The pool holds one such sequence at a time.
        let setup = Setup { max_context: Some(600), transport, ..Setup::new(tiny_52b(), 2) };
        let cluster = Cluster::start(setup).await;
        let mut client = cluster.client().await;
        for _ in 0..20 {
            let answer = client.generate(greedy("", &[1, 2, 3], 590)).await;
            let mut stream = answer.expect("a stream").into_inner();
            for _ in 0..3 {
                stream.message().await.expect("a message").expect("it goes on");
            }
        }
        let answer = cluster.generate(greedy("last", &[1, 2, 3], 590)).await.expect("an answer");
        assert_eq!(answer.ids.len(), 590, "{transport:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_aborted_answer_ends_with_what_it_has() {
    let cluster = Cluster::start(Setup::new(tiny_52b(), 2)).await;
    let mut client = cluster.client().await;
    let mut stream = client.generate(greedy("long", &[1, 2, 3], 4000)).await.expect("a stream").into_inner();
    for _ in 0..3 {
        stream.message().await.expect("a message").expect("it goes on");
    }
    let abort = |id: &str| AbortRequest { request_id: id.to_owned() };
    assert!(client.abort(abort("long")).await.expect("an answer").into_inner().aborted);
    let mut last = None;
    while let Some(message) = stream.message().await.expect("the stream ends in order") {
        last = message.event;
    }
    let Some(Event::Finished(finished)) = last else { panic!("{last:?} is no end") };
    assert_eq!(finished.reason(), FinishReason::Aborted);
    assert!(!client.abort(abort("long")).await.expect("an answer").into_inner().aborted, "it is over");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_gateway_waits_until_it_is_told_to_take_over() {
    for transport in Transport::ALL {
        let setup = Setup { transport, ..Setup::new(tiny_52b(), 2) };
        let cluster = Cluster::start(setup.clone()).await;
        let config = setup.gateway(cluster.shards());
        let second = {
            let listeners = Listeners::bind(&config).await.expect("free ports");
            Gateway::start_in(cluster.surroundings(), config.clone(), listeners).await.expect("it starts")
        };
        let mut state = second.state();
        let held =
            |state: &PipelineState| matches!(state, PipelineState::Waiting(why) if why.contains("held"));
        state.wait_for(held).await.expect("it says who holds the pipeline");
        let answer = cluster.generate(greedy("first", &[9], 4)).await.expect("the first goes on");
        second.stop().await.expect("it stops in order");

        let config = GatewayConfig { take_over: true, ..config };
        let listeners = Listeners::bind(&config).await.expect("free ports");
        let third = Gateway::start_in(cluster.surroundings(), config, listeners).await.expect("it starts");
        assert!(third.ready().await, "it took the pipeline");
        let address = format!("http://{}", third.grpc_address);
        let client = answer::Client::connect(address).await.expect("it listens");
        let taken = answer::generate(client, greedy("third", &[9], 4)).await.expect("an answer");
        assert_eq!(taken.ids, answer.ids);
        let refused =
            cluster.generate(greedy("first again", &[9], 4)).await.expect_err("the first lost its pipeline");
        assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    }
}
