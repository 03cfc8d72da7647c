//! What requests that begin alike share, through the whole gateway.

use asterism_proto::v1::{self, GenerateRequest};

use crate::sandbox::{Answer, Sandbox, ids};
use crate::toy;

fn cached(answer: &Answer) -> u32 {
    answer.finished.usage.unwrap().cached_tokens
}

#[tokio::test]
async fn the_next_turn_is_cached_up_to_its_own_words() {
    let sandbox = Sandbox::new(2).await;
    let mut text: Vec<u32> = (0..40).collect();
    let first = sandbox.answer(ids(text.clone(), 12)).await.unwrap();
    assert_eq!(cached(&first), 0);
    text.extend(&first.ids);
    text.extend(300..320);
    for (bypass_cache, expected) in [(true, 0), (false, 48), (false, 64), (true, 0)] {
        let request = GenerateRequest { bypass_cache, ..ids(text.clone(), 10) };
        let answer = sandbox.answer(request).await.unwrap();
        assert_eq!(
            (cached(&answer), answer.ids),
            (expected, toy::greedy(&text, 10)),
            "bypass: {bypass_cache}"
        );
    }
    sandbox.assert_clean().await;
}

#[tokio::test]
async fn penalties_count_what_was_cached() {
    let sandbox = Sandbox::new(1).await;
    let text: Vec<u32> = (0..40).map(|position| position * 7 % 40).collect();
    let sampling = v1::Sampling {
        do_sample: Some(false),
        repetition_penalty: Some(1.5),
        presence_penalty: Some(1.0),
        frequency_penalty: Some(0.5),
        ..Default::default()
    };
    let mut answers = Vec::new();
    for bypass_cache in [true, false, false] {
        let request =
            GenerateRequest { bypass_cache, sampling: Some(sampling.clone()), ..ids(text.clone(), 30) };
        let answer = sandbox.answer(request).await.unwrap();
        answers.push((cached(&answer), answer.ids));
    }
    assert_eq!(answers.iter().map(|(cached, _)| *cached).collect::<Vec<_>>(), [0, 0, 32]);
    assert!(answers.iter().all(|(_, ids)| *ids == answers[0].1), "{answers:?}");
    assert_ne!(answers[0].1, toy::greedy(&text, 30), "penalties change this answer");
    sandbox.assert_clean().await;
}
