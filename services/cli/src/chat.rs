//! `asterism chat`: conversations with a gateway, in the terminal or over a pipe.
//!
//! The gateway keeps them. So an answer goes on when the gateway or the connection breaks and comes back, a conversation can be
//! gone on with on another day, and nothing is sent twice.

mod command;
mod conversation;
mod error;
mod gateway;
mod history;
mod input;
mod markdown;
mod printer;
mod screen;
mod turn;

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use asterism_proto::v1::{Sampling, Stopping};

use self::command::{Command, HELP};
use self::conversation::{Conversation, Manner};
pub use self::error::ChatError;
use self::gateway::Gateway;
use self::input::Lines;
use self::turn::TurnEnd;

/// The status of a program that Ctrl-C ended.
const INTERRUPTED: u8 = 130;

/// Talk to a gateway.
///
/// In a terminal it prompts for one message after another and streams the answers; the gateway keeps the conversation. With
/// piped input every line is a message of one conversation, which is forgotten at the end of the input unless it was opened.
#[derive(Debug, clap::Args)]
#[command(after_help = format!("\
Examples:
  asterism chat
  asterism chat --open                     go on with the newest conversation
  asterism chat --system 'Answer in one word.' --temperature 0.7
  printf 'Hello!\\nWhat did I just say?\\n' | asterism chat --address gpu-rack:7050

In a conversation:
{HELP}"))]
pub struct Arguments {
    /// Where the gateway listens for gRPC.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7050", env = "ASTERISM_ADDRESS")]
    address: String,
    /// On whose account.
    #[arg(long, value_name = "NAME", env = "ASTERISM_TENANT")]
    tenant: Option<String>,
    /// List the conversations that the gateway keeps, and leave.
    #[arg(long, conflicts_with = "open")]
    list: bool,
    /// Go on with a conversation: its number in the list, or how its id begins.
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "1")]
    open: Option<String>,
    /// A system message that a new conversation begins with.
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
    /// Print answers as they are, not as styled markdown.
    #[arg(long)]
    plain: bool,
}

impl Arguments {
    fn manner(&self) -> Manner {
        let &Self { temperature, seed, max_tokens, plain, .. } = self;
        let sampling = Sampling {
            do_sample: temperature.map(|temperature| temperature > 0.0),
            temperature: temperature.filter(|&temperature| temperature != 0.0),
            seed,
            ..Sampling::default()
        };
        let stopping = Stopping { max_tokens, ..Stopping::default() };
        Manner { system: self.system.clone(), sampling, stopping, plain }
    }
}

/// Talks, to the input's end.
pub async fn run(arguments: Arguments) -> Result<ExitCode, ChatError> {
    let interactive = std::io::stdin().is_terminal();
    let gateway = Gateway::dial(&arguments.address, arguments.tenant.as_deref()).await?;
    let (model, address) = (gateway.model.clone(), gateway.address.clone());
    let mut conversation = Conversation::new(gateway, arguments.manner());
    if arguments.list {
        show(conversation.list().await?)?;
        return Ok(ExitCode::SUCCESS);
    }
    if interactive {
        eprintln!("{} at {address}. /help lists what can be done, /quit leaves.", history::printable(&model));
    }
    if let Some(name) = &arguments.open
        && let Some(turn) = conversation.open(name).await?
        && interactive
    {
        eprintln!("{turn}");
    }
    let lines = Lines::of_stdin(interactive);
    if interactive {
        converse(conversation, lines).await
    } else {
        let keep = arguments.open.is_some();
        answer_each(conversation, lines, keep).await
    }
}

/// Until the user leaves: what fails is told, and the conversation goes on.
async fn converse(mut conversation: Conversation, mut lines: Lines) -> Result<ExitCode, ChatError> {
    while let Some(line) = next(&mut lines).await? {
        let line = line.trim();
        let told = match Command::of(line) {
            None if line.is_empty() => Ok(()),
            None => conversation.say(line).await.map(|turn| eprintln!("{turn}")),
            Some(Ok(Command::Quit)) => return Ok(ExitCode::SUCCESS),
            Some(Ok(command)) => tokio::select! {
                obeyed = obey(&mut conversation, command) => obeyed,
                _ = tokio::signal::ctrl_c() => Ok(()),
            },
            Some(Err(error)) => Err(error.into()),
        };
        match told {
            Err(error @ (ChatError::Input(_) | ChatError::Output(_))) => return Err(error),
            Err(error) => eprintln!("error: {}", history::printable(&error.to_string())),
            Ok(()) => {}
        }
    }
    // The prompt's line.
    eprintln!();
    Ok(ExitCode::SUCCESS)
}

async fn obey(conversation: &mut Conversation, command: Command) -> Result<(), ChatError> {
    match command {
        Command::Help => eprintln!("{HELP}"),
        Command::List => {
            let lines = conversation.list().await?;
            if lines.is_empty() {
                eprintln!("The gateway keeps no conversation.");
            }
            show(lines)?;
        }
        Command::Open(name) => {
            if let Some(turn) = conversation.open(&name).await? {
                eprintln!("{turn}");
            }
        }
        Command::New => conversation.renew(),
        Command::Fork(turns) => {
            let fork = conversation.fork(turns).await?;
            eprintln!("[a copy of {} turns: {}]", fork.turns, fork.session_id);
        }
        Command::Undo => eprintln!("[{} turns are left]", conversation.undo().await?),
        Command::History => conversation.history().await?,
        Command::Delete(name) => {
            conversation.delete(name.as_deref()).await?;
            eprintln!("[forgotten]");
        }
        Command::Quit => {}
    }
    Ok(())
}

/// Every line is a message; the first failure ends it.
async fn answer_each(
    mut conversation: Conversation,
    mut lines: Lines,
    keep: bool,
) -> Result<ExitCode, ChatError> {
    let ended = say_each(&mut conversation, &mut lines).await;
    if !keep && conversation.is_begun() {
        // Whoever said nothing more is not kept waiting for it.
        let forgotten = tokio::select! {
            forgotten = conversation.delete(None) => forgotten,
            _ = tokio::signal::ctrl_c() => Ok(()),
        };
        if matches!(ended, Ok(true)) {
            forgotten?;
        }
    }
    Ok(if ended? { ExitCode::SUCCESS } else { ExitCode::from(INTERRUPTED) })
}

/// Whether all was said and answered.
async fn say_each(conversation: &mut Conversation, lines: &mut Lines) -> Result<bool, ChatError> {
    while let Some(line) = next(lines).await? {
        let line = line.trim();
        if line.is_empty() {
            continue;
        }
        match conversation.say(line).await?.end {
            TurnEnd::Finished(_) => {}
            TurnEnd::Stopped | TurnEnd::Left | TurnEnd::Unsaid => return Ok(false),
        }
    }
    Ok(true)
}

fn show(lines: Vec<String>) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    lines.iter().try_for_each(|line| writeln!(out, "{line}"))
}

/// The next line; `None`: the user leaves.
async fn next(lines: &mut Lines) -> Result<Option<String>, ChatError> {
    let line = tokio::select! {
        line = lines.next() => line,
        _ = tokio::signal::ctrl_c() => None,
    };
    line.transpose().map_err(ChatError::Input)
}
