//! Where the stages' time goes, summed over the reports of all epochs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use asterism_proto::shard::v1::StageTimes;
use asterism_proto::v1::StageSeconds;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;

/// One stage's time in nanoseconds.
#[derive(Debug, Default)]
pub struct StageClock {
    busy: AtomicU64,
    wait_plan: AtomicU64,
    wait_input: AtomicU64,
    wait_output: AtomicU64,
}

/// The clocks of all stages that there have been. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct StageClocks(Arc<Mutex<Vec<Arc<StageClock>>>>);

impl StageClock {
    /// Adds what a report tells.
    pub fn add(&self, times: &StageTimes) {
        let StageTimes { busy, wait_plan, wait_input, wait_output } = *times;
        self.busy.fetch_add(busy, Ordering::Relaxed);
        self.wait_plan.fetch_add(wait_plan, Ordering::Relaxed);
        self.wait_input.fetch_add(wait_input, Ordering::Relaxed);
        self.wait_output.fetch_add(wait_output, Ordering::Relaxed);
    }

    /// What was added up.
    fn seconds(&self) -> StageSeconds {
        let seconds = |nanos: &AtomicU64| nanos.load(Ordering::Relaxed) as f64 / 1e9;
        StageSeconds {
            busy: seconds(&self.busy),
            wait_plan: seconds(&self.wait_plan),
            wait_input: seconds(&self.wait_input),
            wait_output: seconds(&self.wait_output),
        }
    }
}

impl StageClocks {
    /// The clocks of the first `stages` stages, for a driver to add to.
    pub fn of(&self, stages: usize) -> Vec<Arc<StageClock>> {
        let mut clocks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let most = clocks.len().max(stages);
        clocks.resize_with(most, Arc::default);
        clocks.iter().take(stages).cloned().collect()
    }

    /// What was added up, by stage.
    pub fn seconds(&self) -> Vec<StageSeconds> {
        let clocks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        clocks.iter().map(|clock| clock.seconds()).collect()
    }
}

impl Collector for StageClocks {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let help = "Where the time of a stage went, in seconds";
        let mut encoder = encoder.encode_descriptor("stage_seconds", help, None, MetricType::Counter)?;
        for (stage, seconds) in self.seconds().into_iter().enumerate() {
            let StageSeconds { busy, wait_plan, wait_input, wait_output } = seconds;
            let doings = [
                ("busy", busy),
                ("wait_plan", wait_plan),
                ("wait_input", wait_input),
                ("wait_output", wait_output),
            ];
            for (doing, seconds) in doings {
                let labels = [("stage", stage.to_string()), ("doing", doing.to_owned())];
                ConstCounter::new(seconds).encode(encoder.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_add_up_over_epochs_of_other_sizes() {
        let clocks = StageClocks::default();
        let times = StageTimes { busy: 1_500_000_000, wait_plan: 2, wait_input: 3, wait_output: 4 };
        clocks.of(3)[2].add(&times);
        clocks.of(1)[0].add(&times);
        clocks.of(3)[2].add(&times);
        let busy: Vec<f64> = clocks.seconds().iter().map(|stage| stage.busy).collect();
        assert_eq!(busy, [1.5, 0.0, 3.0]);
    }
}
