//! The binary as people run it: processes of their own, real sockets, exit codes and messages.

#![allow(clippy::expect_used, clippy::panic, reason = "a failed test says what it expected")]

mod chat;
mod command;
mod golden;
mod holders;
mod kills;
mod load;
mod mistakes;
mod pipeline;
mod pull;
mod sessions;
mod talk;
