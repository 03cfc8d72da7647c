//! What can be said to the chat itself.

use std::str::FromStr;

/// The commands, as `/help` tells them.
pub const HELP: &str = "\
  /list           the conversations that the gateway keeps, newest first
  /open N         go on with one of them: its number in the list, or how its id begins
  /new            begin another
  /fork [TURNS]   go on in a copy of this one, of its first TURNS turns or of all
  /undo           forget the last turn
  /history        what was said
  /delete [N]     forget this one, or another
  /quit           leave (so do Ctrl-D, and Ctrl-C at the prompt)
  Ctrl-C while an answer comes stops it, and keeps what it said; a second one leaves it to go on without you.";

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Show the commands.
    Help,
    /// List conversations.
    List,
    /// Go on with one.
    Open(String),
    /// Begin one.
    New,
    /// Copy this one, so many turns of it.
    Fork(Option<u32>),
    /// Forget the last turn.
    Undo,
    /// Show what was said.
    History,
    /// Forget one, this one unless it is named.
    Delete(Option<String>),
    /// Leave.
    Quit,
}

/// Why a line is no command.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// There is none of this name.
    #[error("there is no {0}; /help lists the commands")]
    Unknown(String),
    /// It takes something else.
    #[error("{0}")]
    Usage(&'static str),
}

impl Command {
    /// The command that a line is; `None`: it is said to the model.
    pub fn of(line: &str) -> Option<Result<Self, CommandError>> {
        line.starts_with('/').then(|| line.parse())
    }
}

impl FromStr for Command {
    type Err = CommandError;

    fn from_str(line: &str) -> Result<Self, CommandError> {
        let mut words = line.split_whitespace();
        let (name, argument) = (words.next().unwrap_or_default(), words.next());
        if words.next().is_some() {
            return Err(CommandError::Usage("a command takes one word at most"));
        }
        let no_more = |command| match argument {
            None => Ok(command),
            Some(_) => Err(CommandError::Usage("this command takes nothing")),
        };
        match name {
            "/help" => no_more(Self::Help),
            "/list" => no_more(Self::List),
            "/new" => no_more(Self::New),
            "/undo" => no_more(Self::Undo),
            "/history" => no_more(Self::History),
            "/quit" => no_more(Self::Quit),
            "/delete" => Ok(Self::Delete(argument.map(str::to_owned))),
            "/open" => match argument {
                Some(name) => Ok(Self::Open(name.to_owned())),
                None => Err(CommandError::Usage("/open takes a number of the list, or how an id begins")),
            },
            "/fork" => match argument.map(str::parse).transpose() {
                Ok(turns) => Ok(Self::Fork(turns)),
                Err(_) => Err(CommandError::Usage("/fork takes a number of turns")),
            },
            other => Err(CommandError::Unknown(other.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_commands_or_said() {
        assert_eq!(Command::of("hello /list"), None);
        assert_eq!(Command::of("/list"), Some(Ok(Command::List)));
        assert_eq!(Command::of("/open 3"), Some(Ok(Command::Open("3".to_owned()))));
        assert_eq!(Command::of("/fork"), Some(Ok(Command::Fork(None))));
        assert_eq!(Command::of("/fork 2"), Some(Ok(Command::Fork(Some(2)))));
        assert_eq!(Command::of("/delete"), Some(Ok(Command::Delete(None))));
        assert_eq!(Command::of("/etc/hosts"), Some(Err(CommandError::Unknown("/etc/hosts".to_owned()))));
        for wrong in ["/open", "/fork many", "/list 3", "/open 1 2"] {
            assert!(matches!(Command::of(wrong), Some(Err(CommandError::Usage(_)))), "{wrong}");
        }
    }

    #[test]
    fn help_names_every_command() {
        for name in ["/list", "/open", "/new", "/fork", "/undo", "/history", "/delete", "/quit"] {
            assert!(HELP.contains(name), "{name}");
        }
    }
}
