//! How long things take: a histogram of bounded size with three significant figures.

use std::time::Duration;

use hdrhistogram::Histogram;

/// A distribution of times.
#[derive(Clone, Debug)]
pub struct Latency {
    /// In microseconds.
    histogram: Histogram<u64>,
    /// In microseconds, exactly.
    sum: u128,
}

/// Microseconds above which all times are alike: a day.
const MOST: u64 = 24 * 3600 * 1_000_000;

impl Default for Latency {
    fn default() -> Self {
        #[expect(
            clippy::expect_used,
            reason = "the bounds are constants that the crate's documentation allows"
        )]
        let histogram = Histogram::new_with_bounds(1, MOST, 3).expect("bounds of a histogram");
        Self { histogram, sum: 0 }
    }
}

impl Latency {
    /// One time.
    pub fn record(&mut self, time: Duration) {
        self.record_many(time, 1);
    }

    /// One time, as often as `count`.
    pub fn record_many(&mut self, time: Duration, count: u64) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(MOST);
        // Below a microsecond is counted as none, and saturation is documented.
        self.histogram.saturating_record_n(micros, count);
        self.sum += u128::from(micros) * u128::from(count);
    }

    /// How many times there are.
    pub fn count(&self) -> u64 {
        self.histogram.len()
    }

    /// Milliseconds that this share of the times, from 0 to 1, does not exceed; 0 without times.
    pub fn quantile(&self, share: f64) -> f64 {
        ms(self.histogram.value_at_quantile(share).min(self.histogram.max()))
    }

    /// Their mean, in milliseconds.
    pub fn mean(&self) -> f64 {
        if self.count() == 0 { 0.0 } else { self.sum as f64 / self.count() as f64 / 1e3 }
    }

    /// The longest, in milliseconds.
    pub fn max(&self) -> f64 {
        ms(self.histogram.max())
    }

    /// The shortest, in milliseconds.
    pub fn min(&self) -> f64 {
        ms(self.histogram.min())
    }

    /// The distribution as a curve: (milliseconds, share of the times that are no longer), of about `points` points at most.
    pub fn curve(&self, points: usize) -> Vec<(f64, f64)> {
        if self.count() == 0 {
            return Vec::new();
        }
        let mut curve = vec![(self.min(), 0.0)];
        let mut seen = 0;
        for value in self.histogram.iter_recorded() {
            seen += value.count_since_last_iteration();
            let time = ms(value.value_iterated_to().min(self.histogram.max()));
            curve.push((time, seen as f64 / self.count() as f64));
        }
        thinned(curve, points.max(1))
    }
}

/// The last point of each of `slots` equal parts of the nines (90 %, 99 % …), in which the tail is as wide as the rest.
fn thinned(curve: Vec<(f64, f64)>, slots: usize) -> Vec<(f64, f64)> {
    const NINES: f64 = 6.0;
    let slot = |share: f64| (-(1.0 - share).max(10f64.powf(-NINES)).log10() / NINES * slots as f64) as usize;
    let mut kept: Vec<(f64, f64)> = Vec::new();
    for (index, point) in curve.into_iter().enumerate() {
        match kept.last_mut() {
            // The first point is where the curve begins.
            Some(last) if index > 1 && slot(last.1) == slot(point.1) => *last = point,
            _ => kept.push(point),
        }
    }
    kept
}

fn ms(micros: u64) -> f64 {
    micros as f64 / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_have_three_figures() {
        let mut latency = Latency::default();
        for millis in 1..=1000 {
            latency.record(Duration::from_millis(millis));
        }
        for (share, expected) in [(0.5, 500.0), (0.9, 900.0), (0.99, 990.0), (1.0, 1000.0)] {
            let quantile = latency.quantile(share);
            assert!((quantile / expected - 1.0).abs() < 1e-3, "{share}: {quantile}");
        }
        assert_eq!((latency.count(), latency.mean()), (1000, 500.5));
        assert!((latency.max() - 1000.0).abs() < 1.0 && (latency.min() - 1.0).abs() < 1e-2);
    }

    #[test]
    fn nothing_recorded_is_nothing() {
        let latency = Latency::default();
        assert_eq!((latency.count(), latency.mean(), latency.quantile(0.99)), (0, 0.0, 0.0));
        assert!(latency.curve(10).is_empty());
    }

    #[test]
    fn a_curve_rises_to_one() {
        let mut latency = Latency::default();
        for micros in 0..5_000 {
            latency.record_many(Duration::from_micros(micros * micros), 2);
        }
        let curve = latency.curve(100);
        assert!((50..=102).contains(&curve.len()), "{}", curve.len());
        assert!(curve.iter().filter(|point| point.1 > 0.99).count() > 15, "the tail has its share");
        assert!(curve.is_sorted_by(|a, b| a.0 <= b.0 && a.1 <= b.1));
        assert_eq!(curve.last().map(|point| point.1), Some(1.0));
    }

    #[test]
    fn what_is_too_long_is_the_longest() {
        let mut latency = Latency::default();
        latency.record(Duration::MAX);
        assert!((latency.max() / (MOST as f64 / 1e3) - 1.0).abs() < 1e-3);
    }
}
