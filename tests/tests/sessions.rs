//! A session that outgrows the positions at which its rope changes.

#![allow(clippy::expect_used, clippy::panic, reason = "a test that cannot go on should stop and say where")]

use asterism_proto::v1::sessions_client::SessionsClient;
use asterism_proto::v1::turn_event::Event;
use asterism_proto::v1::{
    AppendTurnRequest, CreateSessionRequest, ExportSessionRequest, GenerateRequest, Message, Stopping,
};
use asterism_tests::answer::greedy;
use asterism_tests::cluster::{Cluster, Setup};
use asterism_tests::golden::root;
use asterism_tests::speaking::speaking;
use serde_json::Value;
use tonic::transport::Channel;

/// No id of an answer.
const END: u32 = 511;
const ANSWER: u32 = 40;

struct Session {
    client: SessionsClient<Channel>,
    id: String,
}

impl Session {
    async fn create(cluster: &Cluster) -> Self {
        let address = format!("http://{}", cluster.gateway().grpc_address);
        let mut client = SessionsClient::connect(address).await.expect("the gateway listens");
        let created = client.create(CreateSessionRequest::default()).await.expect("a session");
        Self { client, id: created.into_inner().session_id }
    }

    /// Says so many bytes; the answer's ids, and how many tokens its prompt had and were cached.
    async fn says(&mut self, bytes: usize) -> (Vec<u32>, u32, u32) {
        let content = "the rope turns on ".chars().cycle().take(bytes).collect();
        let request = AppendTurnRequest {
            session_id: self.id.clone(),
            messages: vec![Message { role: "user".to_owned(), content }],
            stopping: Some(Stopping { max_tokens: Some(ANSWER), ignore_eos: true, ..Stopping::default() }),
            ..AppendTurnRequest::default()
        };
        let mut stream = self.client.append_turn(request).await.expect("it is accepted").into_inner();
        let mut ids = Vec::new();
        while let Some(message) = stream.message().await.expect("an answer") {
            match message.event {
                Some(Event::Delta(delta)) => ids.extend(delta.token_ids),
                Some(Event::Finished(turn)) => {
                    let usage = turn.finished.and_then(|finished| finished.usage).expect("counts");
                    return (ids, usage.prompt_tokens, usage.cached_tokens);
                }
                _ => {}
            }
        }
        panic!("the answer has no end")
    }

    /// The prompt of its last turn.
    async fn prompt(&mut self) -> Vec<u32> {
        let request = ExportSessionRequest { session_id: self.id.clone() };
        let mut lines = self.client.export(request).await.expect("it is exported").into_inner();
        let mut last = Value::Null;
        while let Some(line) = lines.message().await.expect("a line") {
            last = serde_json::from_str(&line.line).expect("JSON");
        }
        serde_json::from_value(last["prompt_ids"].clone()).expect("ids")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_crosses_4096_is_computed_anew_and_goes_on_right() {
    let folder = speaking(&root(), END);
    let setup = Setup { max_context: Some(8300), max_rows: 512, ..Setup::new(folder.path(), 1) };
    let cluster = Cluster::start(setup).await;
    let mut session = Session::create(&cluster).await;
    let mut before = 0;
    for (bytes, crosses) in [(3000, false), (60, false), (1200, true), (60, false)] {
        let (ids, prompt_tokens, cached) = session.says(bytes).await;
        let prompt = session.prompt().await;
        assert_eq!(prompt.len(), prompt_tokens as usize);
        let cold =
            GenerateRequest { bypass_cache: true, ..greedy(&format!("cold {before}"), &prompt, ANSWER) };
        assert_eq!(ids, cluster.generate(cold).await.expect("an answer").ids, "after {prompt_tokens} tokens");
        println!("{prompt_tokens} tokens, {cached} cached");
        assert_eq!(prompt_tokens > 4096 && before <= 4096, crosses);
        if before == 0 || crosses {
            assert_eq!(cached, 0, "all {prompt_tokens} tokens are computed");
        } else {
            assert!(cached > before - 16, "{cached} of the {before} tokens of the turn before are cached");
        }
        before = prompt_tokens;
    }
}
