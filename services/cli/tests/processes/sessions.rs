//! Gateways that are killed while sessions run: every turn that was accepted is there, none twice, and whoever resumes it gets
//! what an undisturbed reader gets.

use std::path::Path;

use asterism_proto::v1::sessions_client::SessionsClient;
use asterism_proto::v1::turn_event::Event;
use asterism_proto::v1::{
    AppendTurnRequest, CreateSessionRequest, ExportSessionRequest, Message, ResumeTurnRequest, Sampling,
    Stopping, TurnEvent,
};
use futures::future::join_all;
use tokio::sync::watch;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

use super::command::{Service, bounded};
use super::golden::Golden;
use super::pipeline::shard;
use super::talk;

/// A tokenizer of bytes and a template, with which a tiny checkpoint can talk.
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#[path = "../../../../gateway/tests/pipeline/model.rs"]
mod toy;

const SESSIONS: u32 = 8;
const TURNS: u32 = 4;
/// Tokens of each answer.
const ANSWER: u32 = 24;
/// How often the gateway is killed, unless `ASTERISM_KILLS` says so.
const KILLS: u32 = 25;

/// A turn as a reader gets it: ids, text, the reason of its end, the reply.
type Answer = (Vec<u32>, String, i32, String);

/// A client that is not put off by a gateway that is gone.
struct Reader {
    client: SessionsClient<Channel>,
    /// Tokens that all readers got so far.
    progress: watch::Sender<u64>,
}

impl Reader {
    fn new(address: &str, progress: watch::Sender<u64>) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
        Self { client: SessionsClient::new(endpoint.connect_lazy()), progress }
    }

    /// Tries until the gateway is there and takes it.
    async fn insist<T>(
        &mut self,
        call: impl AsyncFn(&mut SessionsClient<Channel>) -> Result<T, Status>,
    ) -> T {
        bounded(async {
            loop {
                match call(&mut self.client).await {
                    Ok(done) => return done,
                    Err(status) if is_passing(&status) => tokio::task::yield_now().await,
                    Err(status) => panic!("{status}"),
                }
            }
        })
        .await
    }

    /// Holds a whole conversation: its session's id, and the answers.
    async fn converse(&mut self, key: &str, n: u32) -> (String, Vec<Answer>) {
        let create = CreateSessionRequest { idempotency_key: key.to_owned(), ..Default::default() };
        let session = self.insist(async |client| client.create(create.clone()).await).await.into_inner();
        let id = session.session_id;
        let mut answers = Vec::new();
        for turn in 0..TURNS {
            answers.push(self.turn(&id, n, turn).await);
        }
        (id, answers)
    }

    async fn turn(&mut self, id: &str, n: u32, turn: u32) -> Answer {
        let request = said(id, n, turn);
        let mut stream =
            self.insist(async |client| client.append_turn(request.clone()).await).await.into_inner();
        let mut answer = Answer::default();
        loop {
            match self.read(&mut stream, &mut answer).await {
                Ok(()) => return answer,
                Err(status) => assert!(is_passing(&status), "{status}"),
            }
            let from_token_index = answer.0.len() as u32;
            let request = ResumeTurnRequest { session_id: id.to_owned(), turn: Some(turn), from_token_index };
            stream = self.insist(async |client| client.resume_turn(request.clone()).await).await.into_inner();
        }
    }

    async fn read(&self, stream: &mut Streaming<TurnEvent>, answer: &mut Answer) -> Result<(), Status> {
        loop {
            let message = bounded(stream.message()).await?;
            let Some(event) = message.and_then(|message| message.event) else {
                return Err(Status::unavailable("the stream ended early"));
            };
            match event {
                Event::Started(started) => {
                    assert_eq!(started.from_token_index as usize, answer.0.len());
                }
                Event::Delta(delta) => {
                    let tokens = delta.token_ids.len() as u64;
                    answer.0.extend(delta.token_ids);
                    answer.1.push_str(&delta.text);
                    self.progress.send_modify(|count| *count += tokens);
                }
                Event::Finished(finished) => {
                    assert_eq!(finished.failure, "");
                    let finished = finished.finished.expect("an end");
                    (answer.2, answer.3) = (finished.reason, finished.response);
                    return Ok(());
                }
            }
        }
    }

    /// What is stored of a session: its answers' ids, turn by turn.
    async fn stored(&mut self, id: &str) -> Vec<Vec<u32>> {
        let request = ExportSessionRequest { session_id: id.to_owned() };
        let mut lines = self.insist(async |client| client.export(request.clone()).await).await.into_inner();
        let mut turns = Vec::new();
        while let Some(line) = lines.message().await.expect("a line") {
            let line: serde_json::Value = serde_json::from_str(&line.line).expect("JSON");
            if line.get("answer").is_some() {
                let ids = line["answer"]["token_ids"].clone();
                turns.push(serde_json::from_value(ids).expect("token ids"));
            }
        }
        turns
    }
}

/// Whether trying again may help.
fn is_passing(status: &Status) -> bool {
    // A connection that breaks under a call is told as any of these.
    matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal)
}

/// What the n-th conversation says in a turn; always the same.
fn said(id: &str, n: u32, turn: u32) -> AppendTurnRequest {
    let sampling = match n % 2 {
        0 => Sampling { do_sample: Some(false), ..Sampling::default() },
        _ => Sampling {
            temperature: Some(0.8),
            top_k: Some(20),
            seed: Some(u64::from(n)),
            ..Sampling::default()
        },
    };
    AppendTurnRequest {
        session_id: id.to_owned(),
        messages: vec![Message { role: "user".to_owned(), content: format!("{n} asks {turn}") }],
        sampling: Some(sampling),
        stopping: Some(Stopping { max_tokens: Some(ANSWER), ignore_eos: true, ..Stopping::default() }),
        idempotency_key: format!("turn {turn}"),
        ..AppendTurnRequest::default()
    }
}

/// A tiny checkpoint that can talk.
fn model() -> tempfile::TempDir {
    let folder = toy::folder();
    let tiny = Golden::tiny();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(tiny.model.join(name), folder.path().join(name)).expect("a copy");
    }
    folder
}

fn gateway(model: &str, shards: &str, address: &str, sessions: &Path) -> Service {
    let sessions = sessions.to_str().expect("a plain path");
    let arguments = ["gateway", "--model", model, "--shards", shards, "--sessions", sessions];
    // The killed one held the pipeline a moment ago.
    let listen = ["--take-over", "--listen", address, "--http-listen", "127.0.0.2:0"];
    Service::start(&[&arguments[..], &listen].concat())
}

/// All conversations at once.
async fn conversations(
    address: &str,
    round: u32,
    progress: &watch::Sender<u64>,
) -> Vec<(String, Vec<Answer>)> {
    let all = (0..SESSIONS).map(|n| {
        let mut reader = Reader::new(address, progress.clone());
        async move { reader.converse(&format!("round {round}, {n}"), n).await }
    });
    join_all(all).await
}

#[tokio::test]
async fn a_killed_gateway_loses_no_turn_and_doubles_none() {
    let (folder, kept) = (model(), tempfile::tempdir().expect("a folder"));
    let model = folder.path().to_str().expect("a plain path");
    let (stage, shard_address) = shard(model, 0, 1).await;
    // Nobody else asks for ports of 127.0.0.2, so it is free whenever its gateway is dead.
    let free = std::net::TcpListener::bind("127.0.0.2:0").expect("a free port");
    let address = free.local_addr().expect("an address").to_string();
    drop(free);
    let mut door = gateway(model, &shard_address, &address, kept.path());
    door.announced("grpc").await;
    talk::ready(&address).await;
    let progress = watch::Sender::new(0);
    let undisturbed = conversations(&address, 0, &progress).await;

    let kills = std::env::var("ASTERISM_KILLS").map_or(KILLS, |kills| kills.parse().expect("a number"));
    let (mut killed, mut round) = (0, 0);
    while killed < kills {
        round += 1;
        let mut seen = progress.subscribe();
        let all = conversations(&address, round, &progress);
        let mut all = std::pin::pin!(all);
        let mut step = 0;
        let disturbed = loop {
            // After other numbers of tokens each time.
            let target = *seen.borrow_and_update() + u64::from((7 * killed + 13 * step) % 61);
            step += 1;
            tokio::select! {
                done = &mut all => break done,
                reached = seen.wait_for(|count| *count >= target), if killed < kills => {
                    reached.expect("readers live");
                }
            }
            killed += 1;
            door.killed().await;
            door = gateway(model, &shard_address, &address, kept.path());
            door.announced("grpc").await;
        };
        let mut reader = Reader::new(&address, progress.clone());
        for ((id, answers), (_, expected)) in disturbed.iter().zip(&undisturbed) {
            assert_eq!(answers, expected, "after {killed} kills");
            let stored = reader.stored(id).await;
            let told: Vec<_> = answers.iter().map(|answer| answer.0.clone()).collect();
            assert_eq!(stored, told, "every turn once");
        }
        println!("{killed} kills: {SESSIONS} conversations of {TURNS} turns, all the same");
    }
    door.stopped().await;
    stage.stopped().await;
}
