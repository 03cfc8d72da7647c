//! An answer's markdown as rows of a terminal, while it comes.

use termimad::MadSkin;
use termimad::crossterm::style::{Attribute, Color};

/// Cuts a growing text into blocks, which do not change any more once the next begins, and styles them.
pub struct Markdown {
    skin: MadSkin,
    /// The block that still grows.
    block: String,
}

impl Markdown {
    /// Nothing yet; with `colours`, or with none.
    pub fn new(colours: bool) -> Self {
        let skin = if colours { coloured() } else { MadSkin::no_style() };
        Self { skin, block: String::new() }
    }

    /// Adds text, and gives the rows of the blocks that it ends, each followed by an empty row.
    pub fn push(&mut self, text: &str, width: u16) -> Vec<Vec<String>> {
        self.block.push_str(text);
        let mut ended = Vec::new();
        while let Some(end) = block_end(&self.block) {
            let rest = self.block.split_off(end);
            let mut rows = self.rows(width);
            rows.push(String::new());
            ended.push(rows);
            self.block = rest.trim_start_matches('\n').to_owned();
        }
        ended
    }

    /// The rows of the block that still grows.
    pub fn rows(&self, width: u16) -> Vec<String> {
        let block = self.block.trim_matches('\n');
        if block.is_empty() {
            return Vec::new();
        }
        self.skin.text(block, Some(usize::from(width))).to_string().lines().map(str::to_owned).collect()
    }
}

/// Where the first block of a text ends: at an empty line that is not in a fence and has something before it.
fn block_end(text: &str) -> Option<usize> {
    let (mut at, mut fenced, mut said) = (0, false, false);
    for line in text.split_inclusive('\n') {
        let is_whole = line.ends_with('\n');
        let line_text = line.trim();
        if line_text.starts_with("```") {
            fenced = !fenced;
        }
        if line_text.is_empty() && is_whole && said && !fenced {
            return Some(at);
        }
        said |= !line_text.is_empty();
        at += line.len();
    }
    None
}

fn coloured() -> MadSkin {
    let mut skin = MadSkin::default();
    skin.set_headers_fg(Color::Cyan);
    for header in &mut skin.headers {
        header.align = termimad::Alignment::Left;
        header.compound_style.remove_attr(Attribute::Underlined);
    }
    // The terminal's own background: a model's answer is not a page of its own.
    skin.inline_code.object_style.background_color = None;
    skin.inline_code.set_fg(Color::Green);
    skin.code_block.compound_style.object_style.background_color = None;
    skin.code_block.set_fg(Color::Green);
    skin
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(text: &str) -> Vec<String> {
        let mut markdown = Markdown::new(false);
        let mut rows = markdown.push(text, 40).concat();
        rows.extend(markdown.rows(40));
        rows.into_iter().map(|row| row.trim_end().to_owned()).collect()
    }

    #[test]
    fn a_block_ends_at_an_empty_line_outside_of_fences() {
        assert_eq!(block_end("a\nb"), None);
        assert_eq!(block_end("\n\na"), None, "nothing before it");
        assert_eq!(block_end("a\n"), None);
        assert_eq!(block_end("a\n\nb"), Some(2));
        assert_eq!(block_end("a\n  \nb"), Some(2));
        assert_eq!(block_end("a\n "), None, "the line may go on");
        assert_eq!(block_end("```\na\n\nb\n"), None);
        assert_eq!(block_end("```\na\n\nb\n```\n\nc"), Some(13));
    }

    #[test]
    fn text_is_the_same_however_it_comes() {
        let text = "# Title\n\nSome **bold** and `code`.\n\n- one\n- two\n\n```rust\nlet a = 1;\n\nlet b;\n```\n\n星辰";
        let mut markdown = Markdown::new(true);
        let mut rows = Vec::new();
        for character in text.chars() {
            rows.extend(markdown.push(character.encode_utf8(&mut [0; 4]), 40).concat());
        }
        rows.extend(markdown.rows(40));
        let mut whole = Markdown::new(true);
        let mut expected = whole.push(text, 40).concat();
        expected.extend(whole.rows(40));
        assert_eq!(rows, expected);
    }

    #[test]
    fn marks_become_style() {
        let rows =
            plain("# Title\n\nSome **bold** and `code`.\n\n- one\n- two\n\n```\nlet a;\n\nlet b;\n```");
        let text = rows.join("\n");
        assert!(!text.contains("**") && !text.contains('`') && !text.contains('#'), "{text}");
        assert!(text.contains("bold") && text.contains("• one") && text.contains("let b;"), "{text}");
        let mut markdown = Markdown::new(true);
        markdown.push("**bold**", 40);
        assert!(markdown.rows(40).concat().contains("\x1b["), "with colours it is styled");
    }

    #[test]
    fn long_lines_are_wrapped() {
        let rows = plain(&"word ".repeat(20));
        assert!(rows.len() > 1 && rows.iter().all(|row| row.chars().count() <= 40), "{rows:?}");
    }
}
