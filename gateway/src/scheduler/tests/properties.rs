//! Random workloads against a model of the stages.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::shards::{Drawn, Shards, undisturbed};
use super::*;
use crate::scheduler::admitted::SUSPECT;

#[derive(Clone, Debug)]
enum Event {
    Submit {
        prompt: u32,
        max_tokens: u32,
        priority: i32,
        /// Begins like others of the same story.
        story: u32,
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
    /// A step of so many rows took what it takes.
    Observe {
        rows: u32,
        turnaround: u64,
    },
    /// The first stage is done with the oldest step.
    LeftFirstStage,
    EpochEnd,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (1u32..90, 1u32..60, -1i32..2, 0u32..4)
            .prop_map(|(prompt, max_tokens, priority, story)| Event::Submit { prompt, max_tokens, priority, story }),
        12 => Just(Event::Send),
        12 => Just(Event::StepDone),
        3 => Just(Event::Early),
        3 => Just(Event::StepDoneRowsLate),
        4 => Just(Event::RowsCome),
        3 => (0usize..8).prop_map(Event::End),
        2 => (1u32..600, 1u64..20).prop_map(|(rows, turnaround)| Event::Observe { rows, turnaround }),
        3 => Just(Event::LeftFirstStage),
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
            row_kinds: RowKinds {
                rope_base_length: if rows % 2 == 0 { 32 } else { 0 },
                have_classes: blocks % 2 == 0,
            },
        },
    )
}

/// A request that begins like others of its story; of story 0 are those that share nothing.
fn in_story(id: SequenceId, story: u32, prompt: u32, max_tokens: u32) -> NewSequence {
    NewSequence {
        prompt: super::story(story, prompt).into(),
        tenant: TenantId(story % 2),
        bypass_cache: story == 0,
        speculation: match id % 4 {
            0 => Speculation::Off,
            1 => Speculation::Always,
            _ => Speculation::Auto,
        },
        ..request(id, prompt, max_tokens)
    }
}

/// The scheduler, the stages, and what their driver would know.
struct World {
    limits: Limits,
    scheduler: Scheduler,
    shards: Shards,
    live: BTreeMap<SequenceId, NewSequence>,
    /// Epoch ends under its rows since its latest token.
    strikes: BTreeMap<SequenceId, u32>,
    /// Those that ran alone, got on, and may have stepped aside for the next that is to run alone.
    cleared: BTreeSet<SequenceId>,
    late: Vec<Drawn>,
    last: SequenceId,
}

impl World {
    fn new(limits: Limits) -> Self {
        Self {
            limits,
            scheduler: Scheduler::new(limits, QueueLimits { requests: 6, tokens: 300 }),
            shards: Shards::new(limits),
            live: BTreeMap::new(),
            strikes: BTreeMap::new(),
            cleared: BTreeSet::new(),
            late: Vec::new(),
            last: 0,
        }
    }

    fn submit(&mut self, sequence: NewSequence) -> Result<(), Refusal> {
        self.scheduler.submit(sequence.clone())?;
        self.shards.expect(&sequence);
        self.live.insert(sequence.id, sequence);
        Ok(())
    }

    fn send(&mut self) {
        while let Some(step) = self.scheduler.next_step() {
            for span in &step.spans {
                assert!(self.live.contains_key(&span.sequence), "an ended sequence has no rows");
            }
            let ended = self.shards.take(step, self.scheduler.loads().groups);
            self.check_preempted(ended);
        }
        assert!(self.scheduler.loads().waiting <= 6);
    }

    /// Whoever is preempted leaves its blocks to one that goes before it, or the pipeline to a suspect.
    fn check_preempted(&mut self, mut ended: Vec<SequenceId>) {
        ended.retain(|id| !self.cleared.remove(id));
        let turn = |id: &SequenceId| self.live.get(id).map(|sequence| (Reverse(sequence.priority), *id));
        for preempted in ended.iter().filter_map(turn) {
            let first = self.shards.running().iter().filter_map(turn).min();
            assert!(first.is_some_and(|first| first < preempted), "{preempted:?} was the first");
        }
    }

    fn tokens(&mut self, tokens: Vec<Drawn>) {
        for Drawn { run, position, token } in tokens {
            match self.scheduler.wanted(run, position) {
                Wanted::Now => {}
                Wanted::Later => panic!("it is the first of its run"),
                // The run is over, or the row was fed what the text does not say.
                Wanted::Never => continue,
            }
            let sequence = self.scheduler.sequence(run);
            let committed = self.scheduler.token(run, token);
            let Some(id) = sequence else {
                assert_eq!(committed, Committed::NotWanted, "the run is over");
                continue;
            };
            assert_ne!(committed, Committed::NotWanted, "a live sequence wants its token");
            self.shards.gain(id, token);
            let is_suspect = |strikes: &u32| *strikes >= SUSPECT;
            if self.strikes.remove(&id).is_some_and(|it| is_suspect(&it))
                && self.strikes.values().any(is_suspect)
            {
                self.cleared.insert(id);
            } else {
                self.cleared.remove(&id);
            }
            if committed == Committed::Full {
                let sequence = self.live.remove(&id).expect("a live one");
                let alone = undisturbed(&sequence.prompt, sequence.max_tokens);
                assert_eq!(self.shards.known(id), alone, "the same tokens as undisturbed");
            }
        }
    }

    fn apply(&mut self, event: Event) {
        match event {
            Event::Submit { prompt, max_tokens, priority, story } => {
                self.last += 1;
                let fits = prompt + max_tokens <= 96.min(16 * self.limits.blocks);
                match self.submit(NewSequence { priority, ..in_story(self.last, story, prompt, max_tokens) })
                {
                    Ok(()) => assert!(fits),
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
                if let Some(id) = self.live.keys().nth(n).copied() {
                    assert!(self.scheduler.end(id));
                    self.live.remove(&id);
                }
            }
            Event::Observe { rows, turnaround } => {
                let stage = Duration::from_millis(8 + u64::from(rows) / 2);
                let turnaround = Some(Duration::from_millis(turnaround));
                self.scheduler.observe(Pace { rows, stage, turnaround });
                self.scheduler.observe_decoding(rows, stage);
            }
            Event::LeftFirstStage => {
                if let Some(step) = self.shards.oldest() {
                    self.scheduler.left_first_stage(step);
                }
            }
            Event::EpochEnd => self.epoch_end(),
        }
    }

    fn step_done(&mut self) {
        if let Some((step, due)) = self.shards.finish_step() {
            self.tokens(due);
            assert!(self.scheduler.step_done(step));
        }
    }

    fn epoch_end(&mut self) {
        let late = std::mem::take(&mut self.late);
        let late = late.into_iter().filter_map(|late| self.scheduler.sequence(late.run));
        let under_way: BTreeSet<_> = self.shards.under_way().into_iter().chain(late).collect();
        for id in under_way.into_iter().filter(|id| self.live.contains_key(id)) {
            *self.strikes.entry(id).or_default() += 1;
        }
        let struck: Vec<_> =
            self.strikes.iter().filter(|(_, strikes)| **strikes >= 3).map(|(id, _)| *id).collect();
        let mut given_up = self.scheduler.end_epoch();
        given_up.sort_unstable();
        assert_eq!(given_up, struck, "given up after three");
        for id in struck {
            self.live.remove(&id);
            self.strikes.remove(&id);
        }
        assert_eq!(self.scheduler.begin_epoch(self.limits), [], "the limits are the same");
        self.shards.forget(self.limits);
    }

    /// The stages go on working until nothing is left to do, or for so many rounds.
    fn work(&mut self, rounds: u32) {
        for _ in 0..rounds {
            self.apply(Event::RowsCome);
            self.send();
            self.step_done();
            if self.live.is_empty() && self.shards.are_empty() {
                return;
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn every_request_ends_as_undisturbed_and_nothing_leaks(
        limits in any_limits(),
        events in prop::collection::vec(event(), 0..200),
    ) {
        let mut world = World::new(limits);
        for event in events {
            world.apply(event);
        }
        world.work(20_000);
        prop_assert!(world.live.is_empty(), "still running or waiting: {:?}", world.live.keys());
        prop_assert!(world.shards.are_empty(), "the stages were told of every end");
        let loads = world.scheduler.loads();
        prop_assert_eq!(loads.free_blocks, limits.blocks, "no block leaked");
        let left = (loads.waiting, loads.waiting_tokens, loads.replaying, loads.prefilling, loads.decoding);
        prop_assert_eq!(left, (0, 0, 0, 0, 0));
    }

    #[test]
    fn nobody_starves_while_others_keep_coming(
        limits in any_limits(),
        requests in prop::collection::vec((1u32..40, 1u32..40), 1..12),
        speculation in prop::sample::select(vec![Speculation::Off, Speculation::Always]),
    ) {
        let mut world = World::new(limits);
        let mut sizes = requests.into_iter().cycle();
        let mut first = Vec::new();
        for _ in 0..20_000 {
            // As soon as there is room in the queue, the next comes.
            let (prompt, max_tokens) = sizes.next().expect("it never ends");
            world.last += 1;
            let next = NewSequence { speculation, ..request(world.last, prompt, max_tokens) };
            if world.submit(next).is_ok() && first.len() < 8 {
                first.push(world.last);
            }
            world.send();
            world.step_done();
            if first.len() == 8 && first.iter().all(|id| !world.live.contains_key(id)) {
                break;
            }
        }
        first.retain(|id| world.live.contains_key(id));
        prop_assert!(first.is_empty(), "{first:?}: they came first and starve");
    }

    #[test]
    fn what_ends_every_epoch_is_given_up_and_the_others_go_on(
        limits in any_limits(),
        requests in prop::collection::vec((1u32..40, 1u32..40), 1..6),
        poisonous in 0u64..6,
        position in 0u32..60,
    ) {
        let mut world = World::new(limits);
        for (prompt, max_tokens) in requests {
            world.last += 1;
            // One that does not fit is not part of it.
            let _ = world.submit(request(world.last, prompt, max_tokens));
        }
        let mut epochs = 0;
        for _ in 0..20_000 {
            world.send();
            if world.shards.breaks(1 + poisonous, position) {
                epochs += 1;
                world.epoch_end();
            } else {
                world.step_done();
            }
            if world.live.is_empty() && world.shards.are_empty() {
                break;
            }
        }
        prop_assert!(world.live.is_empty(), "still running or waiting: {:?}", world.live.keys());
        prop_assert!(epochs == 0 || epochs == 3, "{epochs} epochs");
        prop_assert_eq!(world.scheduler.loads().free_blocks, limits.blocks, "no block leaked");
    }

    #[test]
    fn the_same_events_give_the_same_plans(
        limits in any_limits(),
        prompts in prop::collection::vec((1u32..60, 1u32..30), 1..6),
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
                    scheduler.token(span.run, 3);
                }
                scheduler.step_done(step.id);
                plans.push(step);
            }
            plans
        };
        prop_assert_eq!(run(), run());
    }
}
