//! Who may depend on whom, read from the crates' manifests.

use toml::{Table, Value};

use super::{assert_none, source};

/// The folders of the workspace's crates.
pub fn members() -> Vec<String> {
    let root = manifest("Cargo.toml");
    let members = root["workspace"]["members"].as_array().expect("a list of members").clone();
    members.iter().map(|member| member.as_str().expect("a path").to_owned()).collect()
}

fn manifest(path: &str) -> Table {
    source::read(path).parse().unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn crates() -> Vec<(String, Table)> {
    members().into_iter().map(|member| (member.clone(), manifest(&format!("{member}/Cargo.toml")))).collect()
}

/// The workspace's own crates that a crate is built from, without `asterism-`.
fn own_dependencies(manifest: &Table) -> Vec<String> {
    let dependencies = manifest.get("dependencies").and_then(Value::as_table).cloned().unwrap_or_default();
    dependencies.keys().filter_map(|name| name.strip_prefix("asterism-")).map(str::to_owned).collect()
}

#[test]
fn services_meet_only_in_proto() {
    // What each may be built from. A new line, or a new crate, is an argued change.
    let allowed: &[(&str, &[&str])] = &[
        ("proto", &[]),
        ("services/tensor", &[]),
        ("services/model", &["tensor"]),
        ("services/process", &["proto"]),
        ("services/link", &["process", "proto", "tensor"]),
        ("services/shard", &["link", "model", "process", "proto", "tensor"]),
        ("gateway", &["process", "proto"]),
        ("services/cli", &["gateway", "model", "process", "proto", "shard", "tensor"]),
        ("tests", &["gateway", "model", "process", "proto", "shard", "tensor"]),
    ];
    let mut offences = Vec::new();
    for (member, manifest) in crates() {
        match allowed.iter().find(|(name, _)| *name == member) {
            None => offences.push(format!("{member} is not in the list of crates")),
            Some((_, allowed)) => offences.extend(
                own_dependencies(&manifest)
                    .into_iter()
                    .filter(|name| !allowed.contains(&name.as_str()))
                    .map(|name| format!("{member} depends on {name}")),
            ),
        }
    }
    assert_none("services never import each other", offences);
}

#[test]
fn versions_lints_and_profiles_stand_once() {
    let mut offences = Vec::new();
    for (member, manifest) in crates() {
        for key in ["version", "edition", "rust-version", "license"] {
            if manifest["package"][key].get("workspace") != Some(&Value::Boolean(true)) {
                offences.push(format!("{member}: {key} is not the workspace's"));
            }
        }
        if manifest.get("lints").and_then(|lints| lints.get("workspace")) != Some(&Value::Boolean(true)) {
            offences.push(format!("{member}: the lints are not the workspace's"));
        }
        if manifest.contains_key("features") {
            offences.push(format!("{member}: features multiply what has to be tested"));
        }
        for kind in ["dependencies", "dev-dependencies", "build-dependencies"] {
            for (name, value) in manifest.get(kind).and_then(Value::as_table).into_iter().flatten() {
                if value.get("workspace") != Some(&Value::Boolean(true)) {
                    offences.push(format!("{member}: {name} has its own version"));
                }
            }
        }
    }
    assert_none("a crate's manifest says only what is its own", offences);
}
