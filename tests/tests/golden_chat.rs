//! The golden chats through a real gateway: template, tokenizer, penalty, model, decode and cut together.

use std::fs;

use asterism_proto::v1::Stopping;
use asterism_tests::answer::chat;
use asterism_tests::cluster::{Cluster, Setup};
use asterism_tests::golden::{MARGIN, root};
use serde::Deserialize;

/// Tokens of each golden answer.
const MAX_TOKENS: u32 = 40;

#[derive(Deserialize)]
struct Call {
    question: String,
    history_input_list: Vec<String>,
    history_output_list: Vec<String>,
    #[serde(default)]
    margins: Vec<f32>,
    #[serde(default)]
    prompt_ids: Vec<u32>,
    #[serde(default)]
    output_ids: Vec<u32>,
    response: Option<String>,
    error: Option<String>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn golden_chats_of_52b() {
    let folder = root().join("chat");
    let Ok(named) = fs::read_to_string(folder.join("checkpoint")) else {
        println!("golden chat: skipped: {} is not there (official TeleChat files)", folder.display());
        return;
    };
    let calls = fs::read(folder.join("chat_52b.json")).expect("the calls");
    let calls: Vec<Call> = serde_json::from_slice(&calls).expect("the calls parse");
    let cluster = Cluster::start(Setup::new(root().join(named.trim()), 2)).await;
    let mut whole = 0;
    for (index, call) in calls.iter().enumerate() {
        if call.error.is_some() {
            continue;
        }
        let past = call.history_input_list.iter().zip(&call.history_output_list);
        let mut messages: Vec<(&str, &str)> =
            past.flat_map(|(asked, answered)| [("user", asked.as_str()), ("assistant", answered)]).collect();
        messages.push(("user", &call.question));
        let mut request = chat(&messages, MAX_TOKENS);
        request.stopping = Some(Stopping { max_tokens: Some(MAX_TOKENS), ..Stopping::default() });
        let answer = cluster.generate(request).await.expect("an answer");
        assert_eq!(answer.started.prompt_tokens as usize, call.prompt_ids.len(), "call {index}: the prompt");
        let golden = &call.output_ids[call.prompt_ids.len()..];
        let open = call.margins.iter().position(|margin| *margin <= MARGIN).unwrap_or(golden.len());
        assert_eq!(answer.ids.get(..open), golden.get(..open), "call {index}: ids while the margin decides");
        if answer.ids == golden {
            whole += 1;
            assert_eq!(Some(&answer.finished.response), call.response.as_ref(), "call {index}: the reply");
        }
    }
    assert!(whole > 0);
    println!(
        "golden chat/chat_52b.json: {whole} of {} calls whole, all while their margins decide: passed",
        calls.len()
    );
}
