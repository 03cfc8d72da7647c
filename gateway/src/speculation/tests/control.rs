//! How many are proposed, and what that costs at most.

use proptest::prelude::*;

use super::super::control::{ALLOWANCE, EARNED};
use super::*;

/// A sequence's steps: how many of the offered ids hold, and at what price.
#[derive(Clone, Copy, Debug)]
struct Chance {
    holds: u32,
    price: f64,
}

/// Tokens, and the time in steps without proposals.
#[derive(Clone, Copy, Debug, Default)]
struct Spent {
    tokens: f64,
    time: f64,
}

impl Spent {
    /// One step of a sequence.
    fn step(&mut self, control: &mut Control, chance: Chance) -> Outcome {
        let proposed = control.len(price(chance.price), MOST_PROPOSED);
        let accepted = proposed.min(chance.holds);
        let outcome = Outcome { proposed, accepted, price: price(chance.price) };
        control.verified(outcome);
        self.tokens += 1.0 + f64::from(accepted);
        self.time += 1.0 + f64::from(proposed) * chance.price;
        outcome
    }

    fn speed(&self) -> f64 {
        self.tokens / self.time
    }
}

fn steps(control: &mut Control, chances: impl IntoIterator<Item = Chance>) -> Spent {
    let mut spent = Spent::default();
    for chance in chances {
        spent.step(control, chance);
    }
    spent
}

/// Numbers that look random, the same each time.
fn noise() -> impl FnMut() -> f64 {
    let mut position = 0;
    move || {
        position += 1;
        crate::sampler::uniform(3, 0, position)
    }
}

#[test]
fn the_better_proposals_hold_the_more_are_made() {
    let mut control = Control::default();
    let mut spent = Spent::default();
    let all_hold = Chance { holds: 99, price: 0.05 };
    let lens: Vec<u32> = (0..6).map(|_| spent.step(&mut control, all_hold).proposed).collect();
    assert!(lens.is_sorted() && lens[0] > 1 && lens[5] == MOST_PROPOSED, "{lens:?}");
    let none_holds = Chance { holds: 0, price: 0.05 };
    let lens: Vec<u32> = (0..40).map(|_| spent.step(&mut control, none_holds).proposed).collect();
    assert!(lens[39] <= 1, "{lens:?}");
    steps(&mut control, vec![none_holds; 200]);
    let lens: Vec<u32> = (0..80).map(|_| spent.step(&mut control, all_hold).proposed).collect();
    assert_eq!(lens[79], MOST_PROPOSED, "what was is forgotten: {lens:?}");
}

#[test]
fn what_holds_makes_text_faster_as_rows_are_cheaper() {
    let speed = |price| steps(&mut Control::default(), vec![Chance { holds: 99, price }; 200]).speed();
    let [cheap, middling, dear] = [0.02, 0.2, 0.6].map(speed);
    assert!(cheap > 10.0 && middling > 3.0 && dear > 1.3, "{cheap} {middling} {dear}");
    assert_eq!(speed(1.0), 1.0, "nothing can be won");
}

#[test]
fn half_of_all_proposals_are_enough_where_rows_are_cheap() {
    let mut noise = noise();
    let mut chances =
        (0..400).map(|_| Chance { holds: (0..15).take_while(|_| noise() < 0.5).count() as u32, price: 0.1 });
    let spent = steps(&mut Control::default(), chances.by_ref());
    assert!(spent.speed() > 1.3, "{spent:?}");
}

#[test]
fn guesses_that_never_hold_cost_a_hundredth() {
    for price in [0.01, 0.1, 0.3, 0.9] {
        let spent = steps(&mut Control::default(), vec![Chance { holds: 0, price }; 1000]);
        assert!(spent.time <= 1.0105 * spent.tokens, "at {price}: {spent:?}");
    }
}

#[test]
fn no_more_are_proposed_than_there_is_room_for() {
    let control = Control::default();
    assert_eq!(control.len(price(0.0), 0), 0);
    assert_eq!(control.len(price(0.0), 4), 4, "free rows are all taken");
    assert_eq!(control.len(price(0.0), 99), MOST_PROPOSED);
    assert_eq!(control.len(price(f64::NAN), 99), 0);
}

proptest! {
    #[test]
    fn speculation_never_costs_more_than_it_may(
        chances in prop::collection::vec(
            (0u32..16, 0.0..1.0f64).prop_map(|(holds, price)| Chance { holds, price }),
            0..400,
        ),
        streaks in 1usize..20,
    ) {
        // Streaks of the same chance are what an estimate is most easily misled by.
        let chances = chances.into_iter().flat_map(|chance| std::iter::repeat_n(chance, streaks));
        let (mut control, mut spent) = (Control::default(), Spent::default());
        for chance in chances {
            spent.step(&mut control, chance);
            let most = (1.0 + EARNED) * spent.tokens + ALLOWANCE;
            prop_assert!(spent.time <= most + 1e-9, "{} after {} tokens", spent.time, spent.tokens);
        }
    }
}
