//! Who is obeyed.

use asterism_proto::shard::v1::{
    DescribeRequest, DrainRequest, FetchLogitsRequest, Holder, JoinRequest, LinkKind,
};
use asterism_proto::{Failure, Reason};
use asterism_shard::ShardConfig;
use futures::StreamExt as _;
use tonic::{Code, Status};

use crate::driver::{Client, Driver, Pipeline, Run, Way, client, config, holder, join, soon, start};
use crate::plans::{Talk, off};

async fn lives(client: &mut Client) -> (Option<Holder>, bool) {
    let description = soon(client.describe(DescribeRequest {})).await.expect("it answers").into_inner();
    (description.holder, description.holder_lives)
}

/// Returns once the shard has no living holder.
async fn freed(client: &mut Client) {
    soon(async { while lives(client).await.1 {} }).await;
}

#[track_caller]
fn refused<T>(result: Result<T, Status>, message: &str) {
    let Err(status) = result else { panic!("accepted, expected {message:?}") };
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    assert!(status.message().contains(message), "{:?} is not {message:?}", status.message());
}

#[tokio::test]
async fn only_a_greater_epoch_is_joined_and_only_the_holder_is_obeyed() {
    for way in Way::ALL {
        let pipeline = Pipeline::by(way, 1).await;
        let mut shard = pipeline.client(0).await;
        assert_eq!(lives(&mut shard).await, (None, false));
        let mut driver = Driver::join(&pipeline, holder(5, "a")).await.expect("nobody holds it");
        assert_eq!(lives(&mut shard).await, (Some(holder(5, "a")), true));

        for epoch in [1, 5] {
            refused(shard.join(join(holder(epoch, "a"))).await, "is not above epoch 5");
        }
        refused(shard.join(join(holder(6, "b"))).await, "held by driver a in epoch 5");
        for stranger in [holder(4, "a"), holder(5, "b"), holder(6, "a")] {
            refused(Run::open(&mut shard, &stranger).await.map(drop), "not the present one (that is 5)");
            let drain = DrainRequest { holder: Some(stranger.clone()) };
            refused(shard.drain(drain).await, "not the present one");
            let fetch = FetchLogitsRequest { holder: Some(stranger), ..FetchLogitsRequest::default() };
            refused(shard.fetch_logits(fetch).await, "not the present one");
        }
        refused(Run::open(&mut shard, &holder(5, "a")).await.map(drop), "has its Run already");
        // All that has left the holder unharmed.
        let evidence = driver.step(vec![Talk::new(1, 5, off(1)).prompt()]).await;
        assert_eq!(evidence.len(), 1);
    }
}

#[tokio::test]
async fn taking_over_ends_the_epoch_of_the_one_before() {
    for way in Way::ALL {
        let pipeline = Pipeline::by(way, 2).await;
        let mut first = Driver::join(&pipeline, holder(1, "a")).await.expect("nobody holds it");
        first.step(vec![Talk::new(1, 5, off(1)).prompt()]).await;
        let take_over = JoinRequest { take_over: true, ..join(holder(2, "b")) };
        let mut second = Driver::claim(&pipeline, take_over).await.expect("it takes over");
        let status = first.runs[1].end().await;
        assert_eq!(Failure::from(status.clone()).reason, Reason::FailedPrecondition, "{status}");
        assert!(status.message().contains("epoch 2 of driver b"), "{status}");
        first.runs[0].end().await;
        // Sequence 1 is gone with its epoch: the id is free, and so are its blocks.
        assert_eq!(second.step(vec![Talk::new(1, 5, off(1)).prompt()]).await.len(), 1);
    }
}

#[tokio::test]
async fn a_driver_that_goes_away_frees_all_its_stages() {
    for way in Way::ALL {
        let pipeline = Pipeline::by(way, 2).await;
        let mut shards = [pipeline.client(0).await, pipeline.client(1).await];
        let mut driver = Driver::join(&pipeline, holder(1, "a")).await.expect("nobody holds it");
        driver.step(vec![Talk::new(1, 5, off(1)).prompt()]).await;
        drop(driver);
        for shard in &mut shards {
            freed(shard).await;
        }
        let mut driver = Driver::join(&pipeline, holder(2, "b")).await.expect("nobody holds it any more");

        // Closing the sending side of one stage's stream alone does the same to all.
        let mut answers = driver.runs.remove(0).close();
        let status = soon(async {
            loop {
                match answers.next().await {
                    Some(Ok(_)) => {}
                    other => break other.transpose(),
                }
            }
        });
        assert_eq!(status.await.expect_err("an end with a reason").code(), Code::Cancelled);
        let status = driver.runs[0].end().await;
        assert_eq!(status.code(), Code::Unavailable, "the next stage lost its edge: {status}");
        freed(&mut shards[1]).await;
    }
}

#[tokio::test]
async fn a_join_without_sense_is_refused_with_its_field() {
    let pipeline = Pipeline::plain(2).await;
    let [mut first, mut last] = [client(&pipeline.addresses[0]).await, client(&pipeline.addresses[1]).await];
    let right = join(holder(1, "a"));
    for (wrong, field) in [
        (JoinRequest { holder: None, ..right.clone() }, "holder"),
        (JoinRequest { holder: Some(holder(0, "a")), ..right.clone() }, "holder"),
        (JoinRequest { holder: Some(holder(1, "")), ..right.clone() }, "holder"),
        (JoinRequest { link: LinkKind::Nccl.into(), ..right.clone() }, "link"),
        (JoinRequest { link: 77, ..right.clone() }, "link"),
        (JoinRequest { steps_in_flight: 0, ..right.clone() }, "steps_in_flight"),
        (JoinRequest { steps_in_flight: 5, ..right.clone() }, "steps_in_flight"),
        (JoinRequest { downstream_address: "127.0.0.1:1".to_owned(), ..right.clone() }, "downstream_address"),
    ] {
        let failure = Failure::from(last.join(wrong).await.expect_err(field));
        assert_eq!(
            (failure.reason, failure.field.as_deref()),
            (Reason::InvalidArgument, Some(field)),
            "{failure}"
        );
    }
    let failure =
        Failure::from(first.join(right).await.expect_err("the first of two needs the next one's address"));
    assert_eq!(failure.field.as_deref(), Some("downstream_address"));
    assert_eq!(lives(&mut last).await, (None, false), "nothing has been joined");
}

#[tokio::test]
async fn a_stage_joins_only_once_its_edge_is_open() {
    let shards = Pipeline::plain(2).await;
    let mut first = client(&shards.addresses[0]).await;
    let to = |address: &str, epoch| JoinRequest {
        downstream_address: address.to_owned(),
        ..join(holder(epoch, "a"))
    };
    // Nobody is there; somebody is, but of no such epoch.
    let nobody = {
        let (listener, address) =
            asterism_process::listen::bind(asterism_process::listen::loopback(0)).await.expect("a port");
        drop(listener);
        address.to_string()
    };
    for (epoch, address) in [(1, nobody.as_str()), (2, shards.addresses[1].as_str()), (3, "no address")] {
        let status = soon(first.join(to(address, epoch))).await.expect_err("no edge");
        assert_eq!(status.code(), Code::Unavailable, "{status}");
        assert_eq!(lives(&mut first).await, (Some(holder(epoch, "a")), false), "that epoch is over");
    }
    Driver::join(&shards, holder(4, "b")).await.expect("nobody holds it");
}

#[tokio::test]
async fn describe_tells_what_a_planner_needs() {
    let config = ShardConfig {
        stage: 1,
        stages: 2,
        pipeline: "north".to_owned(),
        advertise: Some("far:1".to_owned()),
        ..config()
    };
    let shard = start(config, Default::default()).await.expect("it starts");
    let mut client = client(&shard.address.to_string()).await;
    let told = client.describe(DescribeRequest {}).await.expect("it answers").into_inner();
    let model = told.model.clone().expect("a model");
    assert_eq!((told.pipeline.as_str(), told.stage, told.stages), ("north", 1, 2));
    assert_eq!((told.end_layer, model.layers, model.vocab_size, model.hidden), (6, 6, 512, 64));
    assert!((1..6).contains(&told.first_layer));
    assert_eq!((model.max_positions, model.rope_base_length), (256, 4096));
    assert_eq!(
        (told.max_rows, told.max_evidence_rows, told.logits_slots, told.max_steps_in_flight),
        (32, 32, 64, 4)
    );
    assert_eq!(
        (told.block_rows, told.advertised_address.as_str(), told.checkpoint_id.len()),
        (16, "far:1", 64)
    );
    assert!(told.kv_blocks >= 16 && !told.device.is_empty() && !told.draining);
}
