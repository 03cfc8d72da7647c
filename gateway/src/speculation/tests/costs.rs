//! Prices from measured steps.

use std::time::Duration;

use proptest::prelude::*;

use super::*;

/// A device whose steps take a time of their own and a time for each row.
fn time(step: f64, row: f64, rows: u32) -> Duration {
    Duration::from_secs_f64(step + row * f64::from(rows))
}

fn measured(steps: impl IntoIterator<Item = (u32, Duration)>) -> StepCosts {
    let mut costs = StepCosts::default();
    for (rows, time) in steps {
        costs.observe(rows, time);
    }
    costs
}

#[test]
fn a_device_that_reads_weights_gives_rows_away_and_one_that_computes_does_not() {
    let steps = |step, row| measured([1, 4, 1, 8, 1, 2].map(|rows| (rows, time(step, row, rows))));
    let price = |costs: &StepCosts, rows| costs.price(rows).tokens();
    let reads = steps(10e-3, 0.1e-3);
    assert!((price(&reads, 1) - 0.1 / 10.1).abs() < 1e-6, "{reads:?}");
    assert!((price(&reads, 100) - 0.5).abs() < 1e-6, "beside many it costs half a token: {reads:?}");
    let computes = steps(0.0, 1e-3);
    assert!((price(&computes, 1) - 1.0).abs() < 1e-6, "{computes:?}");
}

#[test]
fn steps_that_are_all_alike_say_nothing_of_a_row() {
    let alike = measured(vec![(3, Duration::from_millis(5)); 100]);
    assert_eq!(alike.price(3), StepCosts::default().price(3));
    assert!(alike.price(1).tokens() > 0.0, "so there is a guess");
}

#[test]
fn what_a_row_costs_is_not_forgotten_while_none_is_proposed() {
    let mut costs = measured([1, 4, 1, 4, 1].map(|rows| (rows, time(10e-3, 1e-3, rows))));
    let before = costs.price(1).tokens();
    for _ in 0..1000 {
        costs.observe(1, time(10e-3, 1e-3, 1));
    }
    assert!((costs.price(1).tokens() - before).abs() < 0.02, "{costs:?}");
}

#[test]
fn a_hiccup_does_not_make_rows_dear_for_long() {
    let mut costs = measured((0..100).map(|step| (1 + step % 4, time(10e-3, 0.1e-3, 1 + step % 4))));
    costs.observe(4, Duration::from_secs(60));
    for step in 0..100 {
        costs.observe(1 + step % 4, time(10e-3, 0.1e-3, 1 + step % 4));
    }
    assert!(costs.price(1).tokens() < 0.05, "{costs:?}");
}

#[test]
fn steps_without_rows_or_time_are_none() {
    let mut costs = measured([(0, Duration::from_secs(1)), (5, Duration::ZERO)]);
    assert_eq!(costs.price(5), StepCosts::default().price(5));
    costs.observe(1, time(1.0, 1.0, 1));
    costs.observe(9, time(1.0, 1.0, 9));
    assert!((costs.price(1).tokens() - 0.5).abs() < 1e-9, "{costs:?}");
}

proptest! {
    #[test]
    fn a_price_is_a_share_of_a_token(
        steps in prop::collection::vec((0u32..300, 0u64..1_000_000_000), 0..60),
        rows in 0u32..300,
    ) {
        let costs = measured(steps.into_iter().map(|(rows, nanos)| (rows, Duration::from_nanos(nanos))));
        prop_assert!((0.0..=1.0).contains(&costs.price(rows).tokens()), "{costs:?}");
        let (fewer, more) = (costs.price(rows).tokens(), costs.price(rows + 1).tokens());
        prop_assert!(fewer <= more + 1e-12, "with more rows each is dearer, but for rounding: {fewer}, {more}");
    }
}
