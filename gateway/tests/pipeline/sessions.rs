//! Sessions: turns that follow each other, readers that leave and come again, and what is refused.

use asterism_proto::v1::sessions_client::SessionsClient;
use asterism_proto::v1::turn_event::Event;
use asterism_proto::v1::{self, FinishReason};
use asterism_proto::{Failure, Reason};
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};

use crate::sandbox::{Sandbox, shards};
use crate::toy;

pub type Client = SessionsClient<Channel>;

/// A whole answer, or the rest of one.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    pub started: v1::TurnStarted,
    pub ids: Vec<u32>,
    pub text: String,
    pub finished: v1::TurnFinished,
}

pub async fn client(sandbox: &Sandbox) -> Client {
    SessionsClient::connect(format!("http://{}", sandbox.gateway.grpc_address)).await.unwrap()
}

pub async fn create(client: &mut Client, settings: v1::SessionSettings) -> v1::Session {
    let settings = Some(settings);
    let request = v1::CreateSessionRequest { settings, ..Default::default() };
    client.create(request).await.unwrap().into_inner()
}

/// A greedy turn of `max_tokens` tokens.
pub fn says(session: &v1::Session, content: &str, max_tokens: u32) -> v1::AppendTurnRequest {
    v1::AppendTurnRequest {
        session_id: session.session_id.clone(),
        messages: vec![v1::Message { role: "user".to_owned(), content: content.to_owned() }],
        stopping: Some(v1::Stopping { max_tokens: Some(max_tokens), ignore_eos: true, ..Default::default() }),
        ..Default::default()
    }
}

pub async fn append(client: &mut Client, request: v1::AppendTurnRequest) -> Result<Told, Status> {
    read(client.append_turn(request).await?.into_inner()).await
}

pub async fn resume(
    client: &mut Client,
    session: &v1::Session,
    turn: Option<u32>,
    from: u32,
) -> Result<Told, Status> {
    let session_id = session.session_id.clone();
    let request = v1::ResumeTurnRequest { session_id, turn, from_token_index: from };
    read(client.resume_turn(request).await?.into_inner()).await
}

pub async fn get(client: &mut Client, session: &v1::Session) -> Result<v1::Session, Status> {
    let session_id = session.session_id.clone();
    Ok(client.get(v1::GetSessionRequest { session_id }).await?.into_inner())
}

async fn event(stream: &mut Streaming<v1::TurnEvent>) -> Result<Option<Event>, Status> {
    Ok(stream.message().await?.and_then(|response| response.event))
}

pub async fn started(stream: &mut Streaming<v1::TurnEvent>) -> v1::TurnStarted {
    match event(stream).await.unwrap() {
        Some(Event::Started(started)) => started,
        other => panic!("{other:?} is no start"),
    }
}

pub async fn read(mut stream: Streaming<v1::TurnEvent>) -> Result<Told, Status> {
    let started = started(&mut stream).await;
    rest(started, stream).await
}

async fn rest(started: v1::TurnStarted, mut stream: Streaming<v1::TurnEvent>) -> Result<Told, Status> {
    let (mut ids, mut text) = (Vec::new(), String::new());
    loop {
        match event(&mut stream).await? {
            Some(Event::Delta(delta)) => {
                ids.extend(delta.token_ids);
                text.push_str(&delta.text);
            }
            Some(Event::Finished(finished)) => {
                assert!(stream.message().await?.is_none(), "something after the end");
                return Ok(Told { started, ids, text, finished });
            }
            other => panic!("{other:?}"),
        }
    }
}

pub fn bytes(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

fn response(told: &Told) -> &str {
    &told.finished.finished.as_ref().unwrap().response
}

#[tokio::test]
async fn a_turn_goes_on_from_all_before() {
    let sandbox = Sandbox::new(2).await;
    let mut client = client(&sandbox).await;
    let session = create(&mut client, v1::SessionSettings::default()).await;
    let first = append(&mut client, says(&session, "hi", 6)).await.unwrap();
    let prompt = "[user]hi[assistant]";
    assert_eq!(first.ids, toy::greedy(&bytes(prompt), 6));
    assert_eq!((first.started.turn, first.started.prompt_tokens), (0, prompt.len() as u32));
    assert_eq!(first.finished.finished.as_ref().unwrap().reason(), FinishReason::Length);

    let second = append(&mut client, says(&session, "more", 5)).await.unwrap();
    let prompt = format!("{prompt}{}[user]more[assistant]", response(&first));
    assert_eq!(second.ids, toy::greedy(&bytes(&prompt), 5), "the answer before is in the prompt, as text");
    assert_eq!(second.started.turn, 1);
    // Ids of the toy model mostly have no text of their own: what differs first is told.
    let before = [bytes("[user]hi[assistant]"), first.ids.clone()].concat();
    let differs = before.iter().zip(bytes(&prompt)).position(|(before, now)| *before != now);
    assert_eq!(second.started.history_differs_at, differs.map(|at| at as u32));
    let session = get(&mut client, &session).await.unwrap();
    assert_eq!((session.turns, session.running_turn), (2, None));
    assert_eq!(session.etag, second.finished.etag);
    sandbox.assert_clean().await;
}

#[tokio::test]
async fn exact_histories_go_on_from_the_ids_that_were_drawn() {
    let sandbox = Sandbox::new(1).await;
    let mut client = client(&sandbox).await;
    let settings = v1::SessionSettings {
        history_tokens: v1::HistoryTokens::Exact.into(),
        ..v1::SessionSettings::default()
    };
    let session = create(&mut client, settings).await;
    let first = append(&mut client, says(&session, "hi", 6)).await.unwrap();
    let second = append(&mut client, says(&session, "more", 5)).await.unwrap();
    let prompt = [bytes("[user]hi[assistant]"), first.ids, bytes("[user]more[assistant]")].concat();
    assert_eq!(second.ids, toy::greedy(&prompt, 5));
    assert_eq!(second.started.history_differs_at, None);
    sandbox.assert_clean().await;
}

#[tokio::test]
async fn a_reader_that_leaves_comes_again_at_any_token() {
    let sandbox = Sandbox::new(2).await;
    let mut client = client(&sandbox).await;
    let session = create(&mut client, v1::SessionSettings::default()).await;
    sandbox.shards[1].control.send_modify(|control| control.pause_after = Some(4));
    let mut stream = client.append_turn(says(&session, "hi", 20)).await.unwrap().into_inner();
    started(&mut stream).await;
    sandbox.shards[1].until(|seen| seen.steps == 5).await;
    drop(stream);
    let running = get(&mut client, &session).await.unwrap();
    assert_eq!((running.turns, running.running_turn), (1, Some(0)));
    let session_id = session.session_id.clone();
    let request = v1::ResumeTurnRequest { session_id, turn: None, from_token_index: 3 };
    let again = client.resume_turn(request).await.unwrap().into_inner();
    sandbox.shards[1].control.send_modify(|control| control.pause_after = None);
    let expected = toy::greedy(&bytes("[user]hi[assistant]"), 20);
    let told = read(again).await.unwrap();
    assert_eq!((told.started.from_token_index, &told.ids[..]), (3, &expected[3..]));

    // The turn has ended; the same is told from what is stored.
    let whole = resume(&mut client, &session, Some(0), 0).await.unwrap();
    assert_eq!(whole.ids, expected);
    assert!(whole.text.ends_with(&told.text), "{:?} and {:?}", whole.text, told.text);
    for from in 0..=20 {
        let part = resume(&mut client, &session, None, from).await.unwrap();
        assert_eq!((&part.ids[..], &part.finished), (&expected[from as usize..], &told.finished));
    }
    let beyond = resume(&mut client, &session, None, 21).await.unwrap_err();
    assert_eq!(Failure::from(beyond).field.as_deref(), Some("from_token_index"));
    sandbox.assert_clean().await;
}

#[tokio::test]
async fn a_stopped_turn_keeps_what_it_had() {
    let sandbox = Sandbox::new(2).await;
    let mut client = client(&sandbox).await;
    let session = create(&mut client, v1::SessionSettings::default()).await;
    sandbox.shards[1].control.send_modify(|control| control.pause_after = Some(4));
    let stream = client.append_turn(says(&session, "hi", 20)).await.unwrap().into_inner();
    sandbox.shards[1].until(|seen| seen.steps == 5).await;
    let stop = v1::StopTurnRequest { session_id: session.session_id.clone(), turn: None };
    assert!(client.stop_turn(stop.clone()).await.unwrap().into_inner().stopped);
    let told = read(stream).await.unwrap();
    let expected = toy::greedy(&bytes("[user]hi[assistant]"), 20);
    assert_eq!(told.ids, expected[..told.ids.len()]);
    assert!(told.ids.len() < 20);
    let finished = told.finished.finished.as_ref().unwrap();
    assert_eq!((finished.reason(), told.finished.failure.as_str()), (FinishReason::Aborted, ""));
    assert!(!client.stop_turn(stop).await.unwrap().into_inner().stopped, "it had ended");
    let again = resume(&mut client, &session, None, 0).await.unwrap();
    assert_eq!((again.ids, again.text, again.finished), (told.ids, told.text, told.finished));
    sandbox.shards[1].control.send_modify(|control| control.pause_after = None);
    sandbox.assert_clean().await;
}

#[tokio::test]
async fn one_turn_at_a_time() {
    let sandbox = Sandbox::new(1).await;
    let mut client = client(&sandbox).await;
    let session = create(&mut client, v1::SessionSettings::default()).await;
    sandbox.shards[0].control.send_modify(|control| control.pause_after = Some(2));
    let stream = client.append_turn(says(&session, "hi", 8)).await.unwrap().into_inner();
    let etag = get(&mut client, &session).await.unwrap().etag;
    let refused = |status: Status| {
        assert_eq!(status.code(), Code::Aborted, "{status}");
        Failure::from(status).etag
    };
    let second = append(&mut client, says(&session, "me too", 8)).await.unwrap_err();
    assert_eq!(refused(second), Some(etag.clone()));
    let session_id = session.session_id.clone();
    let delete = v1::DeleteSessionRequest { session_id: session_id.clone(), etag: String::new() };
    assert_eq!(refused(client.delete(delete).await.unwrap_err()), Some(etag.clone()));
    let truncate = v1::TruncateSessionRequest { session_id, etag: String::new(), turns: 0 };
    assert_eq!(refused(client.truncate(truncate).await.unwrap_err()), Some(etag.clone()));
    sandbox.shards[0].control.send_modify(|control| control.pause_after = None);
    let told = read(stream).await.unwrap();
    assert_eq!(told.ids.len(), 8);

    let stale = v1::AppendTurnRequest { etag, ..says(&session, "late", 8) };
    assert_eq!(refused(append(&mut client, stale).await.unwrap_err()), Some(told.finished.etag.clone()));
    let to_come = (told.finished.etag.parse::<u64>().unwrap() + 1).to_string();
    let early = v1::AppendTurnRequest { etag: to_come, ..says(&session, "early", 8) };
    assert_eq!(refused(append(&mut client, early).await.unwrap_err()), Some(told.finished.etag.clone()));
    let fresh = v1::AppendTurnRequest { etag: told.finished.etag, ..says(&session, "in time", 8) };
    append(&mut client, fresh).await.unwrap();
    assert_eq!(get(&mut client, &session).await.unwrap().turns, 2);
    sandbox.assert_clean().await;
}

#[tokio::test]
async fn trying_again_with_the_same_key_does_nothing_twice() {
    let sandbox = Sandbox::new(1).await;
    let mut client = client(&sandbox).await;
    let made = v1::CreateSessionRequest { idempotency_key: "s".to_owned(), ..Default::default() };
    let session = client.create(made.clone()).await.unwrap().into_inner();
    assert_eq!(client.create(made.clone()).await.unwrap().into_inner(), session);
    let other = v1::CreateSessionRequest { title: "another".to_owned(), ..made };
    let reused = Failure::from(client.create(other).await.unwrap_err());
    assert_eq!((reused.reason, reused.field.as_deref()), (Reason::Conflict, Some("idempotency_key")));

    let said = v1::AppendTurnRequest { idempotency_key: "t".to_owned(), ..says(&session, "hi", 8) };
    sandbox.shards[0].control.send_modify(|control| control.pause_after = Some(2));
    let first = client.append_turn(said.clone()).await.unwrap().into_inner();
    let second = client.append_turn(said.clone()).await.unwrap().into_inner();
    sandbox.shards[0].control.send_modify(|control| control.pause_after = None);
    let told = read(first).await.unwrap();
    assert_eq!(read(second).await.unwrap(), told, "while it runs");
    assert_eq!(append(&mut client, said).await.unwrap(), told, "when it has ended");
    assert_eq!(get(&mut client, &session).await.unwrap().turns, 1);
    sandbox.assert_clean().await;
}

#[tokio::test]
async fn forks_share_their_past_and_go_their_own_way() {
    let sandbox = Sandbox::new(1).await;
    let mut client = client(&sandbox).await;
    let session = create(&mut client, v1::SessionSettings::default()).await;
    let first = append(&mut client, says(&session, "hi", 6)).await.unwrap();
    append(&mut client, says(&session, "more", 6)).await.unwrap();
    let session_id = session.session_id.clone();
    let fork =
        v1::ForkSessionRequest { session_id: session_id.clone(), turns: Some(1), ..Default::default() };
    let fork = client.fork(fork).await.unwrap().into_inner();
    assert_eq!((fork.turns, &fork.forked_from), (1, &session_id));
    let other = append(&mut client, says(&fork, "less", 6)).await.unwrap();
    let prompt = format!("[user]hi[assistant]{}[user]less[assistant]", response(&first));
    assert_eq!(other.ids, toy::greedy(&bytes(&prompt), 6));

    let truncate =
        v1::TruncateSessionRequest { session_id: session_id.clone(), etag: String::new(), turns: 1 };
    assert_eq!(client.truncate(truncate).await.unwrap().into_inner().turns, 1);
    let delete = v1::DeleteSessionRequest { session_id, etag: String::new() };
    client.delete(delete).await.unwrap();
    assert_eq!(get(&mut client, &session).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(resume(&mut client, &fork, Some(0), 0).await.unwrap().ids, first.ids, "it keeps its past");

    let export = v1::ExportSessionRequest { session_id: fork.session_id.clone() };
    let mut lines = client.export(export).await.unwrap().into_inner();
    let mut all = Vec::new();
    while let Some(line) = lines.message().await.unwrap() {
        all.push(serde_json::from_str::<serde_json::Value>(&line.line).unwrap());
    }
    assert_eq!((all.len(), &all[0]["session_id"]), (3, &serde_json::json!(fork.session_id)));
    assert_eq!(all[0]["forked_from"], serde_json::json!(session.session_id));
    assert_eq!(all[1]["answer"]["token_ids"], serde_json::json!(first.ids));
    assert_eq!(all[2]["messages"][0]["content"], "less");
    sandbox.assert_clean().await;
}

#[tokio::test]
async fn sessions_are_listed_by_page_and_only_for_their_tenant() {
    let shards = shards(1, |_| {}).await;
    let sandbox = Sandbox::with(shards, |config| config.tenants = vec!["a=1".parse().unwrap()]).await;
    let mut client = client(&sandbox).await;
    let mut made = Vec::new();
    for _ in 0..5 {
        made.insert(0, create(&mut client, v1::SessionSettings::default()).await.session_id);
    }
    let (mut listed, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = v1::ListSessionsRequest { page_size: Some(2), page_token };
        let page = client.list(request).await.unwrap().into_inner();
        assert!(page.sessions.len() <= 2);
        listed.extend(page.sessions.into_iter().map(|session| session.session_id));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(listed, made);

    let as_a = |message| {
        let mut request = Request::new(message);
        request.metadata_mut().insert("x-asterism-tenant", "a".parse().unwrap());
        request
    };
    let foreign = as_a(v1::GetSessionRequest { session_id: made[0].clone() });
    let unknown = as_a(v1::GetSessionRequest { session_id: "nonsense".to_owned() });
    for request in [foreign, unknown] {
        assert_eq!(client.get(request).await.unwrap_err().code(), Code::NotFound);
    }
    let mut none = Request::new(v1::ListSessionsRequest::default());
    none.metadata_mut().insert("x-asterism-tenant", "b".parse().unwrap());
    assert_eq!(client.list(none).await.unwrap_err().code(), Code::InvalidArgument);
    sandbox.assert_clean().await;
}

#[tokio::test]
async fn a_history_that_outgrows_the_context_is_refused_or_cut_as_was_said() {
    let sandbox = Sandbox::new(1).await; // Its context is 256 tokens.
    let mut client = client(&sandbox).await;
    let long = "x".repeat(70);
    let strict = create(&mut client, v1::SessionSettings::default()).await;
    for _ in 0..2 {
        append(&mut client, says(&strict, &long, 8)).await.unwrap();
    }
    let refused = Failure::from(append(&mut client, says(&strict, &long, 8)).await.unwrap_err());
    assert_eq!((refused.reason, refused.field.as_deref()), (Reason::InvalidArgument, Some("messages")));
    assert!(refused.message.contains("the context is 256"), "{}", refused.message);

    let settings = v1::SessionSettings {
        history_overflow: v1::HistoryOverflow::DropOldestTurns.into(),
        ..v1::SessionSettings::default()
    };
    let lenient = create(&mut client, settings).await;
    let mut last = String::new();
    for turn in 0..4 {
        let told = append(&mut client, says(&lenient, &long, 8)).await.unwrap();
        if turn >= 2 {
            assert_eq!(told.started.dropped_turns, turn - 1);
            let prompt = format!("[user]{long}[assistant]{last}[user]{long}[assistant]");
            assert_eq!(told.ids, toy::greedy(&bytes(&prompt), 8));
        }
        last = response(&told).to_owned();
    }
    sandbox.assert_clean().await;
}

#[tokio::test]
async fn what_is_refused_is_not_accepted() {
    let sandbox = Sandbox::new(1).await;
    let mut client = client(&sandbox).await;
    let session = create(&mut client, v1::SessionSettings::default()).await;
    let field = |status: Status| Failure::from(status).field;
    let nothing = v1::AppendTurnRequest { messages: Vec::new(), ..says(&session, "", 1) };
    assert_eq!(field(append(&mut client, nothing).await.unwrap_err()).as_deref(), Some("messages"));
    let sampling = Some(v1::Sampling { top_p: Some(3.0), ..Default::default() });
    let hot = v1::AppendTurnRequest { sampling, ..says(&session, "hi", 1) };
    assert_eq!(field(append(&mut client, hot).await.unwrap_err()).as_deref(), Some("sampling.top_p"));
    let wrong = v1::AppendTurnRequest { etag: "x".to_owned(), ..says(&session, "hi", 1) };
    assert_eq!(field(append(&mut client, wrong).await.unwrap_err()).as_deref(), Some("etag"));
    let urgent = v1::AppendTurnRequest { priority: Some(101), ..says(&session, "hi", 1) };
    assert_eq!(field(append(&mut client, urgent).await.unwrap_err()).as_deref(), Some("priority"));
    let list = v1::ListSessionsRequest { page_size: Some(0), ..Default::default() };
    assert_eq!(field(client.list(list).await.unwrap_err()).as_deref(), Some("page_size"));
    let unchanged = get(&mut client, &session).await.unwrap();
    assert_eq!((unchanged.turns, unchanged.etag), (0, session.etag.clone()));
    assert_eq!(resume(&mut client, &session, None, 0).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn another_checkpoint_goes_on_only_where_that_is_asked_for() {
    let mut sandbox = Sandbox::new(1).await;
    let mut client = client(&sandbox).await;
    let session = create(&mut client, v1::SessionSettings::default()).await;
    append(&mut client, says(&session, "hi", 6)).await.unwrap();
    let (mut description, address) = sandbox.shards.remove(0).kill().await;
    let mut state = sandbox.gateway.state();
    state.wait_for(|state| state.joined().is_err()).await.unwrap();
    description.checkpoint_id = "decaf".to_owned();
    sandbox.shards.push(crate::shard::FakeShard::start_at(description, address).await);
    assert!(sandbox.gateway.ready().await);
    let refused = append(&mut client, says(&session, "more", 6)).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("c0ffee") && refused.message().contains("decaf"), "{refused}");
    let asked = v1::AppendTurnRequest { accept_other_checkpoint: true, ..says(&session, "more", 6) };
    append(&mut client, asked).await.unwrap();
    append(&mut client, says(&session, "and more", 6)).await.unwrap();
    sandbox.assert_clean().await;
}

#[tokio::test]
async fn a_turn_outlives_its_pipeline() {
    let mut sandbox = Sandbox::new(2).await;
    let mut client = client(&sandbox).await;
    let session = create(&mut client, v1::SessionSettings::default()).await;
    sandbox.shards[1].control.send_modify(|control| control.pause_after = Some(4));
    let stream = client.append_turn(says(&session, "hi", 20)).await.unwrap().into_inner();
    sandbox.shards[1].until(|seen| seen.steps == 5).await;
    let (description, address) = sandbox.shards.remove(0).kill().await;
    sandbox.shards.insert(0, crate::shard::FakeShard::start_at(description, address).await);
    sandbox.shards[1].control.send_modify(|control| control.pause_after = None);
    let told = read(stream).await.unwrap();
    assert_eq!(told.ids, toy::greedy(&bytes("[user]hi[assistant]"), 20), "no gap, no repeat");
    sandbox.assert_clean().await;
}
