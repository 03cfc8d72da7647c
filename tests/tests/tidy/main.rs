//! The rules of this code base that code can hold. Each test lists every offence, not the first.

#![allow(clippy::expect_used, clippy::panic, reason = "a failed test says what it expected")]

mod configuration;
mod manifests;
mod source;

use std::path::Path;

use source::{Source, sources, tree};

/// A file does one thing; past this it does several.
const MAX_LINES: usize = 500;

/// As wide as kernels may be; rustfmt sees to the rest.
const MAX_KERNEL_COLUMNS: usize = 120;

/// Names that say nothing, so that anything could be put there.
const EMPTY_NAMES: [&str; 7] = ["util", "utils", "common", "helper", "helpers", "core", "misc"];

/// What stands at the top, beside files whose names begin with a dot and what git ignores.
const TOP: [&str; 9] =
    ["Cargo.lock", "Cargo.toml", "LICENSE", "README.md", "gateway", "k8s", "proto", "services", "tests"];

/// Where `unsafe` may stand: numbers on a device, and the map of a checkpoint's file into memory.
fn may_be_unsafe(path: &str) -> bool {
    path.starts_with("services/tensor/") || path == "services/model/src/weights/map.rs"
}

/// Fails with all offences of one rule.
#[track_caller]
fn assert_none(rule: &str, offences: Vec<String>) {
    assert!(offences.is_empty(), "{rule}:\n  {}", offences.join("\n  "));
}

#[test]
fn files_are_short() {
    let long = tree()
        .into_iter()
        .filter(|path| matches!(extension(path), "rs" | "proto" | "py" | "cu"))
        .filter_map(|path| {
            let lines = source::read(&path).lines().count();
            (lines > MAX_LINES).then(|| format!("{path}: {lines} lines"))
        })
        .collect();
    assert_none("a file has at most 500 lines", long);
}

/// NVRTC compiles them as they are embedded, without a folder to include from.
#[test]
fn kernels_stand_alone() {
    let mut offences = Vec::new();
    for path in tree().into_iter().filter(|path| extension(path) == "cu") {
        let text = source::read(&path);
        if !text.starts_with("//") {
            offences.push(format!("{path}: does not begin by saying what it is for"));
        }
        for (index, line) in text.lines().enumerate() {
            if line.trim_start().starts_with("#include") || line.chars().count() > MAX_KERNEL_COLUMNS {
                offences.push(format!("{path}:{}: {line}", index + 1));
            }
        }
    }
    assert_none(
        "a file of kernels includes nothing, has a purpose, and lines of at most 120 columns",
        offences,
    );
}

#[test]
fn names_say_something() {
    let empty = tree()
        .into_iter()
        .filter(|path| {
            path.split('/').any(|part| EMPTY_NAMES.contains(&part.split('.').next().unwrap_or(part)))
        })
        .collect();
    assert_none("no file or folder is a dumping ground", empty);
}

#[test]
fn the_top_is_as_designed() {
    let strangers = std::fs::read_dir(source::root())
        .expect("the repository can be listed")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .filter(|name| !name.starts_with('.') && name != "target" && !TOP.contains(&name.as_str()))
        .collect();
    assert_none("only what the design names stands at the top", strangers);
}

#[test]
fn unsafe_stands_where_it_may() {
    let offences = sources()
        .iter()
        .filter(|source| !may_be_unsafe(&source.path))
        .flat_map(|source| {
            source.lines_with(|code| has_word(code, "unsafe") || has_word(code, "unsafe_code"))
        })
        .collect();
    assert_none("unsafe code only in tensor and in the memory map of model/weights", offences);
}

#[test]
fn lints_are_not_switched_off() {
    const LINTS: [&str; 6] = [
        "clippy::unwrap_used",
        "clippy::expect_used",
        "clippy::panic",
        "clippy::too_many_arguments",
        "clippy::todo",
        "clippy::all",
    ];
    let offences = sources()
        .iter()
        // Generated code is taken in there.
        .filter(|source| !source.is_test() && source.path != "proto/src/lib.rs")
        .flat_map(|source| {
            source.lines_with(|code| {
                (code.contains("allow(") && LINTS.iter().any(|lint| code.contains(lint)))
                    || code.contains("expect(clippy::unwrap_used")
                    || code.contains("expect(clippy::too_many_arguments")
            })
        })
        .collect();
    assert_none(
        "a proven `expect` is marked #[expect(clippy::expect_used, reason)]; the rest is not waived",
        offences,
    );
}

#[test]
fn nothing_is_left_to_do() {
    let offences = sources()
        .iter()
        .flat_map(|source| {
            source.raw_lines_with(|line| ["TODO", "FIXME", "XXX"].iter().any(|mark| has_word(line, mark)))
        })
        .filter(|line| !line.starts_with("tests/tests/tidy/"))
        .collect();
    assert_none("what is not finished is an issue, not a comment", offences);
}

#[test]
fn channels_are_bounded() {
    let offences = sources()
        .iter()
        .filter(|source| !source.is_test())
        .flat_map(|source| {
            source.lines_with(|code| {
                ["unbounded", "mpsc::channel()", "mpsc::channel::<()>()"]
                    .iter()
                    .any(|word| code.contains(word))
            })
        })
        .collect();
    assert_none("every queue has a bound", offences);
}

/// Invariant 4 of the design.
#[test]
fn the_brain_is_pure() {
    const IMPURE: [&str; 11] =
        ["async", "await", "tokio", "Instant", "SystemTime", "thread", "fs", "net", "env", "rand", "process"];
    let offences = sources()
        .iter()
        .filter(|source| !source.is_test())
        .filter(|source| {
            ["gateway/src/scheduler", "gateway/src/sampler"].iter().any(|dir| source.path.starts_with(dir))
        })
        .flat_map(|source| source.lines_with(|code| IMPURE.iter().any(|word| has_word(code, word))))
        .collect();
    assert_none("scheduler and sampler have no async, clock, I/O or global randomness", offences);
}

#[test]
fn modules_say_what_they_are_for() {
    let offences = sources()
        .iter()
        .filter(|source| source.path.contains("/src/") && !source.is_test())
        .filter(|source| !source.text.starts_with("//!"))
        .map(|source| source.path.clone())
        .collect();
    assert_none("a source file begins with its module's doc", offences);
}

#[test]
fn the_map_names_every_crate_and_file_of_the_top() {
    let readme = source::read("README.md");
    let missing: Vec<String> = manifests::members()
        .into_iter()
        .filter(|member| !readme.contains(&format!("{member}/")))
        .chain(["k8s/"].into_iter().filter(|name| !readme.contains(name)).map(str::to_owned))
        .collect();
    assert_none("every crate is on the README's map", missing);
}

fn extension(path: &str) -> &str {
    Path::new(path).extension().and_then(|extension| extension.to_str()).unwrap_or("")
}

/// Whether `word` stands in `text` as a whole identifier.
fn has_word(text: &str, word: &str) -> bool {
    let part_of_a_word = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word).any(|(at, _)| {
        !text[..at].ends_with(part_of_a_word) && !text[at + word.len()..].starts_with(part_of_a_word)
    })
}

#[test]
fn words_are_whole() {
    assert!(has_word("let x = unsafe { 1 };", "unsafe"));
    assert!(!has_word("unsafe_code", "unsafe"));
    assert!(!has_word("make_unsafe", "unsafe"));
}

#[test]
fn modules_of_tests_are_left_out() {
    let text = "a();\n#[cfg(test)]\nmod tests;\nb();\n#[cfg(test)]\nmod more {\n    c();\n}\nd();\n";
    let source = Source::new("x.rs", text);
    assert_eq!(
        source.lines_with(|code| code.contains("();")),
        ["x.rs:1: a();", "x.rs:4: b();", "x.rs:9: d();"]
    );
}

#[test]
fn code_is_told_from_comments_and_strings() {
    let source = Source::new(
        "x.rs",
        r##"// unsafe in a comment
let s = "unsafe \" in a string"; /* unsafe /* nested */ unsafe */ let c = '"';
let r = r#"unsafe "raw" string"#; let l: &'static str = "unsafe";
real_code(unsafe_call)"##,
    );
    assert!(source.lines_with(|code| has_word(code, "unsafe")).is_empty());
    assert_eq!(source.lines_with(|code| code.contains("real_code")), ["x.rs:4: real_code(unsafe_call)"]);
}
