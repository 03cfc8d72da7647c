use std::time::Duration;

use super::*;

fn pace(stage: u64, turnaround: u64) -> Pace {
    let turnaround = Some(Duration::from_millis(turnaround));
    Pace { rows: 3, stage: Duration::from_millis(stage), turnaround }
}

/// A scheduler with `count` sequences that are ready to decode.
fn ready(limits: Limits, count: u64) -> Scheduler {
    let mut scheduler = Scheduler::new(limits, QueueLimits { requests: 64, tokens: 10_000 });
    for id in 1..=count {
        scheduler.submit(request(id, 1, 30)).unwrap();
    }
    let mut begun = due(&mut scheduler);
    while let Some(step) = begun.pop() {
        answer(&mut scheduler, &step);
        begun.retain(|other| other.id != step.id);
        if scheduler.loads().prefilling > 0 || scheduler.loads().waiting > 0 {
            begun.extend(scheduler.next_step());
        }
    }
    scheduler
}

fn answer(scheduler: &mut Scheduler, step: &Step) {
    for span in step.spans.iter().filter(|span| !span.evidence.is_empty()) {
        scheduler.token(span.run, 5);
    }
    scheduler.step_done(step.id);
}

fn wide() -> Limits {
    Limits { rows: 64, evidence_rows: 64, blocks: 64, logits_slots: 64, ..limits() }
}

fn rows(steps: &[Step]) -> Vec<usize> {
    steps.iter().map(|step| step.spans.len()).collect()
}

#[test]
fn decoding_sequences_are_spread_evenly() {
    let mut scheduler = ready(wide(), 5);
    let steps = due(&mut scheduler);
    assert_eq!(rows(&steps), [3, 2], "two stages, two groups");
    answer(&mut scheduler, &steps[0]);
    assert_eq!(rows(&due(&mut scheduler)), [3], "a group goes on while the other is under way");
}

#[test]
fn one_stage_decodes_in_one_group() {
    let mut scheduler = ready(Limits { stages: 1, steps_in_flight: 2, ..wide() }, 5);
    scheduler.observe(pace(1, 100));
    assert_eq!(rows(&due(&mut scheduler)), [5]);
}

#[test]
fn one_that_comes_late_joins_the_next_group_instead_of_making_its_own() {
    let mut scheduler = ready(Limits { stages: 1, steps_in_flight: 2, ..wide() }, 3);
    let steps = due(&mut scheduler);
    scheduler.step_done(steps[0].id);
    scheduler.token(1, 5);
    scheduler.token(2, 5);
    let next = due(&mut scheduler);
    assert_eq!(rows(&next), [2], "the others do not wait for a row that is being fetched");
    scheduler.token(3, 5);
    assert_eq!(scheduler.next_step(), None);
    answer(&mut scheduler, &next[0]);
    assert_eq!(rows(&due(&mut scheduler)), [3]);
}

#[test]
fn groups_that_differ_grow_alike() {
    let mut scheduler = ready(wide(), 8);
    let steps = due(&mut scheduler);
    assert_eq!(rows(&steps), [4, 4]);
    for span in &steps[1].spans[..3] {
        scheduler.end(span.sequence);
    }
    answer(&mut scheduler, &steps[0]);
    let third = due(&mut scheduler);
    assert_eq!(rows(&third), [3], "half of the five that are left");
    answer(&mut scheduler, &steps[1]);
    assert_eq!(rows(&due(&mut scheduler)), [2]);
}

#[test]
fn one_more_group_only_where_the_turnaround_is_longer_than_a_stage() {
    let mut scheduler = ready(wide(), 6);
    scheduler.observe(pace(10, 9));
    assert_eq!(scheduler.loads().groups, 2);
    for _ in 0..40 {
        scheduler.observe(pace(10, 30));
    }
    assert_eq!(scheduler.loads().groups, 3);
    assert_eq!(rows(&due(&mut scheduler)), [2, 2, 2]);
    for _ in 0..40 {
        scheduler.observe(pace(10, 10));
    }
    assert_eq!(scheduler.loads().groups, 3, "no going back and forth at the edge");
    for _ in 0..40 {
        scheduler.observe(pace(10, 1));
    }
    assert_eq!(scheduler.loads().groups, 2);
    scheduler.observe(pace(0, 1));
    assert_eq!(scheduler.loads().groups, 2, "no stage time, no ratio");
}

#[test]
fn few_steps_in_flight_mean_few_groups() {
    for (steps_in_flight, groups) in [(1, 1), (2, 1), (3, 2), (6, 4)] {
        let scheduler = scheduler(Limits { stages: 4, steps_in_flight, ..limits() });
        assert_eq!(scheduler.loads().groups, groups, "F = {steps_in_flight}");
    }
}
