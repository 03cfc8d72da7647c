//! A whole gateway over real sockets, before shards that play the toy model.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod bad_input;
mod faults;
mod gateways;
mod generate;
mod http;
mod interruptions;
mod join;
mod kv;
mod limits;
mod metrics;
mod model;
#[path = "../../../tests/src/otlp.rs"]
mod otlp;
#[allow(dead_code, reason = "others use the rest")]
mod postgres;
mod prefix;
mod sampling;
mod sandbox;
mod sessions;
mod shard;
mod tenants;
mod toy;
mod traces;
