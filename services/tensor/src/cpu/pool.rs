//! A persistent pool of threads that all work on one thing at a time.
//!
//! [`Pool::run`] opens a *region*: one closure, run once on every thread, the caller's included. Inside a
//! region the threads split work with [`Worker::share`] and wait for each other with [`Worker::barrier`].
//! There are no tasks, no queues and no stealing: which thread does what is a pure function of its index,
//! so numbers never depend on timing.
//!
//! Idle workers spin for a short while, because the next region of a step usually follows within
//! microseconds, and then park. A panic on any thread ends the region on all of them and is raised again on
//! the caller.
#![allow(unsafe_code, reason = "a region lends the caller's closure to threads that outlive it")]

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::hint::spin_loop;
use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long an idle worker spins before it parks.
const PATIENCE: Duration = Duration::from_micros(200);

/// Spins between two looks at the clock, or before a waiting thread starts to yield its core.
const SPINS: u32 = 64;

type Job = dyn Fn(Worker<'_>) + Sync;

/// Threads that run one region at a time.
pub struct Pool {
    team: Arc<Team>,
    workers: Vec<JoinHandle<()>>,
    /// Held while a region runs: callers on several threads take turns.
    turn: Mutex<()>,
}

/// One thread's place in a region.
#[derive(Clone, Copy)]
pub struct Worker<'a> {
    index: usize,
    team: &'a Team,
}

/// Keeps its content on cache lines of its own (two, since the hardware fetches them in pairs).
#[repr(align(128))]
struct Apart<T>(T);

struct Team {
    count: usize,
    patience: Duration,
    /// Counts regions; a change starts the workers.
    region: Apart<AtomicUsize>,
    /// Workers that have finished the region.
    finished: Apart<AtomicUsize>,
    arrived: Apart<AtomicUsize>,
    /// Counts completed barriers.
    barriers: Apart<AtomicUsize>,
    job: UnsafeCell<Option<&'static Job>>,
    parked: Box<[AtomicBool]>,
    stopping: AtomicBool,
    /// A thread has panicked: whoever waits at a barrier gives up.
    broken: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `job` is the only field that is not Sync. It is written only by the caller of `run`, under `turn`
// and before the release of `region`, and read by workers only after they have acquired that change.
unsafe impl Sync for Team {}

// SAFETY: as above; the closure behind `job` is Sync, so it may be called from any thread.
unsafe impl Send for Team {}

thread_local! {
    static IN_REGION: Cell<bool> = const { Cell::new(false) };
}

// === impl Pool ===

impl Pool {
    /// Starts `threads − 1` workers; the caller of [`Pool::run`] is the remaining thread.
    pub fn new(threads: NonZeroUsize) -> io::Result<Pool> {
        let count = threads.get();
        // With more threads than cores a spinning worker only keeps another from its core.
        let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let patience = if count <= cores { PATIENCE } else { Duration::ZERO };
        let mut pool = Pool {
            team: Arc::new(Team::new(count, patience)),
            workers: Vec::with_capacity(count - 1),
            turn: Mutex::new(()),
        };
        for index in 1..count {
            let team = Arc::clone(&pool.team);
            let worker =
                thread::Builder::new().name(format!("tensor-{index}")).spawn(move || team.serve(index))?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    /// The number of threads, the caller's included.
    pub fn threads(&self) -> usize {
        self.team.count
    }

    /// Runs `job` once on every thread and returns when all have finished. If any of them panicked, the first
    /// panic is raised again here.
    ///
    /// Regions do not nest: calling this from inside a region panics.
    pub fn run(&self, job: &(dyn Fn(Worker<'_>) + Sync)) {
        assert!(!IN_REGION.get(), "a region was opened inside a region");
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let team = &*self.team;
        let caller = Worker { index: 0, team };
        if team.count == 1 {
            let _inside = Inside::enter();
            return job(caller);
        }
        // SAFETY: only the lifetime changes. No worker touches the closure after it has counted itself as
        // finished, and this function neither returns nor unwinds before all have.
        let job: &'static Job =
            unsafe { std::mem::transmute::<&(dyn Fn(Worker<'_>) + Sync), &'static Job>(job) };
        // SAFETY: all workers wait for `region` to change, so none reads `job` now.
        unsafe { *team.job.get() = Some(job) };
        team.finished.0.store(0, Ordering::Relaxed);
        team.region.0.fetch_add(1, Ordering::SeqCst);
        for (worker, parked) in self.workers.iter().zip(&team.parked) {
            if parked.load(Ordering::SeqCst) {
                worker.thread().unpark();
            }
        }
        team.work(job, caller);
        wait(|| team.finished.0.load(Ordering::Acquire) == team.count - 1);
        if team.broken.load(Ordering::Acquire) {
            team.mend();
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.team.stopping.store(true, Ordering::SeqCst);
        self.team.region.0.fetch_add(1, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker's own panics are caught inside a region; there is nothing left to report.
            let _ = worker.join();
        }
    }
}

// === impl Worker ===

impl Worker<'_> {
    /// This thread's number; the caller's is 0.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Waits until every thread of the region has come here; what was written before is then seen by all.
    pub fn barrier(&self) {
        let team = self.team;
        if team.count == 1 {
            return;
        }
        let before = team.barriers.0.load(Ordering::Acquire);
        if team.arrived.0.fetch_add(1, Ordering::AcqRel) == team.count - 1 {
            team.arrived.0.store(0, Ordering::Relaxed);
            team.barriers.0.store(before.wrapping_add(1), Ordering::Release);
            return;
        }
        wait(|| {
            assert!(!team.broken.load(Ordering::Relaxed), "another thread of the region panicked");
            team.barriers.0.load(Ordering::Acquire) != before
        });
    }

    /// This thread's part of `0..n`: contiguous, and as even as can be.
    pub fn share(&self, n: usize) -> Range<usize> {
        let at = |index: usize| (n as u128 * index as u128 / self.team.count as u128) as usize;
        at(self.index)..at(self.index + 1)
    }
}

// === impl Team ===

impl Team {
    fn new(count: usize, patience: Duration) -> Team {
        Team {
            count,
            patience,
            region: Apart(AtomicUsize::new(0)),
            finished: Apart(AtomicUsize::new(0)),
            arrived: Apart(AtomicUsize::new(0)),
            barriers: Apart(AtomicUsize::new(0)),
            job: UnsafeCell::new(None),
            parked: (1..count).map(|_| AtomicBool::new(false)).collect(),
            stopping: AtomicBool::new(false),
            broken: AtomicBool::new(false),
            panic: Mutex::new(None),
        }
    }

    /// A worker's life.
    fn serve(&self, index: usize) {
        let mut seen = 0;
        loop {
            self.await_region(index, seen);
            seen = seen.wrapping_add(1);
            if self.stopping.load(Ordering::SeqCst) {
                return;
            }
            // SAFETY: `region` has changed, so the caller has written `job` and will not write it again
            // before this worker has counted itself as finished.
            if let Some(job) = unsafe { *self.job.get() } {
                self.work(job, Worker { index, team: self });
            }
            self.finished.0.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Spins while `region` is still `seen`, then parks.
    fn await_region(&self, index: usize, seen: usize) {
        let started = Instant::now();
        let mut spins = 0;
        while self.region.0.load(Ordering::Acquire) == seen {
            spin_loop();
            spins += 1;
            if spins % SPINS != 0 || started.elapsed() < self.patience {
                continue;
            }
            // The flag is set before the last look at `region`, and the caller changes `region` before it
            // looks at the flag: one of the two sees the other (both sequentially consistent).
            let parked = &self.parked[index - 1];
            parked.store(true, Ordering::SeqCst);
            while self.region.0.load(Ordering::SeqCst) == seen {
                thread::park();
            }
            parked.store(false, Ordering::SeqCst);
        }
    }

    /// Runs `job` as `worker`; a panic is kept for the caller and breaks the region.
    fn work(&self, job: &Job, worker: Worker<'_>) {
        let _inside = Inside::enter();
        // Nothing of the pool's is left half done by a panic, and the caller raises it again.
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| job(worker))) {
            self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
            self.broken.store(true, Ordering::Release);
        }
    }

    /// After a broken region, with all threads out of it: makes the team usable and raises the panic again.
    fn mend(&self) {
        self.arrived.0.store(0, Ordering::Relaxed);
        self.broken.store(false, Ordering::Relaxed);
        if let Some(panic) = self.panic.lock().unwrap_or_else(PoisonError::into_inner).take() {
            resume_unwind(panic);
        }
    }
}

/// Marks the thread as inside a region until dropped.
struct Inside;

impl Inside {
    fn enter() -> Inside {
        IN_REGION.set(true);
        Inside
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        IN_REGION.set(false);
    }
}

/// Waits for another thread of the region: spins first, then lets others have the core between looks.
fn wait(mut ready: impl FnMut() -> bool) {
    let mut spins = 0_u32;
    while !ready() {
        if spins < SPINS * 64 {
            spins += 1;
            spin_loop();
        } else {
            thread::yield_now();
        }
    }
}

#[cfg(test)]
mod tests;
