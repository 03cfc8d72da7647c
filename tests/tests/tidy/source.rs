//! The repository's files, and Rust text with its comments and strings blanked.

use std::path::{Path, PathBuf};

/// The repository's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the repository").to_owned()
}

/// The text of a file, by its path from the root.
pub fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("cannot read {path}: {error}"))
}

/// All files of the repository as paths from its root, sorted; build output and hidden folders left out.
pub fn tree() -> Vec<String> {
    fn walk(folder: &Path, root: &Path, files: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).expect("a folder can be listed") {
            let entry = entry.expect("an entry can be read");
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with('.') || name == "target" || name == "__pycache__" {
                continue;
            }
            let path = entry.path();
            if entry.file_type().expect("an entry has a type").is_dir() {
                walk(&path, root, files);
            } else {
                files.push(
                    path.strip_prefix(root).expect("below the root").to_string_lossy().replace('\\', "/"),
                );
            }
        }
    }
    let mut files = Vec::new();
    walk(&root(), &root(), &mut files);
    files.sort();
    files
}

/// All Rust sources.
pub fn sources() -> Vec<Source> {
    tree().iter().filter(|path| path.ends_with(".rs")).map(|path| Source::new(path, &read(path))).collect()
}

/// A Rust source, as written and as bare code.
pub struct Source {
    /// From the repository's root.
    pub path: String,
    /// As written.
    pub text: String,
    /// Line for line as `text`; comments, what stands in quotes, and modules of tests are left out.
    code: String,
}

impl Source {
    /// From a text.
    pub fn new(path: &str, text: &str) -> Self {
        Self { path: path.to_owned(), text: text.to_owned(), code: without_tests(&bare_code(text)) }
    }

    /// Whether all of it is test code, as its place tells.
    pub fn is_test(&self) -> bool {
        self.path.split('/').any(|part| matches!(part, "tests" | "tests.rs" | "benches" | "build.rs"))
            || self.path.ends_with("_tests.rs")
    }

    /// The lines whose code satisfies `offends`, as `path:line: text`.
    pub fn lines_with(&self, offends: impl Fn(&str) -> bool) -> Vec<String> {
        self.report(&self.code, offends)
    }

    /// The lines that satisfy `offends` as written, comments included.
    pub fn raw_lines_with(&self, offends: impl Fn(&str) -> bool) -> Vec<String> {
        self.report(&self.text, offends)
    }

    fn report(&self, text: &str, offends: impl Fn(&str) -> bool) -> Vec<String> {
        text.lines()
            .zip(self.text.lines())
            .enumerate()
            .filter(|(_, (line, _))| offends(line))
            .map(|(index, (_, written))| format!("{}:{}: {}", self.path, index + 1, written.trim()))
            .collect()
    }
}

/// Blanks the modules of tests within a file, as rustfmt writes them: they end at the next brace that begins a line.
fn without_tests(code: &str) -> String {
    let mut within = false;
    let mut lines = code.split_inclusive('\n').peekable();
    let mut kept = String::with_capacity(code.len());
    while let Some(line) = lines.next() {
        let begins = |next: &&str| next.starts_with("mod ") && next.trim_end().ends_with('{');
        within |= line.starts_with("#[cfg(test)]") && lines.peek().is_some_and(begins);
        kept.push_str(if within { "\n" } else { line });
        within &= !line.starts_with('}');
    }
    kept
}

/// Leaves out comments and what stands in quotes; keeps line ends, so that line numbers stay.
fn bare_code(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let skipped = skippable(rest, code.chars().last());
        if skipped == 0 {
            code.push(first);
            rest = &rest[first.len_utf8()..];
        } else {
            code.extend(rest[..skipped].chars().filter(|&c| c == '\n'));
            rest = &rest[skipped..];
        }
    }
    code
}

/// The length of the comment, string or character that `text` begins with, else 0.
fn skippable(text: &str, before: Option<char>) -> usize {
    let in_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    if text.starts_with("//") {
        return text.find('\n').unwrap_or(text.len());
    }
    if text.starts_with("/*") {
        return block_comment(text);
    }
    if text.starts_with('"') {
        return quoted(text, 1, '"');
    }
    if text.starts_with('r') && (!in_word || before == Some('b')) {
        let hashes = text[1..].chars().take_while(|&c| c == '#').count();
        if text[1 + hashes..].starts_with('"') {
            let end = format!("\"{}", "#".repeat(hashes));
            let body = 2 + hashes;
            return text[body..].find(&end).map_or(text.len(), |at| body + at + end.len());
        }
    }
    if let Some(rest) = text.strip_prefix('\'') {
        let mut chars = rest.chars();
        return match (chars.next(), chars.next()) {
            (Some('\\'), _) => quoted(text, 1, '\''),
            (Some(c), Some('\'')) => 2 + c.len_utf8(),
            // A lifetime.
            _ => 0,
        };
    }
    0
}

/// The length of a block comment, which may hold others.
fn block_comment(text: &str) -> usize {
    let (mut at, mut depth) = (0, 0usize);
    while at < text.len() {
        if text[at..].starts_with("/*") {
            (at, depth) = (at + 2, depth + 1);
        } else if text[at..].starts_with("*/") {
            (at, depth) = (at + 2, depth - 1);
            if depth == 0 {
                break;
            }
        } else {
            at += text[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    at
}

/// The length of a quoted text with escapes whose body begins at `at`.
fn quoted(text: &str, mut at: usize, end: char) -> usize {
    while let Some(c) = text[at..].chars().next() {
        at += c.len_utf8();
        if c == end {
            break;
        }
        if c == '\\' {
            at += text[at..].chars().next().map_or(0, char::len_utf8);
        }
    }
    at
}
