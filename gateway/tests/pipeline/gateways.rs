//! Two gateways that share a database: whoever is asked, and whichever runs a turn, a reader gets the same.

use std::time::Duration;

use asterism_proto::v1;
use asterism_proto::v1::FinishReason;
use asterism_proto::v1::turn_event::Event;
use tonic::Streaming;

use crate::postgres::Server;
use crate::sandbox::{Sandbox, shards};
use crate::sessions::{self, Told, append, bytes, client, create, get, read, resume, says, started};
use crate::toy;

/// A gateway with a pipeline of its own, on a database.
async fn gateway(database: &str) -> Sandbox {
    Sandbox::with(shards(2, |_| {}).await, |config| {
        config.sessions = database.parse().unwrap();
        config.grace = Duration::ZERO;
    })
    .await
}

fn expected(tokens: usize) -> Vec<u32> {
    toy::greedy(&bytes("[user]hi[assistant]"), tokens)
}

async fn resumed(
    client: &mut sessions::Client,
    session: &v1::Session,
    from_token_index: u32,
) -> Streaming<v1::TurnEvent> {
    let session_id = session.session_id.clone();
    let request = v1::ResumeTurnRequest { session_id, turn: None, from_token_index };
    client.resume_turn(request).await.unwrap().into_inner()
}

/// Reads until the next delta.
async fn delta(stream: &mut Streaming<v1::TurnEvent>) -> Vec<u32> {
    match stream.message().await.unwrap().and_then(|event| event.event) {
        Some(Event::Delta(delta)) => delta.token_ids,
        other => panic!("{other:?} is no delta"),
    }
}

fn content(told: &Told) -> (&[u32], &str, &v1::TurnFinished) {
    (&told.ids, &told.text, &told.finished)
}

#[tokio::test]
async fn a_turn_is_read_and_stopped_at_any_gateway() {
    let Some(server) = Server::shared() else { return };
    let database = server.database();
    let (one, other) = (gateway(&database).await, gateway(&database).await);
    let (mut here, mut there) = (client(&one).await, client(&other).await);
    let session = create(&mut here, v1::SessionSettings::default()).await;
    assert_eq!(get(&mut there, &session).await.unwrap(), session);

    one.shards[1].control.send_modify(|control| control.pause_after = Some(6));
    let mut first = here.append_turn(says(&session, "hi", 20)).await.unwrap().into_inner();
    started(&mut first).await;
    one.shards[1].until(|seen| seen.steps == 7).await;
    let mut follower = resumed(&mut there, &session, 2).await;
    assert_eq!(started(&mut follower).await.from_token_index, 2);
    let mut seen = delta(&mut follower).await;
    assert_eq!(seen, expected(20)[2..2 + seen.len()], "what is in the journal comes at once");
    one.shards[1].control.send_modify(|control| control.pause_after = None);
    while seen.len() < 18 {
        seen.extend(delta(&mut follower).await);
    }
    assert_eq!(seen, expected(20)[2..]);
    let end = follower.message().await.unwrap().and_then(|event| event.event);
    let at_the_other = resume(&mut there, &session, None, 0).await.unwrap();
    assert_eq!(content(&at_the_other), content(&resume(&mut here, &session, None, 0).await.unwrap()));
    assert_eq!(end, Some(Event::Finished(at_the_other.finished)));

    one.shards[1].control.send_modify(|control| control.pause_after = Some(14));
    let running = here.append_turn(says(&session, "more", 40)).await.unwrap().into_inner();
    let stop = v1::StopTurnRequest { session_id: session.session_id.clone(), turn: None };
    assert!(there.stop_turn(stop.clone()).await.unwrap().into_inner().stopped);
    let told = read(running).await.unwrap();
    assert_eq!(told.finished.finished.as_ref().unwrap().reason(), FinishReason::Aborted);
    assert!(!there.stop_turn(stop).await.unwrap().into_inner().stopped, "it had ended");
    assert_eq!(content(&resume(&mut there, &session, None, 0).await.unwrap()), content(&told));
    one.shards[1].control.send_modify(|control| control.pause_after = None);
    one.assert_clean().await;
    other.assert_clean().await;
}

#[tokio::test]
async fn another_gateway_goes_on_with_the_turns_of_one_that_leaves() {
    let Some(server) = Server::shared() else { return };
    let database = server.database();
    let (one, other) = (gateway(&database).await, gateway(&database).await);
    let (mut here, mut there) = (client(&one).await, client(&other).await);
    let session = create(&mut here, v1::SessionSettings::default()).await;
    one.shards[1].control.send_modify(|control| control.pause_after = Some(6));
    let mut first = here.append_turn(says(&session, "hi", 20)).await.unwrap().into_inner();
    started(&mut first).await;
    one.shards[1].until(|seen| seen.steps == 7).await;
    let follower = resumed(&mut there, &session, 0).await;
    // Its pipeline never goes on: only another can end the turn.
    let Sandbox { gateway, shards, .. } = one;
    gateway.stop().await.unwrap();
    let told = read(follower).await.unwrap();
    assert_eq!((&told.ids, told.finished.failure.as_str()), (&expected(20), ""), "no gap, no repeat");
    assert_eq!(content(&resume(&mut there, &session, None, 0).await.unwrap()), content(&told));
    append(&mut there, says(&session, "more", 4)).await.unwrap();
    other.assert_clean().await;
    drop(shards);
}
