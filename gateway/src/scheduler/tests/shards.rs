//! A model of the stages that checks every plan it is sent.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::super::*;

/// What the stages know.
pub struct Shards {
    limits: Limits,
    last: StepId,
    sequences: BTreeMap<SequenceId, Fed>,
    /// Ids of this epoch that may not come again.
    ended: BTreeSet<SequenceId>,
    in_flight: VecDeque<Step>,
}

struct Fed {
    positions: u32,
    prompt_len: u32,
    blocks: Vec<u32>,
    evidence_is_due: bool,
}

impl Shards {
    pub fn new(limits: Limits) -> Self {
        let (sequences, ended) = (BTreeMap::new(), BTreeSet::new());
        Self { limits, last: 0, sequences, ended, in_flight: VecDeque::new() }
    }

    /// Whether no sequence is known any more.
    pub fn are_empty(&self) -> bool {
        self.sequences.is_empty()
    }

    /// A plan arrives.
    pub fn take(&mut self, step: Step, groups: u32) {
        self.last += 1;
        assert_eq!(step.id, self.last, "steps in order");
        assert!(!step.ended.is_empty() || !step.spans.is_empty(), "no empty plan");
        for id in &step.ended {
            assert!(self.sequences.remove(id).is_some(), "{id}: only what the stages know is ended");
            self.ended.insert(*id);
        }
        let rows: usize = step.spans.iter().map(|span| span.token_ids.len()).sum();
        let evidence: usize = step.spans.iter().map(|span| span.evidence.len()).sum();
        assert!(rows <= self.limits.rows as usize, "{rows} rows");
        assert!(evidence <= self.limits.evidence_rows as usize, "{evidence} evidence rows");
        let mut seen = BTreeSet::new();
        for span in &step.spans {
            assert!(seen.insert(span.sequence), "one span a sequence");
            self.take_span(span);
        }
        let blocks: Vec<u32> = self.sequences.values().flat_map(|fed| fed.blocks.clone()).collect();
        assert_eq!(blocks.iter().collect::<BTreeSet<_>>().len(), blocks.len(), "no block has two owners");
        assert!(blocks.iter().all(|block| *block < self.limits.blocks), "only blocks that there are");
        let slots = self.sequences.values().filter(|fed| fed.evidence_is_due).count();
        assert!(slots <= self.limits.logits_slots as usize, "{slots} raw rows");
        self.in_flight.push_back(step);
        self.check_in_flight(groups);
    }

    fn take_span(&mut self, span: &Span) {
        assert!(!span.token_ids.is_empty(), "no empty span");
        assert_eq!(span.start.is_some(), span.first_position == 0, "the first span starts a sequence");
        if let Some(start) = &span.start {
            assert!(!self.ended.contains(&span.sequence), "ids are never used again");
            let fed = Fed {
                positions: 0,
                prompt_len: start.prompt_len,
                blocks: start.blocks.clone(),
                evidence_is_due: false,
            };
            assert!(self.sequences.insert(span.sequence, fed).is_none(), "a sequence starts once");
        }
        let fed = self.sequences.get_mut(&span.sequence).expect("a sequence starts before it goes on");
        assert_eq!(span.first_position, fed.positions, "positions follow each other");
        let in_prompt = fed.positions < fed.prompt_len;
        assert!(in_prompt || span.token_ids.len() == 1, "one decode row");
        fed.positions += span.token_ids.len() as u32;
        assert!(!in_prompt || fed.positions <= fed.prompt_len, "a chunk ends with the prompt");
        assert!(fed.positions.div_ceil(BLOCK_ROWS) <= fed.blocks.len() as u32, "every row has a block");
        let last = fed.positions - 1;
        let wanted = if fed.positions >= fed.prompt_len { last..last + 1 } else { 0..0 };
        assert_eq!(span.evidence, wanted, "evidence of the prompt's last row and of decode rows");
        fed.evidence_is_due = !wanted.is_empty();
        let elsewhere = self.in_flight.iter().flat_map(|step| &step.spans);
        let mut with_evidence = elsewhere.filter(|other| !other.evidence.is_empty());
        let decodes_twice =
            with_evidence.any(|other| other.sequence == span.sequence && other.is_unanswered());
        assert!(!decodes_twice, "a decoding sequence is in one step");
    }

    fn check_in_flight(&self, groups: u32) {
        let (with_rows, ends_only): (Vec<_>, Vec<_>) =
            self.in_flight.iter().partition(|step| !step.spans.is_empty());
        let most = (groups + 1).min(self.limits.steps_in_flight);
        assert!(with_rows.len() <= most as usize, "{} steps with rows of {most}", with_rows.len());
        assert!(ends_only.len() <= 1, "one plan of ends beside them");
    }

    /// The oldest step is done: its id and the sequences whose tokens are due, also those that ended meanwhile.
    pub fn finish_step(&mut self) -> Option<(StepId, Vec<SequenceId>)> {
        let step = self.in_flight.pop_front()?;
        let due = step.spans.iter().filter(|span| !span.evidence.is_empty()).map(|span| span.sequence);
        Some((step.id, due.collect()))
    }

    /// Evidence of a row came before its step was done everywhere.
    pub fn answer_early(&mut self) -> Vec<SequenceId> {
        let Some(step) = self.in_flight.front_mut() else { return Vec::new() };
        let spans = step.spans.iter_mut().filter(|span| span.is_unanswered());
        spans
            .map(|span| {
                span.evidence = 0..0;
                span.sequence
            })
            .collect()
    }
}

impl Span {
    fn is_unanswered(&self) -> bool {
        !self.evidence.is_empty()
    }
}
