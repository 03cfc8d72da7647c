use super::*;

/// A request whose text repeats itself, as the token drawn for each position is its number modulo 5.
fn repeating(id: SequenceId, max_tokens: u32) -> NewSequence {
    let prompt = (0..10).map(|position| position % 5).collect();
    NewSequence { prompt, speculation: Speculation::Auto, ..request(id, 10, max_tokens) }
}

/// Draws all that is wanted of a step.
fn answer(scheduler: &mut Scheduler, step: &Step) {
    for span in &step.spans {
        for position in span.evidence.clone() {
            if scheduler.wanted(span.run, position) == Wanted::Now {
                scheduler.token(span.run, (position + 1) % 5);
            }
        }
    }
    scheduler.step_done(step.id);
}

fn run(limits: Limits, requests: impl IntoIterator<Item = NewSequence>) -> (Vec<Step>, Loads) {
    let mut scheduler = Scheduler::new(limits, QueueLimits { requests: 9, tokens: 1000 });
    for request in requests {
        scheduler.submit(request).unwrap();
    }
    let mut steps = Vec::new();
    while let Some(step) = scheduler.next_step() {
        answer(&mut scheduler, &step);
        steps.push(step);
    }
    let loads = scheduler.loads();
    assert_eq!(loads.free_blocks, limits.blocks, "no block leaked");
    (steps, loads)
}

fn one_stage() -> Limits {
    Limits { stages: 1, steps_in_flight: 2, evidence_rows: 20, logits_slots: 32, ..limits() }
}

#[test]
fn what_holds_saves_steps() {
    let (alone, loads) =
        run(one_stage(), [NewSequence { speculation: Speculation::Off, ..repeating(1, 60) }]);
    assert_eq!((alone.len(), loads.proposed), (61, Proposed::default()), "a prompt, 59 rows, and the end");
    let (steps, loads) = run(one_stage(), [repeating(1, 60)]);
    let Proposed { proposals, tokens, accepted } = loads.proposed;
    assert_eq!((tokens, accepted), (tokens, tokens), "all hold");
    assert_eq!(steps.len() as u64, 61 - accepted);
    assert!(proposals < 20 && accepted > 40, "{proposals} proposals, {accepted} tokens");
}

#[test]
fn what_is_always_proposed_is_so_at_any_price_and_however_little_holds() {
    let most_ahead = |speculation, right: bool| {
        let mut scheduler = scheduler(one_stage());
        scheduler.submit(NewSequence { speculation, ..repeating(1, 60) }).unwrap();
        let (mut drawn, mut ahead) = (0, Vec::new());
        while let Some(step) = scheduler.next_step() {
            for span in &step.spans {
                ahead.push(span.evidence.len().saturating_sub(1));
                for position in span.evidence.clone() {
                    if scheduler.wanted(span.run, position) == Wanted::Now {
                        drawn += 1;
                        // Every fourth token is new.
                        let new = !right && drawn % 4 == 0;
                        scheduler.token(span.run, if new { 100 + drawn } else { (position + 1) % 5 });
                    }
                }
            }
            scheduler.step_done(step.id);
            // Ever more rows take ever more time: each costs as much as a step.
            scheduler.observe_decoding(step.id as u32, Duration::from_millis(step.id));
        }
        // While nothing is known, hope proposes; near the end there is no room.
        let settled = ahead.len() / 2;
        ahead[settled..].iter().copied().max().unwrap_or(0)
    };
    assert_eq!(most_ahead(Speculation::Auto, false), 0, "no row pays");
    assert_eq!(most_ahead(Speculation::Always, false), 15);
    assert_eq!(most_ahead(Speculation::Always, true), 15);
}

#[test]
fn proposals_take_what_a_step_has_left() {
    let proposed = |limits: Limits, sequences: u64| {
        let (steps, _) = run(limits, (1..=sequences).map(|id| repeating(id, 40)));
        let ahead = |step: &Step| step.spans.iter().map(|span| span.evidence.len().saturating_sub(1)).sum();
        // As long as all run.
        let steps = steps.iter().filter(|step| step.spans.len() as u64 == sequences);
        steps.map(ahead).max().unwrap_or(0)
    };
    assert_eq!(proposed(Limits { evidence_rows: 4, ..one_stage() }, 1), 3);
    assert_eq!(proposed(Limits { evidence_rows: 4, ..one_stage() }, 2), 2);
    assert_eq!(proposed(Limits { logits_slots: 3, ..one_stage() }, 1), 2);
    assert_eq!(proposed(Limits { logits_slots: 2, ..one_stage() }, 2), 0, "each keeps one row");
    assert_eq!(proposed(Limits { rows: 2, ..one_stage() }, 1), 1);
}

#[test]
fn proposals_keep_nobody_out() {
    let limits = Limits { logits_slots: 8, blocks: 60, max_context: 400, ..one_stage() };
    let mut scheduler = Scheduler::new(limits, QueueLimits { requests: 9, tokens: 1000 });
    for id in [1, 2] {
        scheduler.submit(NewSequence { speculation: Speculation::Always, ..repeating(id, 300) }).unwrap();
    }
    let go_on = |scheduler: &mut Scheduler| {
        let step = scheduler.next_step().unwrap();
        answer(scheduler, &step);
        step
    };
    while scheduler.slots() < limits.logits_slots {
        go_on(&mut scheduler);
    }
    scheduler.submit(request(3, 4, 2)).unwrap();
    let steps = [go_on(&mut scheduler), go_on(&mut scheduler)];
    let begins = |step: &Step| step.spans.iter().any(|span| span.sequence == 3);
    assert!(steps.iter().any(begins), "others leave a row for it");
    assert_eq!(scheduler.loads().decoding, 3, "while they go on");
}

#[test]
fn what_was_accepted_is_found_by_the_next_turn() {
    let mut scheduler = scheduler(one_stage());
    scheduler.submit(NewSequence { bypass_cache: false, ..repeating(1, 39) }).unwrap();
    while let Some(step) = scheduler.next_step() {
        answer(&mut scheduler, &step);
    }
    assert!(scheduler.loads().proposed.accepted > 20);
    let prompt = (0..60).map(|position| position % 5).collect();
    scheduler.submit(NewSequence { prompt, bypass_cache: false, ..request(2, 60, 1) }).unwrap();
    assert_eq!(shape(&scheduler.next_step().unwrap()), [(2, 48, 12)], "the 48 positions that were fed");
}

#[test]
fn evidence_behind_a_row_that_is_fetched_waits() {
    let mut scheduler = scheduler(one_stage());
    scheduler.submit(repeating(1, 30)).unwrap();
    let step = std::iter::from_fn(|| {
        let step = scheduler.next_step()?;
        if step.spans.iter().any(|span| span.evidence.len() > 2) {
            return Some((step, true));
        }
        answer(&mut scheduler, &step);
        Some((step, false))
    })
    .find(|(_, has_proposal)| *has_proposal);
    let (step, _) = step.unwrap();
    let span = &step.spans[0];
    let (run, first) = (span.run, span.first_position);
    let wanted = |scheduler: &Scheduler| {
        [first, first + 1, first + 2, first + 9].map(|position| scheduler.wanted(run, position))
    };
    assert_eq!(wanted(&scheduler), [Wanted::Now, Wanted::Later, Wanted::Later, Wanted::Never]);
    scheduler.token(run, (first + 1) % 5);
    assert_eq!(wanted(&scheduler), [Wanted::Never, Wanted::Now, Wanted::Later, Wanted::Never]);
    scheduler.token(run, 99);
    assert_eq!(wanted(&scheduler), [Wanted::Never; 4]);
    assert_eq!(scheduler.token(run, 1), Committed::NotWanted);
    scheduler.step_done(step.id);
    assert_eq!(scheduler.next_step().unwrap().spans[0].first_position, first + 2, "where 99 belongs");
    assert_eq!(scheduler.wanted(7, first), Wanted::Never, "no such run");
}
