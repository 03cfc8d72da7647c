//! Running the binary: to its end, or as a service until the test is over.

use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::task::JoinHandle;

/// Bounds every wait, so that a hang is a failure; nothing depends on how long it is.
const PATIENCE: Duration = Duration::from_secs(120);

/// The binary with these arguments and without the configuration of whoever runs the tests.
pub fn asterism(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_asterism"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("ASTERISM_") && name != "ASTERISM_CACHE" {
            command.env_remove(name);
        }
    }
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// Waits for the end, with `input` on standard input.
pub async fn output_with(mut command: Command, input: &str) -> Output {
    let mut child = command.stdin(Stdio::piped()).spawn().expect("the binary starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(input.as_bytes()).await.expect("the input is taken");
    drop(stdin);
    bounded(child.wait_with_output()).await.expect("the output can be read")
}

/// Waits for an end in failure and returns what was said on standard error.
#[track_caller]
pub fn failure(output: &Output) -> String {
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "a plain failure: {error}");
    assert!(!error.contains("panicked"), "{error}");
    error
}

/// The result of `future`, which must come.
pub async fn bounded<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future).await.expect("it ends within two minutes")
}

/// A process that serves. Killed when dropped.
pub struct Service {
    child: Child,
    stdout: Lines<BufReader<ChildStdout>>,
    stderr: JoinHandle<String>,
}

impl Service {
    /// Starts it.
    pub fn start(arguments: &[&str]) -> Self {
        let mut child = asterism(arguments).spawn().expect("the binary starts");
        let stdout = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let mut pipe = child.stderr.take().expect("a pipe");
        let stderr = tokio::spawn(async move {
            let mut text = String::new();
            // What cannot be read any more is not needed either.
            let _ = pipe.read_to_string(&mut text).await;
            text
        });
        Self { child, stdout, stderr }
    }

    /// The rest of the next line of standard output that begins with `name`: an address that the service announces.
    pub async fn announced(&mut self, name: &str) -> String {
        let found = bounded(async {
            while let Some(line) = self.stdout.next_line().await.expect("standard output is text") {
                if let Some(rest) = line.trim().strip_prefix(name) {
                    return Some(rest.trim().to_owned());
                }
            }
            None
        });
        match found.await {
            Some(rest) => rest,
            None => panic!("ended without telling its {name} address: {}", self.ended().await.1),
        }
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        let id = self.child.id().expect("it runs").to_string();
        let kill = std::process::Command::new("kill").args(["-TERM", &id]).status().expect("kill runs");
        assert!(kill.success());
    }

    /// Kills it (SIGKILL), and waits until it is gone.
    pub async fn killed(mut self) {
        bounded(self.child.kill()).await.expect("it can be killed");
    }

    /// Waits for its end: the exit code, and what it said on standard error.
    pub async fn ended(&mut self) -> (Option<i32>, String) {
        let status = bounded(self.child.wait()).await.expect("it can be waited for");
        (status.code(), bounded(&mut self.stderr).await.expect("standard error was read"))
    }

    /// Asks it to end, and expects it to do so in order.
    pub async fn stopped(mut self) {
        self.terminate();
        let (code, log) = self.ended().await;
        assert_eq!(code, Some(0), "{log}");
    }
}
