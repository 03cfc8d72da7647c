//! Everything is bounded, and says so.

use asterism_proto::Failure;
use asterism_proto::Reason;
use asterism_proto::v1::{FinishReason, GenerateRequest};
use tonic::Code;

use crate::sandbox::{Answer, Sandbox, ids, shards};
use crate::toy;

#[tokio::test]
async fn a_full_queue_refuses_with_a_delay() {
    // One sequence fits; one more may wait.
    let shards = shards(1, |shard| shard.logits_slots = 1).await;
    let sandbox = Sandbox::with(shards, |config| config.queue_requests = 1).await;
    sandbox.shards[0].control.send_modify(|control| control.paused = true);
    let running = sandbox.generate(ids([1], 60)).await.unwrap();
    sandbox.shards[0].until(|seen| !seen.live.is_empty()).await;
    let queued = sandbox.generate(ids([2], 60)).await.unwrap();
    let refused = Failure::from(sandbox.generate(ids([3], 60)).await.unwrap_err());
    assert_eq!(refused.reason, Reason::Exhausted);
    assert!(refused.retry_after.is_some_and(|delay| !delay.is_zero()), "{refused:?}");

    // Aborting the queued one makes room again.
    drop(queued);
    sandbox.shards[0].control.send_modify(|control| control.paused = false);
    assert_eq!(Answer::read(running).await.unwrap().ids, toy::greedy(&[1], 60));
    assert_eq!(sandbox.answer(ids([3], 60)).await.unwrap().ids, toy::greedy(&[3], 60));
    sandbox.assert_clean().await;
}

#[tokio::test]
async fn the_context_ends_an_answer() {
    let sandbox = Sandbox::new(2).await;
    let prompt: Vec<u32> = (0..250).collect();
    let answer = sandbox.answer(ids(prompt.clone(), 1000)).await.unwrap();
    assert_eq!(answer.ids, toy::greedy(&prompt, 6), "256 positions");
    assert_eq!(answer.finished.reason(), FinishReason::Length);

    // The pool is smaller than the model's context.
    let small = Sandbox::with(shards(2, |shard| shard.kv_blocks = 3).await, |_| {}).await;
    let answer = small.answer(ids([1], 1000)).await.unwrap();
    assert_eq!(answer.ids, toy::greedy(&[1], 47));
    let listed = small.client.clone().list_models(asterism_proto::v1::ListModelsRequest {}).await.unwrap();
    assert_eq!(listed.into_inner().models[0].max_context, 48);
}

#[tokio::test]
async fn answers_that_outgrow_the_pool_take_turns_and_stay_the_same() {
    // Room for one answer and a half.
    let small = shards(2, |shard| shard.kv_blocks = 6).await;
    let sandbox = Sandbox::with(small, |_| {}).await;
    let answers = (0..6).map(|n| sandbox.answer(ids([n, n + 1], 60)));
    for (n, answer) in (0..6).zip(futures::future::join_all(answers).await) {
        assert_eq!(answer.unwrap().ids, toy::greedy(&[n, n + 1], 60));
    }
    assert!(sandbox.shards[0].seen.borrow().starts > 6, "some were preempted and replayed");
    sandbox.assert_clean().await;
}

#[tokio::test]
async fn without_max_tokens_the_models_max_length_counts_the_prompt() {
    let sandbox = Sandbox::new(1).await;
    let mut request = ids([5, 6, 7], 0);
    request.stopping.as_mut().unwrap().max_tokens = None;
    let answer = sandbox.answer(request).await.unwrap();
    assert_eq!(answer.ids, toy::greedy(&[5, 6, 7], 97), "generation_config.json has max_length 100");
}

#[tokio::test]
async fn a_request_id_is_taken_while_its_request_lives() {
    let sandbox = Sandbox::new(1).await;
    sandbox.shards[0].control.send_modify(|control| control.paused = true);
    let request = GenerateRequest { request_id: "same".to_owned(), ..ids([1], 5) };
    let running = sandbox.generate(request.clone()).await.unwrap();
    let refused = sandbox.generate(request.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Aborted);
    sandbox.shards[0].control.send_modify(|control| control.paused = false);
    Answer::read(running).await.unwrap();
    sandbox.answer(request).await.unwrap();
}

#[tokio::test]
async fn a_reader_that_does_not_read_holds_nobody_up() {
    let sandbox = Sandbox::new(2).await;
    let unread = sandbox.generate(ids([1], 200)).await.unwrap();
    for n in 2..12 {
        assert_eq!(sandbox.answer(ids([n], 20)).await.unwrap().ids, toy::greedy(&[n], 20));
    }
    assert_eq!(Answer::read(unread).await.unwrap().ids, toy::greedy(&[1], 200));
}
