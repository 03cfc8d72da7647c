//! Stages that take time: a step of so many rows takes each of them `fixed` + rows · `per_row`, and they work in step order.
//! Times are in microseconds.

use std::collections::BTreeMap;
use std::ops::Range;

use super::super::*;

/// How fast a pipeline is.
#[derive(Clone, Copy, Debug)]
pub struct Speed {
    pub fixed: u64,
    pub per_row: u64,
    /// From evidence at the last stage to the plan that goes on from it at the first: half for each way.
    pub turnaround: u64,
}

/// A scheduler, and the stages that do what it plans.
pub struct Pipeline {
    pub speed: Speed,
    pub scheduler: Scheduler,
    /// When each stage is done with all that it has.
    free_at: Vec<u64>,
    /// What happens when, and in which order.
    events: BTreeMap<(u64, u64), Event>,
    order: u64,
    prompts: BTreeMap<SequenceId, u32>,
    pub passages: Vec<Passage>,
    /// When each sequence's tokens came.
    pub tokens: BTreeMap<SequenceId, Vec<u64>>,
}

enum Event {
    Submit(NewSequence),
    LeftFirstStage(StepId),
    Done(Step),
}

/// A step's way.
#[derive(Clone, Debug)]
pub struct Passage {
    pub decode_rows: u32,
    /// Of prompts: sequence and positions.
    pub chunks: Vec<(SequenceId, Range<u32>)>,
    /// When its plan is at the first stage.
    pub arrives: u64,
    /// When each stage works on it.
    pub stages: Vec<Range<u64>>,
}

impl Passage {
    pub fn prompt_rows(&self) -> u32 {
        self.chunks.iter().map(|(_, positions)| positions.len() as u32).sum()
    }

    /// How long each stage works on it.
    pub fn time(&self) -> u64 {
        self.stages[0].end - self.stages[0].start
    }
}

impl Speed {
    pub fn time(&self, rows: u32) -> u64 {
        self.fixed + u64::from(rows) * self.per_row
    }
}

impl Pipeline {
    pub fn new(limits: Limits, speed: Speed) -> Self {
        Self {
            speed,
            scheduler: Scheduler::new(limits, QueueLimits { requests: 100, tokens: 1_000_000 }),
            free_at: vec![0; limits.stages as usize],
            events: BTreeMap::new(),
            order: 0,
            prompts: BTreeMap::new(),
            passages: Vec::new(),
            tokens: BTreeMap::new(),
        }
    }

    pub fn submit(&mut self, at: u64, sequence: NewSequence) {
        self.prompts.insert(sequence.id, sequence.prompt.len() as u32);
        self.at(at, Event::Submit(sequence));
    }

    fn at(&mut self, time: u64, event: Event) {
        self.order += 1;
        self.events.insert((time, self.order), event);
    }

    /// Lets time pass until `until`, or until nothing is left to happen.
    pub fn run(&mut self, until: u64) {
        while let Some(((now, _), event)) = self.events.pop_first() {
            match event {
                Event::Submit(sequence) => self.scheduler.submit(sequence).unwrap(),
                Event::LeftFirstStage(step) => self.scheduler.left_first_stage(step),
                Event::Done(step) => self.done(now, &step),
            }
            while let Some(step) = self.scheduler.next_step() {
                self.send(now, step);
            }
            if now >= until {
                return;
            }
        }
    }

    fn send(&mut self, now: u64, step: Step) {
        let rows = step.spans.iter().map(|span| span.token_ids.len() as u32).sum();
        let time = if rows == 0 { 0 } else { self.speed.time(rows) };
        let way = self.speed.turnaround / 2;
        let mut ready = now + way;
        let mut stages = Vec::new();
        for free_at in &mut self.free_at {
            let begin = ready.max(*free_at);
            (ready, *free_at) = (begin + time, begin + time);
            stages.push(begin..ready);
        }
        if rows > 0 {
            let is_prompt = |span: &&Span| span.first_position < self.prompts[&span.sequence];
            let chunks = step.spans.iter().filter(is_prompt).map(|span| {
                (span.sequence, span.first_position..span.first_position + span.token_ids.len() as u32)
            });
            let chunks: Vec<_> = chunks.collect();
            let decode_rows = rows - chunks.iter().map(|(_, positions)| positions.len() as u32).sum::<u32>();
            self.passages.push(Passage { decode_rows, chunks, arrives: now + way, stages: stages.clone() });
        }
        self.at(stages[0].end + way, Event::LeftFirstStage(step.id));
        self.at(ready + way, Event::Done(step));
    }

    fn done(&mut self, now: u64, step: &Step) {
        for span in step.spans.iter().filter(|span| !span.evidence.is_empty()) {
            if let Some(sequence) = self.scheduler.sequence(span.run) {
                self.tokens.entry(sequence).or_default().push(now);
            }
            self.scheduler.token(span.run, 5);
        }
        assert!(self.scheduler.step_done(step.id));
        let rows = step.spans.iter().map(|span| span.token_ids.len() as u32).sum();
        self.scheduler.observe(Pace {
            rows,
            stage: Duration::from_micros(self.speed.time(rows)),
            turnaround: Some(Duration::from_micros(self.speed.turnaround)),
        });
    }
}
