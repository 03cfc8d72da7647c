//! The power is cut at every sync.

use proptest::prelude::*;

use super::*;
use crate::sessions::store::memory::MemoryStore;
use crate::sessions::store::suite::{Op, apply, everything, new_turn, session_id, talked, turn_id};

/// The model after the first steps of a script.
async fn model_after(ops: &[Op]) -> MemoryStore {
    let mut model = MemoryStore::default();
    for (place, op) in ops.iter().enumerate() {
        match op {
            Op::Restart => model = model.restarted(),
            op => drop(apply(&model, place, op).await),
        }
    }
    model
}

/// Does steps until the power is cut: how many were answered.
async fn until_the_cut(disks: &Disks, ops: &[Op]) -> usize {
    let Ok(mut store) = disks.try_open() else { return 0 };
    for (place, op) in ops.iter().enumerate() {
        if let Op::Restart = op {
            drop(store);
            match disks.try_open() {
                Ok(opened) => store = opened,
                Err(_) => return place,
            }
            continue;
        }
        apply(&*store, place, op).await;
        if disks.records.is_dead() {
            return place;
        }
    }
    ops.len()
}

/// All that can be read is what the model has after the steps that were answered, or after the next one too; and
/// everything goes on from there.
async fn nothing_is_lost_or_doubled(disks: &Disks, ops: &[Op], answered: usize) -> Result<(), TestCaseError> {
    let mut store = disks.open();
    let found = everything(&*store).await;
    let mut model = model_after(&ops[..answered]).await.restarted();
    if everything(&model).await != found {
        let next = &ops[..ops.len().min(answered + 1)];
        model = model_after(next).await.restarted();
        prop_assert_eq!(everything(&model).await, found, "after {} answers", answered);
    }
    prop_assert_eq!(store.claim().await, model.claim().await);
    for (place, op) in ops.iter().enumerate().skip(answered + 1) {
        if let Op::Restart = op {
            drop(store);
            (store, model) = (disks.open(), model.restarted());
            continue;
        }
        prop_assert_eq!(apply(&*store, place, op).await, apply(&model, place, op).await, "{:?}", op);
    }
    prop_assert_eq!(everything(&*store).await, everything(&model).await);
    Ok(())
}

#[tokio::test]
async fn each_step_of_a_commit_is_there_as_it_was_answered() {
    for (cut, keeps_writes) in (1..8).flat_map(|cut| [(cut, false), (cut, true)]) {
        let disks = Disks::made();
        let store = disks.open();
        for number in 0..32 {
            talked(&*store, number, &[100 + number]).await;
        }
        let cut_at_sync = Some(disks.records.syncs() + cut);
        disks.records.set(disks::Faults { cut_at_sync, ..Default::default() });
        let begun = (0..32).map(|number| store.begin("t", session_id(number), new_turn(200 + number)));
        let begun = futures::future::join_all(begun).await;
        drop(store);
        let records = disks.records.after_power_cut(|| keeps_writes);
        let store = Disks { records, ..disks }.open();
        for (number, begun) in (0..).zip(begun) {
            let session = store.session("t", session_id(number)).await.unwrap();
            let is_there = session.running == Some(turn_id(200 + number));
            assert!(is_there || begun.is_err(), "an accepted turn is lost");
            assert!(
                !is_there || begun.is_ok() || keeps_writes,
                "a turn is there of which nothing was synced"
            );
            let turns = store.turns("t", session.id, 0, 10).await.unwrap();
            assert_eq!((turns.len(), session.turns), if is_there { (2, 2) } else { (1, 1) });
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn what_was_answered_is_there_once(
        ops in proptest::collection::vec(suite::op(), 1..24),
        kept in proptest::collection::vec(any::<bool>(), 64),
    ) {
        block_on(async {
            let whole = Disks::made();
            until_the_cut(&whole, &ops).await;
            for cut in 1..=whole.records.syncs() {
                for kept in [&[false][..], &[true], &kept] {
                    let disks = Disks::made();
                    disks.records.set(disks::Faults { cut_at_sync: Some(cut), ..Default::default() });
                    let answered = until_the_cut(&disks, &ops).await;
                    let mut kept = kept.iter().cycle();
                    let records = disks.records.after_power_cut(|| *kept.next().unwrap());
                    let disks = Disks { records, ..disks };
                    nothing_is_lost_or_doubled(&disks, &ops, answered).await?;
                }
            }
            Ok::<(), TestCaseError>(())
        })?;
    }
}
