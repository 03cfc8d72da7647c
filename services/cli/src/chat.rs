//! `asterism chat`: a streamed conversation with a gateway, in the terminal or over a pipe.

use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use asterism_process::channel::{self, Traffic};
use asterism_proto::Failure;
use asterism_proto::v1::inference_client::InferenceClient;
use asterism_proto::v1::{
    Chat, FinishReason, Finished, GenerateRequest, Message, Sampling, Stopping, generate_request::Prompt,
    generate_response::Event,
};
use tokio::sync::mpsc;
use tonic::transport::Channel;
use tonic::{Code, Status};

/// Talk to a gateway.
///
/// In a terminal it prompts for one message after another and streams the answers; Ctrl-C stops an answer, or leaves
/// at the prompt. With piped input every line is a message of one conversation, and the end of the input is its end.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  asterism chat
  asterism chat --system 'Answer in one word.' --temperature 0.7
  printf 'Hello!\\nWhat did I just say?\\n' | asterism chat --address gpu-rack:7050

In a conversation:
  /new     forget it and begin again
  /quit    leave (so do Ctrl-D and Ctrl-C)")]
pub struct Arguments {
    /// Where the gateway listens for gRPC.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7050", env = "ASTERISM_ADDRESS")]
    address: String,
    /// A system message that the conversation begins with.
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Sample at this temperature; 0 always takes the best token (default: as the model's configuration says).
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,
    /// Make sampled answers repeatable.
    #[arg(long)]
    seed: Option<u64>,
    /// The most tokens of an answer.
    #[arg(long, value_name = "N")]
    max_tokens: Option<u32>,
}

/// Holds one conversation, to the input's end.
pub async fn run(arguments: Arguments) -> Result<ExitCode, ChatError> {
    let interactive = std::io::stdin().is_terminal();
    let mut conversation = Conversation::open(arguments).await?;
    if interactive {
        eprintln!("{} at {}. /new begins again, /quit leaves.", conversation.model, conversation.address);
    }
    let mut lines = stdin_lines(interactive);
    loop {
        let line = tokio::select! {
            line = lines.recv() => line,
            _ = tokio::signal::ctrl_c() => None,
        };
        let Some(line) = line.transpose().map_err(ChatError::Input)? else { break };
        match line.trim() {
            "" => {}
            "/quit" if interactive => break,
            "/new" if interactive => conversation.forget(),
            text => match conversation.turn(text).await {
                Ok(turn) if interactive => eprintln!("{turn}"),
                Ok(Turn { stopped: true, .. }) => return Ok(ExitCode::from(130)),
                Ok(_) => {}
                Err(error) if interactive => eprintln!("error: {error}"),
                Err(error) => return Err(error),
            },
        }
        lines.ready();
    }
    if interactive {
        // The prompt's line.
        eprintln!();
    }
    Ok(ExitCode::SUCCESS)
}

/// What ends a conversation, or one of its turns.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    /// The address is none.
    #[error(transparent)]
    Address(#[from] channel::AddressError),
    /// Nobody answers there.
    #[error("no gateway answers at {0} ({1}); `asterism up` starts one on this machine")]
    Unreachable(String, String),
    /// The gateway has no model.
    #[error("the gateway at {0} serves no model")]
    NoModel(String),
    /// The gateway refused or could not go on.
    #[error("{}", refusal(.0))]
    Refused(Failure),
    /// The stream ended without its last message.
    #[error("the answer broke off: the gateway closed the stream early")]
    BrokenOff,
    /// Standard input cannot be read.
    #[error("cannot read the input: {0}")]
    Input(std::io::Error),
    /// Standard output cannot be written.
    #[error("cannot write the answer: {0}")]
    Output(#[from] std::io::Error),
}

fn refusal(failure: &Failure) -> String {
    let mut text = failure.message.clone();
    if let Some(field) = failure.field.as_ref().filter(|field| !text.contains(field.as_str())) {
        text = format!("{field}: {text}");
    }
    if let Some(delay) = failure.retry_after {
        text = format!("{text}; try again in {:.0} s", delay.as_secs_f64().ceil());
    }
    text
}

struct Conversation {
    client: InferenceClient<Channel>,
    address: String,
    model: String,
    arguments: Arguments,
    messages: Vec<Message>,
}

/// How a turn went.
struct Turn {
    tokens: u32,
    took: Duration,
    stopped: bool,
    reason: FinishReason,
}

impl Conversation {
    async fn open(arguments: Arguments) -> Result<Self, ChatError> {
        let address = arguments.address.clone();
        let dialled = channel::endpoint(&address, Traffic::Public)?.connect().await;
        let channel = dialled.map_err(|error| ChatError::Unreachable(address.clone(), innermost(&error)))?;
        let mut client = InferenceClient::new(channel);
        let models = client.list_models(asterism_proto::v1::ListModelsRequest {}).await?.into_inner().models;
        let model = models.into_iter().next().ok_or_else(|| ChatError::NoModel(address.clone()))?.name;
        let mut conversation = Self { client, address, model, arguments, messages: Vec::new() };
        conversation.forget();
        Ok(conversation)
    }

    fn forget(&mut self) {
        self.messages.clear();
        if let Some(content) = self.arguments.system.clone() {
            self.messages.push(message("system", content));
        }
    }

    /// Sends the conversation with one more message and prints the answer as it comes. A failed turn leaves the
    /// conversation as it was; a stopped one keeps what was said.
    async fn turn(&mut self, text: &str) -> Result<Turn, ChatError> {
        self.messages.push(message("user", text.to_owned()));
        match self.answer().await {
            Ok((turn, content)) => {
                self.messages.push(message("assistant", content));
                Ok(turn)
            }
            Err(error) => {
                self.messages.pop();
                Err(error)
            }
        }
    }

    async fn answer(&mut self) -> Result<(Turn, String), ChatError> {
        let began = Instant::now();
        let mut printer = Printer::default();
        let mut tokens = 0;
        let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
        let request = self.request();
        let mut stream = tokio::select! {
            stream = self.client.generate(request) => stream?.into_inner(),
            _ = &mut interrupt => return Ok((Turn::stopped(0, began.elapsed()), String::new())),
        };
        loop {
            // Leaving drops the stream, which cancels the request.
            let event = tokio::select! {
                event = stream.message() => event,
                _ = &mut interrupt => {
                    printer.end()?;
                    return Ok((Turn::stopped(tokens, began.elapsed()), printer.text));
                }
            };
            match event.inspect_err(|_| drop(printer.end()))?.ok_or(ChatError::BrokenOff)?.event {
                Some(Event::Delta(delta)) => {
                    tokens += u32::try_from(delta.token_ids.len()).unwrap_or(u32::MAX);
                    printer.print(&delta.text)?;
                }
                Some(Event::Finished(finished)) => {
                    printer.end()?;
                    return Ok((Turn::finished(&finished, tokens, began.elapsed()), finished.response));
                }
                Some(Event::Started(_)) | None => {}
            }
        }
    }

    fn request(&self) -> GenerateRequest {
        let Arguments { temperature, seed, max_tokens, .. } = self.arguments;
        GenerateRequest {
            prompt: Some(Prompt::Chat(Chat { messages: self.messages.clone() })),
            sampling: Some(Sampling {
                do_sample: temperature.map(|temperature| temperature > 0.0),
                temperature: temperature.filter(|&temperature| temperature != 0.0),
                seed,
                ..Sampling::default()
            }),
            stopping: Some(Stopping { max_tokens, ..Stopping::default() }),
            ..GenerateRequest::default()
        }
    }
}

impl From<Status> for ChatError {
    fn from(status: Status) -> Self {
        if status.code() == Code::Unknown {
            return Self::Refused(Failure::new(asterism_proto::Reason::Unavailable, innermost(&status)));
        }
        Self::Refused(Failure::from(status))
    }
}

impl Turn {
    fn stopped(tokens: u32, took: Duration) -> Self {
        Self { tokens, took, stopped: true, reason: FinishReason::Aborted }
    }

    fn finished(finished: &Finished, seen: u32, took: Duration) -> Self {
        let tokens = finished.usage.map_or(seen, |usage| usage.completion_tokens);
        Self { tokens, took, stopped: false, reason: finished.reason() }
    }
}

impl std::fmt::Display for Turn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seconds = self.took.as_secs_f64();
        write!(f, "[{} tokens in {seconds:.1} s", self.tokens)?;
        match self.reason {
            _ if self.stopped => f.write_str(", stopped]"),
            FinishReason::Length => f.write_str(", cut at the length limit]"),
            FinishReason::Aborted => f.write_str(", aborted]"),
            FinishReason::Interrupted => f.write_str(", interrupted]"),
            _ => f.write_str("]"),
        }
    }
}

/// Writes an answer to standard output as it comes and keeps it.
#[derive(Default)]
struct Printer {
    text: String,
}

impl Printer {
    fn print(&mut self, text: &str) -> std::io::Result<()> {
        self.text.push_str(text);
        let mut out = std::io::stdout().lock();
        // A model's words must not steer the terminal.
        let printable: String =
            text.chars().filter(|&c| !c.is_control() || matches!(c, '\n' | '\t')).collect();
        out.write_all(printable.as_bytes())?;
        out.flush()
    }

    fn end(&mut self) -> std::io::Result<()> {
        if self.text.ends_with('\n') { Ok(()) } else { writeln!(std::io::stdout()) }
    }
}

/// Lines of standard input, read by a thread of their own: a blocked read must not keep the process alive.
struct Lines {
    lines: mpsc::Receiver<std::io::Result<String>>,
    /// One message for every line that may be read.
    ready: std::sync::mpsc::SyncSender<()>,
}

impl Lines {
    async fn recv(&mut self) -> Option<std::io::Result<String>> {
        self.lines.recv().await
    }

    /// Lets the next line be asked for.
    fn ready(&self) {
        // A reader that is gone has closed `lines`, which ends the conversation.
        let _ = self.ready.send(());
    }
}

fn stdin_lines(interactive: bool) -> Lines {
    let (sender, lines) = mpsc::channel(1);
    let (ready, next) = std::sync::mpsc::sync_channel(1);
    let reader = Lines { lines, ready };
    reader.ready();
    std::thread::spawn(move || {
        while next.recv().is_ok() {
            if interactive {
                eprint!("> ");
            }
            let mut line = String::new();
            let read = match std::io::stdin().lock().read_line(&mut line) {
                Ok(0) => break,
                Ok(_) => Ok(line),
                Err(error) => Err(error),
            };
            if sender.blocking_send(read).is_err() {
                break;
            }
        }
    });
    reader
}

fn message(role: &str, content: String) -> Message {
    Message { role: role.to_owned(), content }
}

/// The cause that a person can act on: transport errors wrap it several times.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_field_and_the_delay() {
        let failure = Failure {
            retry_after: Some(Duration::from_millis(1500)),
            ..Failure::invalid("sampling.top_p", "3 is not in (0, 1]")
        };
        assert_eq!(refusal(&failure), "sampling.top_p: 3 is not in (0, 1]; try again in 2 s");
        assert_eq!(refusal(&Failure::invalid("prompt", "prompt is empty")), "prompt is empty");
    }
}
