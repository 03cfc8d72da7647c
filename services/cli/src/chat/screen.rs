//! A block of rows at the cursor that changes while it is shown.

use std::fmt::Write as _;

/// The rows that were printed last, and can still be changed.
///
/// The cursor stays behind the last of them. What is written moves it up to the first row that differs, clears from there,
/// and writes the rest; rows that have left the screen at the top stay as they are.
#[derive(Debug, Default)]
pub struct Screen {
    rows: Vec<String>,
}

impl Screen {
    /// What to write so that `rows` are shown in the place of those before, on a terminal of `height` rows of `width` cells.
    pub fn show(&mut self, rows: Vec<String>, (height, width): (u16, u16)) -> String {
        let same = self.rows.iter().zip(&rows).take_while(|(old, new)| old == new).count();
        let mut out = String::new();
        if same == self.rows.len() && same == rows.len() {
            return out;
        }
        // The first row that is written again, and how far above the cursor's row it begins.
        let mut first = same;
        if first == rows.len() {
            // The cursor goes back to the end of what is now the last row.
            first = first.saturating_sub(1);
        }
        let above = |first: usize| -> usize {
            let lines: usize = self.rows[first..].iter().map(|row| lines(row, width)).sum();
            lines.saturating_sub(1)
        };
        while first < self.rows.len() && above(first) >= usize::from(height) {
            first += 1;
        }
        let mut continues = false;
        if first < self.rows.len() {
            match above(first) {
                0 => out.push('\r'),
                up => _ = write!(out, "\x1b[{up}A\r"),
            }
            out.push_str("\x1b[J");
        } else {
            continues = !self.rows.is_empty();
        }
        for row in rows.get(first..).unwrap_or_default() {
            if continues {
                out.push('\n');
            }
            out.push_str(row);
            continues = true;
        }
        self.rows = rows;
        out
    }

    /// What to write so that the rows stay, and the cursor is at the beginning of a free row.
    pub fn keep(&mut self) -> &'static str {
        let shown = !self.rows.is_empty();
        self.rows.clear();
        if shown { "\n" } else { "" }
    }
}

/// How many lines of the terminal a row takes.
fn lines(row: &str, width: u16) -> usize {
    console::measure_text_width(row).div_ceil(usize::from(width).max(1)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A terminal of 6 rows of 10 cells after it was written to, row by row.
    struct Terminal(vt100::Parser);

    impl Terminal {
        fn new() -> Self {
            Self(vt100::Parser::new(6, 10, 100))
        }

        fn write(&mut self, text: &str) -> Vec<String> {
            // As a terminal's driver does.
            self.0.process(text.replace('\n', "\r\n").as_bytes());
            let rows = self.0.screen().contents();
            rows.lines().map(str::to_owned).collect()
        }

        fn show(&mut self, screen: &mut Screen, rows: &[&str]) -> Vec<String> {
            let rows = rows.iter().map(|&row| row.to_owned()).collect();
            let text = screen.show(rows, (6, 10));
            self.write(&text)
        }
    }

    #[test]
    fn rows_are_shown_in_the_place_of_those_before() {
        let (mut terminal, mut screen) = (Terminal::new(), Screen::default());
        assert_eq!(terminal.write("before\n"), ["before"]);
        assert_eq!(terminal.show(&mut screen, &["a"]), ["before", "a"]);
        assert_eq!(terminal.show(&mut screen, &["a", "b"]), ["before", "a", "b"]);
        assert_eq!(terminal.show(&mut screen, &["c", "b"]), ["before", "c", "b"]);
        assert_eq!(terminal.show(&mut screen, &["c"]), ["before", "c"]);
        let kept = screen.keep();
        assert_eq!(terminal.write(kept), ["before", "c"]);
        assert_eq!(terminal.show(&mut screen, &["d"]), ["before", "c", "d"]);
    }

    #[test]
    fn a_row_longer_than_the_terminal_takes_several_lines() {
        let (mut terminal, mut screen) = (Terminal::new(), Screen::default());
        terminal.show(&mut screen, &["0123456789abc", "x"]);
        assert_eq!(terminal.show(&mut screen, &["new", "y"]), ["new", "y"]);
        // A character of two cells, and colours, which take none.
        terminal.show(&mut screen, &["\x1b[1m星辰星辰星辰\x1b[0m", "y"]);
        assert_eq!(terminal.show(&mut screen, &["z"]), ["z"]);
    }

    #[test]
    fn rows_that_have_left_the_screen_stay() {
        let (mut terminal, mut screen) = (Terminal::new(), Screen::default());
        terminal.show(&mut screen, &["1", "2", "3", "4", "5", "6", "7", "8"]);
        let shown = terminal.show(&mut screen, &["one", "2", "3", "4", "5", "6", "7", "eight"]);
        assert_eq!(shown, ["3", "4", "5", "6", "7", "eight"]);
    }

    #[test]
    fn what_is_the_same_is_not_written_again() {
        let mut screen = Screen::default();
        screen.show(vec!["a".to_owned()], (6, 10));
        assert_eq!(screen.show(vec!["a".to_owned()], (6, 10)), "");
        assert_eq!(screen.show(vec!["a".to_owned(), "b".to_owned()], (6, 10)), "\nb");
    }
}
