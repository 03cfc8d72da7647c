//! A histogram that is observed without a lock.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

/// Counts values by the least of its bounds that is not below them.
///
/// An observation is two relaxed additions: buckets are kept apart and summed when they are read, and a reader may see a value
/// counted that its sum does not hold yet.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [f64],
    /// One for each bound and one for what lies above them all.
    counts: Box<[AtomicU64]>,
    /// In parts of a unit, `scale` of them.
    sum: AtomicU64,
    scale: f64,
}

impl Histogram {
    /// Of seconds, to the nanosecond, with no values yet; `bounds` ascend.
    pub fn of_seconds(bounds: &'static [f64]) -> Self {
        Self::new(bounds, 1e9)
    }

    /// Of whole numbers, with no values yet; `bounds` ascend.
    pub fn of_counts(bounds: &'static [f64]) -> Self {
        Self::new(bounds, 1.0)
    }

    fn new(bounds: &'static [f64], scale: f64) -> Self {
        Self {
            scale,
            bounds,
            counts: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(),
            sum: AtomicU64::new(0),
        }
    }

    /// Takes a value in. Nothing below 0 is observed.
    pub fn observe(&self, value: f64) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        if let Some(count) = self.counts.get(bucket) {
            count.fetch_add(1, Ordering::Relaxed);
            self.sum.fetch_add((value * self.scale) as u64, Ordering::Relaxed);
        }
    }

    /// How many values were observed.
    pub fn count(&self) -> u64 {
        self.counts.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// Their sum.
    pub fn sum(&self) -> f64 {
        self.sum.load(Ordering::Relaxed) as f64 / self.scale
    }
}

/// What a registry holds of a histogram that others observe.
#[derive(Clone, Debug)]
pub struct Shown(pub std::sync::Arc<Histogram>);

impl EncodeMetric for Shown {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        let bounds = self.0.bounds.iter().copied().chain([f64::INFINITY]);
        let counts = self.0.counts.iter().map(|count| count.load(Ordering::Relaxed));
        let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        encoder.encode_histogram::<NoLabelSet>(self.0.sum(), count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_counts_at_the_least_bound_that_is_not_below_it() {
        let histogram = Histogram::of_seconds(&[0.5, 1.0, 2.0]);
        for value in [0.0, 0.5, 0.75, 2.0, 2.5, 1e6] {
            histogram.observe(value);
        }
        let counts: Vec<u64> = histogram.counts.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        assert_eq!(counts, [2, 1, 1, 2]);
        assert_eq!((histogram.count(), histogram.sum()), (6, 1_000_005.75));
    }

    #[test]
    fn a_sum_of_counts_has_room_for_years() {
        let histogram = Histogram::of_counts(&[1.0]);
        for _ in 0..3 {
            histogram.observe(1e10);
        }
        assert_eq!((histogram.count(), histogram.sum()), (3, 3e10));
    }
}
