//! How long steps take: what the scheduler's choice of groups rests on. The clock is the caller's.

use std::time::{Duration, Instant};

use crate::scheduler::Pace;

/// How much of each new measurement goes into the running mean.
const WEIGHT: f64 = 1.0 / 8.0;

/// Measures stages and turnaround from what the driver sees.
///
/// The way of a step costs the stages' work and the rest: the network, the links, and waiting behind other steps. Only a step
/// that had the pipeline to itself shows that rest without the waiting, so only those count. The turnaround is that rest
/// and the driver's own time from evidence to the next plan.
#[derive(Clone, Copy, Debug, Default)]
pub struct PaceMeter {
    rest: Option<Duration>,
    evidence: Option<Instant>,
    thinking: Duration,
}

/// One step's way, as the driver saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// From its plan to the last stage's report.
    pub total: Duration,
    /// All stages' work on it.
    pub busy: Duration,
    /// The slowest stage's work on it.
    pub slowest: Duration,
    /// Whether no other step was under way when it was sent.
    pub alone: bool,
}

impl PaceMeter {
    /// Evidence came.
    pub fn evidence(&mut self, now: Instant) {
        self.evidence = Some(now);
    }

    /// A plan with rows went out.
    pub fn planned(&mut self, now: Instant) {
        if let Some(evidence) = self.evidence.take() {
            self.thinking = mean(Some(self.thinking), now.saturating_duration_since(evidence));
        }
    }

    /// A step of decode rows is done; the pace, once it is known.
    pub fn done(&mut self, way: Way) -> Option<Pace> {
        if way.alone {
            self.rest = Some(mean(self.rest, way.total.saturating_sub(way.busy)));
        }
        Some(Pace { stage: way.slowest, turnaround: self.rest? + self.thinking })
    }
}

fn mean(before: Option<Duration>, new: Duration) -> Duration {
    before.map_or(new, |before| before.mul_f64(1.0 - WEIGHT) + new.mul_f64(WEIGHT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_step_alone_shows_what_is_not_work() {
        let ms = Duration::from_millis;
        let mut meter = PaceMeter::default();
        let waiting = Way { total: ms(90), busy: ms(20), slowest: ms(12), alone: false };
        assert_eq!(meter.done(waiting), None);
        let alone = Way { total: ms(25), alone: true, ..waiting };
        assert_eq!(meter.done(alone), Some(Pace { stage: ms(12), turnaround: ms(5) }));
        assert_eq!(meter.done(waiting), Some(Pace { stage: ms(12), turnaround: ms(5) }));
    }

    #[test]
    fn the_drivers_own_time_counts() {
        let ms = Duration::from_millis;
        let start = Instant::now();
        let mut meter = PaceMeter::default();
        meter.evidence(start);
        meter.planned(start + ms(8));
        meter.planned(start + ms(800)); // Not an answer to evidence.
        let way = Way { total: ms(10), busy: ms(10), slowest: ms(10), alone: true };
        assert_eq!(meter.done(way), Some(Pace { stage: ms(10), turnaround: ms(1) }));
    }
}
