//! A whole model as one stage on a card, in this process.

mod steps;

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use asterism_model::stage::{StageInfo, StageOptions};
use asterism_model::{Checkpoint, DecoderSpec, ModelError, Stage};
use asterism_shard::{DeviceName, DeviceOptions, OpenedWeights, Weights};
use asterism_tensor::{BLOCK_ROWS, Compute, CudaLimits, KernelReport, KvType, sending_threads};

pub use self::steps::Prompts;
use self::steps::{EVIDENCE_ROWS, Steps};
use super::{ROUNDS, median, ms};

/// Steps that are measured, after a few that are not.
const STEPS: usize = 40;
const WARM_STEPS: usize = 5;
/// What to measure.
#[derive(Clone, Debug)]
pub struct CardPlan {
    /// The model's folder.
    pub model: PathBuf,
    /// Where its weights come from.
    pub weights: Weights,
    /// The card.
    pub device: DeviceName,
    /// The type of activations and KV.
    pub compute: Compute,
    /// Refuse what could make a row's numbers depend on other rows.
    pub deterministic: bool,
    /// Bytes for everything.
    pub memory: Option<u64>,
    /// Sequences that decode at once.
    pub rows: Vec<usize>,
    /// Tokens of each.
    pub context: usize,
    /// Prompts that are read.
    pub prefill: Vec<Prompts>,
    /// The most rows of a step.
    pub max_rows: usize,
}

/// What the gateway's figures are put beside.
#[derive(Clone, Debug)]
pub struct Figures {
    /// Seconds of a step by number of rows.
    pub steps: Vec<(usize, Duration)>,
    /// The card's limits.
    pub limits: CudaLimits,
    /// The model's sizes.
    pub info: StageInfo,
}

/// Measures and prints.
pub fn measure(plan: &CardPlan) -> Result<Figures, ModelError> {
    let weights = plan.weights.open(&plan.model)?;
    let spec = DecoderSpec::from_config(&weights.source().config()?)?;
    let began = Instant::now();
    let device = plan.device.open(DeviceOptions { threads: None, deterministic: plan.deterministic })?;
    let opened = began.elapsed();
    // Before the weights are there: it needs memory of its own.
    let limits = device.card_limits()?;
    let longest = plan.prefill.iter().map(|prompts| prompts.tokens).max().unwrap_or(0);
    let options = StageOptions {
        layers: 0..spec.layers,
        compute: plan.compute,
        kv_type: KvType::of(plan.compute),
        memory: plan.memory,
        max_rows: plan.max_rows,
        evidence_rows: EVIDENCE_ROWS.min(plan.max_rows),
        logits_slots: EVIDENCE_ROWS.min(plan.max_rows),
        max_context: plan.context.max(longest).max(spec.max_positions),
    };
    let sent = AtomicU64::new(0);
    let watch = |_, all| {
        sent.store(all, Ordering::Relaxed);
        ControlFlow::Continue(())
    };
    let stage = Stage::load(device, weights.source(), options, &watch)?;
    let info = stage.info().clone();
    println!(
        "{} with {} layers in {}, {} on {}\n",
        info.spec.family.name(),
        info.spec.layers,
        info.compute,
        plan.weights,
        info.device
    );
    println!(
        "limits     copy {:.2} TB/s, read {:.2} TB/s, multiply {:.0} TFLOP/s, upload {:.1} GB/s, download {:.1} GB/s",
        limits.copy / 1e12,
        limits.read / 1e12,
        limits.gemm / 1e12,
        limits.upload / 1e9,
        limits.download / 1e9,
    );
    let parts = [("device", opened)].into_iter().chain(info.times.parts());
    let parts: Vec<String> =
        parts.map(|(part, took)| format!("{part} {:.2} s", took.as_secs_f64())).collect();
    println!("start-up   {}", parts.join(", "));
    if let Some(KernelReport { compiled, cached, .. }) = stage.device().kernel_report() {
        println!("           kernels: {compiled} compiled, {cached} found in the cache");
    }
    if let OpenedWeights::Checkpoint(checkpoint) = &weights {
        loading(checkpoint, sent.into_inner(), info.times.weights, &limits)?;
    }
    println!(
        "memory     weights {}, buffers {}, KV {} = {} tokens\n",
        asterism_model::bytes(info.weight_bytes),
        asterism_model::bytes(info.buffer_bytes),
        asterism_model::bytes(info.kv_bytes),
        info.kv_blocks * BLOCK_ROWS,
    );
    let mut bench = Bench { steps: Steps::new(stage)?, limits };
    let steps = bench.decode(plan)?;
    bench.prefill(&plan.prefill)?;
    Ok(Figures { steps, limits, info })
}

/// Prints how fast so many bytes of weights were read, checked and sent, beside what reading alone and sending alone give. After
/// loading, whatever has room in the page cache is there.
fn loading(
    checkpoint: &Checkpoint,
    bytes: u64,
    took: Duration,
    limits: &CudaLimits,
) -> Result<(), ModelError> {
    let threads = sending_threads();
    let began = Instant::now();
    let read = checkpoint.read_through(threads)? as f64 / began.elapsed().as_secs_f64();
    let rate = bytes as f64 / took.as_secs_f64();
    println!(
        "loading    {} in {:.2} s = {:.1} GB/s: {:.1} % of the slower of upload {:.1} GB/s and reading by {threads} threads {:.1} GB/s",
        asterism_model::bytes(bytes),
        took.as_secs_f64(),
        rate / 1e9,
        100.0 * rate / limits.upload.min(read),
        limits.upload / 1e9,
        read / 1e9,
    );
    Ok(())
}

struct Bench {
    steps: Steps,
    limits: CudaLimits,
}

impl Bench {
    /// Steps of one row of each of so many sequences: with their evidence, and without.
    fn decode(&mut self, plan: &CardPlan) -> Result<Vec<(usize, Duration)>, ModelError> {
        println!(
            "decode     ms/step    layers and head alone  tokens/s   of the roofline (weights and KV at copy bandwidth)"
        );
        let mut steps = Vec::new();
        for &rows in &plan.rows {
            let Some(sequences) = self.steps.sequences(Prompts { sequences: rows, tokens: plan.context })
            else {
                println!("{rows:<9}  does not fit: {} tokens of KV", rows * plan.context);
                continue;
            };
            self.steps.read(&sequences, plan.context - 1)?;
            let alone = self.time(|steps| {
                steps.step(&sequences, plan.context - 1)?;
                Ok(steps.stage().device().synchronize()?)
            })?;
            let before = self.steps.stage().device().counters().unwrap_or_default();
            let step = self.time(|steps| {
                steps.step(&sequences, plan.context - 1)?;
                steps.evidence(&sequences)
            })?;
            let after = self.steps.stage().device().counters().unwrap_or_default();
            let roofline = roofline(self.steps.stage().info(), &self.limits, rows, plan.context);
            println!(
                "{rows:<9}  {:<9.3}  {:<21.3}  {:<9.1}  {:.1} % of {:.3} ms",
                ms(step),
                ms(alone),
                rows as f64 / step.as_secs_f64(),
                100.0 * roofline.as_secs_f64() / step.as_secs_f64(),
                ms(roofline),
            );
            let each = |before: u64, after: u64| (after - before) as f64 / (WARM_STEPS + STEPS) as f64;
            println!(
                "           of a step: graph launches {}, other launches {}, waits for an event {}, for the stream {}, allocations {}",
                each(before.graph_launches, after.graph_launches),
                each(before.launches, after.launches),
                each(before.waits, after.waits),
                each(before.synchronisations, after.synchronisations),
                each(before.allocations, after.allocations),
            );
            steps.push((rows, step));
        }
        Ok(steps)
    }

    /// The middle time of `work`.
    fn time(
        &mut self,
        mut work: impl FnMut(&mut Steps) -> Result<(), ModelError>,
    ) -> Result<Duration, ModelError> {
        let mut times = Vec::with_capacity(WARM_STEPS + STEPS);
        for _ in 0..WARM_STEPS + STEPS {
            let began = Instant::now();
            work(&mut self.steps)?;
            times.push(began.elapsed());
        }
        Ok(median(times.split_off(WARM_STEPS)))
    }

    /// Whole prompts.
    fn prefill(&mut self, all: &[Prompts]) -> Result<(), ModelError> {
        println!("\nprefill    ms         tokens/s   TFLOP/s   of a large multiplication");
        for &prompts in all {
            let name = prompts.to_string();
            let Some(sequences) = self.steps.sequences(prompts) else {
                println!("{name:<9}  does not fit: {} tokens of KV", prompts.sequences * prompts.tokens);
                continue;
            };
            let mut times = Vec::with_capacity(ROUNDS);
            for _ in 0..=ROUNDS {
                let began = Instant::now();
                self.steps.read(&sequences, prompts.tokens)?;
                times.push(began.elapsed());
            }
            let time = median(times.split_off(1)).as_secs_f64();
            let rate = operations(&self.steps.stage().info().spec, prompts) / time;
            println!(
                "{name:<9}  {:<9.2}  {:<9.0}  {:<8.0}  {:.1} %",
                time * 1e3,
                (prompts.sequences * prompts.tokens) as f64 / time,
                rate / 1e12,
                100.0 * rate / self.limits.gemm,
            );
        }
        Ok(())
    }
}

/// The time to copy what a step of `rows` rows reads: every weight but the embedding, and the keys and values of `context`
/// positions of each row.
pub fn roofline(info: &StageInfo, limits: &CudaLimits, rows: usize, context: usize) -> Duration {
    let embedding = info.spec.embedding_weights() as f64 * info.compute.dtype().bytes() as f64;
    let position = 2 * info.spec.layers * info.spec.kv_width() * info.kv_type.dtype().bytes();
    let kv = (position * rows * context) as f64;
    Duration::from_secs_f64((info.weight_bytes as f64 - embedding + kv) / limits.copy)
}

/// Multiplications and additions of prompts: every layer's weights for each row, the head's for one, and attention.
fn operations(spec: &DecoderSpec, Prompts { sequences, tokens }: Prompts) -> f64 {
    let tokens = tokens as f64;
    let attention = 2.0 * (spec.layers * spec.q_width()) as f64 * tokens * (tokens + 1.0);
    let layers = 2.0 * (spec.layer_weights() * spec.layers as u64) as f64 * tokens;
    sequences as f64 * (layers + attention + 2.0 * spec.embedding_weights() as f64)
}
