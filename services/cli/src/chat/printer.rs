//! Answers on standard output, as they come.

use std::io::{self, IsTerminal as _, Write as _};

use super::markdown::Markdown;
use super::screen::Screen;

/// Writes one answer: styled in a terminal, as it is into a pipe or a file.
pub struct Printer {
    kind: Kind,
}

enum Kind {
    Plain { ends_line: bool },
    Styled { markdown: Box<Markdown>, screen: Screen },
}

impl Printer {
    /// For an answer that begins. `plain`: as it is also in a terminal.
    pub fn new(plain: bool) -> Self {
        let kind = if plain || !io::stdout().is_terminal() {
            Kind::Plain { ends_line: false }
        } else {
            let colours = console::colors_enabled();
            Kind::Styled { markdown: Box::new(Markdown::new(colours)), screen: Screen::default() }
        };
        Self { kind }
    }

    /// Prints more of it.
    pub fn print(&mut self, text: &str) -> io::Result<()> {
        // A model's words must not steer the terminal.
        let text: String = text.chars().filter(|&c| !c.is_control() || matches!(c, '\n' | '\t')).collect();
        match &mut self.kind {
            Kind::Plain { ends_line } => {
                if !text.is_empty() {
                    *ends_line = text.ends_with('\n');
                }
                write(&text)
            }
            Kind::Styled { markdown, screen } => {
                // How far a tab goes depends on where it stands.
                let text = text.replace('\t', "    ");
                let size = size();
                let mut out = String::new();
                for rows in markdown.push(&text, size.1) {
                    out += &screen.show(rows, size);
                    out += screen.keep();
                }
                out += &screen.show(markdown.rows(size.1), size);
                write(&out)
            }
        }
    }

    /// Shows a note below what was printed, until more is; in a terminal alone.
    pub fn note(&mut self, note: &str) -> io::Result<()> {
        let Kind::Styled { markdown, screen } = &mut self.kind else { return Ok(()) };
        let size = size();
        let mut rows = markdown.rows(size.1);
        rows.push(console::style(note).dim().to_string());
        write(&screen.show(rows, size))
    }

    /// Ends the answer's last line.
    pub fn end(&mut self) -> io::Result<()> {
        match &mut self.kind {
            Kind::Plain { ends_line: true } => Ok(()),
            Kind::Plain { .. } => write("\n"),
            Kind::Styled { markdown, screen } => {
                let size = size();
                let out = screen.show(markdown.rows(size.1), size);
                write(&(out + screen.keep()))
            }
        }
    }
}

/// Rows and cells of the terminal. One that says it has hardly any does not know.
fn size() -> (u16, u16) {
    let (rows, cells) = console::Term::stdout().size();
    (if rows < 2 { 24 } else { rows }, if cells < 8 { 80 } else { cells })
}

fn write(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}
