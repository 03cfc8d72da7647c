//! What goes wrong below the gateway, and what its callers see of it.

use std::time::Duration;

use asterism_gateway::driver::PipelineState;
use asterism_proto::v1::generate_response::Event;
use tonic::Code;

use crate::sandbox::{Answer, Sandbox, event, ids, shards};
use crate::shard::FakeShard;
use crate::toy;

#[tokio::test]
async fn a_shard_that_dies_interrupts_what_runs_until_it_is_back() {
    for dying in 0..2 {
        let mut sandbox = Sandbox::new(2).await;
        sandbox.shards[1].control.send_modify(|control| control.pause_after = Some(4));
        let running = sandbox.generate(ids([1, 2], 20)).await.unwrap();
        sandbox.shards[1].until(|seen| seen.steps == 5).await;
        let (description, address) = sandbox.shards.remove(dying).kill().await;
        let lost = |state: &PipelineState| matches!(state, PipelineState::Waiting(_));
        sandbox.gateway.state().wait_for(lost).await.unwrap();
        assert_eq!(sandbox.generate(ids([1], 1)).await.unwrap_err().code(), Code::Unavailable);
        sandbox.shards.insert(dying, FakeShard::start_at(description, address).await);
        sandbox.shards[1].control.send_modify(|control| control.pause_after = None);
        assert_eq!(Answer::read(running).await.unwrap().ids, toy::greedy(&[1, 2], 20), "no gap, no repeat");
        assert_eq!(sandbox.answer(ids([1, 2], 8)).await.unwrap().ids, toy::greedy(&[1, 2], 8));
        assert_eq!(sandbox.shards[1 - dying].seen.borrow().joins, 2, "the survivor kept its process");
        sandbox.assert_clean().await;
    }
}

#[tokio::test]
async fn a_stuck_shard_ends_the_epoch_and_the_next_goes_on() {
    let shards = shards(2, |_| {}).await;
    let sandbox = Sandbox::with(shards, |config| config.beat_limit = Duration::from_millis(300)).await;
    sandbox.shards[1].control.send_modify(|control| control.paused_until_join = 2);
    assert_eq!(sandbox.answer(ids([5], 3)).await.unwrap().ids, toy::greedy(&[5], 3));
    assert!(sandbox.shards[0].seen.borrow().joins >= 2);
}

#[tokio::test]
async fn a_request_that_breaks_every_epoch_fails_alone() {
    let sandbox = Sandbox::new(2).await;
    // The first token that is drawn after the prompt 3.
    let breaks = toy::greedy(&[3], 1)[0];
    sandbox.shards[1].control.send_modify(|control| control.breaks_on = Some(breaks));
    let good: Vec<u32> = (4..12).filter(|prompt| !toy::greedy(&[*prompt], 30).contains(&breaks)).collect();
    let answers = futures::future::join_all(good.iter().map(|prompt| sandbox.answer(ids([*prompt], 30))));
    let (bad, answers) = tokio::join!(sandbox.answer(ids([3], 30)), answers);
    let failed = bad.unwrap_err();
    assert_eq!(failed.code(), Code::Internal, "{failed}");
    for (prompt, answer) in good.into_iter().zip(answers) {
        assert_eq!(answer.unwrap().ids, toy::greedy(&[prompt], 30));
    }
    assert!(sandbox.shards[1].seen.borrow().joins >= 3, "it was tried three times");
    sandbox.assert_clean().await;
}

#[tokio::test]
async fn answers_do_not_go_on_with_another_model() {
    let mut sandbox = Sandbox::new(1).await;
    sandbox.shards[0].control.send_modify(|control| control.pause_after = Some(4));
    let running = sandbox.generate(ids([1, 2], 20)).await.unwrap();
    sandbox.shards[0].until(|seen| seen.steps == 5).await;
    let (mut description, address) = sandbox.shards.remove(0).kill().await;
    description.checkpoint_id = "decaf".to_owned();
    sandbox.shards.push(FakeShard::start_at(description, address).await);
    assert_eq!(Answer::read(running).await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(sandbox.answer(ids([1, 2], 8)).await.unwrap().ids, toy::greedy(&[1, 2], 8));
    sandbox.assert_clean().await;
}

#[tokio::test]
async fn an_unusable_row_ends_its_own_sequence_only() {
    let sandbox = Sandbox::new(2).await;
    // The first token that is drawn after the prompt 3 poisons the next row of that sequence.
    let poison = toy::greedy(&[3], 1)[0];
    sandbox.shards[1].control.send_modify(|control| control.poison = Some(poison));
    assert!(!toy::greedy(&[4], 6).contains(&poison), "the other answer must be free of it");
    let (bad, good) = tokio::join!(sandbox.answer(ids([3], 6)), sandbox.answer(ids([4], 6)));
    let failed = bad.unwrap_err();
    assert_eq!(failed.code(), Code::Internal);
    assert!(failed.message().contains("not finite"), "{failed}");
    assert_eq!(good.unwrap().ids, toy::greedy(&[4], 6));
    sandbox.assert_clean().await;
    assert_eq!(sandbox.shards[1].seen.borrow().joins, 1, "the epoch went on");
}

#[tokio::test]
async fn a_reader_that_goes_away_frees_its_blocks() {
    let sandbox = Sandbox::new(2).await;
    sandbox.shards[1].control.send_modify(|control| control.pause_after = Some(4));
    let mut running = sandbox.generate(ids([1, 2, 3], 200)).await.unwrap();
    assert!(matches!(event(&mut running).await.unwrap(), Some(Event::Started(_))));
    sandbox.shards[1].until(|seen| seen.steps == 5).await;
    drop(running);
    // The next plan is the one that ends it: nothing else is due while its row is awaited.
    sandbox.shards[0].until(|seen| seen.live.is_empty()).await;
    assert_eq!(sandbox.shards[0].seen.borrow().steps, 6, "within one step");
    sandbox.shards[1].control.send_modify(|control| control.pause_after = None);
    sandbox.assert_clean().await;
}

#[tokio::test]
async fn when_all_readers_vanish_all_blocks_are_free_before_a_step_is_done() {
    const STREAMS: u32 = 60;
    let sandbox = Sandbox::with(shards(2, |shard| shard.kv_blocks = 200).await, |_| {}).await;
    let mut streams = Vec::new();
    for n in 0..STREAMS {
        streams.push(sandbox.generate(ids([1 + n % 7, 2, 3], 200)).await.unwrap());
    }
    let mut client = sandbox.client.clone();
    let mut kv = async || {
        client.loads(asterism_proto::v1::LoadsRequest {}).await.unwrap().into_inner().kv_cache.unwrap()
    };
    assert!(kv().await.used_blocks > 0, "they run");
    // Nothing is done any more from here on.
    let control = &sandbox.shards[1].control;
    control.send_modify(|control| control.paused = true);
    let done = sandbox.shards[1].seen.borrow().steps;
    drop(streams);
    while kv().await.used_blocks > 0 {}
    assert!(sandbox.shards[1].seen.borrow().steps <= done + 1, "within one step");
    control.send_modify(|control| control.paused = false);
    sandbox.assert_clean().await;
    assert_eq!(kv().await.used_blocks, 0);
}

#[tokio::test]
async fn queued_and_running_requests_survive_an_epoch() {
    // Room for one sequence at a time.
    let shards = shards(1, |shard| shard.logits_slots = 1).await;
    let mut sandbox = Sandbox::with(shards, |_| {}).await;
    sandbox.shards[0].control.send_modify(|control| control.paused = true);
    let running = sandbox.generate(ids([1], 60)).await.unwrap();
    sandbox.shards[0].until(|seen| !seen.live.is_empty()).await;
    let queued = sandbox.generate(ids([2], 60)).await.unwrap();
    let (description, address) = sandbox.shards.remove(0).kill().await;
    sandbox.shards.push(FakeShard::start_at(description, address).await);
    let (running, queued) = tokio::join!(Answer::read(running), Answer::read(queued));
    assert_eq!(running.unwrap().ids, toy::greedy(&[1], 60));
    assert_eq!(queued.unwrap().ids, toy::greedy(&[2], 60));
    sandbox.assert_clean().await;
}
