//! Shards that die, readers that go away, a second gateway.

use asterism_gateway::GatewayConfig;
use asterism_gateway::driver::PipelineState;
use asterism_gateway::service::{Gateway, Listeners};
use asterism_proto::v1::AbortRequest;
use asterism_proto::v1::FinishReason;
use asterism_proto::v1::generate_response::Event;
use asterism_tests::answer::{self, greedy};
use asterism_tests::cluster::{Cluster, Setup};
use asterism_tests::golden::tiny_52b;
use tonic::Code;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_that_dies_and_comes_back_serves_the_same_answers() {
    let mut cluster = Cluster::start(Setup::new(tiny_52b(), 3)).await;
    let before = cluster.generate(greedy("before", &[5, 6, 7], 20)).await.expect("an answer");
    for stage in [0, 1, 2] {
        let mut client = cluster.client().await;
        let mut running =
            client.generate(greedy("running", &[5, 6, 7], 3000)).await.expect("a stream").into_inner();
        let started = running.message().await.expect("started").and_then(|message| message.event);
        assert!(matches!(started, Some(Event::Started(_))));
        let delta = running.message().await.expect("a token").and_then(|message| message.event);
        assert!(matches!(delta, Some(Event::Delta(_))), "it runs");
        cluster.kill(stage).await;
        let broken = loop {
            match running.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("stage {stage}: the answer must not look whole"),
                Err(status) => break status,
            }
        };
        assert_eq!(broken.code(), Code::Unavailable, "{broken}");
        cluster.revive(stage).await;
        let after = cluster.generate(greedy("after", &[5, 6, 7], 20)).await.expect("an answer");
        assert_eq!(after.ids, before.ids, "after stage {stage} came back");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_goes_away_makes_room_for_the_next() {
    // The pool holds one such sequence at a time.
    let cluster = Cluster::start(Setup { max_context: Some(600), ..Setup::new(tiny_52b(), 2) }).await;
    let mut client = cluster.client().await;
    for _ in 0..20 {
        let mut stream = client.generate(greedy("", &[1, 2, 3], 590)).await.expect("a stream").into_inner();
        for _ in 0..3 {
            stream.message().await.expect("a message").expect("it goes on");
        }
    }
    let answer = cluster.generate(greedy("last", &[1, 2, 3], 590)).await.expect("an answer");
    assert_eq!(answer.ids.len(), 590);
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
    let setup = Setup::new(tiny_52b(), 2);
    let cluster = Cluster::start(setup.clone()).await;
    let config = setup.gateway(cluster.shards());
    let second = {
        let listeners = Listeners::bind(&config).await.expect("free ports");
        Gateway::start(config.clone(), listeners).await.expect("it starts")
    };
    let mut state = second.state();
    let held = |state: &PipelineState| matches!(state, PipelineState::Waiting(why) if why.contains("held"));
    state.wait_for(held).await.expect("it says who holds the pipeline");
    let answer = cluster.generate(greedy("first", &[9], 4)).await.expect("the first goes on");
    second.stop().await.expect("it stops in order");

    let config = GatewayConfig { take_over: true, ..config };
    let listeners = Listeners::bind(&config).await.expect("free ports");
    let third = Gateway::start(config, listeners).await.expect("it starts");
    assert!(third.ready().await, "it took the pipeline");
    let address = format!("http://{}", third.grpc_address);
    let client = answer::Client::connect(address).await.expect("it listens");
    let taken = answer::generate(client, greedy("third", &[9], 4)).await.expect("an answer");
    assert_eq!(taken.ids, answer.ids);
    let refused =
        cluster.generate(greedy("first again", &[9], 4)).await.expect_err("the first lost its pipeline");
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
}
