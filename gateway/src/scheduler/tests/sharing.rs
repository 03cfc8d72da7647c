//! What sequences that begin alike share.

use super::*;

/// Of a text, so that others find its blocks.
fn telling(id: SequenceId, text: &[u32], max_tokens: u32) -> NewSequence {
    NewSequence { prompt: text.into(), bypass_cache: false, ..request(id, 1, max_tokens) }
}

fn scheduler(blocks: u32) -> Scheduler {
    let limits = Limits { stages: 1, blocks, rows: 64, steps_in_flight: 2, max_context: 1000, ..limits() };
    Scheduler::new(limits, QueueLimits { requests: 9, tokens: 10_000 })
}

/// Runs a sequence to its end; its tokens are 500, 501, …, and the first span is returned.
fn answer(scheduler: &mut Scheduler, sequence: NewSequence) -> Span {
    scheduler.submit(sequence).unwrap();
    let (mut first, mut token) = (None, 500);
    while let Some(step) = scheduler.next_step() {
        scheduler.step_done(step.id);
        for span in step.spans {
            if !span.evidence.is_empty() {
                scheduler.token(span.run, token);
                token += 1;
            }
            first.get_or_insert(span);
        }
    }
    first.expect("it had rows")
}

#[test]
fn the_next_turn_computes_its_own_words() {
    let mut scheduler = scheduler(16);
    let mut text = story(0, 40);
    let first = answer(&mut scheduler, telling(1, &text, 12));
    assert_eq!((first.first_position, first.start.unwrap().prior_ids), (0, vec![]));

    // The conversation goes on: the answer, of which the last token was never fed, and 20 tokens more.
    text.extend(500..512);
    text.extend(story(7, 20));
    let second = answer(&mut scheduler, telling(2, &text, 1));
    assert_eq!(second.first_position, 48, "51 rows were fed: three blocks");
    assert_eq!(second.start.unwrap().prior_ids, text[..48], "for penalties");
    assert_eq!((second.table_offset, second.blocks.len()), (0, 5));
    assert_eq!(second.token_ids, text[48..]);
    let loads = scheduler.loads();
    assert_eq!((loads.prefix_queries, loads.prefix_hits, loads.free_blocks), (40 + 72, 48, 16));
}

#[test]
fn the_last_row_of_a_prompt_is_always_computed() {
    for (len, expected) in [(16, 0), (17, 16), (32, 16), (33, 32)] {
        let mut scheduler = scheduler(16);
        answer(&mut scheduler, telling(1, &story(0, len), 1));
        let again = answer(&mut scheduler, telling(2, &story(0, len), 1));
        assert_eq!(again.first_position, expected, "of {len}");
    }
}

#[test]
fn a_request_that_bypasses_the_cache_finds_nothing_and_leaves_nothing() {
    let mut scheduler = scheduler(16);
    let bypassing = |id| NewSequence { bypass_cache: true, ..telling(id, &story(0, 40), 1) };
    answer(&mut scheduler, bypassing(1));
    assert_eq!(scheduler.loads().cached_blocks, 0);
    assert_eq!(answer(&mut scheduler, telling(2, &story(0, 40), 1)).first_position, 0);
    assert_eq!(answer(&mut scheduler, bypassing(3)).first_position, 0);
    assert_eq!(answer(&mut scheduler, telling(4, &story(0, 40), 1)).first_position, 32);
    let loads = scheduler.loads();
    assert_eq!((loads.prefix_queries, loads.prefix_hits), (80, 32));
}

#[test]
fn what_a_step_computes_later_steps_find() {
    let mut scheduler = scheduler(40);
    // The first takes a whole step of 64 rows, so the second begins when four blocks of it are planned.
    scheduler.submit(telling(1, &story(0, 100), 5)).unwrap();
    scheduler.submit(telling(2, &[&story(0, 90)[..], &[9; 10]].concat(), 5)).unwrap();
    assert_eq!(shape(&scheduler.next_step().unwrap()), [(1, 0, 64)]);
    assert_eq!(shape(&scheduler.next_step().unwrap()), [(1, 64, 36), (2, 64, 28)]);
}

#[test]
fn two_that_begin_in_one_step_hold_the_same_blocks_afterwards() {
    let mut scheduler = scheduler(8);
    for id in 1..=2 {
        scheduler.submit(telling(id, &story(0, 20), 30)).unwrap();
    }
    let step = scheduler.next_step().unwrap();
    assert_eq!(shape(&step), [(1, 0, 20), (2, 0, 20)], "neither waits for the other");
    assert_eq!(step.spans[1].blocks, [2, 3]);
    assert_eq!(scheduler.loads().free_blocks, 5);
    scheduler.step_done(step.id);
    for (run, token) in [(1, 5), (2, 6)] {
        scheduler.token(run, token);
    }
    let step = scheduler.next_step().unwrap();
    assert_eq!((step.spans[0].table_offset, &step.spans[0].blocks[..]), (2, &[][..]));
    assert_eq!((step.spans[1].table_offset, &step.spans[1].blocks[..]), (0, &[0, 3][..]), "told anew");
}

#[test]
fn cached_blocks_go_before_anybody_is_preempted() {
    let mut scheduler = scheduler(4);
    answer(&mut scheduler, telling(1, &story(0, 62), 2));
    assert_eq!((scheduler.loads().cached_blocks, scheduler.loads().free_blocks), (3, 4));
    answer(&mut scheduler, telling(2, &[9; 40], 20));
    let loads = scheduler.loads();
    assert_eq!((loads.preemptions, loads.free_blocks, loads.cached_blocks), (0, 4, 3), "three others");
    assert_eq!(answer(&mut scheduler, telling(3, &[9; 40], 1)).first_position, 32);
}

#[test]
fn blocks_that_others_hold_need_not_be_free() {
    let mut scheduler = scheduler(6);
    scheduler.submit(telling(1, &story(0, 64), 16)).unwrap();
    let step = scheduler.next_step().unwrap();
    scheduler.step_done(step.id);
    scheduler.token(1, 5);
    assert_eq!(scheduler.loads().free_blocks, 2, "of which one is promised");
    scheduler.submit(telling(2, &[9; 32], 1)).unwrap();
    let step = scheduler.next_step().unwrap();
    assert_eq!(shape(&step), [(1, 64, 1)], "the other needs two and waits");
    scheduler.step_done(step.id);
    scheduler.token(1, 6);
    scheduler.end(2);
    scheduler.submit(telling(3, &story(0, 64), 1)).unwrap();
    assert_eq!(shape(&scheduler.next_step().unwrap()), [(1, 65, 1), (3, 48, 16)], "this one needs one");
}

#[test]
fn a_replay_finds_its_own_blocks() {
    // Both come to five blocks.
    let mut scheduler = scheduler(9);
    for (id, first) in [(1, 100), (2, 200)] {
        scheduler.submit(telling(id, &(first..first + 34).collect::<Vec<_>>(), 40)).unwrap();
    }
    let mut starts = Vec::new();
    while let Some(step) = scheduler.next_step() {
        scheduler.step_done(step.id);
        for span in step.spans {
            if !span.evidence.is_empty() {
                scheduler.token(span.run, 5);
            }
            if span.start.is_some() {
                starts.push((span.sequence, span.first_position));
            }
        }
    }
    let loads = scheduler.loads();
    assert_eq!((loads.preemptions, loads.free_blocks), (1, 9));
    assert_eq!(starts, [(1, 0), (2, 0), (2, 64)], "all that it had fed");
}

#[test]
fn an_epochs_end_empties_the_index() {
    let mut scheduler = scheduler(16);
    answer(&mut scheduler, telling(1, &story(0, 40), 1));
    scheduler.end_epoch();
    let limits = *scheduler.limits();
    scheduler.begin_epoch(limits);
    assert_eq!(answer(&mut scheduler, telling(2, &story(0, 40), 1)).first_position, 0);
}
