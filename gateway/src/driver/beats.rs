//! Whether the shards still get on with their work. The clock is the caller's.

use std::time::{Duration, Instant};

use asterism_proto::shard::v1::Beat;

/// Watches every stage's beats.
#[derive(Clone, Debug)]
pub struct Beats {
    limit: Duration,
    stages: Vec<Stage>,
}

#[derive(Clone, Copy, Debug)]
struct Stage {
    layers_done: u64,
    working: bool,
    /// When it last finished a layer or a step.
    advanced: Instant,
    /// The same, or when it last had nothing to do.
    progress: Instant,
    /// When anything last came from it.
    heard: Instant,
}

/// A stage that does not get on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stuck {
    /// It works on one layer for too long.
    #[error("stage {stage} has worked for {limit:?} without finishing a layer")]
    Layer {
        /// 0-based.
        stage: usize,
        /// As configured.
        limit: Duration,
    },
    /// Nothing comes from it.
    #[error("stage {stage} has been silent for {limit:?}")]
    Silent {
        /// 0-based.
        stage: usize,
        /// As configured, or what a beat takes.
        limit: Duration,
    },
    /// A step is under way, and no stage works on it.
    #[error("a step has been under way for {limit:?} while no stage works")]
    Lost {
        /// As configured.
        limit: Duration,
    },
}

/// Beats come every second; a busy machine may be late with them before a stage counts as silent.
const LATE_BEATS: Duration = Duration::from_secs(10);

impl Beats {
    /// Of an epoch that begins now.
    pub fn new(stages: usize, limit: Duration, now: Instant) -> Self {
        let stage = Stage { layers_done: 0, working: false, advanced: now, progress: now, heard: now };
        Self { limit, stages: vec![stage; stages] }
    }

    /// A stage told how it is.
    pub fn beat(&mut self, stage: usize, beat: &Beat, now: Instant) {
        if let Some(stage) = self.stages.get_mut(stage) {
            if beat.layers_done != stage.layers_done {
                stage.advanced = now;
            }
            if !beat.working || !stage.working || beat.layers_done != stage.layers_done {
                stage.progress = now;
            }
            (stage.layers_done, stage.working, stage.heard) = (beat.layers_done, beat.working, now);
        }
    }

    /// A stage finished a step.
    pub fn report(&mut self, stage: usize, now: Instant) {
        if let Some(stage) = self.stages.get_mut(stage) {
            (stage.advanced, stage.progress, stage.heard) = (now, now, now);
        }
    }

    /// Whether all get on; `under_way` is when the oldest unfinished step was sent.
    ///
    /// # Errors
    /// The first stage that does not.
    pub fn check(&self, under_way: Option<Instant>, now: Instant) -> Result<(), Stuck> {
        let silent = self.limit.max(LATE_BEATS);
        for (index, stage) in self.stages.iter().enumerate() {
            if stage.working && now.saturating_duration_since(stage.progress) >= self.limit {
                return Err(Stuck::Layer { stage: index, limit: self.limit });
            }
            if now.saturating_duration_since(stage.heard) >= silent {
                return Err(Stuck::Silent { stage: index, limit: silent });
            }
        }
        // One beat may fall between a stage's end and the next one's begin, so nobody may have advanced for that long.
        let since = self.stages.iter().map(|stage| stage.advanced).chain(under_way).max();
        let old = since.is_some_and(|since| now.saturating_duration_since(since) >= silent);
        let idle = self.stages.iter().all(|stage| !stage.working);
        if under_way.is_some() && old && idle { Err(Stuck::Lost { limit: silent }) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(12);

    fn beat(layers_done: u64, working: bool) -> Beat {
        Beat { layers_done, working, draining: false }
    }

    #[test]
    fn work_without_a_layer_is_stuck_and_idleness_is_not() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut beats = Beats::new(2, LIMIT, start);
        for second in 1..20 {
            beats.beat(0, &beat(7, false), at(second));
            beats.beat(1, &beat(second, true), at(second));
            assert_eq!(beats.check(None, at(second)), Ok(()));
        }
        for second in 20..31 {
            beats.beat(0, &beat(7, false), at(second));
            beats.beat(1, &beat(19, true), at(second));
            assert_eq!(beats.check(None, at(second)), Ok(()));
        }
        assert_eq!(beats.check(None, at(31)), Err(Stuck::Layer { stage: 1, limit: LIMIT }));
    }

    #[test]
    fn a_silent_stage_is_noticed() {
        let start = Instant::now();
        let mut beats = Beats::new(2, LIMIT, start);
        beats.report(1, start + LIMIT);
        assert_eq!(beats.check(None, start + LIMIT), Err(Stuck::Silent { stage: 0, limit: LIMIT }));
    }

    #[test]
    fn a_step_that_nobody_works_on_is_lost() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut beats = Beats::new(1, LIMIT, start);
        for second in 1..13 {
            beats.beat(0, &beat(7, false), at(second));
        }
        assert_eq!(beats.check(None, at(13)), Ok(()));
        assert_eq!(beats.check(Some(at(2)), at(13)), Ok(()));
        assert_eq!(beats.check(Some(start), at(13)), Err(Stuck::Lost { limit: LIMIT }));
    }
}
