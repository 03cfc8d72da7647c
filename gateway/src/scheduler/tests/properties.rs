//! Random workloads against a model of the stages.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::shards::Shards;
use super::*;

#[derive(Clone, Debug)]
enum Event {
    Submit {
        prompt: u32,
        max_tokens: u32,
        priority: i32,
    },
    /// Plans go out until none is due.
    Send,
    /// The oldest step is done, and its tokens come.
    StepDone,
    /// The oldest step's tokens come, but not yet every stage's report.
    Early,
    /// The oldest step is done, but its rows have to be fetched.
    StepDoneRowsLate,
    /// The fetched rows come.
    RowsCome,
    /// The n-th of the live sequences ends.
    End(usize),
    Observe {
        turnaround: u64,
    },
    EpochEnd,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (1u32..90, 1u32..12, -1i32..2)
            .prop_map(|(prompt, max_tokens, priority)| Event::Submit { prompt, max_tokens, priority }),
        12 => Just(Event::Send),
        12 => Just(Event::StepDone),
        3 => Just(Event::Early),
        3 => Just(Event::StepDoneRowsLate),
        4 => Just(Event::RowsCome),
        3 => (0usize..8).prop_map(Event::End),
        2 => (1u64..20).prop_map(|turnaround| Event::Observe { turnaround }),
        1 => Just(Event::EpochEnd),
    ]
}

fn any_limits() -> impl Strategy<Value = Limits> {
    (1u32..5, 3u32..14, 1u32..100, 1u32..6, 1u32..6, 0u32..3).prop_map(
        |(stages, blocks, rows, evidence_rows, logits_slots, fewer)| Limits {
            stages,
            blocks,
            rows,
            evidence_rows,
            logits_slots,
            steps_in_flight: (if stages == 1 { 2 } else { stages + 2 } - fewer.min(stages)).max(1),
            max_context: 96,
        },
    )
}

/// The scheduler, the stages, and what their driver would know.
struct World {
    limits: Limits,
    scheduler: Scheduler,
    shards: Shards,
    live: BTreeSet<SequenceId>,
    late: Vec<SequenceId>,
    last: SequenceId,
}

impl World {
    fn new(limits: Limits) -> Self {
        Self {
            limits,
            scheduler: Scheduler::new(limits, QueueLimits { requests: 6, tokens: 300 }),
            shards: Shards::new(limits),
            live: BTreeSet::new(),
            late: Vec::new(),
            last: 0,
        }
    }

    fn send(&mut self) {
        while let Some(step) = self.scheduler.next_step() {
            for span in &step.spans {
                assert!(self.live.contains(&span.sequence), "an ended sequence has no rows");
            }
            self.shards.take(step, self.scheduler.loads().groups);
        }
        assert!(self.scheduler.loads().waiting <= 6);
    }

    fn tokens(&mut self, sequences: Vec<SequenceId>) {
        for id in sequences {
            match self.scheduler.token(id, 7) {
                Committed::Continues => assert!(self.live.contains(&id)),
                Committed::Full => assert!(self.live.remove(&id)),
                Committed::NotWanted => assert!(!self.live.contains(&id), "a live sequence wants its token"),
            }
        }
    }

    fn apply(&mut self, event: Event) {
        match event {
            Event::Submit { prompt, max_tokens, priority } => {
                self.last += 1;
                let fits = prompt + max_tokens <= 96.min(16 * self.limits.blocks);
                match self
                    .scheduler
                    .submit(NewSequence { priority, ..request(self.last, prompt, max_tokens) })
                {
                    Ok(()) => assert!(fits && self.live.insert(self.last)),
                    Err(Refusal::TooLong { .. }) => assert!(!fits),
                    Err(Refusal::QueueFull { waiting }) => assert_eq!(waiting, 6),
                    Err(Refusal::QueueTokens { waiting, tokens, .. }) => assert!(waiting + tokens > 300),
                    Err(other) => panic!("{other}"),
                }
            }
            Event::Send => self.send(),
            Event::StepDone => self.step_done(),
            Event::Early => {
                let due = self.shards.answer_early();
                self.tokens(due);
            }
            Event::StepDoneRowsLate => {
                if let Some((step, due)) = self.shards.finish_step() {
                    assert!(self.scheduler.step_done(step));
                    self.late.extend(due);
                }
            }
            Event::RowsCome => {
                let late = std::mem::take(&mut self.late);
                self.tokens(late);
            }
            Event::End(n) => {
                if let Some(id) = self.live.iter().nth(n).copied() {
                    assert!(self.scheduler.end(id));
                    self.live.remove(&id);
                }
            }
            Event::Observe { turnaround } => {
                let turnaround = Duration::from_millis(turnaround);
                self.scheduler.observe(Pace { stage: Duration::from_millis(8), turnaround });
            }
            Event::EpochEnd => {
                let lost = self.scheduler.reset(self.limits);
                assert!(lost.refused.is_empty(), "the limits are the same");
                for id in lost.running {
                    assert!(self.live.remove(&id));
                }
                self.shards = Shards::new(self.limits);
                self.late.clear();
            }
        }
    }

    fn step_done(&mut self) {
        if let Some((step, due)) = self.shards.finish_step() {
            self.tokens(due);
            assert!(self.scheduler.step_done(step));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn every_admitted_request_ends_and_nothing_leaks(
        limits in any_limits(),
        events in prop::collection::vec(event(), 0..200),
    ) {
        let mut world = World::new(limits);
        for event in events {
            world.apply(event);
        }
        // What is left ends if the stages only go on working; each round does at least a row's worth of work.
        for _ in 0..4_000 {
            world.apply(Event::RowsCome);
            world.send();
            world.step_done();
            if world.live.is_empty() && world.shards.are_empty() {
                break;
            }
        }
        prop_assert!(world.live.is_empty(), "still running or waiting: {:?}", world.live);
        prop_assert!(world.shards.are_empty(), "the stages were told of every end");
        let loads = world.scheduler.loads();
        prop_assert_eq!(loads.free_blocks, limits.blocks, "no block leaked");
        prop_assert_eq!((loads.waiting, loads.waiting_tokens, loads.prefilling, loads.decoding), (0, 0, 0, 0));
    }

    #[test]
    fn the_same_events_give_the_same_plans(
        limits in any_limits(),
        prompts in prop::collection::vec((1u32..60, 1u32..8), 1..6),
    ) {
        let run = || {
            let mut scheduler = Scheduler::new(limits, QueueLimits { requests: 6, tokens: 1000 });
            for (id, (prompt, max_tokens)) in (1..).zip(&prompts) {
                // One that is refused is refused both times.
                let _ = scheduler.submit(request(id, *prompt, *max_tokens));
            }
            let mut plans = Vec::new();
            while let Some(step) = scheduler.next_step() {
                for span in step.spans.iter().filter(|span| !span.evidence.is_empty()) {
                    scheduler.token(span.sequence, 3);
                }
                scheduler.step_done(step.id);
                plans.push(step);
            }
            plans
        };
        prop_assert_eq!(run(), run());
    }
}
