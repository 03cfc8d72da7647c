//! `asterism chat` as its users have it: over a pipe, and in a terminal.

use std::path::Path;
use std::process::Stdio;

use rexpect::session::{Options, PtySession, spawn_with_options};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::command::{Service, asterism, bounded, output_with};
use super::sessions::{Doors, model};
use super::talk;

/// Long enough that it is not over when it is looked at.
const LONG: &str = "1500";

/// What is said over a pipe while `meanwhile` happens, which gets the first bytes of the answer.
async fn piped(address: &str, line: &str, meanwhile: impl AsyncFnOnce(&[u8])) -> Vec<u8> {
    let arguments = ["chat", "--address", address, "--temperature", "0", "--max-tokens", LONG];
    let mut child = asterism(&arguments).stdin(Stdio::piped()).spawn().expect("the binary starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(line.as_bytes()).await.expect("the input is taken");
    drop(stdin);
    let mut stdout = child.stdout.take().expect("a pipe");
    let mut answer = vec![0; 64];
    let read = bounded(stdout.read(&mut answer)).await.expect("an answer begins");
    answer.truncate(read);
    meanwhile(&answer).await;
    bounded(stdout.read_to_end(&mut answer)).await.expect("it ends");
    let output = bounded(child.wait_with_output()).await.expect("it ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    answer
}

#[tokio::test]
async fn an_answer_goes_on_after_its_gateway_is_killed() {
    let (model, kept) = (model(), tempfile::tempdir().expect("a folder"));
    let mut doors = Doors::open(1, model.path(), kept.path().to_str().expect("a plain path")).await;
    let address = doors.address(0).to_owned();
    let undisturbed = piped(&address, "hello\n", async |_| {}).await;

    let disturbed = piped(&address, "hello\n", async |begun| {
        assert!(begun.len() < undisturbed.len(), "the answer is not over");
        doors.kill(0).await;
    });
    assert_eq!(String::from_utf8_lossy(&disturbed.await), String::from_utf8_lossy(&undisturbed));

    let list = asterism(&["chat", "--address", &address, "--list"]);
    let list = output_with(list, "").await;
    assert_eq!(String::from_utf8_lossy(&list.stdout), "", "what was said over a pipe is forgotten");
    doors.stopped().await;
}

/// What a terminal is told when a line is to be read (that pasted text be marked), and when it was.
const READS: &str = "\x1b[?2004h";
const ENDS_READING: &str = "\x1b[?2004l";

/// A chat in a terminal of its own.
struct Terminal(PtySession);

impl Terminal {
    fn open(address: &str, more: &[&str]) -> Self {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_asterism"));
        command.args(["chat", "--address", address, "--temperature", "0"]).args(more);
        command.env("TERM", "xterm").env_remove("ASTERISM_TENANT");
        let options = Options::new().timeout_ms(Some(120_000));
        Self(spawn_with_options(command, options).expect("a terminal"))
    }

    /// Says a line at the next prompt, and waits for a text after it; what came before that.
    fn say(&mut self, line: &str, then: &str) -> String {
        self.type_line(line);
        self.see(then)
    }

    fn type_line(&mut self, line: &str) {
        self.see(READS);
        self.0.send_line(line).expect("it is taken");
    }

    fn see(&mut self, text: &str) -> String {
        self.0.exp_string(text).expect("it is shown")
    }

    fn leave(mut self) {
        self.type_line("/quit");
        self.0.exp_eof().expect("it ends");
    }
}

#[tokio::test]
async fn a_terminal_lists_opens_forks_undoes_and_stops() {
    let (folder, kept) = (model(), tempfile::tempdir().expect("a folder"));
    let (model, kept) = (folder.path().to_str().expect("a path"), Path::to_str(kept.path()).expect("a path"));
    let listen = ["--threads", "1", "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"];
    let mut up = Service::start(
        &[&["up", "--model", model, "--shards", "1", "--sessions", kept][..], &listen].concat(),
    );
    let address = up.announced("grpc").await;
    talk::ready(&address).await;
    let talked = tokio::task::spawn_blocking(move || {
        let mut chat = Terminal::open(&address, &["--max-tokens", "8"]);
        chat.see("/help lists");
        chat.say("/list", "keeps no conversation");
        chat.say("/undo", "error: nothing was said yet");
        chat.say("/lost", "error: there is no /lost");
        chat.say("first words", "[8 tokens in");
        chat.say("second words", "[8 tokens in");
        chat.say("/list", "2 turns  first words");
        chat.say("/undo", "[1 turns are left]");
        chat.say("/fork", "[a copy of 1 turns");
        chat.say("other words", "[8 tokens in");
        let history = chat.say("/history", "> other words");
        assert!(history.contains("> first words") && !history.contains("second"), "{history}");
        chat.type_line("/new");
        chat.leave();

        let mut chat = Terminal::open(&address, &["--open", "2", "--max-tokens", "3000"]);
        chat.see("> first words");
        // Behind the line that was typed the terminal is as it was, and then an answer begins.
        chat.say("and on", ENDS_READING);
        chat.0.exp_regex("\n.").expect("an answer begins");
        chat.0.send_control('c').expect("it is taken");
        chat.see("stopped]");
        chat.say("/delete", "[forgotten]");
        chat.say("/list", "2 turns  first words");
        chat.leave();
    });
    talked.await.expect("no failure");
    up.stopped().await;
}
