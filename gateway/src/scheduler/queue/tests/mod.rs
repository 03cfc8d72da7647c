mod properties;
mod traces;

use std::time::Duration;

use super::super::{EvidenceSpec, Speculation};
use super::*;

fn queue(requests: u32, tokens: u64, weights: &[u32]) -> Queue {
    let weights = weights.iter().map(|weight| NonZeroU32::new(*weight).unwrap()).collect();
    Queue::new(QueueLimits { requests, tokens }).weighted(weights)
}

fn sequence(id: SequenceId, tenant: u32, prompt: u32, max_tokens: u32) -> NewSequence {
    NewSequence {
        id,
        prompt: (0..prompt).collect(),
        given: Vec::new(),
        max_tokens,
        tenant: TenantId(tenant),
        priority: 0,
        arrived: Duration::ZERO,
        deadline: None,
        bypass_cache: false,
        speculation: Speculation::Off,
        evidence: EvidenceSpec { setting_id: 0, top_k: 1 },
    }
}

/// How many of a tenant wait.
fn waiting(queue: &Queue, tenant: u32) -> u64 {
    queue.lines.get(&TenantId(tenant)).map_or(0, Line::len)
}

/// The ids in the order of their admission.
fn drain(queue: &mut Queue) -> Vec<SequenceId> {
    std::iter::from_fn(|| queue.pop()).map(|(_, sequence)| sequence.id).collect()
}

#[test]
fn half_of_the_queue_is_kept_for_tenants_by_weight() {
    // Of 16, 6 are kept for tenant 0 and 2 for tenant 1.
    let mut queue = queue(16, 1_000_000, &[3, 1]);
    let mut push = |id, tenant| queue.push(sequence(id, tenant, 1, 1));
    for id in 0..14 {
        assert_eq!(push(id, 0), Ok(()));
    }
    assert_eq!(push(14, 0), Err(Refusal::QueueFull { waiting: 14 }));
    assert_eq!((push(14, 1), push(15, 1)), (Ok(()), Ok(())), "kept for it");
    assert_eq!(push(16, 1), Err(Refusal::QueueFull { waiting: 16 }));
}

#[test]
fn tokens_are_kept_likewise_and_a_tenant_with_nothing_waiting_gets_in() {
    // Of 160 tokens, 40 are kept for each.
    let mut queue = queue(100, 160, &[1, 1]);
    let mut push = |id, tenant, prompt| queue.push(sequence(id, tenant, prompt, 1));
    assert_eq!(push(1, 0, 119), Ok(()));
    let full = Refusal::QueueTokens { waiting: 120, tokens: 2, limit: 120 };
    assert_eq!(push(2, 0, 1), Err(full));
    assert_eq!(push(2, 1, 99), Ok(()), "it could run, and nothing of it waits");
    let full = Refusal::QueueTokens { waiting: 220, tokens: 2, limit: 160 };
    assert_eq!(push(3, 1, 1), Err(full));
}

#[test]
fn any_priority_and_any_time_have_a_turn() {
    let mut queue = queue(9, 1000, &[]);
    for (id, priority) in [(1, i32::MIN), (2, i32::MAX)] {
        for (id, arrived) in [(id, Duration::MAX), (id + 2, Duration::ZERO)] {
            queue.push(NewSequence { priority, arrived, ..sequence(id, 0, 1, 1) }).unwrap();
        }
    }
    assert_eq!(drain(&mut queue), [4, 3, 2, 1]);
}
