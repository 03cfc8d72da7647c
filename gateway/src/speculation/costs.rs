//! What one more row of a step costs: a line through measured steps.

use std::time::Duration;

/// How much each new measurement weighs against all before.
const WEIGHT: f64 = 1.0 / 32.0;

/// Variance of the rows, in rows², from which on steps differ enough to tell what a row costs.
const LEAST_VARIANCE: f64 = 0.02;

/// A step that took more than so many times what its rows could cost was held up by something else.
const OUTLIER: f64 = 4.0;

/// What a row costs before steps of different sizes were seen.
const UNKNOWN: Price = Price(0.25);

/// What one more row costs, in tokens: the part of a step's time that a row adds, over the part that each of its
/// sequences has. In [0, 1]: near 0 where a step reads weights and rows come for nothing, 1 where it computes and
/// each row costs as much as any.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Price(f64);

/// Learns what steps of decode rows cost, as a time for the step and a time for each row. The recent counts more, since
/// sequences grow and neighbours come and go.
#[derive(Clone, Debug, Default)]
pub struct StepCosts {
    /// Weighted means over (rows, seconds), 0 before the first.
    rows: f64,
    seconds: f64,
    /// Their weighted variance and covariance.
    variance: f64,
    covariance: f64,
    measured: bool,
    /// Seconds a row, as last known.
    slope: Option<f64>,
}

impl Price {
    /// A price in tokens; what is no number between 0 and 1 becomes the nearest, or 1.
    pub fn new(tokens: f64) -> Self {
        Self(if tokens.is_nan() { 1.0 } else { tokens.clamp(0.0, 1.0) })
    }

    /// In tokens.
    pub fn tokens(self) -> f64 {
        self.0
    }
}

impl StepCosts {
    /// Takes in a step of decode rows alone, proposed ones counted, and how long its sequences waited for it: the stages' work,
    /// and the turnaround where nothing else hides that.
    pub fn observe(&mut self, rows: u32, time: Duration) {
        let (rows, mut seconds) = (f64::from(rows), time.as_secs_f64());
        if rows == 0.0 || seconds == 0.0 {
            return;
        }
        if !self.measured {
            (self.rows, self.seconds, self.measured) = (rows, seconds, true);
            return;
        }
        seconds = seconds.min(OUTLIER * self.seconds * (rows / self.rows).max(1.0));
        // Exponentially weighted moments, updated in place (West, "Updating mean and variance estimates", CACM 1979).
        let (rows_off, seconds_off) = (rows - self.rows, seconds - self.seconds);
        self.rows += WEIGHT * rows_off;
        self.seconds += WEIGHT * seconds_off;
        self.variance = (1.0 - WEIGHT) * (self.variance + WEIGHT * rows_off * rows_off);
        self.covariance = (1.0 - WEIGHT) * (self.covariance + WEIGHT * rows_off * seconds_off);
        if self.variance >= LEAST_VARIANCE {
            // No row gives time back, and none costs more than its share of a step.
            self.slope = Some((self.covariance / self.variance).clamp(0.0, self.seconds / self.rows));
        }
    }

    /// What a row costs beside `rows` that a step has anyway.
    pub fn price(&self, rows: u32) -> Price {
        let Some(slope) = self.slope else { return UNKNOWN };
        let rows = f64::from(rows.max(1));
        let step = (self.seconds - slope * self.rows).max(0.0) + slope * rows;
        // A step that costs nothing at all has nothing to save.
        if step > 0.0 { Price::new(slope * rows / step) } else { Price(1.0) }
    }
}
