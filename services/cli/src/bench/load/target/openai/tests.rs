//! Servers that are not ours, as their answers look on the wire.

use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;

use super::super::{Answer, Message, Meter, Usage};
use super::*;
use crate::bench::load::dialogue::Form;
use crate::bench::load::terms::Terms;

/// What a served connection is sent: a head and the pieces of a body, flushed one by one.
#[derive(Clone)]
struct Canned {
    head: &'static str,
    body: Vec<String>,
}

const EVENTS: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";

/// A server that answers everything alike, and the bodies that it was sent.
async fn serve(canned: Canned) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let bodies = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&bodies);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let body = request(&mut stream).await;
            kept.lock().await.push(body);
            stream.write_all(canned.head.as_bytes()).await.expect("written");
            for piece in &canned.body {
                stream.write_all(piece.as_bytes()).await.expect("written");
                stream.flush().await.expect("flushed");
            }
        }
    });
    (url, bodies)
}

/// Reads a whole request; its head and body.
async fn request(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
            if body.len() >= length.unwrap_or(0) {
                return text;
            }
        }
        assert_ne!(stream.read_buf(&mut bytes).await.expect("read"), 0, "a whole request");
    }
}

fn plan(url: &str) -> TargetPlan {
    TargetPlan {
        url: url.to_owned(),
        model: Some("some-model".to_owned()),
        form: Form::Chat,
        api_key: Some("a-key".to_owned()),
        vocab: None,
        extra: serde_json::from_str(r#"{"top_k": 5, "ignore_eos": null}"#).unwrap(),
        temperature: Some(0.5),
        stop_at_eos: false,
        terms: Terms::default(),
        most_at_once: 1,
    }
}

fn chat() -> Request {
    let prompt = Prompt::Chat(vec![Message { role: "user", content: "hi".to_owned() }]);
    Request { prompt, max_tokens: 8, turn: 1, wanted: 1, repeated: 0 }
}

async fn ask(head: &'static str, body: &[&str]) -> (Result<(), Failed>, Answer) {
    let body = body.iter().map(|piece| (*piece).to_owned()).collect();
    let (url, _) = serve(Canned { head, body }).await;
    let server = Server::open(&plan(&url)).await.expect("a server");
    let meter = Meter::default();
    let mut listener = Listener::new(&meter);
    let result = server.ask(chat(), &mut listener).await;
    (result, listener.answer())
}

/// (text, messages with tokens, counts)
async fn heard(body: &[&str]) -> (String, usize, Option<Usage>) {
    let (result, answer) = ask(EVENTS, body).await;
    result.unwrap_or_else(|failed| panic!("{failed}"));
    (answer.text, answer.pieces.len(), answer.usage)
}

#[tokio::test]
async fn vllm_begins_with_a_role_and_ends_with_usage() {
    let body = [
        "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,\"finish_reason\":null}]}\n\n",
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Hel\"},\"finish_reason\":null}]}\n\ndata: {\"choices\":[{\"index\":0,\"de",
        "lta\":{\"content\":\"lo\"},\"finish_reason\":null}]}\n\n",
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"\"},\"finish_reason\":\"length\",\"stop_reason\":null}]}\n\n",
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"total_tokens\":10,\"completion_tokens\":3,\"prompt_tokens_details\":null}}\n\n",
        "data: [DONE]\n\n",
    ];
    let usage = Usage { prompt_tokens: 7, completion_tokens: 3, cached_tokens: 0 };
    assert_eq!(heard(&body).await, ("Hello".to_owned(), 2, Some(usage)));
}

#[tokio::test]
async fn llama_cpp_sends_null_for_a_role_and_times_beside_the_usage() {
    let body = [
        "data: {\"choices\":[{\"finish_reason\":null,\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":null}}]}\n\n",
        "data: {\"choices\":[{\"finish_reason\":null,\"index\":0,\"delta\":{\"content\":\"Hi\"}}]}\n\n",
        "data: {\"choices\":[{\"finish_reason\":\"stop\",\"index\":0,\"delta\":{}}]}\n\n",
        "data: {\"choices\":[],\"usage\":{\"completion_tokens\":1,\"prompt_tokens\":4},\"timings\":{\"cache_n\":2}}\n\n",
        "data: [DONE]\n\n",
    ];
    let usage = Usage { prompt_tokens: 4, completion_tokens: 1, cached_tokens: 0 };
    assert_eq!(heard(&body).await, ("Hi".to_owned(), 1, Some(usage)));
}

#[tokio::test]
async fn completions_comments_and_other_line_ends_are_understood() {
    let body = [
        ": ping\r\n\r\ndata:{\"choices\":[{\"index\":0,\"text\":\"a\",\"finish_reason\":null}],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":1}}\r\n\r\n",
        "data:{\"choices\":[{\"index\":0,\"text\":\" b\",\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2}}\r\n\r\n",
    ];
    // A count in every object, and no [DONE].
    let usage = Usage { prompt_tokens: 3, completion_tokens: 2, cached_tokens: 0 };
    assert_eq!(heard(&body).await, ("a b".to_owned(), 2, Some(usage)));
}

#[tokio::test]
async fn reasoning_counts_as_tokens_and_is_not_said_again() {
    let body = [
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"reasoning_content\":\"hm\"}}]}\n\n",
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Yes\",\"reasoning_content\":null}}]}\n\n",
        "data: [DONE]",
    ];
    assert_eq!(heard(&body).await, ("Yes".to_owned(), 2, None));
}

async fn failed(head: &'static str, body: &[&str]) -> Failed {
    ask(head, body).await.0.expect_err("a failure")
}

#[tokio::test]
async fn failures_have_their_kinds() {
    const TOKEN: &str = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\"}}]}\n\n";
    const FULL: &str = "HTTP/1.1 429 Too Many Requests\r\nconnection: close\r\n\r\n";
    const WRONG: &str = "HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n";
    const JSON: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n";
    const CUT: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 9999\r\n\r\n";
    for (head, body, kind, named) in [
        (
            FULL,
            vec!["{\"error\":{\"message\":\"the queue is full\"}}"],
            FailureKind::Exhausted,
            "the queue is full",
        ),
        (WRONG, vec!["{\"detail\":[\"unexpected field\"]}"], FailureKind::Refused, "unexpected field"),
        (WRONG, vec!["no JSON"], FailureKind::Refused, "no JSON"),
        (JSON, vec!["{\"choices\":[]}"], FailureKind::NotUnderstood, "does not stream"),
        (EVENTS, vec![TOKEN], FailureKind::BrokenOff, "before the answer's end"),
        (
            EVENTS,
            vec![TOKEN, "data: {\"error\":{\"message\":\"out of memory\",\"code\":500}}\n\n"],
            FailureKind::Server,
            "out of memory",
        ),
        (EVENTS, vec![TOKEN, "event: error\ndata: it broke\n\n"], FailureKind::Server, "it broke"),
        (EVENTS, vec!["error: {\"code\":503,\"message\":\"loading\"}\n\n"], FailureKind::Server, "loading"),
        (EVENTS, vec!["data: hello\n\n"], FailureKind::NotUnderstood, "hello"),
        (CUT, vec![TOKEN], FailureKind::BrokenOff, ""),
    ] {
        let found = failed(head, &body).await;
        assert_eq!(found.kind, kind, "{body:?}: {found}");
        assert!(found.message.contains(named), "{found}");
    }
}

#[tokio::test]
async fn a_request_says_what_was_asked_for() {
    let body = vec![
        "data: {\"choices\":[{\"delta\":{\"content\":\"a\"},\"finish_reason\":\"stop\"}]}\n\n".to_owned(),
    ];
    let (url, bodies) = serve(Canned { head: EVENTS, body }).await;
    let server = Server::open(&plan(&format!("{url}/v1/"))).await.expect("a server");
    let meter = Meter::default();
    let ids = Request { prompt: Prompt::Ids(vec![5, 6]), ..chat() };
    for request in [chat(), ids] {
        server.ask(request, &mut Listener::new(&meter)).await.expect("an answer");
    }
    let bodies = bodies.lock().await;
    assert!(bodies[0].starts_with("POST /v1/chat/completions HTTP/1.1"), "{}", bodies[0]);
    assert!(bodies[0].contains("authorization: Bearer a-key"));
    let object: Value = serde_json::from_str(bodies[0].split_once("\r\n\r\n").unwrap().1).unwrap();
    let expected = json!({
        "model": "some-model", "stream": true, "stream_options": {"include_usage": true}, "temperature": 0.5,
        "top_k": 5, "max_tokens": 8, "messages": [{"role": "user", "content": "hi"}],
    });
    assert_eq!(object, expected);
    assert!(bodies[1].starts_with("POST /v1/completions HTTP/1.1") && bodies[1].contains("\"prompt\":[5,6]"));
}
