//! The text side against the reference's golden data: tokenizers, chats, replies, templates.
//!
//! The data lies in `ASTERISM_GOLDEN`, else `../shared/golden` beside the workspace, else `tests/golden`. Each set says its
//! name when it passes; what cannot be tested here says that it was skipped, and why.

#![expect(clippy::unwrap_used, clippy::panic, reason = "the helpers of tests fail as tests do")]

#[path = "golden_text/chat.rs"]
mod chat;
#[path = "golden_text/folder.rs"]
mod folder;
#[path = "golden_text/stream.rs"]
mod stream;
#[path = "golden_text/tokenizers.rs"]
mod tokenizers;
