//! What the user says: lines of a terminal, with editing and those before, or of a pipe.

use std::io::{self, BufRead as _};

use rustyline::error::ReadlineError;
use rustyline::history::MemHistory;
use rustyline::{Config, Editor};
use tokio::sync::mpsc;

/// Lines, read by a thread of their own: a blocked read must not keep the process alive.
pub struct Lines {
    lines: mpsc::Receiver<io::Result<String>>,
    /// One message for every line that may be read.
    ready: std::sync::mpsc::SyncSender<()>,
}

impl Lines {
    /// Those of standard input, which is a terminal or not.
    pub fn of_stdin(interactive: bool) -> Self {
        let (sender, lines) = mpsc::channel(1);
        let (ready, next) = std::sync::mpsc::sync_channel::<()>(1);
        std::thread::spawn(move || {
            let mut source = None;
            while next.recv().is_ok() {
                let source = source.get_or_insert_with(|| Source::open(interactive));
                let Some(line) = source.line().transpose() else { break };
                if sender.blocking_send(line).is_err() {
                    break;
                }
            }
        });
        Self { lines, ready }
    }

    /// Asks for the next line; `None`: there is none, or the user leaves.
    pub async fn next(&mut self) -> Option<io::Result<String>> {
        // A reader that is gone has closed `lines`.
        let _ = self.ready.send(());
        self.lines.recv().await
    }
}

enum Source {
    Terminal(Box<Editor<(), MemHistory>>),
    Plain,
}

impl Source {
    fn open(interactive: bool) -> Self {
        if !interactive {
            return Self::Plain;
        }
        // A terminal that cannot be steered gives lines all the same.
        match Editor::with_history(Config::default(), MemHistory::new()) {
            Ok(editor) => Self::Terminal(Box::new(editor)),
            Err(_) => Self::Plain,
        }
    }

    fn line(&mut self) -> io::Result<Option<String>> {
        match self {
            Self::Terminal(editor) => match editor.readline("> ") {
                Ok(line) => {
                    // Without it the line cannot be fetched back, and nothing else.
                    let _ = editor.add_history_entry(&line);
                    Ok(Some(line))
                }
                Err(ReadlineError::Eof | ReadlineError::Interrupted) => Ok(None),
                Err(ReadlineError::Io(error)) => Err(error),
                Err(error) => Err(io::Error::other(error)),
            },
            Self::Plain => {
                let mut line = String::new();
                let read = io::stdin().lock().read_line(&mut line)?;
                Ok((read > 0).then_some(line))
            }
        }
    }
}
