//! Text in, token ids out, and back: tokenizer, chat template, streaming decode, stop strings, generation defaults.

mod defaults;
mod error;

pub use defaults::{GenerationDefaults, MAX_LENGTH};
pub use error::TextError;
