//! What happened when, in a bounded number of slices of time.

use std::time::Duration;

/// As many slices as a plot has room for; when there would be more, two become one.
const MOST: usize = 512;
/// How long a slice is at first.
const FIRST: Duration = Duration::from_millis(100);

/// Sums over slices of time.
#[derive(Clone, Debug)]
pub struct Timeline {
    width: Duration,
    slices: Vec<Slice>,
}

/// What happened in one slice.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Slice {
    /// Tokens that came.
    pub tokens: f64,
    /// Requests that were due.
    pub begun: u64,
    /// Requests that ended, in whatever way.
    pub ended: u64,
    /// Requests that failed.
    pub failed: u64,
}

impl Default for Timeline {
    fn default() -> Self {
        Self { width: FIRST, slices: Vec::new() }
    }
}

impl Timeline {
    /// The slice at this time from the beginning.
    pub fn at(&mut self, time: Duration) -> &mut Slice {
        while self.index(time) >= MOST {
            self.halve();
        }
        let index = self.index(time);
        if index >= self.slices.len() {
            self.slices.resize(index + 1, Slice::default());
        }
        // The line above has made it.
        &mut self.slices[index]
    }

    /// How long a slice is.
    pub fn width(&self) -> Duration {
        self.width
    }

    /// All slices, from the beginning on.
    pub fn slices(&self) -> &[Slice] {
        &self.slices
    }

    fn index(&self, time: Duration) -> usize {
        usize::try_from(time.as_nanos() / self.width.as_nanos()).unwrap_or(usize::MAX)
    }

    fn halve(&mut self) {
        self.width *= 2;
        self.slices = self
            .slices
            .chunks(2)
            .map(|pair| {
                pair.iter().fold(Slice::default(), |sum, slice| Slice {
                    tokens: sum.tokens + slice.tokens,
                    begun: sum.begun + slice.begun,
                    ended: sum.ended + slice.ended,
                    failed: sum.failed + slice.failed,
                })
            })
            .collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_grow_and_lose_nothing() {
        let mut timeline = Timeline::default();
        for second in 0..1000 {
            let slice = timeline.at(Duration::from_secs(second));
            slice.tokens += 2.0;
            slice.begun += 1;
        }
        assert!(timeline.slices().len() <= MOST);
        assert_eq!(timeline.width(), Duration::from_millis(3200));
        assert_eq!(timeline.slices().iter().map(|slice| slice.tokens).sum::<f64>(), 2000.0);
        assert_eq!(timeline.slices().iter().map(|slice| slice.begun).sum::<u64>(), 1000);
        // 3.2 s hold three or four of them.
        let (last, whole) = timeline.slices().split_last().expect("some");
        assert!(whole.iter().all(|slice| (3..=4).contains(&slice.begun)) && last.begun <= 4);
    }

    #[test]
    fn a_slice_is_found_by_its_time() {
        let mut timeline = Timeline::default();
        timeline.at(Duration::from_millis(250)).failed += 1;
        assert_eq!(timeline.slices().iter().position(|slice| slice.failed == 1), Some(2));
    }
}
