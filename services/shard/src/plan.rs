//! From a plan to a step that can be computed, or to a refusal. Pure.
//!
//! All that a driver sends is checked here, the same way on every stage, before anything is computed. A refused plan ends its
//! epoch, so what was changed up to the refusal does not matter.

mod refusal;

use std::collections::HashSet;
use std::sync::Arc;

use asterism_proto::shard::v1::{SequenceStart, Span, StepPlan};
use asterism_tensor::BLOCK_ROWS;
use foldhash::fast::RandomState;

pub use self::refusal::{PlanRefusal, SpanRefusal};
use crate::sequences::{Sequence, Sequences};
use crate::setting::{MOST_CANDIDATES, Setting};

/// Ids of a plan's sequences or blocks.
type Ids<T> = HashSet<T, RandomState>;

/// A step that was checked. Its spans' block tables are in the [`Sequences`].
#[derive(Debug)]
pub struct Step {
    /// Its number.
    pub id: u64,
    /// In the plan's order; none in a plan of ends only.
    pub spans: Vec<StepSpan>,
}

/// A span that was checked.
#[derive(Debug)]
pub struct StepSpan {
    /// Its sequence.
    pub sequence: u64,
    /// Position of its first row.
    pub first_position: usize,
    /// One a row.
    pub token_ids: Vec<u32>,
    /// Positions whose evidence is wanted, ascending.
    pub evidence: Vec<usize>,
    /// How many best ids each evidence holds.
    pub top_k: usize,
    /// How evidence rows are processed; set where there are any on the last stage.
    pub setting: Option<Arc<Setting>>,
    /// Where the raw row of each evidence position is kept; empty but on the last stage.
    pub slots: Vec<usize>,
}

#[cfg(test)]
impl Step {
    /// Rows of all spans.
    pub fn rows(&self) -> usize {
        self.spans.iter().map(|span| span.token_ids.len()).sum()
    }
}

impl Sequences {
    /// Takes a plan in: ends first, then its spans.
    ///
    /// # Errors
    /// What is wrong with it; the epoch is to end then.
    pub fn apply(&mut self, plan: StepPlan) -> Result<Step, PlanRefusal> {
        if plan.epoch != self.epoch {
            return Err(PlanRefusal::Epoch { found: plan.epoch, epoch: self.epoch });
        }
        let expected = self.step.saturating_add(1);
        if plan.step != expected {
            return Err(PlanRefusal::Order { found: plan.step, expected });
        }
        self.step = plan.step;
        for &sequence in &plan.ended {
            if !self.end(sequence) {
                return Err(PlanRefusal::UnknownEnd { sequence });
            }
        }
        if !plan.ended.is_empty() {
            self.forget_settings();
        }
        self.check_size(&plan.spans)?;
        let mut seen = Ids::<u64>::with_capacity_and_hasher(plan.spans.len(), RandomState::default());
        let mut written = Ids::<u32>::with_capacity_and_hasher(plan.spans.len(), RandomState::default());
        let mut spans = Vec::with_capacity(plan.spans.len());
        for (index, span) in plan.spans.into_iter().enumerate() {
            let sequence = span.sequence;
            let refused = |why| PlanRefusal::Span { span: index, sequence, why };
            if !seen.insert(sequence) {
                return Err(refused(SpanRefusal::Twice));
            }
            spans.push(self.apply_span(span, &mut written).map_err(refused)?);
        }
        self.keep_rows(&mut spans)?;
        Ok(Step { id: plan.step, spans })
    }

    /// Checks rows and evidence rows of the whole plan.
    fn check_size(&self, spans: &[Span]) -> Result<(), PlanRefusal> {
        let rows = spans.iter().map(|span| span.token_ids.len()).sum();
        if rows > self.room.max_rows {
            return Err(PlanRefusal::Rows { rows, most: self.room.max_rows });
        }
        let rows = spans.iter().map(|span| span.evidence_positions.len()).sum();
        if rows > self.room.evidence_rows {
            return Err(PlanRefusal::EvidenceRows { rows, most: self.room.evidence_rows });
        }
        let starting = spans.iter().filter(|span| span.start.is_some()).count();
        let sequences = self.by_id.len() + starting;
        // Each writes a block of its own, so a planner cannot want more.
        if starting > 0 && sequences > self.room.kv_blocks {
            return Err(PlanRefusal::Sequences { sequences, most: self.room.kv_blocks });
        }
        Ok(())
    }

    fn apply_span(&mut self, mut span: Span, written: &mut Ids<u32>) -> Result<StepSpan, SpanRefusal> {
        let first = span.first_position as usize;
        let end = first.saturating_add(span.token_ids.len());
        if span.token_ids.is_empty() {
            return Err(SpanRefusal::Empty);
        }
        if end > self.room.max_context {
            return Err(SpanRefusal::Position { position: end - 1, context: self.room.max_context });
        }
        self.check_ids(&span.token_ids)?;
        match span.start.take() {
            Some(start) => self.start(span.sequence, first, start)?,
            None => self.go_on(span.sequence, first)?,
        }
        let evidence = evidence(&span, first..end)?;
        let setting = self.evidence_setting(&span, &evidence)?;

        let (room, is_last) = (self.room, self.is_last());
        let Some(sequence) = self.by_id.get_mut(&span.sequence) else { return Err(SpanRefusal::NotStarted) };
        update_table(&mut sequence.blocks, &span, room.kv_blocks)?;
        let most = room.max_context.div_ceil(BLOCK_ROWS);
        let Some(blocks) =
            sequence.blocks.get(..end.div_ceil(BLOCK_ROWS)).filter(|_| sequence.blocks.len() <= most)
        else {
            return Err(SpanRefusal::Table { blocks: sequence.blocks.len(), positions: end, most });
        };
        for &block in &blocks[first / BLOCK_ROWS..] {
            if !written.insert(block) {
                return Err(SpanRefusal::WrittenTwice { block });
            }
        }
        sequence.end = end;
        if is_last {
            sequence.feed(first, &span.token_ids);
            if let Some(setting) = &setting
                && setting.has_penalties()
                && sequence.context(end - 1).is_none()
            {
                return Err(SpanRefusal::PriorIds { first });
            }
        }
        Ok(StepSpan {
            sequence: span.sequence,
            first_position: first,
            token_ids: span.token_ids,
            evidence,
            top_k: span.top_k as usize,
            setting: setting.filter(|_| is_last),
            slots: Vec::new(),
        })
    }

    fn check_ids(&self, ids: &[u32]) -> Result<(), SpanRefusal> {
        match ids.iter().find(|id| **id as usize >= self.room.vocab) {
            Some(&id) => Err(SpanRefusal::TokenId { id, vocab: self.room.vocab }),
            None => Ok(()),
        }
    }

    /// A sequence's first span.
    fn start(&mut self, sequence: u64, first: usize, start: SequenceStart) -> Result<(), SpanRefusal> {
        if self.by_id.contains_key(&sequence) {
            return Err(SpanRefusal::StartedBefore);
        }
        let (prompt_len, most) = (start.prompt_len as usize, self.room.max_context);
        if prompt_len == 0 || prompt_len > most {
            return Err(SpanRefusal::PromptLen { prompt_len, most });
        }
        let prior = start.prior_ids;
        if !prior.is_empty() && prior.len() != first {
            return Err(SpanRefusal::PriorLen { found: prior.len(), first });
        }
        self.check_ids(&prior)?;
        let setting = match start.setting {
            None => None,
            Some(wire) => {
                let id = wire.id;
                let setting = Setting::check(wire, self.room.vocab)?;
                Some(self.name_setting(id, setting).map_err(|_| SpanRefusal::SettingTaken { id })?)
            }
        };
        let prior = if self.is_last() { prior } else { Vec::new() };
        self.by_id.insert(sequence, Sequence::starting(prompt_len, first, prior, setting));
        Ok(())
    }

    /// A later span of a sequence.
    fn go_on(&mut self, sequence: u64, first: usize) -> Result<(), SpanRefusal> {
        let Some(known) = self.by_id.get(&sequence) else { return Err(SpanRefusal::NotStarted) };
        if first > known.end {
            return Err(SpanRefusal::Gap { first, end: known.end });
        }
        self.release_slots(sequence);
        Ok(())
    }

    /// The setting of the span's evidence, if it wants any.
    fn evidence_setting(&self, span: &Span, evidence: &[usize]) -> Result<Option<Arc<Setting>>, SpanRefusal> {
        if evidence.is_empty() {
            return Ok(None);
        }
        if !(1..=MOST_CANDIDATES).contains(&span.top_k) {
            return Err(SpanRefusal::TopK { top_k: span.top_k });
        }
        let setting = self.setting(span.setting_id);
        setting.map(Some).ok_or(SpanRefusal::UnknownSetting { id: span.setting_id })
    }

    /// Takes slots for the evidence of all spans, after all sequences that go on have given theirs back.
    fn keep_rows(&mut self, spans: &mut [StepSpan]) -> Result<(), PlanRefusal> {
        let Some(slots) = self.room.logits_slots else { return Ok(()) };
        for span in spans {
            let Some(setting) = &span.setting else { continue };
            for &position in &span.evidence {
                let slot = self.keep(span.sequence, position, Arc::clone(setting));
                span.slots.push(slot.ok_or(PlanRefusal::LogitsSlots { slots })?);
            }
        }
        Ok(())
    }
}

/// The span's evidence positions, which must lie in it, ascending.
fn evidence(span: &Span, within: std::ops::Range<usize>) -> Result<Vec<usize>, SpanRefusal> {
    let mut least = within.start;
    let mut positions = Vec::with_capacity(span.evidence_positions.len());
    for &position in &span.evidence_positions {
        let position = position as usize;
        if !(least..within.end).contains(&position) {
            return Err(SpanRefusal::Evidence { position });
        }
        least = position + 1;
        positions.push(position);
    }
    Ok(positions)
}

/// From entry `table_offset` on the table becomes the span's blocks; without any it stays.
fn update_table(table: &mut Vec<u32>, span: &Span, kv_blocks: usize) -> Result<(), SpanRefusal> {
    if span.blocks.is_empty() {
        return Ok(());
    }
    if let Some(&block) = span.blocks.iter().find(|block| **block as usize >= kv_blocks) {
        return Err(SpanRefusal::Block { block, blocks: kv_blocks });
    }
    let offset = span.table_offset as usize;
    if offset > table.len() {
        return Err(SpanRefusal::TableOffset { offset, blocks: table.len() });
    }
    table.truncate(offset);
    table.extend_from_slice(&span.blocks);
    Ok(())
}

#[cfg(test)]
mod tests;
