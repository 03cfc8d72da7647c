//! From a configuration to a stage on a device.

use std::ops::{ControlFlow, Range};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use asterism_model::split::{self, Sizing};
use asterism_model::stage::{LoadTimes, StageOptions};
use asterism_model::{DecoderSpec, ModelError, Stage};
use asterism_tensor::{Dtype, EvidenceRoom};

use crate::config::ShardConfig;
use crate::edges::Edges;
use crate::error::ShardError;
use crate::evidence::LogitsRows;
use crate::open::DeviceOptions;
use crate::setting::MOST_CANDIDATES;

/// Steps in which progress is logged.
const LOGGED_STEPS: u64 = 10;

/// A stage that was loaded.
#[derive(Debug)]
pub struct Loaded {
    /// The layers, on their device.
    pub stage: Stage,
    /// Buffers of its edges.
    pub edges: Edges,
    /// Of the last stage.
    pub logits: Option<LogitsRows>,
    /// Raw rows that it keeps.
    pub logits_slots: usize,
    /// Where the time went.
    pub times: StartTimes,
}

/// Where the time of a shard's start went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StartTimes {
    /// The model's files were opened.
    pub open: Duration,
    /// The device was opened and its kernels compiled, or found in the cache.
    pub device: Duration,
    /// The stage was loaded.
    pub stage: LoadTimes,
}

impl StartTimes {
    /// All parts by name, in order.
    pub fn parts(&self) -> impl Iterator<Item = (&'static str, Duration)> {
        [("open", self.open), ("device", self.device)].into_iter().chain(self.stage.parts())
    }
}

/// How far loading is: parts of a thousand.
#[derive(Debug, Default)]
pub struct Progress {
    permille: AtomicU64,
}

impl Progress {
    /// As people read it.
    pub fn percent(&self) -> u64 {
        self.permille.load(Ordering::Relaxed) / 10
    }

    /// Told from several threads, so a little out of order. A fall by half is a new pass over the checkpoint: one reads it
    /// for its manifest where it has none, one loads the stage.
    fn tell(&self, done: u64, all: u64) {
        let permille = done.saturating_mul(1000) / all.max(1);
        let advance = |before: u64| (permille > before || permille < before / 2).then_some(permille);
        let advanced = self.permille.fetch_update(Ordering::Relaxed, Ordering::Relaxed, advance);
        if let Ok(before) = advanced
            && (permille < before || before * LOGGED_STEPS / 1000 < permille * LOGGED_STEPS / 1000)
        {
            tracing::info!(percent = permille / 10, bytes = all, "loading");
        }
    }
}

/// Loads the configured stage. Blocks for as long as that takes, or until nobody waits for it any more, as `is_unwanted` tells.
///
/// # Errors
/// The checkpoint is not usable, or does not fit.
pub fn load(
    config: &ShardConfig,
    progress: &Progress,
    is_unwanted: &(dyn Fn() -> bool + Sync),
) -> Result<Loaded, ShardError> {
    let failed = |source: ModelError| ShardError::Load { model: config.model.display().to_string(), source };
    let mut times = StartTimes::default();
    let began = Instant::now();
    let weights = config.weights.open(&config.model).map_err(failed)?;
    let spec =
        weights.source().config().and_then(|config| DecoderSpec::from_config(&config)).map_err(failed)?;
    times.open = began.elapsed();
    let sizing = config.sizing(Dtype::Bf16, spec.max_positions);
    let layers = layers(config, &spec, &sizing)?;
    let began = Instant::now();
    let options = DeviceOptions { threads: config.threads, deterministic: config.deterministic };
    let device = config.device.open(options)?;
    times.device = began.elapsed();
    let options = StageOptions {
        layers,
        compute: sizing.compute,
        kv_type: sizing.kv_type,
        memory: config.memory.map(|memory| memory.0),
        max_rows: sizing.max_rows,
        evidence_rows: sizing.evidence_rows,
        logits_slots: sizing.logits_slots,
        max_context: sizing.max_context,
    };
    let watch = |done, all| {
        progress.tell(done, all);
        if is_unwanted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let stage = Stage::load(device, weights.source(), options, &watch).map_err(failed)?;
    times.stage = stage.info().times;
    let room = EvidenceRoom {
        rows: sizing.evidence_rows,
        vocab: spec.vocab,
        top_k: MOST_CANDIDATES as usize,
        ids: sizing.max_context,
    };
    let logits = match stage.info().is_last() {
        true => Some(LogitsRows::new(stage.device(), room, sizing.logits_slots)?),
        false => None,
    };
    let edges = Edges::new(&stage, config.steps_in_flight())?;
    Ok(Loaded { stage, edges, logits, logits_slots: sizing.logits_slots, times })
}

/// The layers that the configuration names, or an even share of them.
fn layers(config: &ShardConfig, spec: &DecoderSpec, sizing: &Sizing) -> Result<Range<usize>, ShardError> {
    let (stage, stages) = (config.stage, config.stages);
    let Some(named) = &config.layers else {
        let even = split::even(spec, sizing, stages as usize);
        let model = config.model.display().to_string();
        let even = even.map_err(|source| ShardError::Load { model, source })?;
        return Ok(even.get(stage as usize).cloned().unwrap_or_default());
    };
    let Range { start, end } = named.0;
    let reason = if end > spec.layers {
        "the model has fewer layers"
    } else if (stage == 0) != (start == 0) {
        "the first stage begins with layer 0, and no other does"
    } else if (stage + 1 == stages) != (end == spec.layers) {
        "the last stage ends with the last layer, and no other does"
    } else {
        return Ok(start..end);
    };
    Err(ShardError::Layers { stage, stages, start, end, layers: spec.layers, reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_that_nobody_waits_for_is_not_loaded_to_the_end() {
        let config = ShardConfig::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/tiny-52b"));
        let error = load(&config, &Progress::default(), &|| true).unwrap_err();
        assert!(matches!(error, ShardError::Load { source: ModelError::LoadStopped, .. }), "{error:?}");
    }

    #[test]
    fn progress_grows_within_a_pass_and_starts_again_with_the_next() {
        let progress = Progress::default();
        let mut seen = Vec::new();
        for done in [10, 300, 290, 1000, 20, 500] {
            progress.tell(done, 1000);
            seen.push(progress.percent());
        }
        assert_eq!(seen, [1, 30, 30, 100, 2, 50]);
        progress.tell(1, 0);
        assert_eq!(progress.percent(), 100, "of nothing, all is done");
    }
}
