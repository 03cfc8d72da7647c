use proptest::prelude::*;

use super::*;

fn holder(epoch: u64, driver_id: &str) -> Holder {
    Holder { epoch, driver_id: driver_id.to_owned() }
}

fn claim(epoch: u64, driver_id: &str) -> Claim {
    Claim { holder: holder(epoch, driver_id), take_over: false }
}

#[test]
fn only_a_greater_epoch_is_accepted() {
    let now = Instant::now();
    let mut fence = Fence::default();
    assert_eq!(fence.claim(&claim(5, "a"), now), Ok(()));
    for epoch in [1, 4, 5] {
        assert_eq!(fence.claim(&claim(epoch, "a"), now), Err(Refused::Stale { found: epoch, epoch: 5 }));
    }
    assert_eq!(fence.claim(&claim(6, "a"), now), Ok(()), "the same id, greater: always");
    fence.end();
    assert_eq!(
        fence.claim(&claim(6, "b"), now),
        Err(Refused::Stale { found: 6, epoch: 6 }),
        "also when it is over"
    );
    let over = Claim { take_over: true, ..claim(6, "b") };
    assert_eq!(fence.claim(&over, now), Err(Refused::Stale { found: 6, epoch: 6 }), "also to take over");
    assert_eq!(fence.holder(), Some(&holder(6, "a")), "a refused claim changes nothing");
}

#[test]
fn a_living_holder_is_only_taken_over() {
    let now = Instant::now();
    let mut fence = Fence::default();
    fence.claim(&claim(1, "a"), now).expect("nobody holds it");
    fence.open_run(&holder(1, "a")).expect("the holder");
    let later = now + 100 * JOIN_GRACE;
    let held = Refused::Held { driver_id: "a".to_owned(), epoch: 1 };
    assert_eq!(fence.claim(&claim(2, "b"), later), Err(held), "its Run is open");
    assert_eq!(fence.claim(&Claim { take_over: true, ..claim(2, "b") }, later), Ok(()));
    assert!(fence.check(&holder(1, "a")).is_err() && fence.check(&holder(2, "b")).is_ok());
}

#[test]
fn a_holder_without_run_lives_for_five_seconds() {
    let now = Instant::now();
    let mut fence = Fence::default();
    fence.claim(&claim(1, "a"), now).expect("nobody holds it");
    let almost = now + JOIN_GRACE - Duration::from_millis(1);
    assert!(fence.claim(&claim(2, "b"), almost).is_err());
    assert!(fence.lives(almost) && !fence.lives(now + JOIN_GRACE));
    assert_eq!(fence.claim(&claim(2, "b"), now + JOIN_GRACE), Ok(()));
}

#[test]
fn a_closed_run_frees_the_shard_and_ends_the_epoch() {
    let now = Instant::now();
    let mut fence = Fence::default();
    fence.claim(&claim(1, "a"), now).expect("nobody holds it");
    fence.open_run(&holder(1, "a")).expect("the holder");
    assert_eq!(fence.open_run(&holder(1, "a")), Err(Refused::RunsAlready { epoch: 1 }));
    fence.end();
    assert!(!fence.lives(now));
    assert_eq!(fence.open_run(&holder(1, "a")), Err(Refused::Over { epoch: 1 }));
    assert_eq!(fence.claim(&claim(2, "b"), now), Ok(()));
}

#[test]
fn nobody_and_strangers_are_refused() {
    let mut fence = Fence::default();
    let now = Instant::now();
    for (epoch, id) in [(0, "a"), (1, ""), (0, "")] {
        let nobody = Refused::Nobody { epoch, driver_id: id.to_owned() };
        assert_eq!(fence.claim(&claim(epoch, id), now), Err(nobody));
    }
    let foreign = |found, epoch| Refused::Foreign { found, driver_id: "b".to_owned(), epoch };
    assert_eq!(fence.check(&holder(1, "b")), Err(foreign(1, None)));
    fence.claim(&claim(3, "a"), now).expect("nobody holds it");
    for epoch in [2, 3, 4] {
        assert_eq!(fence.check(&holder(epoch, "b")), Err(foreign(epoch, Some(3))));
    }
}

#[derive(Clone, Debug)]
enum Act {
    Claim { epoch: u64, driver: usize, take_over: bool },
    OpenRun { epoch: u64, driver: usize },
    End,
    Pass { millis: u64 },
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (0..12u64, 0..3usize, any::<bool>())
            .prop_map(|(epoch, driver, take_over)| Act::Claim { epoch, driver, take_over }),
        3 => (0..12u64, 0..3usize).prop_map(|(epoch, driver)| Act::OpenRun { epoch, driver }),
        1 => Just(Act::End),
        2 => (0..6000u64).prop_map(|millis| Act::Pass { millis }),
    ]
}

proptest! {
    #[test]
    fn the_epoch_only_grows_and_a_living_holder_is_never_lost(acts in prop::collection::vec(act(), 0..80)) {
        let drivers = ["a", "b", "c"];
        let (mut fence, mut now) = (Fence::default(), Instant::now());
        for act in acts {
            let before = fence.holder().cloned();
            let lived = fence.lives(now);
            match act {
                Act::Claim { epoch, driver, take_over } => {
                    let claim = Claim { holder: holder(epoch, drivers[driver]), take_over };
                    let accepted = fence.claim(&claim, now).is_ok();
                    let greater = before.as_ref().is_none_or(|before| epoch > before.epoch);
                    let same = before.as_ref().is_some_and(|before| before.driver_id == drivers[driver]);
                    prop_assert_eq!(accepted, epoch > 0 && greater && (!lived || same || take_over));
                    prop_assert_eq!(fence.holder(), if accepted { Some(&claim.holder) } else { before.as_ref() });
                }
                Act::OpenRun { epoch, driver } => {
                    let opened = fence.open_run(&holder(epoch, drivers[driver])).is_ok();
                    prop_assert!(!opened || fence.lives(now));
                    prop_assert_eq!(fence.holder(), before.as_ref());
                }
                Act::End => {
                    fence.end();
                    prop_assert!(!fence.lives(now));
                }
                Act::Pass { millis } => now += Duration::from_millis(millis),
            }
        }
    }
}
