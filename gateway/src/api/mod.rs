//! The doors: translation only, onto the one path in [`crate::engine`].

pub mod grpc;
pub mod openai;
pub mod sessions;

pub use asterism_process::channel::PUBLIC_MESSAGE_LIMIT as MAX_REQUEST_BYTES;
