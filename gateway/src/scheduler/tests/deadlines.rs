//! Sequences that nobody wants any more from some time on.

use super::*;

fn wanted_until(id: SequenceId, seconds: u64) -> NewSequence {
    NewSequence { deadline: Some(Duration::from_secs(seconds)), ..request(id, 4, 4) }
}

#[test]
fn waiting_and_running_ones_end_at_their_deadlines() {
    let mut scheduler = scheduler(Limits { blocks: 1, ..limits() });
    let at = Duration::from_secs;
    for (id, seconds) in [(1, 5), (2, 3), (3, 8)] {
        scheduler.submit(wanted_until(id, seconds)).unwrap();
    }
    scheduler.submit(request(4, 4, 4)).unwrap();
    assert_eq!(shape(&scheduler.next_step().unwrap()), [(1, 0, 4)], "one block");
    assert_eq!(scheduler.next_deadline(), Some(at(3)));
    assert!(scheduler.expire(at(3) - Duration::from_nanos(1)).is_empty());
    assert_eq!(scheduler.expire(at(5)), [2, 1], "by time");
    let step = scheduler.next_step().unwrap();
    assert_eq!((&step.ended[..], shape(&step)), (&[1][..], vec![(3, 0, 4)]), "its block is free at once");
    assert_eq!(scheduler.token(1, 7), Committed::NotWanted);
    assert_eq!(scheduler.loads().waiting, 1);
}

#[test]
fn what_is_over_has_no_deadline() {
    let mut scheduler = scheduler(limits());
    for (id, seconds) in [(1, 1), (2, 2), (3, 3)] {
        scheduler.submit(NewSequence { max_tokens: 1, ..wanted_until(id, seconds) }).unwrap();
    }
    scheduler.next_step().unwrap();
    assert!(scheduler.end(1));
    assert_eq!(scheduler.token(2, 5), Committed::Full);
    assert!(scheduler.end_epoch().is_empty());
    assert_eq!(scheduler.begin_epoch(limits()), []);
    assert_eq!(scheduler.next_deadline(), Some(Duration::from_secs(3)), "it is to be replayed");
    assert!(scheduler.end(3));
    assert_eq!(scheduler.next_deadline(), None);
    assert!(scheduler.expire(Duration::MAX).is_empty());
}
