//! How long steps take: what the scheduler's choice of groups and chunks rests on. The clock is the caller's.

use std::time::{Duration, Instant};

use crate::scheduler::Pace;

/// How much of each new measurement goes into the running mean.
const WEIGHT: f64 = 1.0 / 8.0;

/// Measures stages and turnaround from what the driver sees.
///
/// The way of a step costs the stages' work and the rest: the network, the links, and waiting behind other steps. Only a step
/// of decode rows that had the pipeline to itself shows that rest without the waiting, so only those count. The turnaround is that rest
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
    /// Its rows.
    pub rows: u32,
    /// From its plan to the last stage's report.
    pub total: Duration,
    /// All stages' work on it.
    pub busy: Duration,
    /// The slowest stage's work on it.
    pub slowest: Duration,
    /// Whether it holds decode rows alone.
    pub decodes: bool,
    /// Whether it does, and no other step was under way when it was sent.
    pub alone: bool,
}

impl PaceMeter {
    /// Evidence came.
    pub fn evidence(&mut self, now: Instant) {
        self.evidence = Some(now);
    }

    /// No step is under way, and nothing can be planned: what comes next is no answer to evidence.
    pub fn idle(&mut self) {
        self.evidence = None;
    }

    /// A plan with rows went out.
    pub fn planned(&mut self, now: Instant) {
        if let Some(evidence) = self.evidence.take() {
            self.thinking = mean(Some(self.thinking), now.saturating_duration_since(evidence));
        }
    }

    /// How long its sequences waited for a step of decode rows alone.
    pub fn wait(&self, way: Way) -> Option<Duration> {
        let thinking = if way.alone { self.thinking } else { Duration::ZERO };
        way.decodes.then_some(way.total + thinking)
    }

    /// A step is done.
    pub fn done(&mut self, way: Way) -> Pace {
        if way.alone {
            self.rest = Some(mean(self.rest, way.total.saturating_sub(way.busy)));
        }
        let turnaround = self.rest.map(|rest| rest + self.thinking);
        Pace { rows: way.rows, stage: way.slowest, turnaround }
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
        let waiting =
            Way { rows: 3, total: ms(90), busy: ms(20), slowest: ms(12), decodes: true, alone: false };
        let pace = Pace { rows: 3, stage: ms(12), turnaround: Some(ms(5)) };
        assert_eq!(meter.done(waiting), Pace { turnaround: None, ..pace });
        let alone = Way { total: ms(25), alone: true, ..waiting };
        assert_eq!(meter.done(alone), pace);
        assert_eq!(meter.done(waiting), pace);
    }

    #[test]
    fn the_drivers_own_time_counts() {
        let ms = Duration::from_millis;
        let start = Instant::now();
        let mut meter = PaceMeter::default();
        meter.evidence(start);
        meter.planned(start + ms(8));
        meter.planned(start + ms(800)); // Not an answer to evidence.
        meter.evidence(start + ms(900));
        meter.idle();
        meter.planned(start + ms(60_000)); // Nor this.
        let way = Way { rows: 1, total: ms(10), busy: ms(10), slowest: ms(10), decodes: true, alone: true };
        assert_eq!(meter.wait(way), Some(ms(11)));
        assert_eq!(meter.wait(Way { alone: false, ..way }), Some(ms(10)), "others hide it");
        assert_eq!(meter.wait(Way { decodes: false, ..way }), None);
        assert_eq!(meter.done(way), Pace { rows: 1, stage: ms(10), turnaround: Some(ms(1)) });
    }
}
