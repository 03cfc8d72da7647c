//! Whole answers through `Generate`.

use asterism_proto::v1::finished::Matched;
use asterism_proto::v1::generate_request::Prompt;
use asterism_proto::v1::{self, FinishReason, GenerateRequest};
use futures::future::join_all;

use crate::model::END;
use crate::sandbox::{Answer, Sandbox, ids};
use crate::toy;

#[tokio::test]
async fn an_answer_has_its_ids_its_usage_and_its_reason() {
    let sandbox = Sandbox::new(3).await;
    let request = GenerateRequest { request_id: "mine".to_owned(), ..ids([10, 20, 30], 12) };
    let answer = sandbox.answer(request).await.unwrap();
    assert_eq!(answer.ids, toy::greedy(&[10, 20, 30], 12));
    assert_eq!((answer.started.request_id.as_str(), answer.started.model.as_str()), ("mine", "toy"));
    assert_eq!(answer.started.prompt_tokens, 3);
    assert_eq!(answer.finished.reason(), FinishReason::Length);
    let usage = v1::Usage { prompt_tokens: 3, completion_tokens: 12, cached_tokens: 0 };
    assert_eq!(answer.finished.usage, Some(usage));
    assert_eq!(answer.text, text(&answer.ids));
    sandbox.assert_clean().await;
}

/// The decode of byte ids; ids above have no text.
fn text(ids: &[u32]) -> String {
    let bytes: Vec<u8> = ids.iter().filter_map(|id| u8::try_from(*id).ok()).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[tokio::test]
async fn text_and_chat_are_encoded_as_the_model_wants_them() {
    let sandbox = Sandbox::new(1).await;
    let stopping = v1::Stopping { max_tokens: Some(4), ignore_eos: true, ..Default::default() };
    let messages = vec![v1::Message { role: "user".to_owned(), content: "hi".to_owned() }];
    let chat = Prompt::Chat(v1::Chat { messages: messages.clone() });
    for (prompt, rendered) in [(Prompt::Text("hi".to_owned()), "hi"), (chat, "[user]hi[assistant]")] {
        let request = GenerateRequest {
            prompt: Some(prompt),
            stopping: Some(stopping.clone()),
            ..GenerateRequest::default()
        };
        let answer = sandbox.answer(request).await.unwrap();
        let prompt: Vec<u32> = rendered.bytes().map(u32::from).collect();
        assert_eq!(answer.ids, toy::greedy(&prompt, 4), "{rendered}");
    }
    let input = Some(v1::tokenize_request::Input::Chat(v1::Chat { messages }));
    let request = v1::TokenizeRequest { model: "toy".to_owned(), input };
    let tokenized = sandbox.client.clone().tokenize(request).await.unwrap().into_inner();
    assert_eq!(tokenized.text, "[user]hi[assistant]");
    let request = v1::DetokenizeRequest { ids: tokenized.ids, ..Default::default() };
    let detokenized = sandbox.client.clone().detokenize(request).await.unwrap().into_inner();
    assert_eq!(detokenized.text, "[user]hi[assistant]");
}

#[tokio::test]
async fn a_long_prompt_is_fed_in_chunks() {
    let sandbox = Sandbox::new(2).await;
    let prompt: Vec<u32> = (0..200).map(|id| id % toy::VOCAB).collect();
    let answer = sandbox.answer(ids(prompt.clone(), 20)).await.unwrap();
    assert_eq!(answer.ids, toy::greedy(&prompt, 20));
    sandbox.assert_clean().await;
}

#[tokio::test]
async fn many_answers_at_once_equal_their_solo_runs() {
    let sandbox = Sandbox::new(3).await;
    let answers = join_all((0..60).map(|n| sandbox.answer(ids([n, n + 1, n * 2], 5 + n % 30)))).await;
    for (n, answer) in (0..).zip(answers) {
        assert_eq!(answer.unwrap().ids, toy::greedy(&[n, n + 1, n * 2], 5 + n as usize % 30), "{n}");
    }
    sandbox.assert_clean().await;
}

#[tokio::test]
async fn stop_ids_end_an_answer_and_are_told() {
    let sandbox = Sandbox::new(2).await;
    let expected = toy::greedy(&[8], 30);
    let stop = expected[11];
    let at = expected.iter().position(|id| *id == stop).unwrap();
    let mut request = ids([8], 30);
    request.stopping.as_mut().unwrap().stop_token_ids = vec![stop];
    let answer = sandbox.answer(request).await.unwrap();
    assert_eq!(answer.ids, expected[..=at]);
    assert_eq!(answer.text, text(&expected[..at]));
    assert_eq!(answer.finished.reason(), FinishReason::StopToken);
    assert_eq!(answer.finished.matched, Some(Matched::StopTokenId(stop)));
    sandbox.assert_clean().await;
}

#[tokio::test]
async fn the_models_own_end_id_ends_an_answer_unless_ignored() {
    let sandbox = Sandbox::new(2).await;
    let ends_within = |prompt: &u32| toy::greedy(&[*prompt], 60).contains(&END);
    let prompt = (0..toy::VOCAB).find(ends_within).expect("some answer has the end id");
    let expected = toy::greedy(&[prompt], 60);
    let at = expected.iter().position(|id| *id == END).unwrap();
    let mut request = ids([prompt], 60);
    assert_eq!(sandbox.answer(request.clone()).await.unwrap().ids, expected);
    request.stopping.as_mut().unwrap().ignore_eos = false;
    let answer = sandbox.answer(request).await.unwrap();
    assert_eq!(answer.ids, expected[..=at]);
    assert_eq!(answer.finished.reason(), FinishReason::StopToken);
    assert!(!answer.text.contains("<|end|>"), "{}", answer.text);
    assert_eq!(answer.finished.response, answer.text);
}

#[tokio::test]
async fn stop_strings_end_an_answer_before_they_appear() {
    let sandbox = Sandbox::new(2).await;
    // A string over two ASCII letters that follow each other in some answer.
    let letters = |pair: &[u32]| pair.iter().all(|id| (32..127).contains(id));
    let (prompt, at) = (0..toy::VOCAB)
        .find_map(|id| Some((id, toy::greedy(&[id], 40).windows(2).position(letters)?)))
        .expect("some answer has two letters in a row");
    let expected = toy::greedy(&[prompt], 40);
    let stop = text(&expected[at..at + 2]);
    let mut request = ids([prompt], 40);
    request.stopping.as_mut().unwrap().stop = vec!["never to be seen".to_owned(), stop.clone()];
    let answer = sandbox.answer(request).await.unwrap();
    assert_eq!(answer.ids, expected[..at + 2]);
    assert_eq!(answer.text, text(&expected[..at]));
    assert_eq!(answer.finished.reason(), FinishReason::StopString);
    assert_eq!(answer.finished.matched, Some(Matched::Stop(stop)));
    sandbox.assert_clean().await;
}

#[tokio::test]
async fn abort_ends_an_answer_with_what_it_has() {
    let sandbox = Sandbox::new(2).await;
    let request = GenerateRequest { request_id: "long".to_owned(), ..ids([6], 200) };
    sandbox.shards[1].control.send_modify(|control| control.pause_after = Some(4));
    let stream = sandbox.generate(request).await.unwrap();
    sandbox.shards[1].until(|seen| seen.steps == 5).await;
    let abort = |id: &str| {
        let request = v1::AbortRequest { request_id: id.to_owned() };
        let mut client = sandbox.client.clone();
        async move { client.abort(request).await.unwrap().into_inner().aborted }
    };
    assert!(!abort("another").await);
    assert!(abort("long").await);
    let answer = Answer::read(stream).await.unwrap();
    assert_eq!(answer.finished.reason(), FinishReason::Aborted);
    assert_eq!(answer.ids, toy::greedy(&[6], 4));
    assert!(!abort("long").await);
    sandbox.shards[1].control.send_modify(|control| control.pause_after = None);
    sandbox.assert_clean().await;
}

#[tokio::test]
async fn models_are_listed_with_what_the_shards_told() {
    let sandbox = Sandbox::new(2).await;
    let listed = sandbox.client.clone().list_models(v1::ListModelsRequest {}).await.unwrap().into_inner();
    let expected = v1::Model {
        name: "toy".to_owned(),
        checkpoint_id: "c0ffee".to_owned(),
        max_context: 256,
        vocab_size: toy::VOCAB,
        ready: true,
    };
    assert_eq!(listed.models, [expected]);
}
