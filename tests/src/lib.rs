//! What the whole-system tests share: the golden data, and clusters of real services over real sockets.

#![allow(clippy::expect_used, reason = "a test that cannot go on should stop and say where")]

pub mod answer;
pub mod chatter;
pub mod cluster;
pub mod golden;
pub mod otlp;
pub mod speaking;
pub mod workload;
