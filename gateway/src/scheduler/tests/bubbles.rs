//! No stage waits while there is work, and no decode row for long behind prompts.

use std::fmt::Write as _;

use proptest::prelude::*;

use super::super::chunks::Demand;
use super::super::times::Line;
use super::pipeline::{Passage, Pipeline, Speed};
use super::*;

fn wide(stages: u32) -> Limits {
    Limits {
        stages,
        blocks: 4000,
        rows: 512,
        evidence_rows: 64,
        logits_slots: 64,
        steps_in_flight: if stages == 1 { 2 } else { stages + 2 },
        max_context: 8192,
        row_kinds: RowKinds::default(),
    }
}

fn speed() -> impl Strategy<Value = Speed> {
    (500u64..20_000, 10u64..2000, 0u64..200).prop_map(|(fixed, per_row, percent)| Speed {
        fixed,
        per_row,
        turnaround: fixed * percent / 100 / 2 * 2,
    })
}

/// How long it takes until each of `rows` decoding sequences has one more token, in `groups` groups.
fn cycle(speed: Speed, stages: u32, groups: u32, rows: u32) -> u64 {
    let step = speed.time(rows / groups);
    (u64::from(stages) * step + speed.turnaround).max(u64::from(groups) * step)
}

/// Nothing waits, and nobody decodes.
fn lone(stages: u32) -> Demand {
    Demand { stages, groups: stages, waiting: 0, whole: 0, decoding: 0, free: 0, blocks: 0, line: None }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn the_groups_are_those_of_the_shorter_cycle(speed in speed(), stages in 1u32..5, share in 1u32..3) {
        // So that they can be spread evenly over either number of groups.
        let rows = share * stages * (stages + 1);
        let mut pipeline = Pipeline::new(wide(stages), speed);
        for id in 0..u64::from(rows) {
            pipeline.submit(0, request(id, 1, 300));
        }
        pipeline.run(u64::MAX);
        let best = cycle(speed, stages, stages, rows).min(match stages {
            1 => u64::MAX,
            _ => cycle(speed, stages, stages + 1, rows),
        });
        for (id, tokens) in &pipeline.tokens {
            let found = (tokens[299] - tokens[199]) as f64 / 100.0;
            // At the edge between two numbers of groups either may be.
            prop_assert!(found <= 1.11 * best as f64, "{id}: {found} of {best}");
        }
    }

    #[test]
    fn how_long_prompt_rows_are_in_the_way_of_decode_rows_is_bounded(
        speed in speed(),
        stages in 1u32..5,
        decoding in 1u32..40,
        prompts in prop::collection::vec((1u64..2_000_000, 100u32..4000), 1..4),
    ) {
        let mut pipeline = Pipeline::new(wide(stages), speed);
        for id in 0..u64::from(decoding) {
            pipeline.submit(0, request(id, 20 + 3 * id as u32, 2000));
        }
        for (id, (at, prompt)) in (1000..).zip(prompts) {
            pipeline.submit(2_000_000 + at, request(id, prompt, 1));
        }
        pipeline.run(10_000_000);
        let known = pipeline.passages.iter().filter(|passage| passage.arrives > 2_000_000);
        for passage in known.filter(|passage| passage.decode_rows > 0) {
            let waits = passage.arrives..passage.stages[0].start;
            let before = pipeline.passages.iter().filter(|other| {
                other.stages[0].start < waits.end && other.stages[0].end > waits.start
            });
            let prompts: u64 = before.map(|other| u64::from(other.prompt_rows()) * speed.per_row).sum();
            let decode_step = speed.time(decoding);
            let most = (4 * decode_step).max(50_000).max(3 * 16 * speed.per_row);
            prop_assert!(prompts <= most, "{prompts} us of {most} before {passage:?}");
            prop_assert!(passage.time() <= most + decode_step, "more than {most} us: {passage:?}");
        }
    }

    #[test]
    fn while_a_prompt_waits_the_first_stage_has_work(
        speed in speed(),
        stages in 1u32..5,
        decoding in 1u32..40,
    ) {
        let mut pipeline = Pipeline::new(wide(stages), speed);
        for id in 0..u64::from(decoding) {
            pipeline.submit(0, request(id, 20, 2000));
        }
        pipeline.submit(3_000_000, request(1000, 8000, 1));
        pipeline.run(20_000_000);
        let is_chunk = |passage: &&Passage| passage.chunks.iter().any(|(id, _)| *id == 1000);
        let chunks: Vec<_> = pipeline.passages.iter().filter(is_chunk).collect();
        // The first half: in the end there are not enough rows for all stages.
        let chunks = &chunks[..chunks.len() / 2];
        let times = chunks[0].stages[0].start..chunks[chunks.len() - 1].stages[0].end;
        let time = times.end - times.start;
        let during = pipeline.passages.iter().filter(|passage| times.contains(&passage.stages[0].start));
        let busy: u64 = during.map(Passage::time).sum();
        let least = if decoding >= 2 * stages { 0.9 } else { 0.85 };
        // Steps that differ, and the time until a stage's report is known, cost a little.
        let known = busy + chunks.len() as u64 * speed.turnaround;
        prop_assert!(known as f64 >= least * time as f64, "{busy} of {time} us in {} steps", chunks.len());
    }

    #[test]
    fn while_prompts_queue_the_first_stage_works_and_seldom_reads_its_weights_anew(
        speed in speed(),
        stages in 2u32..5,
    ) {
        const PROMPT: u32 = 512;
        let mut pipeline = Pipeline::new(wide(stages), speed);
        // Small and large steps, so that it is known what rows cost.
        pipeline.submit(0, request(0, 4, 10));
        pipeline.submit(0, request(1, 300, 10));
        for id in 100..160 {
            pipeline.submit(30_000_000, request(id, PROMPT, 1));
        }
        pipeline.run(u64::MAX);
        let steps: Vec<_> = pipeline.passages.iter().filter(|passage| passage.arrives >= 30_000_000).collect();
        // The first half: in the end there are not enough rows for all stages.
        let steps = &steps[..steps.len() / 2];
        let time = steps[steps.len() - 1].stages[0].end - steps[0].stages[0].start;
        let busy: u64 = steps.iter().map(|passage| passage.time()).sum();
        // One way there and back before the first report is known.
        let known = busy + speed.turnaround;
        prop_assert!(known as f64 >= 0.97 * time as f64, "{busy} of {time} us in {} steps", steps.len());
        let rows: u32 = steps.iter().map(|passage| passage.prompt_rows()).sum();
        let least = speed.time(PROMPT) as f64 / f64::from(PROMPT);
        let took = busy as f64 / f64::from(rows);
        prop_assert!(took <= 1.15 * least, "{took} us a row, {least} in the largest steps");
    }

    #[test]
    fn a_lone_prompt_is_not_slower_for_being_cut(speed in speed(), stages in 1u32..5, prompt in 64u32..4000) {
        let through = |chunks: &[u32]| {
            let mut free_at = vec![0; stages as usize];
            for chunk in chunks {
                let mut ready = 0;
                for free_at in &mut free_at {
                    ready = ready.max(*free_at) + speed.time(*chunk);
                    *free_at = ready;
                }
            }
            free_at[stages as usize - 1]
        };
        let cut = |line| {
            let mut left = prompt;
            std::iter::from_fn(|| {
                let demand = Demand { waiting: left, whole: prompt, line, ..lone(stages) };
                let chunk = demand.chunk_rows().min(left);
                left -= chunk;
                (chunk > 0).then_some(chunk)
            }).collect::<Vec<_>>()
        };
        let seconds = |us: u64| us as f64 / 1e6;
        let line = Line { fixed: seconds(speed.fixed), per_row: Some(seconds(speed.per_row)) };
        // A small last chunk may be a little better than chunks of one size.
        let (measured, unknown) = (through(&cut(Some(line))), through(&cut(None)));
        let best = 1.05 * unknown.min(through(&[prompt])) as f64;
        prop_assert!(measured as f64 <= best, "{measured} {unknown} {:?}", cut(Some(line)));
        if stages == 1 {
            prop_assert_eq!(cut(Some(line)), [prompt], "nobody waits: one read of the weights");
        }
    }

    #[test]
    fn fewer_blocks_and_slower_rows_mean_smaller_chunks(
        (stages, groups) in (1u32..5).prop_flat_map(|stages| (Just(stages), stages..stages + 2)),
        waiting in 1u32..100_000,
        decoding in 1u32..100,
        (blocks, free, fewer) in
            (1u32..10_000).prop_flat_map(|blocks| (Just(blocks), 0..=blocks, 0..=blocks)),
        (fixed, per_row) in (1e-4f64..0.1, 1e-6f64..0.1),
    ) {
        let rows = |free, per_row| {
            let line = Some(Line { fixed, per_row });
            let demand = Demand { groups, waiting, decoding, free, blocks, line, ..lone(stages) };
            demand.chunk_rows()
        };
        let chunk = rows(free.max(fewer), Some(per_row));
        prop_assert!(chunk >= BLOCK_ROWS, "{chunk}");
        prop_assert!(rows(free.min(fewer), Some(per_row)) <= chunk);
        prop_assert!(rows(free.max(fewer), Some(2.0 * per_row)) <= chunk);
    }
}

/// Plays a script of arrivals; under it stands what the first stage has when.
#[track_caller]
fn check(trace: &str) {
    let mut text = String::new();
    let (mut limits, mut speed) = (wide(1), Speed { fixed: 0, per_row: 0, turnaround: 0 });
    let mut arrivals = Vec::new();
    for line in trace.lines().filter(|line| line.starts_with(['>', '#'])) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |word: &str| word.parse::<u64>().expect("a number");
        match words[..] {
            ["#", ..] => {}
            [">", "pipeline", stages, fixed, per_row, turnaround] => {
                limits = wide(stages.parse().expect("stages"));
                speed =
                    Speed { fixed: number(fixed), per_row: number(per_row), turnaround: number(turnaround) };
            }
            [">", at, name, sizes] => {
                let (prompt, answer) = sizes.split_once('+').expect("prompt+answer");
                let (prompt, answer) = (number(prompt) as u32, number(answer) as u32);
                arrivals.push((1000 * number(at), request(u64::from(name.as_bytes()[0]), prompt, answer)));
            }
            [">", "until", end] => {
                let mut pipeline = Pipeline::new(limits, speed);
                for (at, sequence) in arrivals.drain(..) {
                    pipeline.submit(at, sequence);
                }
                pipeline.run(1000 * number(end));
                writeln!(text, "{line}").unwrap();
                write!(text, "{}", told(&pipeline)).unwrap();
                continue;
            }
            _ => panic!("{line:?} is no event"),
        }
        writeln!(text, "{line}").unwrap();
    }
    assert!(text == trace, "the trace is in truth:\n{text}");
}

/// A line for each step; such as only decode stand together.
fn told(pipeline: &Pipeline) -> String {
    let mut text = String::new();
    let mut passages = pipeline.passages.iter().peekable();
    while let Some(passage) = passages.next() {
        let (mut steps, mut begin) = (1, passage.stages[0].clone());
        while passage.chunks.is_empty()
            && let Some(next) =
                passages.next_if(|next| next.chunks.is_empty() && next.decode_rows == passage.decode_rows)
        {
            (steps, begin.end) = (steps + 1, next.stages[0].end);
        }
        let mut parts = Vec::new();
        if passage.decode_rows > 0 {
            parts.push(format!("{} decode", passage.decode_rows));
        }
        for (sequence, positions) in &passage.chunks {
            let name = char::from(*sequence as u8);
            parts.push(format!("{name} {}..{}", positions.start, positions.end));
        }
        let times = format!("{}..{} ms", begin.start / 1000, begin.end / 1000);
        let steps = if steps > 1 { format!("{steps} steps of ") } else { String::new() };
        writeln!(text, "  {times:>14}: {steps}{}", parts.join(", ")).unwrap();
    }
    text
}

#[test]
fn what_the_first_stage_has_when() {
    check(include_str!("traces/bubbles.txt"));
}
