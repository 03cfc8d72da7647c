//! Conversations at their times, and what becomes of them.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::dialogue::{Dialogue, Material, Workload};
use super::objective::Objective;
use super::pace::{Extent, Pace, Schedule};
use super::progress::Progress;
use super::recorder::{Outcome, Recorder};
use super::target::{Failed, FailureKind, Listener, Meter, Request, Target};

/// What load to make.
#[derive(Clone, Debug)]
pub struct LoadPlan {
    /// When conversations begin.
    pub pace: Pace,
    /// How many, or how long, before measuring.
    pub warm_up: Extent,
    /// How many, or how long, to measure.
    pub extent: Extent,
    /// What is asked.
    pub workload: Workload,
    /// The most time for a request.
    pub timeout: Duration,
    /// What is promised.
    pub objectives: Vec<Objective>,
}

/// A load under way.
struct Drive {
    plan: LoadPlan,
    target: Target,
    material: Material,
    meter: Meter,
    began: Instant,
    gate: Mutex<Gate>,
    /// When the first measured conversation was due.
    measured_from: OnceLock<Instant>,
    stop: CancellationToken,
}

/// Says of each conversation whether it begins, and whether it is measured.
#[derive(Clone, Debug)]
struct Gate {
    warm_up: Extent,
    extent: Extent,
    turns: u32,
    begun: u64,
    measured: u64,
    /// When the first measured one was due.
    since: Option<Duration>,
}

/// A conversation that begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ticket {
    index: u64,
    warm_up: bool,
}

/// Outcomes that may wait to be recorded.
const OUTCOMES: usize = 1024;
/// Arrivals that may wait for a task.
const ARRIVALS: usize = 64;
/// How often progress is shown.
const TICK: Duration = Duration::from_millis(250);
/// How long a member of a closed loop rests after a failure: a server that refuses is not to be hammered.
const REST: Duration = Duration::from_millis(50);
/// The longest sleep of the clock's thread, so that it sees a stop.
const NAP: Duration = Duration::from_millis(50);

/// Makes the load until its end, or until `stop`; then what is under way is dropped and not counted.
pub async fn drive(plan: LoadPlan, target: Target, material: Material, stop: CancellationToken) -> Recorder {
    let began = Instant::now();
    let mut recorder = Recorder::new(began, plan.objectives.clone());
    let mut progress = Progress::new(&plan, began);
    let gate = Mutex::new(Gate::new(&plan));
    let measured_from = OnceLock::new();
    let meter = Meter::default();
    let drive = Arc::new(Drive { plan, target, material, meter, began, gate, measured_from, stop });
    let (sender, mut outcomes) = mpsc::channel(OUTCOMES);
    let issuing = tokio::spawn(Arc::clone(&drive).issue(sender));
    let mut tick = tokio::time::interval(TICK);
    loop {
        tokio::select! {
            outcome = outcomes.recv() => match outcome {
                Some(outcome) => recorder.record(outcome),
                None => break,
            },
            _ = tick.tick() => progress.show(&drive.meter, drive.measured_from.get().copied()),
        }
    }
    progress.end();
    // It has dropped its sender, so it is over.
    let _ = issuing.await;
    recorder
}

impl Drive {
    async fn issue(self: Arc<Self>, outcomes: mpsc::Sender<Outcome>) {
        match self.plan.pace {
            Pace::Closed { concurrency } => {
                let mut members = JoinSet::new();
                for _ in 0..concurrency.get() {
                    members.spawn(Arc::clone(&self).repeat(outcomes.clone()));
                }
                members.join_all().await;
            }
            Pace::Open { limit, .. } => self.follow_the_clock(limit.get(), outcomes).await,
        }
    }

    /// One member of a closed loop: a conversation after the other.
    async fn repeat(self: Arc<Self>, outcomes: mpsc::Sender<Outcome>) {
        while !self.stop.is_cancelled() {
            let due = Instant::now();
            let Some(ticket) = self.admit(due) else { return };
            if !self.converse(ticket, due, &outcomes).await {
                tokio::time::sleep(REST).await;
            }
        }
    }

    /// An open loop: every conversation has its time, and begins later only where `limit` are unfinished.
    async fn follow_the_clock(self: Arc<Self>, limit: usize, outcomes: mpsc::Sender<Outcome>) {
        let (sender, mut arrivals) = mpsc::channel(ARRIVALS);
        let clock = Arc::clone(&self);
        // Timers of the runtime are a millisecond coarse, a thread's sleep is not.
        let clock = tokio::task::spawn_blocking(move || clock.tell_arrivals(&sender));
        let places = Arc::new(Semaphore::new(limit));
        let mut conversations = JoinSet::new();
        while let Some((ticket, due)) = arrivals.recv().await {
            let place = tokio::select! {
                place = Arc::clone(&places).acquire_owned() => place,
                () = self.stop.cancelled() => break,
            };
            let (this, outcomes) = (Arc::clone(&self), outcomes.clone());
            conversations.spawn(async move {
                this.converse(ticket, due, &outcomes).await;
                drop(place);
            });
            while conversations.try_join_next().is_some() {}
        }
        drop(arrivals);
        conversations.join_all().await;
        let _ = clock.await;
    }

    /// Sends each conversation when it is due.
    fn tell_arrivals(&self, arrivals: &mpsc::Sender<(Ticket, Instant)>) {
        let Pace::Open { rate, spacing, .. } = self.plan.pace else { return };
        for at in Schedule::new(rate, spacing, self.plan.workload.seed) {
            let Some(due) = self.began.checked_add(at) else { return };
            loop {
                let left = due.saturating_duration_since(Instant::now());
                if self.stop.is_cancelled() || self.is_over() {
                    return;
                }
                if left.is_zero() {
                    break;
                }
                std::thread::sleep(left.min(NAP));
            }
            match self.admit(due) {
                Some(ticket) if arrivals.blocking_send((ticket, due)).is_ok() => {}
                _ => return,
            }
        }
    }

    fn admit(&self, due: Instant) -> Option<Ticket> {
        let at = due.saturating_duration_since(self.began);
        let ticket = self.gate.lock().unwrap_or_else(PoisonError::into_inner).admit(at)?;
        if !ticket.warm_up {
            self.measured_from.get_or_init(|| due);
        }
        Some(ticket)
    }

    fn is_over(&self) -> bool {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner).is_over(self.began.elapsed())
    }

    /// All turns of a conversation; whether none failed.
    async fn converse(&self, ticket: Ticket, due: Instant, outcomes: &mpsc::Sender<Outcome>) -> bool {
        let mut dialogue = Dialogue::new(&self.plan.workload, self.material, ticket.index);
        let answered = self.turns(&mut dialogue, ticket, due, outcomes).await;
        if let Some(session) = dialogue.session() {
            self.target.forget(session).await;
        }
        answered
    }

    async fn turns(
        &self,
        dialogue: &mut Dialogue<'_>,
        ticket: Ticket,
        mut due: Instant,
        outcomes: &mpsc::Sender<Outcome>,
    ) -> bool {
        let think = self.plan.workload.think;
        while let Some(request) = dialogue.ask() {
            let outcome = tokio::select! {
                outcome = self.ask(request, ticket, due) => outcome,
                () = self.stop.cancelled() => return true,
            };
            let answered = outcome.result.is_ok();
            dialogue.hear(&outcome.answer);
            due = outcome.ended + think;
            if outcomes.send(outcome).await.is_err() || !answered {
                return answered;
            }
            if !think.is_zero() {
                tokio::select! {
                    () = tokio::time::sleep_until(due.into()) => {}
                    () = self.stop.cancelled() => return true,
                }
            }
            if self.is_over() {
                return true;
            }
        }
        true
    }

    async fn ask(&self, request: Request, ticket: Ticket, due: Instant) -> Outcome {
        let Request { turn, wanted, repeated, .. } = request;
        let mut listener = Listener::new(&self.meter);
        let sent = Instant::now();
        let result = {
            let _running = Running::new(&self.meter);
            let asked = self.target.ask(request, &mut listener);
            tokio::time::timeout(self.plan.timeout, asked).await.unwrap_or_else(|_| {
                let seconds = self.plan.timeout.as_secs_f64();
                Err(Failed::new(FailureKind::TimedOut, format!("no end after {seconds} s")))
            })
        };
        let count = if result.is_ok() { &self.meter.answered } else { &self.meter.failed };
        count.fetch_add(1, Ordering::Relaxed);
        Outcome {
            turn,
            wanted,
            repeated,
            due,
            sent,
            ended: Instant::now(),
            answer: listener.answer(),
            result,
            measured_from: self.measured_from.get().copied(),
            warm_up: ticket.warm_up,
        }
    }
}

/// A request that is under way until this is dropped.
struct Running<'a>(&'a Meter);

impl<'a> Running<'a> {
    fn new(meter: &'a Meter) -> Self {
        meter.running.fetch_add(1, Ordering::Relaxed);
        Self(meter)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Gate {
    fn new(plan: &LoadPlan) -> Self {
        let LoadPlan { warm_up, extent, ref workload, .. } = *plan;
        Self { warm_up, extent, turns: workload.turns.get(), begun: 0, measured: 0, since: None }
    }

    /// The next conversation, if it begins at this time from the beginning.
    fn admit(&mut self, at: Duration) -> Option<Ticket> {
        let index = self.begun;
        let warm_up = self.since.is_none() && self.warm_up.contains(index, at, self.turns);
        if !warm_up {
            let since = *self.since.get_or_insert(at);
            if !self.extent.contains(self.measured, at.saturating_sub(since), self.turns) {
                return None;
            }
            self.measured += 1;
        }
        self.begun += 1;
        Some(Ticket { index, warm_up })
    }

    /// Whether the time to measure is over, so that conversations end with the turn they are at.
    fn is_over(&self, at: Duration) -> bool {
        match (self.extent, self.since) {
            (Extent::Time(time), Some(since)) => at.saturating_sub(since) >= time,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(warm_up: &str, extent: &str, turns: u32) -> Gate {
        let (warm_up, extent) = (warm_up.parse().unwrap(), extent.parse().unwrap());
        Gate { warm_up, extent, turns, begun: 0, measured: 0, since: None }
    }

    /// Which of conversations at these seconds begin: `w` in the warm-up, `m` measured, `-` not.
    fn admitted(mut gate: Gate, seconds: &[u64]) -> String {
        let admit = |&at: &u64| match gate.admit(Duration::from_secs(at)) {
            None => '-',
            Some(Ticket { warm_up: true, .. }) => 'w',
            Some(Ticket { warm_up: false, .. }) => 'm',
        };
        seconds.iter().map(admit).collect()
    }

    #[test]
    fn a_warm_up_comes_first_and_does_not_count() {
        assert_eq!(admitted(gate("2", "3", 1), &[0, 0, 1, 1, 2, 2]), "wwmmm-");
        assert_eq!(admitted(gate("0", "2", 1), &[0, 0, 0]), "mm-");
        assert_eq!(admitted(gate("3", "4", 2), &[0, 0, 0, 0, 0]), "wwmm-");
        assert_eq!(admitted(gate("2s", "2", 1), &[0, 1, 2, 3, 4]), "wwmm-");
        assert_eq!(admitted(gate("1", "3s", 1), &[0, 5, 6, 7, 8, 9]), "wmmm--");
    }

    #[test]
    fn only_time_ends_a_conversation() {
        let mut timed = gate("0", "3s", 5);
        assert!(!timed.is_over(Duration::from_secs(99)), "not before it has begun");
        timed.admit(Duration::from_secs(10));
        assert!(!timed.is_over(Duration::from_secs(12)) && timed.is_over(Duration::from_secs(13)));
        let mut counted = gate("0", "1", 5);
        counted.admit(Duration::ZERO);
        assert!(!counted.is_over(Duration::MAX));
    }
}
