//! Shards over real sockets and within a process, driven by a small driver of their own.

#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod driver;
mod fencing;
mod flight;
mod life;
mod numbers;
mod plans;
mod refusals;
mod rows;
