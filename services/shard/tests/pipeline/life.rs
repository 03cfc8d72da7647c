//! Starting, leaving and dying.

use asterism_process::config::Bytes;
use asterism_proto::shard::v1::{DescribeRequest, DrainRequest};
use asterism_shard::{DeviceName, LayerRange, ShardConfig, ShardError, Weights};
use asterism_tensor::TensorError;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::driver::{Driver, Pipeline, Way, client, config, holder, join, soon, start};
use crate::plans::{Talk, off};

async fn health(address: &str, service: &str) -> ServingStatus {
    let endpoint = asterism_process::channel::endpoint(address, asterism_process::channel::Traffic::Internal);
    let channel = endpoint.expect("an address").connect().await.expect("a server");
    let request = HealthCheckRequest { service: service.to_owned() };
    let answer = HealthClient::new(channel).check(request).await.expect("a known service");
    answer.into_inner().status()
}

#[tokio::test]
async fn a_card_that_is_none_is_said_plainly() {
    let config = ShardConfig { device: DeviceName::Cuda(4096), ..config() };
    match start(config, CancellationToken::new()).await.expect_err("no machine has so many") {
        ShardError::Device(TensorError::Library { library, .. }) => println!("without {library}"),
        ShardError::Device(
            TensorError::NoCard { ordinal: 4096, .. } | TensorError::Cuda { what: "cuInit", .. },
        ) => {}
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn made_up_weights_are_served_like_any() {
    let mut described = Vec::new();
    for weights in [Weights::Synthetic(1), Weights::Synthetic(1), Weights::Synthetic(2), Weights::Checkpoint]
    {
        let shard =
            start(ShardConfig { weights, ..config() }, CancellationToken::new()).await.expect("it starts");
        let mut client = client(&shard.address.to_string()).await;
        described
            .push(client.describe(DescribeRequest {}).await.expect("an answer").into_inner().checkpoint_id);
    }
    assert_eq!(described[0], described[1]);
    assert!(described[0] != described[2] && described[0] != described[3], "{described:?}");
}

#[tokio::test]
async fn a_configuration_that_cannot_work_is_refused_at_the_start() {
    let cases = [
        (ShardConfig { memory: Some(Bytes(10_000)), ..config() }, "are given"),
        (ShardConfig { stages: 7, ..config() }, "6 layers cannot be split into 7 stages"),
        (ShardConfig { stage: 1, ..config() }, "stage is 1"),
        (ShardConfig { layers: Some(LayerRange(0..7)), ..config() }, "the model has fewer layers"),
        (ShardConfig { layers: Some(LayerRange(1..6)), ..config() }, "begins with layer 0"),
        (ShardConfig { layers: Some(LayerRange(0..5)), ..config() }, "ends with the last layer"),
        (ShardConfig { layers: Some(LayerRange(0..6)), stages: 2, ..config() }, "ends with the last layer"),
        (ShardConfig { model: "/nowhere".into(), ..config() }, "/nowhere"),
    ];
    for (config, message) in cases {
        let error = start(config, CancellationToken::new()).await.expect_err(message).to_string();
        assert!(error.contains(message), "{error:?} is not {message:?}");
    }
    let stopped = CancellationToken::new();
    stopped.cancel();
    let error = start(config(), stopped).await.expect_err("asked to stop");
    assert!(matches!(error, ShardError::Stopped), "{error}");
}

#[tokio::test]
async fn named_layers_are_taken() {
    let stages = [(0, 0..1), (1, 1..6)];
    for (stage, layers) in stages {
        let config = ShardConfig { stage, stages: 2, layers: Some(LayerRange(layers.clone())), ..config() };
        let shard = start(config, CancellationToken::new()).await.expect("it starts");
        let told =
            client(&shard.address.to_string()).await.describe(DescribeRequest {}).await.expect("it answers");
        let told = told.into_inner();
        assert_eq!(told.first_layer as usize..told.end_layer as usize, layers);
    }
}

#[tokio::test]
async fn reflection_names_the_services() {
    use tonic_reflection::pb::v1::ServerReflectionRequest;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

    let pipeline = Pipeline::plain(1).await;
    let traffic = asterism_process::channel::Traffic::Internal;
    let endpoint = asterism_process::channel::endpoint(&pipeline.addresses[0], traffic).expect("an address");
    let mut reflection = ServerReflectionClient::new(endpoint.connect().await.expect("a server"));
    let message_request = Some(MessageRequest::ListServices(String::new()));
    let request = ServerReflectionRequest { host: String::new(), message_request };
    let asked = reflection.server_reflection_info(tokio_stream::once(request)).await;
    let answer =
        asked.expect("it answers").into_inner().message().await.expect("it answers").expect("an answer");
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
        panic!("{answer:?} is no list")
    };
    let names: Vec<&str> = list.service.iter().map(|service| service.name.as_str()).collect();
    assert!(
        names.contains(&"asterism.shard.v1.Shard") && names.contains(&"grpc.health.v1.Health"),
        "{names:?}"
    );
}

#[tokio::test]
async fn an_idle_shard_stops_when_asked_to() {
    let pipeline = Pipeline::plain(1).await;
    assert_eq!(health(&pipeline.addresses[0], "").await, ServingStatus::Serving);
    assert_eq!(health(&pipeline.addresses[0], "asterism.shard.v1.Shard").await, ServingStatus::Serving);
    pipeline.shutdown.cancel();
    for shard in pipeline.shards {
        soon(shard.finished()).await.expect("it ends well");
    }
}

#[tokio::test]
async fn a_driven_shard_drains_before_it_stops() {
    for way in Way::ALL {
        let pipeline = Pipeline::by(way, 2).await;
        let mut driver = Driver::join(&pipeline, holder(1, "a")).await.expect("nobody holds it");
        let mut talk = Talk::new(1, 5, off(1));
        driver.step(vec![talk.prompt()]).await;
        pipeline.shutdown.cancel();
        soon(async { while !driver.runs[0].beat().await.draining {} }).await;
        // Its driver goes on; nobody else gets in.
        talk.say(9);
        assert_eq!(driver.step(vec![talk.span(1)]).await.len(), 1);
        let told = driver.clients[1].describe(DescribeRequest {}).await.expect("it answers").into_inner();
        assert!(told.draining && told.holder_lives);
        let status = driver.clients[1].join(join(holder(2, "a"))).await.expect_err("it leaves");
        assert_eq!(status.code(), Code::Unavailable, "{status}");
        drop(driver);
        for shard in pipeline.shards {
            soon(shard.finished()).await.expect("it ends well");
        }
    }
}

#[tokio::test]
async fn a_drain_ends_a_shard_after_what_was_queued() {
    for way in Way::ALL {
        let pipeline = Pipeline::by(way, 1).await;
        let mut driver = Driver::join(&pipeline, holder(1, "a")).await.expect("nobody holds it");
        let mut talk = Talk::new(1, 30, off(1));
        for _ in 0..2 {
            let plan = driver.plan(vec![talk.span(15)]);
            driver.runs[0].plan(plan).await;
        }
        let drain = DrainRequest { holder: Some(driver.holder.clone()) };
        soon(driver.clients[0].drain(drain)).await.expect("it drains");
        let mut pipeline = pipeline;
        let shard = pipeline.shards.remove(0);
        soon(shard.finished()).await.expect("it ends well");
        let status = driver.runs[0].end().await;
        assert_eq!(status.code(), Code::Unavailable, "{status}");
    }
}

#[tokio::test]
async fn a_shard_that_dies_ends_its_neighbours_epoch_and_can_come_back() {
    for (way, dying) in Way::ALL.into_iter().flat_map(|way| [(way, 0), (way, 1)]) {
        let mut pipeline = Pipeline::by(way, 2).await;
        let mut driver = Driver::join(&pipeline, holder(1, "a")).await.expect("nobody holds it");
        driver.step(vec![Talk::new(1, 5, off(1)).prompt()]).await;
        pipeline.kill(dying);
        let status = driver.runs[1 - dying].end().await;
        assert_eq!(status.code(), Code::Unavailable, "{status}");

        pipeline.add(ShardConfig { stage: dying as u32, stages: 2, ..config() }).await;
        let mut driver = Driver::join(&pipeline, holder(2, "a")).await.expect("the neighbour is free");
        assert_eq!(driver.step(vec![Talk::new(1, 5, off(1)).prompt()]).await.len(), 1);
    }
}

#[tokio::test]
async fn beats_count_layers() {
    for way in Way::ALL {
        let pipeline = Pipeline::by(way, 2).await;
        let mut driver = Driver::join(&pipeline, holder(1, "a")).await.expect("nobody holds it");
        assert_eq!(driver.runs[0].beat().await.layers_done, 0);
        driver.step(vec![Talk::new(1, 5, off(1)).prompt()]).await;
        let beat = driver.runs[0].beat().await;
        assert!((1..6).contains(&beat.layers_done) && !beat.working && !beat.draining, "{beat:?}");
    }
}
