//! Shard processes that are killed while many answers run.

use asterism_proto::v1::generate_request::Prompt;
use asterism_proto::v1::generate_response::Event;
use asterism_proto::v1::{GenerateRequest, GenerateResponse, Sampling, Stopping, TokenIds};
use tonic::Streaming;

use super::command::{Service, bounded};
use super::golden::Golden;
use super::pipeline::gateway;
use super::talk::{self, Client};

const STAGES: usize = 3;
const STREAMS: u32 = 16;

/// Tokens of each answer.
const ANSWER: u32 = 160;

/// How many shards are killed, one after the other, unless `ASTERISM_KILLS` says so.
const KILLS: u32 = 4;

/// What a reader gets: ids, text, and the reason of its end.
type Answer = (Vec<u32>, String, i32);

/// The n-th of some requests of different kinds; always the same.
fn request(n: u32) -> GenerateRequest {
    let prompt = (0..10 + 11 * n).map(|i| (37 * n + i * i) % 512).collect();
    let sampling = match n % 3 {
        0 => Sampling { do_sample: Some(false), ..Sampling::default() },
        1 => Sampling { temperature: Some(0.8), top_k: Some(20), ..Sampling::default() },
        _ => Sampling { temperature: Some(0.6), frequency_penalty: Some(0.2), ..Sampling::default() },
    };
    GenerateRequest {
        prompt: Some(Prompt::TokenIds(TokenIds { ids: prompt })),
        sampling: Some(Sampling { seed: Some(u64::from(n)), ..sampling }),
        stopping: Some(Stopping { max_tokens: Some(ANSWER), ignore_eos: true, ..Stopping::default() }),
        ..GenerateRequest::default()
    }
}

/// One more message of a stream.
async fn next(stream: &mut Streaming<GenerateResponse>, answer: &mut Answer) -> bool {
    let message = bounded(stream.message()).await.expect("the answer goes on");
    match message.and_then(|message| message.event) {
        Some(Event::Delta(delta)) => {
            answer.0.extend(delta.token_ids);
            answer.1.push_str(&delta.text);
        }
        Some(Event::Finished(finished)) => answer.2 = finished.reason,
        Some(Event::Started(_)) => {}
        None => return false,
    }
    true
}

/// All answers at once; `disturb` comes once the first has some tokens.
async fn answers(client: &mut Client, tokens: usize, disturb: impl AsyncFnOnce()) -> Vec<Answer> {
    let mut streams = Vec::new();
    for n in 0..STREAMS {
        let stream = bounded(client.generate(request(n))).await.expect("a stream").into_inner();
        streams.push((stream, Answer::default()));
    }
    while streams[0].1.0.len() < tokens {
        let (stream, answer) = &mut streams[0];
        assert!(next(stream, answer).await, "it is longer");
    }
    disturb().await;
    let mut answers = Vec::new();
    for (mut stream, mut answer) in streams {
        while next(&mut stream, &mut answer).await {}
        assert_eq!(answer.0.len(), ANSWER as usize);
        answers.push(answer);
    }
    answers
}

/// A shard at an address of its own, where it can be started again.
fn start(model: &str, stage: usize, address: &str) -> Service {
    let (stage, stages) = (stage.to_string(), STAGES.to_string());
    let arguments = ["shard", "--model", model, "--stage", &stage, "--stages", &stages];
    Service::start(&[&arguments[..], &["--threads", "1", "--listen", address]].concat())
}

/// Nobody else asks for ports of 127.0.0.2, so it is free whenever its shard is dead.
fn address() -> String {
    let free = std::net::TcpListener::bind("127.0.0.2:0").expect("a free port");
    free.local_addr().expect("an address").to_string()
}

#[tokio::test]
async fn killed_shards_are_a_pause_for_sixteen_streams() {
    let golden = Golden::tiny();
    let addresses: Vec<String> = (0..STAGES).map(|_| address()).collect();
    let mut shards: Vec<Service> = Vec::new();
    for (stage, address) in addresses.iter().enumerate() {
        shards.push(start(golden.model(), stage, address));
    }
    let list = addresses.join(",");
    let mut door = Service::start(&gateway(golden.model(), &list));
    let door_address = door.announced("grpc").await;
    talk::ready(&door_address).await;
    let mut client = talk::connect(&door_address).await;
    let undisturbed = answers(&mut client, 0, async || {}).await;

    let kills = std::env::var("ASTERISM_KILLS").map_or(KILLS, |kills| kills.parse().expect("a number"));
    for kill in 0..kills {
        let stage = kill as usize % STAGES;
        let disturbed = answers(&mut client, 1 + 7 * kill as usize % 100, async || {
            shards.remove(stage).killed().await;
            shards.insert(stage, start(golden.model(), stage, &addresses[stage]));
        });
        assert_eq!(disturbed.await, undisturbed, "kill {kill}, of stage {stage}");
        println!("kill {kill}, of stage {stage}: {STREAMS} answers, all the same");
    }
    drop(client);
    door.stopped().await;
    for shard in shards {
        shard.stopped().await;
    }
}
