//! Gateways that are killed while sessions run: every turn that was accepted is there, none twice, and whoever resumes it gets
//! what an undisturbed reader gets.

use std::path::Path;

use asterism_proto::v1::sessions_client::SessionsClient;
use asterism_proto::v1::turn_event::Event;
use asterism_proto::v1::{
    AppendTurnRequest, CreateSessionRequest, ExportSessionRequest, Message, ResumeTurnRequest, Sampling,
    Stopping, TurnEvent,
};
use futures::future::{Either, join_all, select};
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

#[allow(dead_code, clippy::unwrap_used, reason = "others use the rest; a test fails by panicking")]
#[path = "../../../../gateway/tests/pipeline/postgres.rs"]
mod postgres;

const SESSIONS: u32 = 8;
const TURNS: u32 = 4;
/// Tokens of each answer.
const ANSWER: u32 = 24;
/// How often a gateway is killed, unless `ASTERISM_KILLS` says so: one alone, one of two.
const KILLS: [u32; 2] = [25, 6];

/// A turn as a reader gets it: ids, text, the reason of its end, the reply.
type Answer = (Vec<u32>, String, i32, String);

/// A client that is not put off by a gateway that is gone, and goes to the next then.
struct Reader {
    clients: Vec<SessionsClient<Channel>>,
    at: usize,
    /// Tokens that all readers got so far.
    progress: watch::Sender<u64>,
}

impl Reader {
    fn new(doors: &Doors, at: usize, progress: &watch::Sender<u64>) -> Self {
        let client = |door: &Door| {
            let endpoint = Endpoint::from_shared(format!("http://{}", door.address)).expect("an address");
            SessionsClient::new(endpoint.connect_lazy())
        };
        Self { clients: doors.doors.iter().map(client).collect(), at, progress: progress.clone() }
    }

    /// Tries until the gateway is there and takes it.
    async fn insist<T>(
        &mut self,
        call: impl AsyncFn(&mut SessionsClient<Channel>) -> Result<T, Status>,
    ) -> T {
        bounded(async {
            loop {
                let clients = self.clients.len();
                match call(&mut self.clients[self.at % clients]).await {
                    Ok(done) => return done,
                    Err(status) if is_passing(&status) => {
                        self.at += 1;
                        tokio::task::yield_now().await;
                    }
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
pub fn model() -> tempfile::TempDir {
    let folder = toy::folder();
    let tiny = Golden::tiny();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(tiny.model.join(name), folder.path().join(name)).expect("a copy");
    }
    folder
}

/// Gateways that share what they keep, each with a shard of its own.
pub struct Doors {
    model: String,
    sessions: String,
    doors: Vec<Door>,
}

struct Door {
    /// `None`: it is being killed.
    gateway: Option<Service>,
    address: String,
    stage: Service,
    shard: String,
}

impl Doors {
    /// Starts them, and waits until each can answer.
    pub async fn open(count: usize, model: &Path, sessions: &str) -> Self {
        let model = model.to_str().expect("a plain path").to_owned();
        let mut all = Self { model, sessions: sessions.to_owned(), doors: Vec::new() };
        for door in 0..count {
            let (stage, shard) = shard(&all.model, 0, 1).await;
            // Nobody else asks for ports of 127.0.0.2, so it is free whenever its gateway is dead.
            let free = std::net::TcpListener::bind("127.0.0.2:0").expect("a free port");
            let address = free.local_addr().expect("an address").to_string();
            drop(free);
            all.doors.push(Door { gateway: None, address, stage, shard });
            all.start(door).await;
            talk::ready(&all.doors[door].address).await;
        }
        all
    }

    async fn start(&mut self, door: usize) {
        let Door { gateway, address, shard, .. } = &mut self.doors[door];
        let arguments = ["gateway", "--model", &self.model, "--shards", shard, "--sessions", &self.sessions];
        // The killed one held the pipeline a moment ago.
        let listen = ["--take-over", "--listen", address, "--http-listen", "127.0.0.2:0"];
        let started = gateway.insert(Service::start(&[&arguments[..], &listen].concat()));
        started.announced("grpc").await;
    }

    /// Where one listens.
    pub fn address(&self, door: usize) -> &str {
        &self.doors[door].address
    }

    /// Kills one, and starts it again.
    pub async fn kill(&mut self, door: usize) {
        let gateway = self.doors[door].gateway.take().expect("it runs");
        gateway.killed().await;
        self.start(door).await;
    }

    /// Ends all in order.
    pub async fn stopped(self) {
        for Door { gateway, stage, .. } in self.doors {
            gateway.expect("it runs").stopped().await;
            stage.stopped().await;
        }
    }

    /// All conversations at once, some at each.
    fn conversations(
        &self,
        round: u32,
        progress: &watch::Sender<u64>,
    ) -> impl Future<Output = Vec<(String, Vec<Answer>)>> + use<> {
        join_all((0..SESSIONS).map(|n| {
            let mut reader = Reader::new(self, n as usize, progress);
            async move { reader.converse(&format!("round {round}, {n}"), n).await }
        }))
    }

    /// Kills one after the other while conversations go on, so often, and compares them with undisturbed ones.
    async fn survive(&mut self, kills: u32) {
        let progress = watch::Sender::new(0);
        let undisturbed = self.conversations(0, &progress).await;
        let kills = std::env::var("ASTERISM_KILLS").map_or(kills, |kills| kills.parse().expect("a number"));
        let (mut killed, mut round) = (0, 0);
        while killed < kills {
            round += 1;
            let mut seen = progress.subscribe();
            let mut all = std::pin::pin!(self.conversations(round, &progress));
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
                // The conversations go on meanwhile, where there is another.
                let door = (killed * killed / 3) as usize % self.doors.len();
                let kill = std::pin::pin!(self.kill(door));
                match select(all.as_mut(), kill).await {
                    Either::Left((done, kill)) => {
                        kill.await;
                        break done;
                    }
                    Either::Right(_) => {}
                }
            };
            let mut reader = Reader::new(self, round as usize, &progress);
            for ((id, answers), (_, expected)) in disturbed.iter().zip(&undisturbed) {
                assert_eq!(answers, expected, "after {killed} kills");
                let stored = reader.stored(id).await;
                let told: Vec<_> = answers.iter().map(|answer| answer.0.clone()).collect();
                assert_eq!(stored, told, "every turn once");
            }
            println!("{killed} kills: {SESSIONS} conversations of {TURNS} turns, all the same");
        }
    }
}

#[tokio::test]
async fn a_killed_gateway_loses_no_turn_and_doubles_none() {
    let (model, kept) = (model(), tempfile::tempdir().expect("a folder"));
    let mut door = Doors::open(1, model.path(), kept.path().to_str().expect("a plain path")).await;
    door.survive(KILLS[0]).await;
    door.stopped().await;
}

#[tokio::test]
async fn of_two_gateways_the_other_goes_on() {
    let Some(server) = postgres::Server::shared() else { return };
    let model = model();
    // A lease that is soon over, as turns wait for it.
    let database = format!("{}?options=-c%20asterism.lease%3D1s", server.database());
    let mut doors = Doors::open(2, model.path(), &database).await;
    doors.survive(KILLS[1]).await;
    doors.stopped().await;
}
