//! How fast the queue empties, and so when a refused request may come again. The clock is the caller's.

use std::collections::VecDeque;
use std::time::Duration;

use crate::scheduler::{Flow, Refusal};

/// How long what was measured counts, in time with something waiting.
const WINDOW: Duration = Duration::from_secs(30);
/// What is measured within less is not told apart, and decides nothing.
const RESOLUTION: Duration = Duration::from_millis(500);
/// What is told while nothing is known.
const UNKNOWN: Duration = Duration::from_secs(1);
/// Bounds of what is told: how fast requests end may change soon.
const SOONEST: Duration = Duration::from_millis(100);
const LATEST: Duration = Duration::from_secs(60);

/// Measures at what rate waiting tokens leave the queue, over a sliding window of the time in which something waited: how
/// little an idle queue lets through says nothing.
#[derive(Clone, Debug)]
pub struct DrainMeter {
    last: Option<(Duration, Flow)>,
    /// Time with something waiting, and tokens that left in it.
    waited: Duration,
    left: u64,
    /// The same at earlier times, oldest first.
    samples: VecDeque<(Duration, u64)>,
}

impl Default for DrainMeter {
    fn default() -> Self {
        Self { last: None, waited: Duration::ZERO, left: 0, samples: VecDeque::from([(Duration::ZERO, 0)]) }
    }
}

impl DrainMeter {
    /// Takes in what waits, and what has left so far.
    pub fn observe(&mut self, now: Duration, flow: Flow) {
        let before = self.last.replace((now, flow));
        let Some((then, before)) = before.filter(|(_, before)| before.waiting > 0) else { return };
        self.waited += now.saturating_sub(then);
        self.left += flow.left_tokens.saturating_sub(before.left_tokens);
        if self.samples.back().is_none_or(|(waited, _)| self.waited - *waited >= RESOLUTION) {
            self.samples.push_back((self.waited, self.left));
        }
        while self.samples.get(1).is_some_and(|(waited, _)| self.waited - *waited >= WINDOW) {
            self.samples.pop_front();
        }
    }

    /// Tokens a second.
    fn rate(&self) -> Option<f64> {
        let (waited, left) = self.samples.front()?;
        let time = self.waited - *waited;
        (time >= RESOLUTION).then(|| (self.left - *left) as f64 / time.as_secs_f64())
    }

    /// After how long there should be room for a sequence that was refused for want of it.
    pub fn retry_after(&self, refusal: &Refusal) -> Option<Duration> {
        let (_, flow) = self.last?;
        let too_many = match *refusal {
            // One has to leave: as many tokens as one has on average.
            Refusal::QueueFull { .. } => flow.waiting_tokens / u64::from(flow.waiting.max(1)),
            Refusal::QueueTokens { waiting, tokens, limit } => (waiting + tokens).saturating_sub(limit),
            _ => return None,
        };
        let Some(rate) = self.rate() else { return Some(UNKNOWN) };
        let after = Duration::try_from_secs_f64(too_many as f64 / rate).unwrap_or(LATEST);
        Some(after.clamp(SOONEST, LATEST))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(waiting: u32, waiting_tokens: u64, left_tokens: u64) -> Flow {
        Flow { waiting, waiting_tokens, left_tokens }
    }

    /// Observes each (seconds, flow).
    fn meter(seen: impl IntoIterator<Item = (u64, Flow)>) -> DrainMeter {
        let mut meter = DrainMeter::default();
        seen.into_iter().for_each(|(seconds, flow)| meter.observe(Duration::from_secs(seconds), flow));
        meter
    }

    const FULL: Refusal = Refusal::QueueFull { waiting: 4 };

    #[test]
    fn the_delay_is_what_has_to_leave_by_the_rate() {
        let meter = meter((0..=10).map(|second| (second, flow(4, 800, 100 * second))));
        assert_eq!(meter.retry_after(&FULL), Some(Duration::from_secs(2)), "200 tokens at 100 a second");
        let tokens = Refusal::QueueTokens { waiting: 800, tokens: 500, limit: 1000 };
        assert_eq!(meter.retry_after(&tokens), Some(Duration::from_secs(3)));
        assert_eq!(meter.retry_after(&Refusal::EmptyPrompt), None);
    }

    #[test]
    fn only_time_with_something_waiting_counts() {
        let busy = |from: u64, left: u64| (0..=10).map(move |n| (from + n, flow(4, 800, left + 100 * n)));
        let idle = (11..=1000).map(|second| (second, flow(0, 0, 2000)));
        let meter = meter(busy(0, 0).chain(idle).chain(busy(1001, 2000)));
        assert_eq!(
            meter.retry_after(&FULL).map(|delay| delay.as_secs()),
            Some(1),
            "200 tokens at 110 a second"
        );
    }

    #[test]
    fn what_was_long_ago_does_not_count() {
        let fast = (0..100).map(|second| (second, flow(4, 800, 1000 * second)));
        let slow = (100..=140).map(|second| (second, flow(4, 800, 100_000 + 50 * (second - 100))));
        let meter = meter(fast.chain(slow));
        assert_eq!(meter.retry_after(&FULL), Some(Duration::from_secs(4)));
        assert!(meter.samples.len() <= 62, "bounded");
    }

    #[test]
    fn what_is_told_is_bounded() {
        assert_eq!(meter([(0, flow(4, 800, 0))]).retry_after(&FULL), Some(UNKNOWN));
        assert_eq!(meter([(0, flow(4, 800, 0)), (9, flow(4, 800, 0))]).retry_after(&FULL), Some(LATEST));
        assert_eq!(
            meter([(0, flow(4, 800, 0)), (9, flow(4, 800, 1 << 40))]).retry_after(&FULL),
            Some(SOONEST)
        );
    }
}
