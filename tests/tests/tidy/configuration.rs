//! The keys of both services, frozen: a new one is an argued change.

use asterism_gateway::config::GatewayConfig;
use asterism_process::config::{Settings, keys};
use asterism_shard::ShardConfig;

use super::source;

/// More than this is a sign that something should be computed instead.
const MOST_KEYS: usize = 18;

const GATEWAY: [&str; 18] = [
    "listen",
    "http_listen",
    "model",
    "model_name",
    "shards",
    "chat_template",
    "max_context",
    "queue_requests",
    "queue_tokens",
    "tenants",
    "speculation",
    "sessions",
    "retention",
    "tenant_sessions",
    "tenant_bytes",
    "take_over",
    "beat_limit",
    "grace",
];

const SHARD: [&str; 16] = [
    "listen",
    "advertise",
    "model",
    "weights",
    "pipeline",
    "stage",
    "stages",
    "layers",
    "device",
    "threads",
    "memory",
    "compute",
    "deterministic",
    "max_rows",
    "max_context",
    "metrics_listen",
];

#[track_caller]
fn assert_keys<T: Settings>(expected: &[&str]) {
    let keys = keys::<T>();
    let names: Vec<&str> = keys.iter().map(|key| key.name.as_str()).collect();
    assert_eq!(names, expected, "the keys of the configuration have changed");
    assert!(names.len() <= MOST_KEYS, "{} keys", names.len());
    let readme = source::read("README.md");
    for key in &keys {
        assert_eq!(key.flag, key.name.replace('_', "-"), "flag and key have the same name");
        assert_eq!(key.env.as_deref(), Some(format!("ASTERISM_{}", key.name.to_uppercase()).as_str()));
        assert!(readme.contains(&format!("`{}`", key.name)), "the README says nothing of {}", key.name);
    }
}

#[test]
fn the_gateways_keys_are_these() {
    assert_keys::<GatewayConfig>(&GATEWAY);
}

#[test]
fn the_shards_keys_are_these() {
    assert_keys::<ShardConfig>(&SHARD);
}
