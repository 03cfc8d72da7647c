//! `chat` and `demo-smollm2`: templates, prompts, replies. No model is needed: the reference's answers are fed in.

use std::path::{Path, PathBuf};

use asterism_gateway::sessions::prompt::{Conversation, Room};
use asterism_gateway::sessions::{Answer, NewTurn, Settings, Turn, TurnId};
use asterism_gateway::text::{ChatMessage, ChatTemplate, ModelText, TextOptions, Tokenizer, cut_response};
use asterism_proto::v1;
use serde::Deserialize;

use crate::folder::{folders, name, read, root};
use crate::stream;

#[derive(Deserialize)]
struct Chat {
    question: String,
    history_input_list: Vec<String>,
    history_output_list: Vec<String>,
    error: Option<String>,
    #[serde(default)]
    prompt_text: String,
    #[serde(default)]
    prompt_ids: Vec<u32>,
    #[serde(default)]
    output_ids: Vec<u32>,
    #[serde(default)]
    full_decoded: String,
    #[serde(default)]
    response: String,
    #[serde(default)]
    response_prefixes: Vec<String>,
}

#[derive(Deserialize)]
struct Cut {
    generated_ids: Vec<u32>,
    response: String,
    decode_of_generated_only: String,
}

#[derive(Deserialize)]
struct Rendered {
    messages: Vec<Message>,
    rendered: String,
    ids: Vec<u32>,
}

#[derive(Deserialize)]
struct Message {
    role: String,
    content: String,
}

#[derive(Deserialize)]
struct Demo {
    items: Vec<DemoItem>,
}

#[derive(Deserialize)]
struct DemoItem {
    messages: Vec<Message>,
    prompt: String,
    prompt_ids: Vec<u32>,
    greedy_ids: Vec<u32>,
    text: String,
}

fn messages(list: &[Message]) -> Vec<ChatMessage> {
    list.iter().map(|message| ChatMessage::new(&message.role, &message.content)).collect()
}

/// The chat folders and the text side of the model that each was made with.
fn chats() -> Vec<(PathBuf, ModelText)> {
    let mut found = Vec::new();
    for folder in folders("chat") {
        let Ok(checkpoint) = std::fs::read_to_string(folder.join("checkpoint")) else {
            println!("golden {}: SKIPPED (it names no checkpoint)", name(&folder));
            continue;
        };
        let checkpoint = root().join(checkpoint.trim());
        let text = ModelText::load(&checkpoint, &TextOptions::default()).unwrap();
        if text.tokenizer.is_none() {
            println!("golden {}: SKIPPED ({} has no tokenizer)", name(&folder), checkpoint.display());
            continue;
        }
        found.push((folder, text));
    }
    found
}

#[test]
fn golden_chat_52b() {
    for (folder, text) in chats() {
        let Some(cases) = read::<Vec<Chat>>(&folder.join("chat_52b.json")) else { continue };
        for case in &cases {
            let mut turns = Vec::new();
            for (index, question) in case.history_input_list.iter().enumerate() {
                turns.push(ChatMessage::new("user", question));
                turns.extend(
                    case.history_output_list.get(index).map(|answer| ChatMessage::new("assistant", answer)),
                );
            }
            turns.push(ChatMessage::new("user", &case.question));
            if case.error.is_some() {
                let failure = text.encode_chat(&turns).unwrap_err();
                assert_eq!(failure.field.as_deref(), Some("chat.messages[3].role"));
                continue;
            }
            check_chat(&text, case, &turns);
        }
        println!("golden {} chat_52b: {} chats", name(&folder), cases.len());
    }
}

/// A dialogue over a session has the prompts of the reference's `chat()`.
#[test]
fn golden_sessions_52b() {
    let user = |content: &String| v1::Message { role: "user".to_owned(), content: content.clone() };
    for (folder, text) in chats() {
        let Some(cases) = read::<Vec<Chat>>(&folder.join("chat_52b.json")) else { continue };
        let cases: Vec<_> = cases.iter().filter(|case| case.error.is_none()).collect();
        for case in &cases {
            let past = case.history_input_list.iter().zip(&case.history_output_list).zip(0..);
            let turns: Vec<Turn> = past
                .map(|((question, answer), index)| Turn {
                    id: TurnId::fresh(),
                    index,
                    accepted: NewTurn { messages: vec![user(question)], ..NewTurn::default() },
                    answer: Some(Answer { response: answer.clone(), ..Answer::default() }),
                })
                .collect();
            let (settings, messages) = (Settings::default(), [user(&case.question)]);
            let conversation = Conversation { settings: &settings, turns: &turns, messages: &messages };
            let room = Room { context: 32_768, max_tokens: None };
            assert_eq!(conversation.prompt(&text, room).unwrap().ids, case.prompt_ids);
        }
        println!("golden {} chat_52b over sessions: {} chats", name(&folder), cases.len());
    }
}

fn check_chat(text: &ModelText, case: &Chat, turns: &[ChatMessage]) {
    let (prompt_text, prompt_ids) = text.encode_chat(turns).unwrap();
    assert_eq!(prompt_text, case.prompt_text);
    assert_eq!(prompt_ids, case.prompt_ids);
    let (prompt, answer) = case.output_ids.split_at(prompt_ids.len());
    assert_eq!(prompt, prompt_ids);

    let tokenizer = text.tokenizer.as_ref().unwrap();
    assert_eq!(tokenizer.decode(&case.output_ids), case.full_decoded);
    assert_eq!(text.response(prompt, answer), case.response);
    assert_eq!(answer.len(), case.response_prefixes.len());
    for (index, prefix) in case.response_prefixes.iter().enumerate() {
        assert_eq!(&text.response(prompt, &answer[..=index]), prefix, "after {} ids", index + 1);
    }

    // The deltas are the reply as it grows, its leading space included; the end token is not text of an answer.
    stream::check(tokenizer, prompt, answer);
    let mut decoder = text.decoder(prompt);
    let mut streamed = String::new();
    let end = answer.iter().position(|id| text.defaults.eos_token_ids.contains(id)).unwrap_or(answer.len());
    for (index, id) in answer[..end].iter().enumerate() {
        streamed.push_str(&decoder.push(*id));
        stream::check_pending(&streamed, &case.response_prefixes[index], &answer[..=index]);
    }
    streamed.push_str(&decoder.finish());
    assert_eq!(streamed, case.response);
}

#[test]
fn golden_cut_52b() {
    for (folder, text) in chats() {
        let Some(cases) = read::<Vec<Cut>>(&folder.join("cut_52b.json")) else { continue };
        let tokenizer = text.tokenizer.as_ref().unwrap();
        let (_, prompt) = text.encode_chat(&[ChatMessage::new("user", "问题")]).unwrap();
        for case in &cases {
            assert_eq!(tokenizer.decode(&case.generated_ids), case.decode_of_generated_only);
            let whole = tokenizer.decode(&[prompt.as_slice(), &case.generated_ids].concat());
            assert_eq!(cut_response(&whole), case.response, "{:?}", case.generated_ids);
            assert_eq!(text.response(&prompt, &case.generated_ids), case.response);
            stream::check(tokenizer, &prompt, &case.generated_ids);
        }
        println!("golden {} cut_52b: {} replies", name(&folder), cases.len());
    }
}

#[test]
fn golden_vllm_template_52b() {
    let template = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/templates/telechat_52b.jinja");
    for (folder, native) in chats() {
        let Some(cases) = read::<Vec<Rendered>>(&folder.join("vllm_template_52b.json")) else { continue };
        let text = ModelText {
            template: ChatTemplate::load(&folder, Some(&template)).unwrap(),
            tokenizer: native.tokenizer,
            defaults: native.defaults,
        };
        for case in &cases {
            let expected = (case.rendered.clone(), case.ids.clone());
            assert_eq!(text.encode_chat(&messages(&case.messages)).unwrap(), expected);
        }
        println!("golden {} vllm_template_52b: {} chats", name(&folder), cases.len());
    }
}

#[test]
fn golden_chat_inputs_of_other_families() {
    for folder in folders("chat") {
        for set in ["build_inputs_12b.json", "build_inputs_telechat2.json"] {
            if folder.join(set).is_file() {
                println!(
                    "golden {} {set}: SKIPPED (chats of this family are not supported yet)",
                    name(&folder)
                );
            }
        }
    }
}

/// The folders of converted models in the user's cache.
fn cached_models() -> Vec<PathBuf> {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let user = || std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home);
    let cache = std::env::var_os("ASTERISM_CACHE").map(PathBuf::from);
    let mut level: Vec<PathBuf> =
        cache.or_else(|| user().map(|user| user.join("asterism"))).into_iter().collect();
    let mut found = Vec::new();
    for _depth in 0..4 {
        found.extend(level.iter().filter(|folder| folder.join("tokenizer.json").is_file()).cloned());
        let entries =
            level.iter().flat_map(|folder| std::fs::read_dir(folder).into_iter().flatten().flatten());
        level = entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    }
    found.sort();
    found
}

#[test]
fn golden_demo_smollm2_prompts() {
    let folder = root().join("demo-smollm2");
    let Some(demo) = read::<Demo>(&folder.join("golden.json")) else { return };
    let template = ChatTemplate::load(&folder, None).unwrap();
    for item in &demo.items {
        assert_eq!(template.render(&messages(&item.messages)).unwrap(), item.prompt);
    }
    println!("golden demo-smollm2: {} prompts rendered", demo.items.len());

    let fits =
        |folder: &PathBuf| Tokenizer::load(folder).is_ok_and(|tokenizer| tokenizer.vocab_size() == 49152);
    let Some(model) = cached_models().into_iter().find(fits) else {
        println!("golden demo-smollm2: ids SKIPPED (the demo model has not been pulled)");
        return;
    };
    let text = ModelText::load(&model, &TextOptions::default()).unwrap();
    let tokenizer = text.tokenizer.as_ref().unwrap();
    for item in &demo.items {
        let (prompt, ids) = text.encode_chat(&messages(&item.messages)).unwrap();
        assert_eq!((&prompt, &ids), (&item.prompt, &item.prompt_ids));
        assert_eq!(tokenizer.decode(&ids), item.prompt);
        assert_eq!(text.response(&ids, &item.greedy_ids), item.text);
        stream::check(tokenizer, &ids, &item.greedy_ids);
    }
    println!("golden demo-smollm2: {} prompts encoded by {}", demo.items.len(), model.display());
}
