//! How far a load is, in the terminal. Where standard error is none, nothing is shown.

use std::sync::atomic::Ordering;
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};

use super::drive::LoadPlan;
use super::pace::Extent;
use super::target::Meter;

/// A bar over warm-up and measurement.
pub struct Progress {
    bar: ProgressBar,
    extent: Extent,
    warm_up: Extent,
    began: Instant,
    /// Tokens at the time of the last look at their rate.
    seen: (Instant, u64),
    rate: f64,
}

impl Progress {
    /// Nothing done yet.
    pub fn new(plan: &LoadPlan, began: Instant) -> Self {
        let bar = ProgressBar::new(100);
        if let Ok(style) = ProgressStyle::with_template("{bar:32} {percent:>3} %  {msg}") {
            bar.set_style(style);
        }
        Self { bar, extent: plan.extent, warm_up: plan.warm_up, began, seen: (began, 0), rate: 0.0 }
    }

    /// Shows what has been done.
    pub fn show(&mut self, meter: &Meter, measured_from: Option<Instant>) {
        let now = Instant::now();
        let [tokens, running, answered, failed] =
            [&meter.tokens, &meter.running, &meter.answered, &meter.failed]
                .map(|count| count.load(Ordering::Relaxed));
        let since = now.saturating_duration_since(self.seen.0).as_secs_f64();
        if since >= 1.0 {
            self.rate = tokens.saturating_sub(self.seen.1) as f64 / since;
            self.seen = (now, tokens);
        }
        let requests = |extent| if let Extent::Requests(requests) = extent { requests } else { 0 };
        let share = match (self.extent, measured_from) {
            (Extent::Time(time), Some(from)) => {
                now.saturating_duration_since(from).as_secs_f64() / time.as_secs_f64().max(1e-3)
            }
            (Extent::Time(_), None) => 0.0,
            (Extent::Requests(_), _) => {
                let all = requests(self.extent) + requests(self.warm_up);
                (answered + failed) as f64 / all.max(1) as f64
            }
        };
        self.bar.set_position((share.min(1.0) * 100.0) as u64);
        let phase = if measured_from.is_some() { "measuring" } else { "warming up" };
        let elapsed = now.saturating_duration_since(self.began).as_secs();
        let rate = self.rate;
        self.bar.set_message(format!(
            "{phase} {elapsed} s, {running} running, {answered} answered, {failed} failed, {rate:.0} tokens/s"
        ));
    }

    /// Takes the bar away.
    pub fn end(&self) {
        self.bar.finish_and_clear();
    }
}
