//! Finding, checking, claiming and re-claiming a pipeline.

use std::time::Duration;

use asterism_gateway::driver::{DriverError, PipelineState};
use asterism_gateway::{Gateway, GatewayError, Listeners};
use asterism_proto::shard::v1::DescribeResponse;
use tonic::Code;
use tonic::transport::Endpoint;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use crate::sandbox::{Sandbox, Setup, addresses, ids, shards};
use crate::shard::FakeShard;
use crate::toy;

#[tokio::test]
async fn all_stages_are_joined_in_one_epoch_by_one_driver() {
    for stages in 1..=4 {
        let sandbox = Sandbox::new(stages).await;
        let holders: Vec<_> =
            sandbox.shards.iter().map(|shard| shard.seen.borrow().holder.clone().unwrap()).collect();
        assert!(holders.iter().all(|holder| *holder == holders[0]), "{holders:?}");
        assert_eq!(holders[0].epoch, 1);
        let answer = sandbox.answer(ids([1, 2, 3], 5)).await.unwrap();
        assert_eq!(answer.ids, toy::greedy(&[1, 2, 3], 5));
        sandbox.assert_clean().await;
    }
}

#[tokio::test]
async fn shards_may_be_configured_and_started_in_any_order() {
    // Stage 1 of 3 is missing at first; its address is known.
    let mut running = shards(3, |_| {}).await;
    let late = running.remove(1);
    let mut configured = addresses(&running);
    configured.insert(0, late.address.to_string());
    let (description, address) = late.kill().await;

    let (gateway, mut client, _folder) = Setup::new(configured).start().await;
    let refused = client.generate(ids([1], 1)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    let mut state = gateway.state();
    let waits = |state: &PipelineState| matches!(state, PipelineState::Waiting(why) if why.contains(&address.to_string()));
    state.wait_for(waits).await.unwrap();

    let _late = FakeShard::start_at(description, address).await;
    assert!(gateway.ready().await);
    client.generate(ids([1], 1)).await.unwrap();
}

#[tokio::test]
async fn shards_that_disagree_end_the_gateway_with_every_mistake() {
    type Change = fn(&mut DescribeResponse);
    let cases: [(&str, Change); 5] = [
        ("checkpoint id", |shard| shard.checkpoint_id = shard.stage.to_string()),
        ("compute type", |shard| shard.compute = 1 + shard.stage as i32),
        ("instruction path", |shard| shard.path = shard.stage.to_string()),
        ("no shard has stage 2 of 3", |shard| shard.stages = 3),
        ("overlap", |shard| shard.first_layer = 0),
    ];
    for (said, change) in cases {
        let shards = shards(2, change).await;
        let setup = Setup::new(addresses(&shards));
        let listeners = Listeners::bind(&setup.config).await.unwrap();
        let gateway = Gateway::start(setup.config.clone(), listeners).await.unwrap();
        let error = gateway.wait().await.unwrap_err();
        assert!(matches!(&error, GatewayError::Driver(DriverError::Mismatch(_))), "{error}");
        assert!(error.to_string().contains(said), "{error}");
    }
}

#[tokio::test]
async fn a_held_pipeline_is_left_alone_until_told_to_take_it_over() {
    let first = Sandbox::new(2).await;
    let holder = first.shards[0].seen.borrow().holder.clone().unwrap().driver_id;

    let (second, mut client, _folder) = Setup::new(addresses(&first.shards)).start().await;
    let names_the_holder =
        |state: &PipelineState| matches!(state, PipelineState::Waiting(why) if why.contains(&holder));
    second.state().wait_for(names_the_holder).await.unwrap();
    let refused = client.generate(ids([1], 1)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().contains(&holder), "{refused}");
    assert_eq!(first.answer(ids([4], 3)).await.unwrap().ids, toy::greedy(&[4], 3));

    let mut setup = Setup::new(addresses(&first.shards));
    setup.config.take_over = true;
    let (third, mut client, _folder) = setup.start().await;
    assert!(third.ready().await);
    client.generate(ids([1], 1)).await.unwrap();
    let taken = first.shards[1].seen.borrow().holder.clone().unwrap();
    assert_ne!(taken.driver_id, holder);
    // The fenced gateway stands by and names the new holder.
    let fenced = |state: &PipelineState| matches!(state, PipelineState::Waiting(why) if why.contains(&taken.driver_id));
    first.gateway.state().wait_for(fenced).await.unwrap();

    // When the holder leaves, one of those that stand by comes in.
    third.stop().await.unwrap();
    tokio::select! {
        ready = first.gateway.ready() => assert!(ready),
        ready = second.ready() => assert!(ready),
    }
}

#[tokio::test]
async fn health_follows_the_pipeline_for_every_service_name() {
    let mut pipeline = shards(2, |_| {}).await;
    let last = pipeline.pop().unwrap();
    let mut configured = addresses(&pipeline);
    configured.push(last.address.to_string());
    let (description, address) = last.kill().await;
    let (gateway, _client, _folder) = Setup::new(configured).start().await;
    let endpoint = Endpoint::from_shared(format!("http://{}", gateway.grpc_address)).unwrap();
    let mut health = HealthClient::new(endpoint.connect().await.unwrap());
    let mut watches = Vec::new();
    for service in ["", "asterism.v1.Inference"] {
        let request = HealthCheckRequest { service: service.to_owned() };
        let mut watch = health.watch(request).await.unwrap().into_inner();
        assert_eq!(watch.message().await.unwrap(), Some(status(ServingStatus::NotServing)));
        watches.push(watch);
    }
    let last = FakeShard::start_at(description, address).await;
    for watch in &mut watches {
        assert_eq!(watch.message().await.unwrap(), Some(status(ServingStatus::Serving)));
    }
    last.kill().await;
    for watch in &mut watches {
        assert_eq!(watch.message().await.unwrap(), Some(status(ServingStatus::NotServing)));
    }
}

fn status(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

#[tokio::test]
async fn a_draining_shard_gets_no_new_work_and_is_told_when_the_old_is_done() {
    let sandbox = Sandbox::new(2).await;
    sandbox.shards[1].control.send_modify(|control| control.paused = true);
    let running = sandbox.generate(ids([7], 4)).await.unwrap();
    sandbox.shards[0].until(|seen| !seen.live.is_empty()).await;
    sandbox.shards[1].control.send_modify(|control| control.draining = true);
    let drains = |state: &PipelineState| matches!(state, PipelineState::Draining(_));
    sandbox.gateway.state().wait_for(drains).await.unwrap();
    assert_eq!(sandbox.generate(ids([1], 1)).await.unwrap_err().code(), Code::Unavailable);
    assert!(!sandbox.shards[1].seen.borrow().drained);

    sandbox.shards[1].control.send_modify(|control| control.paused = false);
    let answer = crate::sandbox::Answer::read(running).await.unwrap();
    assert_eq!(answer.ids, toy::greedy(&[7], 4));
    sandbox.shards[1].until(|seen| seen.drained).await;
    sandbox.shards[1].until(|seen| !seen.open).await;
}

#[tokio::test]
async fn a_gateway_that_shuts_down_lets_running_answers_end() {
    let sandbox = Sandbox::new(2).await;
    sandbox.shards[1].control.send_modify(|control| control.paused = true);
    let running = sandbox.generate(ids([9], 6)).await.unwrap();
    sandbox.shards[0].until(|seen| !seen.live.is_empty()).await;
    let Sandbox { gateway, shards, client: _client, .. } = sandbox;
    let mut state = gateway.state();
    let stopping = tokio::spawn(gateway.stop());
    state.wait_for(|state| matches!(state, PipelineState::Leaving)).await.unwrap();
    shards[1].control.send_modify(|control| control.paused = false);
    assert_eq!(crate::sandbox::Answer::read(running).await.unwrap().ids, toy::greedy(&[9], 6));
    stopping.await.unwrap().unwrap();
    shards[0].until(|seen| !seen.open).await;
}

#[tokio::test]
async fn a_gateway_that_may_not_wait_fails_running_answers() {
    let shards = shards(1, |_| {}).await;
    let sandbox = Sandbox::with(shards, |config| config.grace = Duration::ZERO).await;
    sandbox.shards[0].control.send_modify(|control| control.paused = true);
    let running = sandbox.generate(ids([9], 6)).await.unwrap();
    sandbox.shards[0].until(|seen| !seen.live.is_empty()).await;
    sandbox.gateway.stop().await.unwrap();
    let failed = crate::sandbox::Answer::read(running).await.unwrap_err();
    assert_eq!(failed.code(), Code::Unavailable);
}
