//! How long the slowest stage works on a step of so many rows: a line through what was measured.

use std::time::Duration;

/// How much of each new measurement goes into the running means.
const WEIGHT: f64 = 1.0 / 8.0;

/// Steps of 1, of 2 or 3, of 4 to 7, … rows, and all greater ones.
const SIZES: usize = 16;

/// What a step of no rows takes, at least, of the shortest that was measured: where a line through noisy measurements says that
/// it takes nothing.
const LEAST_FIXED: f64 = 0.25;

/// Learns how long steps take. Small and large ones are remembered apart, so that the one kind is not forgotten while only
/// the other comes.
#[derive(Clone, Debug, Default)]
pub(super) struct StepTimes {
    sizes: [Option<Mean>; SIZES],
    line: Option<Line>,
}

/// Running means of steps of about the same size.
#[derive(Clone, Copy, Debug)]
struct Mean {
    rows: f64,
    seconds: f64,
}

/// Seconds = `fixed` + rows · `per_row`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Line {
    /// What a step takes however few its rows: one read of the weights. Above 0.
    pub(super) fixed: f64,
    /// What a row adds; `None` while all steps were about as large as each other, or no row was seen to add anything.
    pub(super) per_row: Option<f64>,
}

impl StepTimes {
    /// Takes in what a step of `rows` took in its slowest stage.
    pub(super) fn observe(&mut self, rows: u32, time: Duration) {
        let Some(size) = rows.checked_ilog2().map(|size| size as usize) else { return };
        let (rows, seconds) = (f64::from(rows), time.as_secs_f64());
        if seconds == 0.0 {
            return;
        }
        if let Some(mean) = self.sizes.get_mut(size.min(SIZES - 1)) {
            let Mean { rows: of, seconds: took } = *mean.get_or_insert(Mean { rows, seconds });
            *mean = Some(Mean { rows: of + WEIGHT * (rows - of), seconds: took + WEIGHT * (seconds - took) });
        }
        self.line = self.fit();
    }

    /// What is known; `None` before the first step.
    pub(super) fn line(&self) -> Option<Line> {
        self.line
    }

    /// The line of least squares, each error taken in relation to its time: a millisecond is much for a small step, and little
    /// for a large one.
    fn fit(&self) -> Option<Line> {
        let means = || self.sizes.iter().flatten();
        let shortest = means().map(|mean| mean.seconds).reduce(f64::min)?;
        let weighted =
            |of: fn(&Mean) -> f64| means().map(|mean| of(mean) / mean.seconds.powi(2)).sum::<f64>();
        let weight = weighted(|_| 1.0);
        let (rows, seconds) = (weighted(|mean| mean.rows) / weight, weighted(|mean| mean.seconds) / weight);
        let (mut covariance, mut variance) = (0.0, 0.0);
        for mean in means() {
            let off = (mean.rows - rows) / mean.seconds.powi(2);
            covariance += off * (mean.seconds - seconds);
            variance += off * (mean.rows - rows);
        }
        let per_row = (means().count() > 1).then(|| covariance / variance).filter(|per_row| *per_row > 0.0);
        let fixed = per_row.map_or(shortest, |per_row| seconds - rows * per_row);
        Some(Line { fixed: fixed.clamp(LEAST_FIXED * shortest, shortest), per_row })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn line(seen: &[(u32, f64)]) -> Option<Line> {
        let mut times = StepTimes::default();
        for (rows, seconds) in seen {
            times.observe(*rows, Duration::from_secs_f64(*seconds));
        }
        times.line()
    }

    #[test]
    fn one_size_of_step_tells_nothing_of_a_rows_part() {
        assert_eq!(line(&[]), None);
        assert_eq!(line(&[(0, 1.0), (4, 0.0)]), None, "no rows, or no time");
        assert_eq!(line(&[(4, 0.5), (6, 0.5)]), Some(Line { fixed: 0.5, per_row: None }));
    }

    #[test]
    fn rows_do_not_give_time_back() {
        assert_eq!(line(&[(1, 0.5), (64, 0.25)]), Some(Line { fixed: 0.25, per_row: None }));
    }

    #[test]
    fn large_steps_are_remembered_while_small_ones_come() {
        let mut seen = vec![(512, 0.512)];
        seen.extend([(1, 0.010); 1000]);
        let per_row = line(&seen).and_then(|line| line.per_row).unwrap();
        assert!((per_row - 0.502 / 511.0).abs() < 1e-6, "{per_row}");
    }

    proptest! {
        #[test]
        fn a_line_is_found_again(
            fixed in 1e-4f64..1.0,
            per_row in 1e-5f64..1e-2,
            sizes in prop::collection::vec(1u32..5000, 2..50),
        ) {
            prop_assume!(sizes.iter().any(|rows| rows.ilog2() != sizes[0].ilog2()));
            let seen: Vec<_> = sizes.iter().map(|rows| (*rows, fixed + f64::from(*rows) * per_row)).collect();
            let found = line(&seen).unwrap();
            let shortest = seen.iter().map(|(_, seconds)| *seconds).fold(f64::MAX, f64::min);
            prop_assert!((found.per_row.unwrap() / per_row - 1.0).abs() < 1e-3, "{found:?}");
            prop_assert!((found.fixed - fixed.max(shortest / 4.0)).abs() < shortest * 0.5, "{found:?}");
        }

        #[test]
        fn whatever_comes_the_line_is_of_numbers(seen in prop::collection::vec((any::<u32>(), 0f64..1e6), 0..50)) {
            if let Some(line) = line(&seen) {
                prop_assert!(line.fixed.is_finite() && line.fixed > 0.0, "{line:?}");
                prop_assert!(line.per_row.is_none_or(|per_row| per_row.is_finite() && per_row > 0.0), "{line:?}");
            }
        }
    }
}
