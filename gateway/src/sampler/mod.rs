//! From evidence to a token, exactly: validated parameters, truncation, certificates, the draw, logprobs.
//!
//! The last stage reports the K best of a row of logits after the processors, and its log-sum-exp. A token is
//! drawn from these under a certificate that the whole row would give the same token; without one the row is
//! fetched ([`Draw::NeedsRow`]) and drawn by the same code ([`draw_from_row`]).
//!
//! The order is the reference's: temperature, top-k, top-p, min-p, then the inverse of the cumulative
//! distribution over the candidates by probability. Everything is f64 with `libm`, so a token depends on its
//! row and on (seed, choice index, position) alone, on every machine.

mod distribution;
mod draw;
mod evidence;
mod philox;
mod row;
mod sampling;

#[cfg(test)]
mod tests;

pub use draw::{Draw, Logprobs, Token, draw, draw_at, draw_from_row, draw_from_row_at};
pub use evidence::{Evidence, EvidenceError};
pub use philox::{philox4x32_10, uniform};
pub use row::{Row, RowError};
pub use sampling::{MAX_EVIDENCE_K, Method, Sampling, Shape, widened_k};
