//! Stages chained in this process, as the tests drive them.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::env;
use std::num::NonZeroUsize;
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use asterism_model::stage::{Batch, Input, Output, Span, StageOptions, unwatched};
use asterism_model::{Checkpoint, DecoderSpec, Stage, Synthetic, WeightSource, split};
use asterism_tensor::{BLOCK_ROWS, Compute, CpuOptions, CudaOptions, Device, KvType, Tensor, TensorError};

/// Memory of a stage on a card: several share it.
const CARD_MEMORY: u64 = 1 << 30;

/// The folder of golden data: `ASTERISM_GOLDEN`, else `../shared/golden` beside the workspace, else the project's own copy.
pub fn golden_folder() -> PathBuf {
    if let Some(named) = std::env::var_os("ASTERISM_GOLDEN") {
        return named.into();
    }
    let shared = workspace().join("../shared/golden");
    if shared.is_dir() { shared } else { workspace().join("tests/golden") }
}

/// A checkpoint of the project's own copy.
pub fn own_checkpoint(name: &str) -> PathBuf {
    workspace().join("tests/golden").join(name)
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// What a chain is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    Cpu,
    Card,
}

impl On {
    /// The processor, and the first card if there is one; if there is none, that is said aloud.
    pub fn all() -> Vec<On> {
        static CARD: OnceLock<bool> = OnceLock::new();
        if *CARD.get_or_init(has_card) { vec![On::Cpu, On::Card] } else { vec![On::Cpu] }
    }

    pub fn device(self, threads: usize) -> Device {
        match self {
            On::Cpu => Device::cpu(CpuOptions::new(NonZeroUsize::new(threads).unwrap())).unwrap(),
            On::Card => card().unwrap(),
        }
    }
}

fn card() -> Result<Device, TensorError> {
    let cache = Some(env::temp_dir().join("asterism-test-kernels"));
    Device::cuda(CudaOptions { ordinal: 0, deterministic: true, cache })
}

/// Whether there is a card; `ASTERISM_TEST_CUDA` set to 0 hides it, set to 1 demands one.
fn has_card() -> bool {
    let wish = env::var("ASTERISM_TEST_CUDA").unwrap_or_default();
    if wish == "0" {
        return false;
    }
    match card() {
        Ok(_) => true,
        Err(
            error @ (TensorError::Library { .. }
            | TensorError::NoCard { .. }
            | TensorError::OldCard { .. }
            | TensorError::Cuda { what: "cuInit", .. }),
        ) if wish != "1" => {
            eprintln!("not run on a card: {error}");
            false
        }
        Err(error) => panic!("{error}"),
    }
}

/// How a chain is made.
#[derive(Clone, Debug)]
pub struct Setup {
    pub on: On,
    pub compute: Compute,
    pub stages: usize,
    pub threads: usize,
    pub max_rows: usize,
    pub max_context: usize,
}

impl Setup {
    pub fn new(compute: Compute) -> Self {
        Self { on: On::Cpu, compute, stages: 1, threads: 1, max_rows: 256, max_context: 512 }
    }

    /// The same for every device there is.
    pub fn everywhere(compute: Compute) -> impl Iterator<Item = Self> {
        On::all().into_iter().map(move |on| Self { on, ..Self::new(compute) })
    }
}

/// All stages of a model.
pub struct Chain {
    pub stages: Vec<Stage>,
}

/// A sequence under test: its tokens so far, and its blocks.
#[derive(Clone, Debug)]
pub struct Sequence {
    pub ids: Vec<u32>,
    pub prompt_len: usize,
    pub blocks: Vec<u32>,
}

/// What a step gave: logits of each evidence row; the residual stream before the first layer and after each, `[rows][hidden]`.
pub struct Seen {
    pub logits: Vec<Vec<f32>>,
    pub residuals: Vec<Vec<Vec<f32>>>,
}

impl Sequence {
    /// A prompt whose blocks, for `room` positions, are numbered from `first_block` downwards: never in the order of memory.
    pub fn new(prompt: &[u32], room: usize, first_block: u32) -> Self {
        let count = room.div_ceil(BLOCK_ROWS) as u32;
        let blocks = (first_block..first_block + count).rev().collect();
        Self { ids: prompt.to_vec(), prompt_len: prompt.len(), blocks }
    }

    /// The rows `range`, with evidence of `evidence`.
    pub fn span<'a>(&'a self, range: Range<usize>, evidence: &'a [usize]) -> Span<'a> {
        Span {
            first_position: range.start,
            token_ids: &self.ids[range],
            blocks: &self.blocks,
            prompt_len: self.prompt_len,
            evidence,
        }
    }
}

impl Chain {
    pub fn load(checkpoint: &Checkpoint, setup: &Setup) -> Self {
        Self::of(WeightSource::Checkpoint(checkpoint), setup)
    }

    pub fn made_up(synthetic: &Synthetic, setup: &Setup) -> Self {
        Self::of(WeightSource::Synthetic(synthetic), setup)
    }

    fn of(source: WeightSource<'_>, setup: &Setup) -> Self {
        let spec = DecoderSpec::from_config(&source.config().unwrap()).unwrap();
        let sizing = split::Sizing {
            device: split::DeviceKind::Cpu,
            compute: setup.compute,
            kv_type: KvType::of(setup.compute),
            weights: asterism_tensor::Dtype::Bf16,
            max_rows: setup.max_rows,
            evidence_rows: 64,
            logits_slots: 0,
            max_context: setup.max_context,
        };
        let ranges = split::even(&spec, &sizing, setup.stages).unwrap();
        let stages = ranges.into_iter().map(|layers| {
            let options = StageOptions {
                layers,
                compute: setup.compute,
                kv_type: sizing.kv_type,
                memory: (setup.on == On::Card).then_some(CARD_MEMORY),
                max_rows: setup.max_rows,
                evidence_rows: 64,
                logits_slots: 0,
                max_context: setup.max_context,
            };
            Stage::load(setup.on.device(setup.threads), source, options, &unwatched).unwrap()
        });
        Self { stages: stages.collect() }
    }

    /// Runs one step through all stages.
    pub fn step(&mut self, spans: &[Span<'_>]) -> Seen {
        self.run(spans, false)
    }

    /// The same, and keeps the residual stream of every layer.
    pub fn watched_step(&mut self, spans: &[Span<'_>]) -> Seen {
        self.run(spans, true)
    }

    fn run(&mut self, spans: &[Span<'_>], watch: bool) -> Seen {
        let batch = Batch { spans };
        let mut residuals = Vec::new();
        let mut hidden = Vec::new();
        let mut logits = Vec::new();
        for (index, stage) in self.stages.iter_mut().enumerate() {
            let input = if index == 0 { Input::Tokens } else { Input::Hidden(&hidden) };
            let output = if watch {
                let mut seen = |layers_done, residual: &Tensor| {
                    // What enters a later stage has been seen already.
                    if index == 0 || layers_done > 0 {
                        let rows = 0..residual.rows();
                        residuals.push(rows.map(|row| residual.read_row(row).unwrap()).collect());
                    }
                };
                stage.observe(&batch, input, &mut seen)
            } else {
                stage.forward(&batch, input, &mut |_| ControlFlow::Continue(()))
            };
            let output = output.unwrap();
            match output {
                Output::Hidden { rows } => {
                    hidden.clear();
                    stage.read_hidden(&mut hidden).unwrap();
                    assert_eq!(hidden.len(), rows * stage.info().row_bytes());
                }
                Output::Logits { rows } => {
                    let all = stage.logits().unwrap();
                    logits = (0..rows).map(|row| all.read_row(row).unwrap()).collect();
                }
            }
        }
        Seen { logits, residuals }
    }

    /// Feeds the prompt in chunks of `chunk` rows; the logits after its last token.
    pub fn prefill(&mut self, sequence: &Sequence, chunk: usize) -> Vec<f32> {
        let end = sequence.prompt_len;
        let mut last = Vec::new();
        for start in (0..end).step_by(chunk) {
            let stop = end.min(start + chunk);
            let evidence = [stop - 1];
            let wanted = if stop == end { &evidence[..] } else { &[] };
            last = self.step(&[sequence.span(start..stop, wanted)]).logits;
        }
        last.pop().unwrap()
    }

    /// Appends `id` and feeds it; the logits after it.
    pub fn decode(&mut self, sequence: &mut Sequence, id: u32) -> Vec<f32> {
        let position = sequence.ids.len();
        sequence.ids.push(id);
        let seen = self.step(&[sequence.span(position..position + 1, &[position])]);
        seen.logits.into_iter().next().unwrap()
    }
}
