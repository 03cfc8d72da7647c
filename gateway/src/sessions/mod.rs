//! Conversations that the gateway owns.
//!
//! A *session* is a list of *turns*. A turn is what was said to the model, the exact ids of prompt and answer, how the answer
//! was drawn and how it ended. A [`Store`](store::Store) keeps them: a turn is durable before its first token leaves, an
//! answer's tokens are in a journal before they leave, and an answer is committed once.

pub mod journal;
pub mod record;
pub mod store;

pub use record::{Answer, End, NewTurn, Session, SessionId, Settings, Turn, TurnId};
