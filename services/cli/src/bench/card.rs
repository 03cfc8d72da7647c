//! A whole model as one stage on a card, in this process.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, Instant};

use asterism_model::stage::{Batch, Input, Span, StageInfo, StageOptions};
use asterism_model::{DecoderSpec, ModelError, Stage};
use asterism_shard::{DeviceName, DeviceOptions, Weights};
use asterism_tensor::{
    BLOCK_ROWS, Compute, CudaLimits, EvidenceRequest, EvidenceRoom, KernelReport, Processors,
};

use super::evidence::Evidence;
use super::{ROUNDS, median, ms};

/// Steps that are measured, after a few that are not.
const STEPS: usize = 40;
const WARM_STEPS: usize = 5;
/// The most rows that want evidence: as a shard has it.
const EVIDENCE_ROWS: usize = 128;
/// The best ids of a row, and the penalty on what occurred: what TeleChat's sampling asks for.
const TOP_K: usize = 64;
const REPETITION: f32 = 1.02;

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

/// Equal prompts, written `4x2048`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prompts {
    /// How many.
    pub sequences: usize,
    /// Tokens of each.
    pub tokens: usize,
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
        memory: plan.memory,
        max_rows: plan.max_rows,
        evidence_rows: EVIDENCE_ROWS.min(plan.max_rows),
        logits_slots: EVIDENCE_ROWS.min(plan.max_rows),
        max_context: plan.context.max(longest).max(spec.max_positions),
    };
    let stage = Stage::load(device, weights.source(), options, &|_, _| {})?;
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
    println!(
        "memory     weights {}, buffers {}, KV {} = {} tokens\n",
        asterism_model::bytes(info.weight_bytes),
        asterism_model::bytes(info.buffer_bytes),
        asterism_model::bytes(info.kv_bytes),
        info.kv_blocks * BLOCK_ROWS,
    );
    let (rows, vocab) = (info.evidence_rows, info.spec.vocab);
    let room = EvidenceRoom { rows, vocab, top_k: TOP_K, ids: info.max_context };
    let evidence = Evidence::new(stage.device(), room)?;
    let mut bench = Bench { stage, limits, evidence };
    let steps = bench.decode(plan)?;
    bench.prefill(&plan.prefill)?;
    Ok(Figures { steps, limits, info })
}

struct Bench {
    stage: Stage,
    limits: CudaLimits,
    evidence: Evidence,
}

/// A sequence of the bench: its tokens and its blocks.
struct Sequence {
    ids: Vec<u32>,
    blocks: Vec<u32>,
}

impl Bench {
    /// Steps of one row of each of so many sequences: with their evidence, and without.
    fn decode(&mut self, plan: &CardPlan) -> Result<Vec<(usize, Duration)>, ModelError> {
        println!(
            "decode     ms/step    layers and head alone  tokens/s   of the roofline (weights and KV at copy bandwidth)"
        );
        let mut steps = Vec::new();
        for &rows in &plan.rows {
            let Some(sequences) = self.sequences(Prompts { sequences: rows, tokens: plan.context }) else {
                println!("{rows:<9}  does not fit: {} tokens of KV", rows * plan.context);
                continue;
            };
            self.read(&sequences, plan.context - 1)?;
            let alone = self.time(|bench| {
                bench.step(&sequences, plan.context - 1)?;
                Ok(bench.stage.device().synchronize()?)
            })?;
            let before = self.stage.device().counters().unwrap_or_default();
            let step = self.time(|bench| {
                bench.step(&sequences, plan.context - 1)?;
                bench.evidence(&sequences)
            })?;
            let after = self.stage.device().counters().unwrap_or_default();
            let roofline = roofline(self.stage.info(), &self.limits, rows, plan.context);
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
        mut work: impl FnMut(&mut Self) -> Result<(), ModelError>,
    ) -> Result<Duration, ModelError> {
        let mut times = Vec::with_capacity(WARM_STEPS + STEPS);
        for _ in 0..WARM_STEPS + STEPS {
            let began = Instant::now();
            work(self)?;
            times.push(began.elapsed());
        }
        Ok(median(times.split_off(WARM_STEPS)))
    }

    /// The evidence of one row of each sequence. Waits for the step.
    fn evidence(&mut self, sequences: &[Sequence]) -> Result<(), ModelError> {
        let top_k = TOP_K.min(self.stage.info().spec.vocab);
        let mut requests = Vec::with_capacity(sequences.len());
        for (row, sequence) in sequences.iter().enumerate() {
            let ids = &sequence.ids[..];
            let prompt_len = ids.len();
            let processors = Processors { repetition: REPETITION, ids, prompt_len, ..Processors::NONE };
            let (temperature, logprobs) = (None, None);
            requests.push(EvidenceRequest { row, slot: row, processors, top_k, temperature, logprobs });
        }
        self.evidence.of(&self.stage, &requests).map(drop)
    }

    /// Whole prompts.
    fn prefill(&mut self, all: &[Prompts]) -> Result<(), ModelError> {
        println!("\nprefill    ms         tokens/s   TFLOP/s   of a large multiplication");
        for &prompts in all {
            let name = prompts.to_string();
            let Some(sequences) = self.sequences(prompts) else {
                println!("{name:<9}  does not fit: {} tokens of KV", prompts.sequences * prompts.tokens);
                continue;
            };
            let mut times = Vec::with_capacity(ROUNDS);
            for _ in 0..=ROUNDS {
                let began = Instant::now();
                self.read(&sequences, prompts.tokens)?;
                times.push(began.elapsed());
            }
            let time = median(times.split_off(1)).as_secs_f64();
            let rate = operations(&self.stage.info().spec, prompts) / time;
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

    /// Sequences of random tokens in blocks of their own; `None` if the pool is too small for them.
    fn sequences(&self, Prompts { sequences, tokens }: Prompts) -> Option<Vec<Sequence>> {
        let info = self.stage.info();
        let each = tokens.div_ceil(BLOCK_ROWS) as u32;
        if tokens == 0 || sequences * each as usize > info.kv_blocks {
            return None;
        }
        let mut state = 1u64;
        let mut id = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 33) % info.spec.vocab as u64) as u32
        };
        let sequence = |index: u32| Sequence {
            ids: (0..tokens).map(|_| id()).collect(),
            blocks: (index * each..(index + 1) * each).collect(),
        };
        Some((0..sequences as u32).map(sequence).collect())
    }

    /// Reads the first `tokens` tokens of all sequences as prompts, as many rows a step as there may be, and waits.
    fn read(&mut self, sequences: &[Sequence], tokens: usize) -> Result<(), ModelError> {
        let most = self.stage.info().max_rows;
        let last = [tokens.saturating_sub(1)];
        let mut spans = Vec::new();
        let mut room = most;
        for sequence in sequences {
            let mut start = 0;
            while start < tokens {
                let end = tokens.min(start + room);
                spans.push(Span {
                    first_position: start,
                    token_ids: &sequence.ids[start..end],
                    blocks: &sequence.blocks,
                    prompt_len: tokens,
                    evidence: if end == tokens { &last } else { &[] },
                });
                room -= end - start;
                start = end;
                if room == 0 || spans.len() == EVIDENCE_ROWS {
                    self.run(&spans)?;
                    spans.clear();
                    room = most;
                }
            }
        }
        if !spans.is_empty() {
            self.run(&spans)?;
        }
        Ok(self.stage.device().synchronize()?)
    }

    /// One row of each sequence, at `position`, as it was drawn.
    fn step(&mut self, sequences: &[Sequence], position: usize) -> Result<(), ModelError> {
        let evidence = [position];
        let spans: Vec<Span<'_>> = sequences
            .iter()
            .map(|sequence| Span {
                first_position: position,
                token_ids: &sequence.ids[position..position + 1],
                blocks: &sequence.blocks,
                prompt_len: position,
                evidence: &evidence,
            })
            .collect();
        self.run(&spans)
    }

    fn run(&mut self, spans: &[Span<'_>]) -> Result<(), ModelError> {
        let go_on = &mut |_| ControlFlow::Continue(());
        self.stage.forward(&Batch { spans }, Input::Tokens, go_on).map(drop)
    }
}

/// The time to copy what a step of `rows` rows reads: every weight but the embedding, and the keys and values of `context`
/// positions of each row.
pub fn roofline(info: &StageInfo, limits: &CudaLimits, rows: usize, context: usize) -> Duration {
    let element = info.compute.dtype().bytes();
    let embedding = info.spec.embedding_weights() as f64 * element as f64;
    let kv = (2 * info.spec.layers * info.spec.kv_width() * element * rows * context) as f64;
    Duration::from_secs_f64((info.weight_bytes as f64 - embedding + kv) / limits.copy)
}

/// Multiplications and additions of prompts: every layer's weights for each row, the head's for one, and attention.
fn operations(spec: &DecoderSpec, Prompts { sequences, tokens }: Prompts) -> f64 {
    let tokens = tokens as f64;
    let attention = 2.0 * (spec.layers * spec.q_width()) as f64 * tokens * (tokens + 1.0);
    let layers = 2.0 * (spec.layer_weights() * spec.layers as u64) as f64 * tokens;
    sequences as f64 * (layers + attention + 2.0 * spec.embedding_weights() as f64)
}

impl FromStr for Prompts {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once(['x', '×']);
        let sizes = parts.and_then(|(n, tokens)| Some((n.trim().parse().ok()?, tokens.trim().parse().ok()?)));
        match sizes {
            Some((sequences @ 1.., tokens @ 1..)) => Ok(Self { sequences, tokens }),
            _ => Err(format!("{text:?} are no prompts (write 4x2048)")),
        }
    }
}

impl std::fmt::Display for Prompts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}x{}", self.sequences, self.tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_are_written_as_they_are_read() {
        let prompts = Prompts { sequences: 4, tokens: 2048 };
        assert_eq!("4x2048".parse(), Ok(prompts));
        assert_eq!(prompts.to_string(), "4x2048");
        for text in ["", "4", "x", "0x5", "5x0", "ax2", "-1x3"] {
            assert!(text.parse::<Prompts>().is_err(), "{text:?}");
        }
    }
}
