//! Gateway and shards as processes of their own, and everything in one.

use super::command::{Service, asterism, output_with};
use super::golden::Golden;
use super::talk;

/// A shard process, and where it listens.
pub async fn shard(model: &str, stage: usize, stages: usize) -> (Service, String) {
    let (stage, stages) = (stage.to_string(), stages.to_string());
    let arguments = ["shard", "--model", model, "--stage", &stage, "--stages", &stages];
    let mut service =
        Service::start(&[&arguments[..], &["--threads", "1", "--listen", "127.0.0.1:0"]].concat());
    let address = service.announced("grpc").await;
    (service, address)
}

/// The arguments of a gateway of these shards on free ports.
pub fn gateway<'a>(model: &'a str, shards: &'a str) -> Vec<&'a str> {
    let listen = ["--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"];
    [&["gateway", "--model", model, "--shards", shards][..], &listen].concat()
}

#[tokio::test]
async fn three_processes_answer_as_the_golden_does() {
    let golden = Golden::demo_or_tiny();
    let (first, first_address) = shard(golden.model(), 0, 2).await;
    let (second, second_address) = shard(golden.model(), 1, 2).await;
    // Any order does.
    let shards = format!("{second_address},{first_address}");
    let mut door = Service::start(&gateway(golden.model(), &shards));
    let address = door.announced("grpc").await;
    talk::ready(&address).await;
    let mut client = talk::connect(&address).await;
    talk::compare(&mut client, &golden).await;
    drop(client);
    door.stopped().await;
    first.stopped().await;
    second.stopped().await;
}

#[tokio::test]
async fn a_gateway_waits_for_its_shards() {
    let golden = Golden::tiny();
    let (first, first_address) = shard(golden.model(), 0, 2).await;
    // Nobody serves there yet, and all else that asks for a free port asks for one of 127.0.0.1.
    let free = std::net::TcpListener::bind("127.0.0.2:0").expect("a free port");
    let second_address = free.local_addr().expect("an address").to_string();
    drop(free);
    let shards = format!("{first_address},{second_address}");
    let mut door = Service::start(&gateway(golden.model(), &shards));
    let address = door.announced("grpc").await;
    let mut client = talk::connect(&address).await;
    let refused = talk::generate(&mut client, &[5], 1.0, 1).await.expect_err("no pipeline yet");
    assert!(talk::is_unavailable(&refused), "{refused}");

    let arguments = ["shard", "--model", golden.model(), "--stage", "1", "--stages", "2", "--threads", "1"];
    let second = Service::start(&[&arguments[..], &["--listen", &second_address]].concat());
    talk::ready(&address).await;
    talk::compare(&mut client, &golden).await;
    drop(client);
    for service in [door, first, second] {
        service.stopped().await;
    }
}

#[tokio::test]
async fn up_is_everything_and_chat_answers_each_line() {
    let golden = Golden::demo_or_tiny();
    let listen = ["--threads", "1", "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"];
    let mut up = Service::start(
        &[&["up", "--model", golden.model(), "--shards", "3", "--sessions", "memory"][..], &listen].concat(),
    );
    let (grpc, http) = (up.announced("grpc").await, up.announced("http").await);
    talk::compare(&mut talk::connect(&grpc).await, &golden).await;
    if golden.speaks() {
        talks(&grpc, &http).await;
    } else {
        println!("SKIPPED: chat and HTTP through `up`: {} has no tokenizer", golden.model());
    }
    up.stopped().await;
}

/// The chat over a pipe and the OpenAI dialect answer.
async fn talks(grpc: &str, http: &str) {
    let chat = asterism(&["chat", "--address", grpc, "--temperature", "0", "--max-tokens", "8"]);
    let output = output_with(chat, "hi\n\nlead\n").await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8(output.stdout).expect("text").lines().count() >= 2, "a line for each line");

    let body = r#"{"messages": [{"role": "user", "content": "hi"}], "temperature": 0, "max_tokens": 4}"#;
    let request = reqwest::Client::new().post(format!("http://{http}/v1/chat/completions"));
    let answer =
        request.header("content-type", "application/json").body(body).send().await.expect("an answer");
    assert_eq!(answer.status(), 200);
    let answer: serde_json::Value = answer.json().await.expect("JSON");
    assert_eq!(answer["usage"]["completion_tokens"], 4, "{answer}");
}
