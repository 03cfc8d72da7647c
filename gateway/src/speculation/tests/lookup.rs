//! The index against plain search.

use proptest::prelude::*;

use crate::speculation::lookup::{CANDIDATES, GRAM, History, LONGEST, Lookup, WINDOW};

fn of(ids: &[u32]) -> Lookup {
    let mut lookup = Lookup::default();
    lookup.extend(History::new(ids, &[]));
    lookup
}

fn proposed(ids: &[u32], most: u32) -> Vec<u32> {
    of(ids).propose(History::new(ids, &[]), most)
}

/// How many ids before `place` are those before the end.
fn matching(ids: &[u32], place: usize) -> usize {
    let pairs = ids[..place].iter().rev().zip(ids.iter().rev());
    pairs.take_while(|(a, b)| a == b).count().min(LONGEST as usize)
}

/// What is proposed, found by going back through the whole text.
fn searched(ids: &[u32], most: usize) -> Vec<u32> {
    let (lookup, history) = (of(ids), History::new(ids, &[]));
    let bucket = |place: usize| lookup.bucket(history, place as u32);
    let same_bucket = (GRAM..ids.len()).rev().filter(|&place| bucket(place) == bucket(ids.len()));
    let candidates = same_bucket.take(CANDIDATES).map(|place| (matching(ids, place), place));
    match candidates.max() {
        Some((length, place)) if length >= GRAM => ids[place..].iter().copied().cycle().take(most).collect(),
        _ => Vec::new(),
    }
}

/// Ids in any order, with few kinds so that grams come again, and pieces repeated.
fn text() -> impl Strategy<Value = Vec<u32>> {
    let piece =
        (prop::collection::vec(0u32..4, 1..12), 1usize..5).prop_map(|(piece, times)| piece.repeat(times));
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

#[test]
fn what_followed_the_last_time_is_proposed() {
    assert_eq!(proposed(&[1, 2, 3, 7, 8, 9, 1, 2, 3], 2), [7, 8]);
    assert_eq!(proposed(&[2, 3, 7, 8, 9, 2, 3], 2), [0; 0], "two ids say little");
    assert_eq!(proposed(&[1, 2, 3, 7, 1, 2, 3, 8, 1, 2, 3], 1), [8], "of equal matches the latest");
    assert_eq!(proposed(&[5, 1, 2, 3, 7, 6, 1, 2, 3, 8, 5, 1, 2, 3], 1), [7], "a longer one first");
    assert_eq!(proposed(&[], 4), [0; 0]);
    assert_eq!(proposed(&[1, 2, 3, 1, 2, 3], 0), [0; 0]);
}

#[test]
fn a_repetition_is_taken_to_go_on() {
    assert_eq!(proposed(&[9, 1, 1, 1, 1], 5), [1, 1, 1, 1, 1]);
    assert_eq!(proposed(&[1, 2, 1, 2, 1], 5), [2, 1, 2, 1, 2]);
}

#[test]
fn prompt_and_answer_are_one_text() {
    let ids = [1, 2, 3, 7, 8, 1, 2, 3];
    for cut in 0..=ids.len() {
        let history = History::new(&ids[..cut], &ids[cut..]);
        let mut lookup = Lookup::default();
        lookup.extend(history);
        assert_eq!((lookup.propose(history, 3), history.get(8)), (vec![7, 8, 1], None));
    }
}

#[test]
fn what_is_too_long_ago_is_forgotten() {
    let text = |between: usize| {
        let mut ids = vec![1, 2, 3, 4];
        ids.extend((0..between).map(|id| 10 + id as u32));
        ids.extend([1, 2, 3]);
        ids
    };
    // The first gram's place is 3, the end WINDOW + 2: after it WINDOW - 2 places are in.
    assert_eq!(proposed(&text(WINDOW - 5), 1), [4]);
    assert_eq!(proposed(&text(WINDOW + 5), 1), [0; 0]);
}

#[test]
fn the_tables_stop_growing() {
    let ids: Vec<u32> = (0..5 * WINDOW as u32).collect();
    let mut lookup = Lookup::default();
    for end in (0..ids.len()).step_by(1000) {
        lookup.extend(History::new(&ids[..end], &[]));
        let places = end.max(64).next_power_of_two().min(WINDOW);
        assert_eq!((lookup.heads.len(), lookup.previous.len()), (places, places), "with {end} ids");
    }
}

proptest! {
    #[test]
    fn every_proposal_is_what_followed_a_match(ids in text(), most in 1u32..20) {
        let proposal = proposed(&ids, most);
        let follows = |place: usize| {
            let cycle = ids[place..].iter().cycle();
            matching(&ids, place) >= GRAM && cycle.take(most as usize).eq(&proposal)
        };
        prop_assert!(proposal.is_empty() || (1..ids.len()).any(follows), "{proposal:?} follows nothing");
    }

    #[test]
    fn chains_find_what_a_search_finds(ids in text(), most in 1u32..20) {
        prop_assert_eq!(proposed(&ids, most), searched(&ids, most as usize));
    }

    #[test]
    fn it_does_not_matter_in_which_pieces_a_text_comes(ids in text(), cuts in prop::collection::vec(0usize..200, 0..8)) {
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(ids.len())).collect();
        cuts.sort_unstable();
        let mut lookup = Lookup::default();
        for cut in cuts {
            lookup.extend(History::new(&ids[..cut], &[]));
        }
        lookup.extend(History::new(&ids, &[]));
        prop_assert_eq!(lookup, of(&ids));
    }
}
