//! A model of the stages that checks every plan it is sent, and whose next token is a pure function of the ids before it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::super::*;

/// What the stages know.
pub struct Shards {
    limits: Limits,
    last: StepId,
    runs: BTreeMap<RunId, Fed>,
    /// Of this epoch; they may not come again.
    ended: BTreeSet<RunId>,
    in_flight: VecDeque<Step>,
    /// Prompt and answer so far of every sequence, as their readers know them.
    known: BTreeMap<SequenceId, Vec<u32>>,
    tenants: BTreeMap<SequenceId, TenantId>,
    /// Positions of each that may be fed: all but the last.
    most: BTreeMap<SequenceId, u32>,
    /// What the rows of each block hold.
    rows: BTreeMap<u32, Vec<Row>>,
}

/// What is drawn from the evidence of a row.
#[derive(Clone, Copy, Debug)]
pub struct Drawn {
    pub run: RunId,
    pub position: u32,
    pub token: u32,
}

/// All that a row's numbers depend on: whose it is, and the id, the rope and the class of each row up to it.
pub type Row = (TenantId, Vec<(u32, u64, bool)>);

const ROWS: usize = BLOCK_ROWS as usize;

fn row(fed: &Fed, position: usize, kinds: &RowKinds) -> Row {
    row_of(fed.tenant, &fed.ids, position, fed.prompt_len, kinds)
}

/// The row at `position` of a sequence.
pub fn row_of(tenant: TenantId, ids: &[u32], position: usize, prompt_len: u32, kinds: &RowKinds) -> Row {
    let of = |position: usize| {
        let length = f64::from(prompt_len.max(position as u32 + 1));
        let alpha = match kinds.rope_base_length {
            0 => 1.0,
            // The formula of the model.
            base => (((length / f64::from(base)).log2() + 1.0).ceil().exp2() - 1.0).max(1.0),
        };
        (ids[position], alpha as u64, kinds.have_classes && (position as u32) < prompt_len)
    };
    (tenant, (0..=position).map(of).collect())
}

struct Fed {
    sequence: SequenceId,
    tenant: TenantId,
    prompt_len: u32,
    ids: Vec<u32>,
    blocks: Vec<u32>,
    /// The most positions that may be fed.
    most: u32,
    /// Raw rows of its latest span.
    kept_rows: usize,
}

/// The token that follows `ids`: mostly what stands three before, so that the text repeats itself for a while.
pub fn next_token(ids: &[u32]) -> u32 {
    let hash = ids.iter().fold(7, |hash: u32, id| (hash ^ id).wrapping_mul(0x0100_0193).rotate_left(9));
    match ids.len().checked_sub(3).and_then(|before| ids.get(before)) {
        Some(before) if hash % 8 > 0 => *before,
        _ => hash / 8 % 1000,
    }
}

/// The answer of `count` tokens to a prompt that nobody disturbs.
pub fn undisturbed(prompt: &[u32], count: u32) -> Vec<u32> {
    let mut ids = prompt.to_vec();
    for _ in 0..count {
        ids.push(next_token(&ids));
    }
    ids
}

impl Shards {
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            last: 0,
            runs: BTreeMap::new(),
            ended: BTreeSet::new(),
            in_flight: VecDeque::new(),
            known: BTreeMap::new(),
            tenants: BTreeMap::new(),
            most: BTreeMap::new(),
            rows: BTreeMap::new(),
        }
    }

    /// Whether no run is known any more.
    pub fn are_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// A sequence was taken by the scheduler.
    pub fn expect(&mut self, sequence: &NewSequence) {
        self.known.insert(sequence.id, sequence.prompt.to_vec());
        self.tenants.insert(sequence.id, sequence.tenant);
        self.most.insert(sequence.id, sequence.prompt.len() as u32 + sequence.max_tokens - 1);
    }

    /// A reader got a token.
    pub fn gain(&mut self, sequence: SequenceId, token: u32) {
        self.known.get_mut(&sequence).expect("a sequence that was taken").push(token);
    }

    /// Prompt and answer so far.
    pub fn known(&self, sequence: SequenceId) -> &[u32] {
        &self.known[&sequence]
    }

    /// The step that is done next.
    pub fn oldest(&self) -> Option<StepId> {
        self.in_flight.front().map(|step| step.id)
    }

    /// Sequences with rows in steps under way.
    pub fn under_way(&self) -> BTreeSet<SequenceId> {
        self.in_flight.iter().flat_map(|step| &step.spans).map(|span| span.sequence).collect()
    }

    /// Whether the oldest step has the row of a sequence at `position`, or one after it.
    pub fn breaks(&self, sequence: SequenceId, position: u32) -> bool {
        let mut spans = self.in_flight.iter().take(1).flat_map(|step| &step.spans);
        spans.any(|span| {
            span.sequence == sequence && span.first_position + span.token_ids.len() as u32 > position
        })
    }

    /// Sequences that the stages know.
    pub fn running(&self) -> BTreeSet<SequenceId> {
        self.runs.values().map(|fed| fed.sequence).collect()
    }

    /// The epoch is over: all is forgotten but what readers know.
    pub fn forget(&mut self, limits: Limits) {
        let before = std::mem::replace(self, Self::new(limits));
        *self = Self { known: before.known, tenants: before.tenants, most: before.most, ..Self::new(limits) };
    }

    /// A plan arrives; the sequences whose runs it ends.
    pub fn take(&mut self, step: Step, groups: u32) -> Vec<SequenceId> {
        self.last += 1;
        assert_eq!(step.id, self.last, "steps in order");
        assert!(!step.ended.is_empty() || !step.spans.is_empty(), "no empty plan");
        let mut ended = Vec::new();
        for id in &step.ended {
            let fed = self.runs.remove(id).expect("only what the stages know is ended");
            ended.push(fed.sequence);
            self.ended.insert(*id);
        }
        let rows: usize = step.spans.iter().map(|span| span.token_ids.len()).sum();
        let evidence: usize = step.spans.iter().map(|span| span.evidence.len()).sum();
        assert!(rows <= self.limits.rows as usize, "{rows} rows");
        assert!(evidence <= self.limits.evidence_rows as usize, "{evidence} evidence rows");
        // What has had evidence goes on from that.
        let goes_on = |span: &Span| self.runs.get(&span.run).is_some_and(|fed| fed.kept_rows > 0);
        let decodes = step.spans.iter().any(goes_on);
        let mut seen = BTreeSet::new();
        for span in &step.spans {
            assert!(seen.insert(span.sequence), "one span a sequence");
            self.take_span(span);
        }
        self.check_blocks(&step);
        let slots: usize = self.runs.values().map(|fed| fed.kept_rows).sum();
        assert!(slots <= self.limits.logits_slots as usize, "{slots} raw rows");
        self.in_flight.push_back(step);
        self.check_in_flight(if decodes { groups + 1 } else { u32::MAX });
        ended
    }

    fn take_span(&mut self, span: &Span) {
        assert!(!span.token_ids.is_empty(), "no empty span");
        if let Some(start) = &span.start {
            assert!(!self.ended.contains(&span.run), "names of runs are never used again");
            let fed = Fed {
                sequence: span.sequence,
                tenant: self.tenants[&span.sequence],
                prompt_len: start.prompt_len,
                ids: start.prior_ids.clone(),
                blocks: Vec::new(),
                most: self.most[&span.sequence],
                kept_rows: 0,
            };
            assert!(self.runs.insert(span.run, fed).is_none(), "a run starts once");
        }
        let fed = self.runs.get_mut(&span.run).expect("a run starts before it goes on");
        let known = &self.known[&span.sequence];
        let first = span.first_position as usize;
        assert_eq!(span.sequence, fed.sequence);
        // What was fed and is not what its reader got is dropped.
        let held = fed.ids.iter().zip(known).take_while(|(fed, known)| fed == known).count();
        assert_eq!(first, held.min(known.len() - 1), "positions follow each other");
        fed.ids.truncate(first);
        fed.ids.extend(&span.token_ids);
        let told = fed.ids.len().min(known.len());
        assert_eq!(fed.ids[..told], known[..told], "what its reader knows is fed");
        assert!(fed.prompt_len as usize <= known.len(), "the prompt stays the original");
        assert!(span.table_offset as usize <= fed.blocks.len(), "the table has no gap");
        fed.blocks.truncate(span.table_offset as usize);
        fed.blocks.extend(&span.blocks);
        let needed = fed.ids.len().div_ceil(ROWS);
        let taken = fed.blocks.len();
        assert!((needed..=(fed.most as usize).div_ceil(ROWS)).contains(&taken), "{taken} blocks");
        assert!(taken <= known.len().div_ceil(ROWS) + 1, "blocks are taken as positions are fed");
        let (last, end) = (known.len() as u32 - 1, fed.ids.len() as u32);
        assert!(end <= fed.most, "no more than the answer may have");
        let wanted = if end > last { last..end } else { 0..0 };
        assert_eq!(
            span.evidence, wanted,
            "evidence of the last row that is known, and of what is proposed behind it"
        );
        assert!(wanted.len() <= 1 || first as u32 == last, "only a decode row has a proposal behind it");
        fed.kept_rows = wanted.len();
        let elsewhere = self.in_flight.iter().flat_map(|step| &step.spans);
        let mut with_evidence = elsewhere.filter(|other| !other.evidence.is_empty());
        assert!(!with_evidence.any(|other| other.run == span.run), "a decoding sequence is in one step");
    }

    /// What a step reads was written by steps before it, and nothing of it is written by the step.
    fn check_blocks(&mut self, step: &Step) {
        self.check_rows(step, |span| 0..span.first_position as usize);
        let mut written = BTreeSet::new();
        for span in &step.spans {
            let fed = &self.runs[&span.run];
            let first = span.first_position as usize;
            for index in first / ROWS..fed.blocks.len() {
                let block = fed.blocks[index];
                assert!(block < self.limits.blocks, "only blocks that there are");
                assert!(written.insert(block), "written for one sequence at a time");
                let rows = self.rows.entry(block).or_default();
                if index * ROWS >= fed.ids.len() {
                    continue; // Taken for a proposal that did not hold.
                }
                rows.truncate(first.saturating_sub(index * ROWS));
                let positions = index * ROWS + rows.len()..fed.ids.len().min((index + 1) * ROWS);
                rows.extend(positions.map(|position| row(fed, position, &self.limits.row_kinds)));
            }
        }
        self.check_rows(step, |span| 0..span.first_position as usize + span.token_ids.len());
    }

    fn check_rows(&self, step: &Step, positions: impl Fn(&Span) -> std::ops::Range<usize>) {
        for span in &step.spans {
            let fed = &self.runs[&span.run];
            for position in positions(span) {
                let found =
                    self.rows.get(&fed.blocks[position / ROWS]).and_then(|rows| rows.get(position % ROWS));
                assert_eq!(found, Some(&row(fed, position, &self.limits.row_kinds)), "a row that is read");
            }
        }
    }

    fn check_in_flight(&self, most: u32) {
        let (with_rows, ends_only): (Vec<_>, Vec<_>) =
            self.in_flight.iter().partition(|step| !step.spans.is_empty());
        let most = most.min(self.limits.steps_in_flight);
        assert!(with_rows.len() <= most as usize, "{} steps with rows of {most}", with_rows.len());
        assert!(ends_only.len() <= 1, "one plan of ends beside them");
    }

    /// The oldest step is done: its id and the tokens that its evidence gives, also of runs that are over.
    pub fn finish_step(&mut self) -> Option<(StepId, Vec<Drawn>)> {
        let step = self.in_flight.pop_front()?;
        Some((step.id, step.spans.iter().flat_map(|span| self.drawn(span)).collect()))
    }

    /// Evidence of the oldest step's rows comes before it is done everywhere.
    pub fn answer_early(&mut self) -> Vec<Drawn> {
        let Some(mut step) = self.in_flight.pop_front() else { return Vec::new() };
        let due = step.spans.iter().flat_map(|span| self.drawn(span)).collect();
        step.spans.iter_mut().for_each(|span| span.evidence = 0..0);
        self.in_flight.push_front(step);
        due
    }

    /// What is drawn from a span's evidence, in order of position.
    fn drawn(&self, span: &Span) -> Vec<Drawn> {
        let ids = self.runs.get(&span.run).map_or(&[][..], |fed| &fed.ids);
        let token = |position: u32| ids.get(..=position as usize).map_or(0, next_token);
        span.evidence
            .clone()
            .map(|position| Drawn { run: span.run, position, token: token(position) })
            .collect()
    }
}
