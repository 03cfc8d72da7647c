//! A whole model as one stage in this process.

use std::fmt;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use asterism_model::stage::{Batch, Input, Span, StageOptions, unwatched};
use asterism_model::{Checkpoint, DecoderSpec, ModelError, Stage, WeightSource};
use asterism_shard::ComputeType;
use asterism_tensor::{
    BLOCK_ROWS, Compute, CpuOptions, Device, EvidenceRequest, EvidenceRoom, KvType, Limits, Processors,
};

use super::evidence::Evidence;
use super::{ROUNDS, median};

/// Rows of the prompts, each in one step.
const PROMPTS: [usize; 2] = [128, LONGEST];
const LONGEST: usize = 512;
/// Tokens decoded, of a sequence of their own.
const ANSWER: usize = 64;

/// What was measured at a number of threads.
pub struct Speeds {
    threads: NonZeroUsize,
    decode: Duration,
    /// A token's bytes by its time, in bytes a second, of the rate of reading right after it: of tokens of their own, which
    /// find in caches what a reading left there.
    share: f64,
    /// That rate.
    read: f64,
    prefills: Vec<Prefill>,
    /// Of multiplying: f32 multiply-adds, and bf16 dot products where there are some.
    fma: f64,
    dp: Option<f64>,
    compute: Compute,
}

/// The middle of several figures.
fn middle(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or_default()
}

/// A prompt that was read.
struct Prefill {
    rows: usize,
    time: Duration,
    /// Multiplications and additions by weights, and those of attention.
    matrices: f64,
    attention: f64,
}

/// Loads the model and lets it read a prompt and answer it, several times.
pub fn measure(model: &Path, compute: ComputeType, threads: NonZeroUsize) -> Result<Speeds, ModelError> {
    let checkpoint = Checkpoint::open(model)?;
    let spec = DecoderSpec::from_config(&checkpoint.config()?)?;
    let device = Device::cpu(CpuOptions::new(threads))?;
    let options = StageOptions {
        layers: 0..spec.layers,
        compute: compute.into(),
        kv_type: KvType::of(compute.into()),
        memory: None,
        max_rows: LONGEST,
        evidence_rows: 1,
        logits_slots: 0,
        max_context: LONGEST.max(ANSWER),
    };
    let mut stage = Stage::load(device, WeightSource::Checkpoint(&checkpoint), options, &unwatched)?;
    let blocks: Vec<u32> = (0..).take(LONGEST.max(ANSWER).div_ceil(BLOCK_ROWS)).collect();
    let room = EvidenceRoom { rows: 1, vocab: spec.vocab, top_k: 1, ids: 0 };
    let evidence = Evidence::new(stage.device(), room)?;
    let mut run = Run { stage: &mut stage, blocks, evidence };
    // Once without a clock: pages are touched, clocks rise.
    run.prefill(LONGEST)?;
    let (mut prefills, mut decodes) = (PROMPTS.map(|_| Vec::new()), Vec::new());
    let mut limits: Vec<Limits> = Vec::new();
    let bytes = run.decode_bytes();
    let probe = run.stage.device().read_probe(bytes as usize)?;
    let (mut shares, mut reads) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        // Of multiplying: reading has its probe.
        limits.push(run.stage.device().limits(0)?);
        let mut first = 0;
        for (rows, times) in PROMPTS.into_iter().zip(&mut prefills) {
            let began = Instant::now();
            first = run.prefill(rows)?;
            times.push(began.elapsed());
        }
        let began = Instant::now();
        run.decode(first, |_, _| Ok(()))?;
        decodes.push(began.elapsed() / ANSWER as u32);
        run.decode(first, |device, token| {
            let read = device.read(&probe)?;
            shares.push(bytes / token.as_secs_f64() / read);
            reads.push(read);
            Ok(())
        })?;
    }
    Ok(Speeds {
        threads,
        decode: median(decodes),
        share: middle(shares),
        read: middle(reads),
        prefills: PROMPTS
            .into_iter()
            .zip(prefills)
            .map(|(rows, times)| run.read(rows, median(times)))
            .collect(),
        fma: middle(limits.iter().map(|limits| limits.fma).collect()),
        dp: limits.iter().map(|limits| limits.dp).collect::<Option<_>>().map(middle),
        compute: compute.into(),
    })
}

struct Run<'a> {
    stage: &'a mut Stage,
    blocks: Vec<u32>,
    evidence: Evidence,
}

impl Run<'_> {
    /// Reads a prompt of so many tokens; the token after it.
    fn prefill(&mut self, rows: usize) -> Result<u32, ModelError> {
        let vocab = self.stage.info().spec.vocab;
        // Any ids do: speed does not depend on them.
        let prompt: Vec<u32> = (0..rows).map(|position| (position * 7919 % vocab) as u32).collect();
        self.step(&prompt, 0)
    }

    /// Decodes an answer. `then` hears what each token took before the next is begun.
    fn decode(
        &mut self,
        first: u32,
        mut then: impl FnMut(&Device, Duration) -> Result<(), ModelError>,
    ) -> Result<(), ModelError> {
        let mut id = first;
        for position in 0..ANSWER {
            let began = Instant::now();
            id = self.step(&[id], position)?;
            then(self.stage.device(), began.elapsed())?;
        }
        Ok(())
    }

    /// Feeds `token_ids` from `first_position` on; the best token after them.
    fn step(&mut self, token_ids: &[u32], first_position: usize) -> Result<u32, ModelError> {
        let evidence = [first_position + token_ids.len() - 1];
        // What follows a prompt was drawn; so was all but the first token of a sequence that is decoded from its beginning.
        let prompt_len = token_ids.len();
        let blocks = &self.blocks;
        let span = Span { first_position, token_ids, blocks, prompt_len, evidence: &evidence };
        self.stage.forward(&Batch { spans: &[span] }, Input::Tokens, &mut |_| ControlFlow::Continue(()))?;
        let (row, slot, top_k) = (0, 0, 1);
        let processors = Processors::NONE;
        let request = EvidenceRequest { row, slot, processors, top_k, temperature: None, logprobs: None };
        let evidence = self.evidence.of(self.stage, &[request])?;
        Ok(evidence.first().and_then(|row| row.ids.first()).copied().unwrap_or(0))
    }

    /// Bytes that one token's way through the model reads: every weight but the embedding, and the KV so far.
    fn decode_bytes(&self) -> f64 {
        let info = self.stage.info();
        let embedding = info.weight_bytes as f64 * info.spec.embedding_weights() as f64
            / (info.spec.layer_weights() * info.spec.layers as u64 + 2 * info.spec.embedding_weights())
                as f64;
        let kv = 2 * info.spec.layers * info.spec.kv_width() * info.kv_type.dtype().bytes();
        info.weight_bytes as f64 - embedding + (kv * (ANSWER / 2)) as f64
    }

    /// A prompt that took `time`: every layer's weights for each row, the head's for one, and attention.
    fn read(&self, rows: usize, time: Duration) -> Prefill {
        let spec = &self.stage.info().spec;
        let each = rows as f64;
        let attention = 2.0 * (spec.layers * spec.q_width()) as f64 * each * (each + 1.0);
        let layers = 2.0 * (spec.layer_weights() * spec.layers as u64) as f64 * each;
        Prefill { rows, time, matrices: layers + 2.0 * spec.embedding_weights() as f64, attention }
    }
}

impl fmt::Display for Speeds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let &Speeds { share, read, fma, dp, .. } = self;
        let each = self.decode.as_secs_f64();
        writeln!(
            f,
            "{:<7}  {:<11}  {:<9.1}  {:<9.3}  {:.0} % of {:.1} GB/s read",
            self.threads,
            "decode",
            1.0 / each,
            each * 1e3,
            100.0 * share,
            read / 1e9,
        )?;
        let (peak, instruction) = match (self.compute, dp) {
            (Compute::Bf16, Some(dp)) => (dp, "bf16 dot product"),
            _ => (fma, "f32 multiply-add"),
        };
        for Prefill { rows, time, matrices, attention } in &self.prefills {
            let whole = time.as_secs_f64();
            // Attention multiplies in f32 whatever the activations are.
            let floor = matrices / peak + attention / fma;
            writeln!(
                f,
                "{:<7}  {:<11}  {:<9.1}  {:<9.3}  {:.0} % of {:.0} GFLOP/s {instruction}, attention at {:.0}",
                self.threads,
                format!("prefill {rows}"),
                *rows as f64 / whole,
                whole * 1e3 / *rows as f64,
                100.0 * floor / whole,
                peak / 1e9,
                fma / 1e9,
            )?;
        }
        Ok(())
    }
}
