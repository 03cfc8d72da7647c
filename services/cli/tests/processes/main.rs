//! The binary as people run it: processes of their own, real sockets, exit codes and messages.

mod command;
mod golden;
mod holders;
mod mistakes;
mod pipeline;
mod pull;
mod talk;
