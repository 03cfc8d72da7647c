//! When conversations begin, and for how long.

use std::fmt;
use std::num::NonZeroUsize;
use std::str::FromStr;
use std::time::Duration;

use asterism_process::config::duration;

use super::random::Random;

/// What makes the next conversation begin.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// The end of one: so many are there at any time. A slow server is asked less.
    Closed {
        /// How many.
        concurrency: NonZeroUsize,
    },
    /// The clock, whatever the server does.
    Open {
        /// Conversations a second.
        rate: f64,
        /// How they are spaced.
        spacing: Spacing,
        /// The most that may be unfinished; more wait here, and their waiting counts.
        limit: NonZeroUsize,
    },
}

/// How the conversations of an open loop are spaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Spacing {
    /// Independently of each other, as those of many people are.
    Poisson,
    /// Evenly.
    Constant,
}

/// The times, from the beginning, at which the conversations of an open loop begin.
#[derive(Clone, Debug)]
pub struct Schedule {
    rate: f64,
    spacing: Spacing,
    random: Random,
    /// Mean spaces so far.
    spaces: f64,
}

/// How much: so many requests, or so long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Requests, rounded up to whole conversations.
    Requests(u64),
    /// Until then, conversations begin and go on.
    Time(Duration),
}

impl Schedule {
    /// The first conversation of evenly spaced ones begins at once, the first of the others after a drawn time.
    pub fn new(rate: f64, spacing: Spacing, seed: u64) -> Self {
        Self { rate, spacing, random: Random::of(seed, &[ARRIVALS]), spaces: 0.0 }
    }
}

/// What the schedule's draws are for.
const ARRIVALS: u64 = 0xA221_7A15;

impl Iterator for Schedule {
    type Item = Duration;

    /// Ends where a `Duration` does.
    fn next(&mut self) -> Option<Duration> {
        if self.spacing == Spacing::Poisson {
            self.spaces += self.random.exponential();
        }
        let at = Duration::try_from_secs_f64(self.spaces / self.rate).ok();
        if self.spacing == Spacing::Constant {
            self.spaces += 1.0;
        }
        at
    }
}

impl Extent {
    /// Whether a conversation is still within, by its number and its time from the beginning.
    pub fn contains(self, index: u64, at: Duration, turns: u32) -> bool {
        match self {
            Self::Requests(requests) => index < requests.div_ceil(u64::from(turns)),
            Self::Time(time) => at < time,
        }
    }
}

impl FromStr for Extent {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text.parse(), duration(text)) {
            (Ok(requests), _) => Ok(Self::Requests(requests)),
            (_, Ok(time)) => Ok(Self::Time(time)),
            _ => Err(format!("{text:?} is neither a number of requests nor a duration (write 20 or 10s)")),
        }
    }
}

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Requests(1) => f.write_str("1 request"),
            Self::Requests(requests) => write!(f, "{requests} requests"),
            Self::Time(time) => write!(f, "{} s", time.as_secs_f64()),
        }
    }
}

impl fmt::Display for Pace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed { concurrency } => write!(f, "closed loop, {concurrency} at once"),
            Self::Open { rate, spacing: Spacing::Poisson, .. } => write!(f, "open loop, Poisson, {rate}/s"),
            Self::Open { rate, spacing: Spacing::Constant, .. } => write!(f, "open loop, constant, {rate}/s"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constant_arrivals_do_not_drift() {
        let mut schedule = Schedule::new(3.0, Spacing::Constant, 0);
        assert_eq!(schedule.next(), Some(Duration::ZERO));
        let late = schedule.nth(3 * 3600 - 1).unwrap();
        assert!(late.abs_diff(Duration::from_secs(3600)) < Duration::from_nanos(10), "{late:?}");
    }

    #[test]
    fn poisson_arrivals_have_their_rate_and_their_dispersion() {
        const RATE: f64 = 50.0;
        const SECONDS: usize = 2_000;
        let mut counts = vec![0.0_f64; SECONDS];
        for at in Schedule::new(RATE, Spacing::Poisson, 5) {
            match counts.get_mut(at.as_secs() as usize) {
                Some(count) => *count += 1.0,
                None => break,
            }
        }
        let mean = counts.iter().sum::<f64>() / SECONDS as f64;
        let variance = counts.iter().map(|count| (count - mean).powi(2)).sum::<f64>() / SECONDS as f64;
        assert!((mean - RATE).abs() < 0.8, "{mean}");
        assert!(
            (variance / mean - 1.0).abs() < 0.16,
            "a Poisson count's variance is its mean, not {variance}"
        );
    }

    #[test]
    fn a_seed_makes_a_schedule() {
        let of = |seed| Schedule::new(9.0, Spacing::Poisson, seed).take(20).collect::<Vec<_>>();
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
        assert!(of(1).is_sorted());
    }

    #[test]
    fn an_extent_is_a_number_or_a_time() {
        assert_eq!("20".parse(), Ok(Extent::Requests(20)));
        assert_eq!("1.5m".parse(), Ok(Extent::Time(Duration::from_secs(90))));
        let error = "soon".parse::<Extent>().expect_err("neither");
        assert!(error.contains("soon"), "{error}");
    }

    #[test]
    fn requests_are_rounded_up_to_conversations() {
        let nine = Extent::Requests(9);
        assert!(nine.contains(2, Duration::MAX, 4) && !nine.contains(3, Duration::ZERO, 4));
        let second = Extent::Time(Duration::from_secs(1));
        assert!(second.contains(u64::MAX, Duration::from_millis(999), 4));
        assert!(!second.contains(0, Duration::from_secs(1), 4));
    }
}
