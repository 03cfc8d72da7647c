//! Arrivals in, the order of admission out.
//!
//! A trace has a line for each thing that happens: `5s gold+2: a b` are two sequences of priority 2, each with a prompt of
//! ten tokens, that come to tenant gold after five seconds; `a draws 20` is that much of its answer; `admitted: a b` takes
//! as many out as it names, which shall be these.

use super::*;

const PROMPT: u32 = 10;

/// The first line names the tenants and their weights: `gold=3 free=1`.
#[track_caller]
fn check(text: &str) {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let tenants = lines.next().unwrap().split_whitespace().map(|tenant| tenant.split_once('=').unwrap());
    let (tenants, weights): (Vec<&str>, Vec<u32>) =
        tenants.map(|(name, weight)| (name, weight.parse::<u32>().unwrap())).unzip();
    let mut queue = queue(100, 10_000, &weights);
    let mut owners = BTreeMap::new();
    for line in lines {
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["admitted:", ref names @ ..] => {
                let admitted: Vec<_> = names.iter().filter_map(|_| admit(&mut queue)).collect();
                assert_eq!(admitted, names, "{line}");
            }
            [name, "draws", tokens] => queue.charge(owners[name], tokens.parse().unwrap()),
            [time, who, ref names @ ..] => {
                for name in names {
                    let new = arrival(&tenants, (time, who), name);
                    owners.insert(*name, new.tenant);
                    queue.push(new).unwrap();
                }
            }
            _ => panic!("{line}"),
        }
    }
}

fn arrival(tenants: &[&str], (time, who): (&str, &str), name: &str) -> NewSequence {
    let who = who.strip_suffix(':').unwrap();
    let (tenant, priority) = who.split_at(who.find(['+', '-']).unwrap_or(who.len()));
    let tenant = tenants.iter().position(|it| *it == tenant).unwrap() as u32;
    NewSequence {
        priority: priority.parse().unwrap_or(0),
        arrived: Duration::from_secs(time.strip_suffix('s').unwrap().parse().unwrap()),
        ..sequence(name.chars().next().unwrap().into(), tenant, PROMPT, PROMPT)
    }
}

fn admit(queue: &mut Queue) -> Option<String> {
    let first = queue.first()?.id;
    let (_, sequence) = queue.pop()?;
    assert_eq!(sequence.id, first);
    Some(char::from_u32(first as u32)?.to_string())
}

#[test]
fn one_tenant_is_served_by_arrival() {
    check(
        "
        default=1
        0s default: a b c
        1s default: d
        admitted: a b c d
        ",
    );
}

#[test]
fn tenants_take_turns_by_weight_whoever_came_first() {
    check(
        "
        gold=3 free=1
        0s free: a b c d e f
        1s gold: p q r s t u
        admitted: a p q r b s t u c d e f
        ",
    );
}

#[test]
fn long_answers_count() {
    check(
        "
        east=1 west=1
        0s east: a b c
        0s west: p q r s
        admitted: a p
        a draws 15
        admitted: q r b
        b draws 15
        admitted: s c
        ",
    );
}

#[test]
fn who_was_away_starts_level_with_those_who_wait() {
    check(
        "
        east=1 west=1
        0s east: a b c d e f
        admitted: a b c
        5s west: p q r
        admitted: d p e q f r
        ",
    );
}

#[test]
fn who_was_served_alone_owes_nothing_once_both_are_away() {
    check(
        "
        east=1 west=1
        0s east: a
        admitted: a
        a draws 1000
        9s west: p q
        9s east: b c
        admitted: p b q c
        ",
    );
}

#[test]
fn a_level_of_priority_is_worth_ten_seconds() {
    check(
        "
        default=1
        0s default: a
        9s default+1: b
        11s default+1: c
        15s default+2: d
        30s default-1: e
        35s default-1: f
        39s default: g
        admitted: d b a c g e f
        ",
    );
}
