mod bubbles;
mod cancel;
mod deadlines;
mod groups;
mod pipeline;
mod prefix;
mod properties;
mod proposals;
mod shards;
mod sharing;
mod traces;

use std::time::Duration;

use super::*;

fn limits() -> Limits {
    Limits {
        stages: 2,
        blocks: 8,
        rows: 20,
        evidence_rows: 4,
        logits_slots: 8,
        steps_in_flight: 4,
        max_context: 128,
        row_kinds: RowKinds::default(),
    }
}

fn scheduler(limits: Limits) -> Scheduler {
    Scheduler::new(limits, QueueLimits { requests: 4, tokens: 400 })
}

fn request(id: SequenceId, prompt: u32, max_tokens: u32) -> NewSequence {
    let evidence = EvidenceSpec { setting_id: 10 * id, top_k: 1 };
    NewSequence {
        id,
        prompt: (0..prompt).collect(),
        given: Vec::new(),
        max_tokens,
        tenant: TenantId::default(),
        priority: 0,
        arrived: Duration::ZERO,
        deadline: None,
        // Most tests are about other things, and all their prompts begin alike.
        bypass_cache: true,
        speculation: Speculation::Off,
        evidence,
    }
}

/// A text of `len` tokens; all stories begin with the same two blocks.
fn story(story: u32, len: u32) -> Vec<u32> {
    (0..len).map(|position| if position < 2 * BLOCK_ROWS { position } else { position + story }).collect()
}

/// (sequence, first position, rows) of each span.
fn shape(step: &Step) -> Vec<(SequenceId, u32, usize)> {
    step.spans.iter().map(|span| (span.sequence, span.first_position, span.token_ids.len())).collect()
}

/// All plans that are due now.
fn due(scheduler: &mut Scheduler) -> Vec<Step> {
    std::iter::from_fn(|| scheduler.next_step()).collect()
}

#[test]
fn a_prompt_goes_in_chunks_and_then_a_row_a_step() {
    let mut scheduler = scheduler(limits());
    scheduler.submit(request(7, 30, 3)).unwrap();

    let steps = due(&mut scheduler);
    let [first, second] = &steps[..] else { panic!("two chunks, and nothing without evidence: {steps:?}") };
    assert_eq!((first.id, shape(first)), (1, vec![(7, 0, 20)]));
    assert_eq!(first.spans[0].start, Some(Start { prompt_len: 30, prior_ids: vec![] }));
    assert_eq!((first.spans[0].table_offset, &first.spans[0].blocks[..]), (0, &[0, 1][..]));
    assert_eq!(first.spans[0].evidence, 0..0);
    assert_eq!((second.id, shape(second)), (2, vec![(7, 20, 10)]), "needs no evidence of the first");
    assert_eq!((&second.spans[0].start, second.spans[0].evidence.clone()), (&None, 29..30));
    assert_eq!(second.spans[0].token_ids, (20..30).collect::<Vec<_>>());

    assert!(scheduler.step_done(1) && scheduler.step_done(2));
    assert!(!scheduler.step_done(2), "only once");
    assert_eq!(scheduler.token(1, 99), Committed::Continues);
    assert_eq!(scheduler.token(1, 98), Committed::NotWanted, "one token a row");
    let third = scheduler.next_step().unwrap();
    let expected = Span {
        sequence: 7,
        run: 1,
        first_position: 30,
        token_ids: vec![99],
        table_offset: 2,
        blocks: vec![],
        evidence: 30..31,
        top_k: 1,
        setting_id: 70,
        start: None,
    };
    assert_eq!(third.spans, [expected]);
    scheduler.set_top_k(7, 64);
    assert_eq!(scheduler.token(1, 98), Committed::Continues, "even before the step is done everywhere");
    let fourth = scheduler.next_step().unwrap();
    assert_eq!((shape(&fourth), fourth.spans[0].top_k), (vec![(7, 31, 1)], 64));
    assert_eq!(scheduler.token(1, 97), Committed::Full, "three tokens were asked for");
    let fifth = scheduler.next_step().unwrap();
    assert_eq!((&fifth.ended[..], fifth.spans.len()), (&[1][..], 0), "the stages are told");
    assert!(scheduler.step_done(3) && scheduler.step_done(4) && scheduler.step_done(5));
    let idle = Loads { free_blocks: 8, blocks: 8, groups: 2, ..Loads::default() };
    assert_eq!(scheduler.loads(), idle);
}

#[test]
fn decode_rows_go_along_with_the_chunks_of_another_prompt() {
    let mut scheduler = scheduler(limits());
    scheduler.submit(request(1, 2, 10)).unwrap();
    let step = scheduler.next_step().unwrap();
    scheduler.step_done(step.id);
    scheduler.token(1, 5);
    scheduler.submit(request(2, 60, 1)).unwrap();
    let step = scheduler.next_step().unwrap();
    assert_eq!(shape(&step), [(1, 2, 1), (2, 0, 19)]);
}

#[test]
fn decode_rows_leave_some_of_a_step_to_prompts() {
    let limits = Limits { rows: 4, evidence_rows: 4, stages: 1, steps_in_flight: 2, ..limits() };
    let mut scheduler = scheduler(limits);
    for id in 1..=4 {
        scheduler.submit(request(id, 1, 10)).unwrap();
    }
    let step = scheduler.next_step().unwrap();
    scheduler.step_done(step.id);
    for id in 1..=4 {
        scheduler.token(id, 5);
    }
    scheduler.submit(request(5, 8, 1)).unwrap();
    let step = scheduler.next_step().unwrap();
    assert_eq!(shape(&step), [(1, 1, 1), (2, 1, 1), (3, 1, 1), (5, 0, 1)]);
}

#[test]
fn chunks_are_smaller_beside_decode_rows() {
    let limits =
        Limits { rows: 512, blocks: 100, max_context: 1600, stages: 1, steps_in_flight: 2, ..limits() };
    let mut scheduler = Scheduler::new(limits, QueueLimits { requests: 4, tokens: 4000 });
    scheduler.submit(request(1, 600, 10)).unwrap();
    assert_eq!(due(&mut scheduler).iter().flat_map(shape).collect::<Vec<_>>(), [(1, 0, 512), (1, 512, 88)]);
    scheduler.step_done(1);
    scheduler.step_done(2);
    scheduler.token(1, 5);
    scheduler.submit(request(2, 600, 10)).unwrap();
    assert_eq!(shape(&scheduler.next_step().unwrap()), [(1, 600, 1), (2, 0, 150)]);
    assert_eq!(scheduler.next_step(), None, "the next chunk waits for the decode row that it goes with");
}

#[test]
fn a_lone_prompt_is_spread_over_the_stages() {
    let limits =
        Limits { rows: 512, blocks: 100, max_context: 1600, stages: 4, steps_in_flight: 6, ..limits() };
    let mut scheduler = Scheduler::new(limits, QueueLimits { requests: 4, tokens: 4000 });
    scheduler.submit(request(1, 600, 10)).unwrap();
    assert_eq!(shape(&scheduler.next_step().unwrap()), [(1, 0, 150)]);
}

#[test]
fn steps_in_flight_are_bounded() {
    let mut scheduler = scheduler(limits());
    scheduler.submit(request(1, 110, 1)).unwrap();
    assert_eq!(due(&mut scheduler).len(), 3, "two groups and one more");
    scheduler.left_first_stage(1);
    assert_eq!(due(&mut scheduler).len(), 1, "the second stage may be slow for once");
    scheduler.left_first_stage(2);
    assert_eq!(due(&mut scheduler), [], "the stages queue no more");
    scheduler.step_done(1);
    assert_eq!(due(&mut scheduler).len(), 1);
}

#[test]
fn a_prompt_gets_through_where_every_evidence_row_is_taken() {
    for evidence_rows in [1, 2] {
        let mut scheduler = scheduler(Limits { evidence_rows, stages: 1, steps_in_flight: 2, ..limits() });
        for id in 1..=3 {
            scheduler.submit(request(id, 1, 30)).unwrap();
        }
        let mut answered = std::collections::BTreeSet::new();
        for _ in 0..20 {
            let step = scheduler.next_step().unwrap();
            scheduler.step_done(step.id);
            for span in step.spans.iter().filter(|span| !span.evidence.is_empty()) {
                answered.insert(span.sequence);
                scheduler.token(span.run, 5);
            }
        }
        assert_eq!(answered.len(), 3, "with {evidence_rows} evidence rows a step");
    }
}

#[test]
fn blocks_of_an_ended_sequence_serve_the_plan_that_ends_it() {
    let mut scheduler = scheduler(Limits { blocks: 1, ..limits() });
    scheduler.submit(request(1, 10, 6)).unwrap();
    scheduler.submit(request(2, 10, 6)).unwrap();
    let first = scheduler.next_step().unwrap();
    assert_eq!(shape(&first), [(1, 0, 10)], "the second waits for the only block");
    assert!(scheduler.end(1));
    let second = scheduler.next_step().unwrap();
    assert_eq!((&second.ended[..], shape(&second)), (&[1][..], vec![(2, 0, 10)]));
}

#[test]
fn only_one_plan_of_ends_goes_beside_the_others() {
    let mut scheduler = scheduler(limits());
    for id in 1..=2 {
        scheduler.submit(request(id, 2, 5)).unwrap();
        scheduler.next_step().unwrap();
    }
    scheduler.end(1);
    assert_eq!(scheduler.next_step().unwrap().ended, [1]);
    scheduler.end(2);
    assert_eq!(scheduler.next_step(), None, "merged into a later one");
    scheduler.step_done(3);
    assert_eq!(scheduler.next_step().unwrap().ended, [2]);
}

#[test]
fn what_can_never_run_is_refused_with_the_numbers() {
    let mut small = scheduler(Limits { blocks: 7, ..limits() });
    let mut scheduler = scheduler(limits());
    assert_eq!(scheduler.submit(request(1, 0, 5)), Err(Refusal::EmptyPrompt));
    assert_eq!(scheduler.submit(request(1, 5, 0)), Err(Refusal::NoTokens));
    let too_long = |max_tokens, context| Err(Refusal::TooLong { prompt: 100, max_tokens, context });
    assert_eq!(scheduler.submit(request(1, 100, 29)), too_long(29, 128));
    assert_eq!(scheduler.submit(request(1, 100, 28)), Ok(()));
    assert_eq!(scheduler.submit(request(1, 1, 1)), Err(Refusal::Duplicate { sequence: 1 }));
    scheduler.next_step().unwrap();
    assert_eq!(
        scheduler.submit(request(1, 1, 1)),
        Err(Refusal::Duplicate { sequence: 1 }),
        "also while it runs"
    );
    assert_eq!(small.context(), 112);
    assert_eq!(small.submit(request(1, 100, 13)), too_long(13, 112), "the pool is smaller than the context");
    assert_eq!(small.submit(request(1, 100, u32::MAX)), too_long(u32::MAX, 112));
}

#[test]
fn a_full_queue_refuses_by_count_and_by_tokens() {
    let mut scheduler = scheduler(limits());
    for id in 1..=3 {
        scheduler.submit(request(id, 100, 20)).unwrap();
    }
    let full = Refusal::QueueTokens { waiting: 360, tokens: 120, limit: 400 };
    assert_eq!(scheduler.submit(request(4, 100, 20)), Err(full));
    scheduler.submit(request(4, 10, 10)).unwrap();
    assert_eq!(scheduler.submit(request(5, 1, 1)), Err(Refusal::QueueFull { waiting: 4 }));
    scheduler.end(2);
    assert_eq!(scheduler.submit(request(5, 1, 1)), Ok(()), "a cancelled one makes room");
    assert_eq!((scheduler.loads().waiting, scheduler.loads().waiting_tokens), (4, 262));
}

#[test]
fn refusals_say_whose_fault_it_is() {
    use asterism_proto::{Failure, Reason};
    let failure = Failure::from(Refusal::QueueFull { waiting: 4 });
    assert_eq!((failure.reason, failure.retry_after.is_some()), (Reason::Exhausted, true));
    for (prompt, field) in [(127, "stopping.max_tokens"), (128, "prompt")] {
        let failure = Failure::from(Refusal::TooLong { prompt, max_tokens: 9, context: 128 });
        assert_eq!((failure.reason, failure.field.as_deref()), (Reason::InvalidArgument, Some(field)));
        assert!(failure.message.contains("128") && failure.message.contains('9'), "{failure}");
    }
}

#[test]
fn higher_priority_goes_first_and_equal_ones_by_arrival() {
    let mut scheduler = scheduler(Limits { blocks: 1, ..limits() });
    for (id, priority) in [(1, 0), (2, 5), (3, 5)] {
        scheduler.submit(NewSequence { priority, ..request(id, 4, 4) }).unwrap();
    }
    let mut order = Vec::new();
    while let Some(step) = scheduler.next_step() {
        scheduler.step_done(step.id);
        for span in step.spans {
            order.push(span.sequence);
            scheduler.end(span.sequence);
        }
    }
    assert_eq!(order, [2, 3, 1]);
}

#[test]
fn nothing_overtakes_one_that_waits_for_blocks() {
    let mut scheduler = scheduler(limits());
    for (id, prompt) in [(1, 60), (2, 80), (3, 2)] {
        scheduler.submit(request(id, prompt, 4)).unwrap();
    }
    assert!(due(&mut scheduler).iter().flat_map(shape).all(|(id, ..)| id == 1));
    assert_eq!(scheduler.loads().waiting, 2, "the third would fit, but came later");
}

#[test]
fn nothing_starts_while_admission_is_paused() {
    let mut scheduler = scheduler(limits());
    scheduler.pause_admission();
    scheduler.submit(request(1, 4, 4)).unwrap();
    assert_eq!(scheduler.next_step(), None);
    scheduler.end_epoch();
    assert_eq!(scheduler.begin_epoch(limits()), []);
    assert!(scheduler.next_step().is_some());
}

#[test]
fn an_epochs_end_keeps_what_fits_the_next() {
    let mut scheduler = scheduler(Limits { blocks: 2, ..limits() });
    for (id, prompt) in [(1, 20), (2, 20), (3, 4), (4, 4)] {
        scheduler.submit(request(id, prompt, 4)).unwrap();
    }
    scheduler.next_step().unwrap();
    assert!(scheduler.end_epoch().is_empty(), "nothing is given up at once");
    let mut refused = scheduler.begin_epoch(Limits { blocks: 1, ..limits() });
    refused.sort_unstable_by_key(|(id, _)| *id);
    let refusal = Refusal::TooLong { prompt: 20, max_tokens: 4, context: 16 };
    assert_eq!(refused, [(1, refusal.clone()), (2, refusal)]);
    assert_eq!(scheduler.token(1, 5), Committed::NotWanted, "late evidence of the epoch before");
    let step = scheduler.next_step().unwrap();
    assert_eq!((step.id, shape(&step)), (1, vec![(3, 0, 4)]), "steps count from 1 again");
    assert!(step.ended.is_empty(), "the stages forgot the others already");
}
