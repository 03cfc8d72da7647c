//! What a peer must not send, over the wire.

use asterism_proto::shard::v1::{
    ActivationsRequest, Frame, Span, StepPlan, activations_request, run_request,
};
use asterism_proto::{Failure, Reason};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use crate::driver::{Driver, Pipeline, Run, Way, client, holder, soon};
use crate::plans::{Talk, off};

#[tokio::test]
async fn a_refused_plan_ends_its_epoch_on_every_stage_and_nothing_else() {
    for way in Way::ALL {
        let pipeline = Pipeline::by(way, 2).await;
        let span = || Talk::new(1, 20, off(1)).prompt();
        let of = |step, spans| StepPlan { step, spans, ..StepPlan::default() };
        type Break = fn(Span) -> Span;
        let broken: [(Break, &str); 9] = [
            (|span| Span { start: None, ..span }, "has not started"),
            (|span| Span { token_ids: vec![512; 20], ..span }, "token id 512 is not below 512"),
            (|span| Span { token_ids: vec![1; 33], ..span }, "33 rows, at most 32"),
            (|span| Span { token_ids: vec![], ..span }, "has no rows"),
            (|span| Span { first_position: 250, ..span }, "not below the context of 256"),
            (|span| Span { blocks: vec![0, u32::MAX], ..span }, "is not below"),
            (|span| Span { blocks: vec![1], ..span }, "1 blocks for 20 positions"),
            (|span| Span { evidence_positions: vec![20], ..span }, "evidence position 20"),
            (|span| Span { top_k: 0, ..span }, "top_k is 0"),
        ];
        let mut epoch = 0;
        let mut cases: Vec<(StepPlan, &str)> =
            broken.iter().map(|(change, message)| (of(1, vec![change(span())]), *message)).collect();
        cases.push((of(2, vec![span()]), "a plan for step 2, 1 was next"));
        cases.push((of(1, vec![span(), Talk::new(1, 5, off(1)).prompt()]), "earlier span"));
        cases.push((StepPlan { ended: vec![9], ..of(1, vec![]) }, "sequence 9 is ended"));
        for (plan, message) in cases {
            epoch += 1;
            let mut driver =
                Driver::join(&pipeline, holder(epoch, "a")).await.expect("the shard still works");
            for run in &driver.runs {
                run.plan(StepPlan { epoch, ..plan.clone() }).await;
            }
            let statuses = [driver.runs[0].end().await, driver.runs[1].end().await];
            // Each stage refuses by itself, unless its neighbour's end reaches it first.
            assert!(
                statuses.iter().any(
                    |status| status.code() == Code::InvalidArgument && status.message().contains(message)
                ),
                "{message:?} is not in {statuses:?}"
            );
        }
        epoch += 1;
        let mut driver = Driver::join(&pipeline, holder(epoch, "a")).await.expect("the shard still works");
        assert_eq!(driver.step(vec![span()]).await.len(), 1);
        let stale = StepPlan { epoch: epoch - 1, ..driver.plan(vec![]) };
        driver.runs[1].plan(stale).await;
        let failure = Failure::from(driver.runs[1].end().await);
        assert_eq!(failure.reason, Reason::FailedPrecondition, "{failure}");
        assert!(
            failure.message.contains(&format!("a plan of epoch {} in epoch {epoch}", epoch - 1)),
            "{failure}"
        );
    }
}

#[tokio::test]
async fn streams_must_begin_and_go_on_as_agreed() {
    let pipeline = Pipeline::plain(1).await;
    let mut shard = client(&pipeline.addresses[0]).await;
    let (plans, requests) = mpsc::channel(4);
    let early = Run::call(&mut shard, plans, requests, run_request::Message::Plan(StepPlan::default())).await;
    let failure = Failure::from(early.map(drop).expect_err("no opening"));
    assert_eq!(failure.field.as_deref(), Some("open"), "{failure}");

    for message in [None, Some(run_request::Message::Open(holder(1, "a")))] {
        let epoch = if message.is_none() { 1 } else { 2 };
        let mut driver = Driver::join(&pipeline, holder(epoch, "a")).await.expect("nobody holds it");
        driver.runs[0].send(message).await;
        assert_eq!(driver.runs[0].end().await.code(), Code::InvalidArgument);
    }

    // The first stage takes no activations, from nobody.
    let _driver = Driver::join(&pipeline, holder(3, "a")).await.expect("nobody holds it");
    let status = activations(&mut shard, vec![open(3)]).await;
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
}

fn open(epoch: u64) -> Option<activations_request::Message> {
    Some(activations_request::Message::Open(holder(epoch, "a")))
}

/// Sends these messages and keeps the stream open: the status that it ends with.
async fn activations(
    shard: &mut crate::driver::Client,
    messages: Vec<Option<activations_request::Message>>,
) -> tonic::Status {
    let (frames, requests) = mpsc::channel(8);
    for message in messages {
        frames.send(ActivationsRequest { message }).await.expect("there is room");
    }
    let mut answers = match soon(shard.activations(ReceiverStream::new(requests))).await {
        Ok(answers) => answers.into_inner(),
        Err(status) => return status,
    };
    loop {
        match soon(answers.message()).await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the stream ended without a reason"),
            Err(status) => return status,
        }
    }
}

/// The last stage of two, joined alone: the test plays the stage before it.
async fn last_stage(pipeline: &Pipeline, epoch: u64) -> (crate::driver::Client, Run) {
    let mut last = pipeline.client(1).await;
    soon(last.join(crate::driver::join(holder(epoch, "a")))).await.expect("nobody holds it");
    let run = Run::open(&mut last, &holder(epoch, "a")).await.expect("the holder");
    (last, run)
}

#[tokio::test]
async fn activations_are_held_to_the_epoch_and_the_plan() {
    let pipeline = Pipeline::plain(2).await;
    let frame = |epoch, step, bytes: usize| {
        let payload = vec![0; bytes].into();
        let frame = Frame { epoch, step, total_bytes: bytes as u64, offset: 0, payload };
        Some(activations_request::Message::Frame(frame))
    };
    let row = 64 * 4;
    let plan = |epoch| StepPlan {
        epoch,
        step: 1,
        spans: vec![Talk::new(1, 2, off(1)).prompt()],
        ..StepPlan::default()
    };

    let (mut last, mut run) = last_stage(&pipeline, 1).await;
    let status = activations(&mut last, vec![open(2)]).await;
    assert_eq!(status.code(), Code::FailedPrecondition, "of another epoch: {status}");
    let status = activations(&mut last, vec![None]).await;
    assert_eq!(status.code(), Code::InvalidArgument, "no opening: {status}");
    let status = activations(&mut last, vec![open(1), frame(0, 1, 2 * row)]).await;
    assert_eq!(status.code(), Code::InvalidArgument, "a stale frame: {status}");
    assert!(run.end().await.message().contains("a frame of epoch 0"));

    for (epoch, bad, message) in [
        (2, frame(2, 1, row), "256 bytes of activations, expected 512"),
        (3, frame(3, 2, 2 * row), "activations of step 2 came where step 1 was due"),
        (4, frame(4, 1, 33 * row), "8448 bytes"),
    ] {
        let (mut last, mut run) = last_stage(&pipeline, epoch).await;
        run.plan(plan(epoch)).await;
        let (edge, status) = tokio::join!(activations(&mut last, vec![open(epoch), bad]), run.end());
        assert_eq!(status.code(), Code::InvalidArgument, "{status} {edge}");
        assert!(status.message().contains(message), "{status} is not {message:?}");
    }

    // Frames may come before their plan.
    let (mut last, mut run) = last_stage(&pipeline, 5).await;
    let (frames, requests) = mpsc::channel(8);
    for message in [open(5), frame(5, 1, 2 * row)] {
        frames.send(ActivationsRequest { message }).await.expect("there is room");
    }
    let mut credits =
        soon(last.activations(ReceiverStream::new(requests))).await.expect("the edge").into_inner();
    assert_eq!(
        soon(credits.message()).await.expect("open").map(|answer| answer.credits),
        Some(2),
        "all of them"
    );
    run.plan(plan(5)).await;
    assert_eq!(run.report().await.expect("a good plan").evidence.len(), 1);
    assert_eq!(
        soon(credits.message()).await.expect("open").map(|answer| answer.credits),
        Some(1),
        "one is back"
    );
    drop(frames);
    assert_eq!(run.end().await.code(), Code::Unavailable, "the edge is gone");
}

#[tokio::test]
async fn more_plans_than_agreed_are_refused() {
    for way in Way::ALL {
        let pipeline = Pipeline::by(way, 2).await;
        let (_last, mut run) = last_stage(&pipeline, 1).await;
        // Nothing comes over the edge, so the first plan waits for its input and the others behind it.
        for step in 1..=8 {
            let spans = vec![Talk::new(step, 2, off(step)).prompt()];
            run.plan(StepPlan { epoch: 1, step, spans, ..StepPlan::default() }).await;
        }
        let status = run.end().await;
        assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
        assert!(status.message().contains("more than 3 plans"), "{status}");
    }
}
