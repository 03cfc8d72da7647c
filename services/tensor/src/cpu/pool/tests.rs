use super::*;
use std::sync::atomic::AtomicU64;

fn pool(threads: usize) -> Pool {
    Pool::new(NonZeroUsize::new(threads).unwrap()).unwrap()
}

#[test]
fn every_thread_runs_the_region_once() {
    for threads in 1..=4 {
        let pool = pool(threads);
        assert_eq!(pool.threads(), threads);
        for _ in 0..200 {
            let seen: Vec<AtomicUsize> = (0..threads).map(|_| AtomicUsize::new(0)).collect();
            pool.run(&|worker| {
                seen[worker.index()].fetch_add(1, Ordering::Relaxed);
            });
            assert!(seen.iter().all(|count| count.load(Ordering::Relaxed) == 1));
        }
    }
}

#[test]
fn parked_workers_wake_for_the_next_region() {
    let pool = pool(3);
    for _ in 0..3 {
        wait(|| pool.team.parked.iter().all(|parked| parked.load(Ordering::SeqCst)));
        let count = AtomicUsize::new(0);
        pool.run(&|_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.into_inner(), 3);
    }
}

#[test]
fn a_barrier_makes_earlier_writes_visible() {
    for threads in 1..=4 {
        let pool = pool(threads);
        let slots: Vec<AtomicU64> = (0..threads).map(|_| AtomicU64::new(0)).collect();
        pool.run(&|worker| {
            for round in 1..=300 {
                slots[worker.index()].store(round, Ordering::Relaxed);
                worker.barrier();
                assert!(slots.iter().all(|slot| slot.load(Ordering::Relaxed) == round));
                worker.barrier();
            }
        });
    }
}

#[test]
fn shares_cover_everything_once_and_evenly() {
    for threads in 1..=5 {
        let team = Team::new(threads, PATIENCE);
        for n in [0, 1, 2, 3, 7, 18, 54, 1000, usize::MAX] {
            let mut next = 0;
            for index in 0..threads {
                let share = Worker { index, team: &team }.share(n);
                assert_eq!(share.start, next);
                assert!(share.len() == n / threads || share.len() == n / threads + 1);
                next = share.end;
            }
            assert_eq!(next, n);
        }
    }
}

#[test]
fn a_panic_ends_the_region_for_all_and_the_pool_lives_on() {
    for threads in 1..=3 {
        let pool = pool(threads);
        for culprit in 0..threads {
            let raised = catch_unwind(AssertUnwindSafe(|| {
                pool.run(&|worker| {
                    assert!(worker.index() != culprit, "on purpose");
                    worker.barrier();
                });
            }));
            assert!(raised.is_err());
            let count = AtomicUsize::new(0);
            pool.run(&|worker| {
                worker.barrier();
                count.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(count.into_inner(), threads);
        }
    }
}

#[test]
#[should_panic(expected = "inside a region")]
fn regions_do_not_nest() {
    let pool = pool(1);
    pool.run(&|_| pool.run(&|_| ()));
}

#[test]
fn callers_on_several_threads_take_turns() {
    let pool = pool(2);
    let total = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..100 {
                    pool.run(&|_| {
                        total.fetch_add(1, Ordering::Relaxed);
                    });
                }
            });
        }
    });
    assert_eq!(total.into_inner(), 600);
}
