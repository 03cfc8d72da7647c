//! How many prompt rows a step gets.
//!
//! With nobody decoding, as many as keep all stages busy; the more rows queue, the larger. Beside decoding sequences fewer, by
//! three measures of which the least counts:
//! - what waits, spread over the steps of all stages, so that these take about the same time (token throttling: gLLM,
//!   arXiv 2504.14775);
//! - how many blocks are left: while those are few, prompts come slowly, and those that decode may end before blocks run out;
//! - how long the rows take, as measured: what a decode row may have to wait for in the first stage is bounded in time.

use super::limits::BLOCK_ROWS;
use super::times::Line;
use super::{Running, Scheduler};

/// Rows that a chunk has at least, where that many are left: with fewer a step costs no less time.
const LEAST_CHUNK: u32 = 64;

/// Into how many chunks for each stage the prompts' rows are cut, beside others that decode, while it is not known how long they
/// take.
const CHUNKS_OF_UNKNOWN_TIME: u32 = 4;

/// Of the blocks, the part below which what is left of them throttles: one in so many.
const FEW_BLOCKS: u32 = 4;

/// How many times as long as it takes itself a step of decode rows may take with the prompt rows that are in its way.
const SLOWER: f64 = 4.0;

/// In so many seconds prompt rows may be in the way in any case: no reader notices.
const UNNOTICED: f64 = 0.05;

/// Steps with prompt rows that may be in the first of several stages, or wait for it: one that is about to leave it, whose report
/// has not come yet, the one that is computed then, and the next.
pub(super) const CHUNKS_AT_FIRST_STAGE: u32 = 3;

/// What decides a chunk's size.
#[derive(Clone, Copy, Debug)]
pub(super) struct Demand {
    /// P.
    pub(super) stages: u32,
    /// G.
    pub(super) groups: u32,
    /// Prompt rows that are left.
    pub(super) waiting: u32,
    /// The same with those of the same prompts that are planned, and those that queue, as far as there are blocks for them.
    pub(super) whole: u32,
    /// Sequences past their prompts whose answers go on.
    pub(super) decoding: u32,
    /// Blocks that nobody holds.
    pub(super) free: u32,
    /// All blocks.
    pub(super) blocks: u32,
    /// What steps take.
    pub(super) line: Option<Line>,
}

impl Demand {
    /// The prompt rows of the next step.
    pub(super) fn chunk_rows(&self) -> u32 {
        if self.decoding == 0 { self.rows_alone() } else { self.rows_beside_decoding() }
    }

    /// With n chunks, one after the other through P stages, the last leaves after the time of n + P − 1 of them: the fewer,
    /// the longer stages wait at the beginning and the end, and the more, the more often weights are read. In between,
    /// n = √(rows · per row · (P − 1) / fixed) take the least time.
    fn rows_alone(&self) -> u32 {
        let others = self.stages.saturating_sub(1);
        let (Some(Line { fixed, per_row: Some(per_row) }), 1..) = (self.line, others) else {
            return self.waiting.div_ceil(self.stages.max(1)).max(LEAST_CHUNK);
        };
        let (rows, others) = (f64::from(self.whole), f64::from(others));
        let time = |chunks: &u32| {
            let chunks = f64::from(*chunks);
            (chunks + others) * (fixed + per_row * rows / chunks)
        };
        let most = self.whole.div_ceil(LEAST_CHUNK).max(1);
        let fewer = ((rows * per_row * others / fixed).sqrt() as u32).clamp(1, most);
        let more = (fewer + 1).min(most);
        self.whole.div_ceil(if time(&more) < time(&fewer) { more } else { fewer })
    }

    fn rows_beside_decoding(&self) -> u32 {
        let in_time = self.rows_in_time();
        let chunks = self.stages.max(1) * if in_time.is_some() { 1 } else { CHUNKS_OF_UNKNOWN_TIME };
        let by_waiting = self.waiting.div_ceil(chunks);
        let few = (self.blocks / FEW_BLOCKS).max(1);
        let by_blocks = u64::from(by_waiting) * u64::from(self.free.min(few)) / u64::from(few);
        (by_blocks as u32).max(LEAST_CHUNK).min(in_time.unwrap_or(u32::MAX))
    }

    /// How many rows take as long as they may be in the way of decode rows; `None` while that is not known.
    fn rows_in_time(&self) -> Option<u32> {
        let Line { fixed, per_row } = self.line?;
        let (per_row, decode_rows) = (per_row?, self.decoding.div_ceil(self.groups.max(1)));
        let decode_step = fixed + f64::from(decode_rows) * per_row;
        let spare = (SLOWER * decode_step).max(UNNOTICED) - decode_step;
        // One stage has no other group's chunk.
        let chunks = if self.stages > 1 { CHUNKS_AT_FIRST_STAGE } else { 1 };
        Some(((spare / per_row) as u32 / chunks).max(BLOCK_ROWS))
    }
}

impl Scheduler {
    /// How many rows of these `prompts` the next step gets.
    pub(super) fn chunk_rows(&self, prompts: &[&Running]) -> u32 {
        let sum = |rows: fn(&Running) -> u32| {
            prompts.iter().map(|running| rows(running)).fold(0, u32::saturating_add)
        };
        let room = u64::from(self.pool.free()) * u64::from(BLOCK_ROWS);
        let queued = if self.admitting { self.queue.known_tokens().min(room) } else { 0 };
        let demand = Demand {
            stages: self.limits.stages,
            groups: self.groups.count(),
            waiting: sum(Running::rows_left),
            whole: sum(Running::rows).saturating_add(queued.try_into().unwrap_or(u32::MAX)),
            decoding: self.running.values().filter(|running| running.is_decoding()).count() as u32,
            free: self.pool.free(),
            blocks: self.limits.blocks,
            line: self.times.line(),
        };
        demand.chunk_rows().min(self.limits.rows)
    }
}
