//! More than one token a step, where the text repeats itself. Pure: values in, values out.
//!
//! Answers often say again what stands before them: code that is edited, quotations, lists, names. So the ids that
//! followed the last time are *proposed* ([`Lookup`]), fed in one span behind the token that is due, and *verified*
//! ([`Verification`]) by the tokens drawn from the rows' evidence. How many are proposed is decided from what rows cost
//! ([`StepCosts`]) and how often proposals held ([`Control`]); a [`Speculator`] does that for one sequence.
//!
//! # One span, k + 1 rows
//!
//! A sequence has drawn the token `t` for position `p`, and proposes `d1 … dk`. Instead of one row its span has 1 + k, each
//! with evidence:
//!
//! ```text
//! position       p      p+1     p+2     …   p+k
//! token id       t      d1      d2      …   dk
//! evidence of    p      p+1     p+2     …   p+k
//! draws token    x1     x2      x3      …   x(k+1)     for positions p+1, p+2, …
//! ```
//!
//! `x1` is drawn always. If it is `d1`, then the row at `p+1` was fed what the text says there, its evidence is what a step of
//! its own would have given (a row's numbers depend on that row alone), and `x2` is drawn from it; and so on up to the
//! first proposal that does not hold. `m` that hold give `m + 1` tokens in one step.
//!
//! # Exactly the same output
//!
//! Every token is drawn by the sampler, from the evidence of a row with the right ids before it, with the uniform number
//! keyed by (seed, choice, position); a proposal only decides which rows are computed ahead. So greedy and seeded answers
//! are the same bytes with speculation as without, whatever is proposed. (Rejection sampling, as in Leviathan, Kalman and
//! Matias, "Fast inference from transformers via speculative decoding", ICML 2023, keeps the distribution, but not the
//! draws. Proposals from the text itself are Saxena's "prompt lookup decoding", 2023.)
//!
//! # A rejected position leaves no trace
//!
//! - *KV and penalties*: the next span begins at [`Verification::fed`], the first position that does not hold its right id. The
//!   stages drop all ids from there on, and that row overwrites the KV there; no row reads KV at positions after its own.
//! - *Prefix index*: a block enters it once positions below `fed` fill it, so with ids of the text alone.
//! - *Blocks*: what a proposal needs beyond the sequence's table is taken only if it is free, never by preemption, and
//!   serves the tokens that come anyway.
//! - *The lookup*: it reads the history of committed ids, never a proposal.
//! - *Failures*: evidence of a row behind a rejected one is dropped unread, an error in it too.
//!
//! # How the scheduler and the driver use it
//!
//! The scheduler, when it plans the decode rows of a step and has given every sequence of the group its one row, asks each for
//! a proposal:
//!
//! ```text
//! most = min(rows, evidence rows and logits slots left in the step,
//!            max_tokens - generated - 1,      // the step itself draws one more than it proposes
//!            rows that its blocks and the free ones hold beyond p)
//! proposal = speculator.propose(history, Offer { price: costs.price(decode rows of the step), most })
//! span     = [t, proposal…] at p, evidence p ..= p + k
//! ```
//!
//! Decode rows of others and prompt chunks come first: proposals take what is left of a step's limits. Beside a prompt's chunks
//! [`Speculator::read`] takes in the ids, so that the first proposal need not read a long prompt at once. The sequence is still in one
//! step at a time.
//!
//! It keeps a [`Verification`] for every decode span, with or without a proposal, and tells the driver by it:
//!
//! ```text
//! for each evidence of the report, by its position:
//!   Wanted::Now   => draw; deliver the token; verification.drawn(id)
//!   Wanted::Later => keep it: a row before it is being fetched
//!   Wanted::Never => drop it
//! Verdict::Holds  => the row of the proposed id is one of the text; the next position is wanted now
//! Verdict::Over   => the last token is the next to feed; speculator.verified(verification.outcome())
//! ```
//!
//! A token that ends the answer (an id, a string, the limit) ends the sequence and the verification with it. Preemption and an
//! epoch's end drop it with the step's evidence; the replay draws the same tokens. Steps of decode rows alone are measured:
//! `costs.observe(rows, time)`.

mod control;
mod costs;
mod lookup;
mod speculator;
#[cfg(test)]
mod tests;
mod verification;

pub use control::{Control, MOST_PROPOSED, Outcome};
pub use costs::{Price, StepCosts};
pub use lookup::{History, Lookup};
pub use speculator::{Offer, Proposal, Speculator};
pub use verification::{Verdict, Verification, Wanted};
