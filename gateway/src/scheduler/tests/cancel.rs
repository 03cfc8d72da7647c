use super::shards::Shards;
use super::*;

/// What a life is made of, in order.
#[derive(Clone, Copy, Debug)]
enum Event {
    Plan,
    StepDone,
    Token,
}

const LIFE: [Event; 14] = [
    Event::Plan,
    Event::Plan,
    Event::StepDone,
    Event::StepDone,
    Event::Token,
    Event::Plan,
    Event::StepDone,
    Event::Token,
    Event::Plan,
    Event::Token,
    Event::StepDone,
    Event::Plan,
    Event::StepDone,
    Event::Token,
];

#[test]
fn a_sequence_can_be_cancelled_at_every_point_of_its_life() {
    for point in 0..LIFE.len() {
        let mut scheduler = scheduler(limits());
        let mut shards = Shards::new(limits());
        scheduler.submit(request(1, 30, 5)).unwrap();
        shards.expect(&request(1, 30, 5));
        let mut done = 0;
        for event in &LIFE[..point] {
            match event {
                Event::Plan => drop(shards.take(scheduler.next_step().unwrap(), 2)),
                Event::StepDone => {
                    done += 1;
                    assert!(scheduler.step_done(done));
                    shards.finish_step().unwrap();
                }
                Event::Token => {
                    assert_eq!(scheduler.token(1, 9), Committed::Continues);
                    shards.gain(1, 9);
                }
            }
        }
        assert!(scheduler.end(1));
        assert!(!scheduler.end(1), "there is none any more");
        let loads = scheduler.loads();
        assert_eq!((loads.free_blocks, loads.waiting_tokens), (8, 0), "at point {point}");
        assert_eq!(scheduler.token(1, 9), Committed::NotWanted, "late evidence");
        let told = due(&mut scheduler);
        let expected: &[SequenceId] = if point == 0 { &[] } else { &[1] };
        assert_eq!(told.iter().flat_map(|step| step.ended.clone()).collect::<Vec<_>>(), expected);
        assert!(told.iter().all(|step| step.spans.is_empty()) && told.len() == expected.len());
        told.into_iter().for_each(|step| drop(shards.take(step, 2)));
        assert!(shards.are_empty(), "within one step");
    }
}

#[test]
fn others_do_not_notice() {
    for point in 0..20 {
        let mut scheduler = scheduler(Limits { blocks: 16, ..limits() });
        for id in [1, 2] {
            scheduler.submit(request(id, 25, 6)).unwrap();
        }
        let mut tokens = 0;
        let mut sent = due(&mut scheduler);
        for round in 0.. {
            if round == point {
                scheduler.end(1);
            }
            sent.extend(due(&mut scheduler));
            if sent.is_empty() {
                break;
            }
            let step = sent.remove(0);
            scheduler.step_done(step.id);
            for span in step.spans.iter().filter(|span| !span.evidence.is_empty()) {
                let committed = scheduler.token(span.run, 5);
                tokens += usize::from(span.sequence == 2 && committed != Committed::NotWanted);
            }
        }
        assert_eq!(tokens, 6, "cancelled in round {point}");
        assert_eq!(scheduler.loads().free_blocks, 16);
    }
}
