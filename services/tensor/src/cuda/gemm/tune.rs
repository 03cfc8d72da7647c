//! Finds plans: of cuBLASLt's candidates the fastest whose bits are those of our own kernel.
//!
//! A candidate is run on random activations and real weights, and rows all over its output are compared bit by bit.
//! Those that are equal multiply in one ascending chain, as our kernel does, so a row's bits depend neither on the
//! plan nor on the number of rows. Times are taken over the weights of all layers in turn: the same ones again and
//! again would come out of the cache.
#![allow(unsafe_code, reason = "multiplies in memory of its own")]

use std::sync::PoisonError;

use super::chain::{Comparison, Product};
use super::cublaslt::Problem;
use super::plan::{PlanKey, VERIFIED_ROWS, stride};
use super::store::{Algorithm, Found};
use super::{Gemm, Plan};
use crate::cuda::graph::operations;
use crate::cuda::matrix::CardMatrix;
use crate::cuda::memory::DeviceMemory;
use crate::cuda::stream::Event;
use crate::{Compute, Dtype, TensorError};

/// Times taken of a candidate that may win; the middle one counts.
const SAMPLES: usize = 5;

/// A candidate whose first time is this much above the best is not timed again.
const HOPELESS: f32 = 1.1;

/// How much faster a candidate must be whose multiprocessors do unequal shares. Which of them get more depends on what
/// ran before: where the same multiplication follows itself it is dealt out well, in a step it may not be, and then
/// takes about a tenth longer (228 tiles on an H200: 26.3 ms instead of 25.2 for a step of 64 layers).
const EVEN_GAIN: f32 = 1.015;

/// Milliseconds of work in a candidate's first time, so that the launch does not show, and in each of those that decide.
const FIRST_MS: f32 = 0.4;
const SAMPLE_MS: f32 = 1.5;

/// The same where whole prompts are read: as long as it takes until a card's power limit tells which one wastes less.
const SUSTAINED_MS: f32 = 40.0;

/// From so many rows on the power limit decides.
const SUSTAINED_ROWS: usize = 1024;

/// A multiplication to find a plan for, and all matrices of its shape.
#[derive(Debug)]
pub struct Task<'a> {
    pub key: PlanKey,
    pub matrices: Vec<&'a CardMatrix>,
    /// Whether it has the most rows of all, which is what long prompts are read with.
    pub largest: bool,
}

/// Memory to try plans in.
#[derive(Debug)]
pub struct Bench<'a> {
    gemm: &'a Gemm,
    x: DeviceMemory,
    out: DeviceMemory,
    reference: DeviceMemory,
    /// Two u32 that comparisons count up.
    counts: DeviceMemory,
    /// What they were after the last comparison.
    counted: [u32; 2],
    start: Event,
    end: Event,
    /// Which of the matrices is next.
    turn: usize,
}

/// A candidate that runs.
#[derive(Debug)]
struct Trial {
    algorithm: Algorithm,
    /// Whether its bits are ours.
    equal: bool,
    /// Whether there was enough to compare: zeros prove nothing.
    proven: bool,
    /// Whether it is one kernel and nothing else.
    single: bool,
    /// In milliseconds; the first is of the run that was compared.
    times: Vec<f32>,
}

impl<'a> Bench<'a> {
    /// Memory for any of `tasks`, with random activations.
    pub fn new(gemm: &'a Gemm, tasks: &[Task<'_>]) -> Result<Bench<'a>, TensorError> {
        let context = gemm.card.context();
        let most =
            |bytes: fn(&PlanKey) -> usize| tasks.iter().map(|task| bytes(&task.key)).max().unwrap_or(0);
        let memory = |bytes| DeviceMemory::unwritten(context, bytes);
        let bench = Bench {
            gemm,
            x: memory(most(|key| key.rows * key.inputs * key.compute.dtype().bytes()))?,
            out: memory(most(|key| key.rows * key.outputs * key.out.bytes()))?,
            reference: memory(most(|key| key.rows.min(VERIFIED_ROWS) * key.outputs * key.out.bytes()))?,
            counts: DeviceMemory::zeroed(context, 2 * size_of::<u32>())?,
            counted: [0; 2],
            start: Event::timed(context)?,
            end: Event::timed(context)?,
            turn: 0,
        };
        Ok(bench)
    }

    /// The plan for a task: out of the store if it still proves right, else found anew and put there.
    pub fn plan(&mut self, task: &Task<'_>) -> Result<Plan, TensorError> {
        let (gemm, key) = (self.gemm, &task.key);
        let mut problem = Problem::new(&gemm.library, key)?;
        self.prepare(task)?;
        let stored = gemm.store.lock().unwrap_or_else(PoisonError::into_inner).get(key);
        if let Some(Found::Equal(algorithm)) = stored
            && gemm.library.accepts(&mut problem, &algorithm)
            && self.try_out(task, &mut problem, &algorithm)?.is_some_and(|trial| trial.equal)
        {
            return Ok(Plan::Library { problem, algorithm, equal: true });
        }
        if stored == Some(Found::NoneEqual) {
            return self.without_equal(task, problem);
        }
        let mut trials = Vec::new();
        for algorithm in gemm.library.candidates(&mut problem)? {
            trials.extend(self.try_out(task, &mut problem, &algorithm)?);
        }
        let proven = trials.iter().all(|trial| trial.proven);
        trials.retain(|trial| trial.equal);
        // In a recorded step an operation more, such as the clearing of a counter, costs microseconds that do not show
        // where the same multiplication follows itself.
        if key.is_recorded() && trials.iter().any(|trial| trial.single) {
            trials.retain(|trial| trial.single);
        }
        let best = self.fastest(task, &mut problem, trials)?;
        if proven {
            let found = best.map_or(Found::NoneEqual, Found::Equal);
            gemm.store.lock().unwrap_or_else(PoisonError::into_inner).insert(*key, found);
        }
        match best {
            Some(algorithm) => Ok(Plan::Library { problem, algorithm, equal: true }),
            None => self.without_equal(task, problem),
        }
    }

    /// What multiplies where no candidate has our bits.
    fn without_equal(&self, task: &Task<'_>, mut problem: Problem) -> Result<Plan, TensorError> {
        if task.key.suits_own() || self.gemm.deterministic {
            return Ok(Plan::Own);
        }
        let first = self.gemm.library.candidates(&mut problem)?.into_iter().next();
        Ok(first.map_or(Plan::Own, |algorithm| Plan::Library { problem, algorithm, equal: false }))
    }

    /// Makes up activations and multiplies the rows that will be compared by our own kernel.
    fn prepare(&mut self, task: &Task<'_>) -> Result<(), TensorError> {
        let key = &task.key;
        self.fill(&self.x, key.rows * key.inputs, key.compute.dtype(), 1)?;
        let Some(product) = self.product(task, 0) else { return Ok(()) };
        let (rows, stride) = (key.rows.min(VERIFIED_ROWS), stride(key.rows));
        let out = self.reference.address();
        let product = Product { rows, x_stride: stride * key.inputs, out, ..product };
        // SAFETY: `new` took enough memory for every task.
        unsafe { self.gemm.chains.multiply(&product) }
    }

    /// Runs a candidate once and compares; `None` if it cannot run.
    fn try_out(
        &mut self,
        task: &Task<'_>,
        problem: &mut Problem,
        algorithm: &Algorithm,
    ) -> Result<Option<Trial>, TensorError> {
        let (gemm, key) = (self.gemm, &task.key);
        let Some(product) = self.product(task, 0) else { return Ok(None) };
        // What the candidate before has left must not pass for this one's.
        self.fill(&self.out, key.rows * key.outputs, key.out, 2)?;
        self.start.record(&gemm.card.compute)?;
        // SAFETY: `new` took enough memory for every task.
        if unsafe { gemm.library.multiply(problem, algorithm, &product) }.is_err() {
            return Ok(None);
        }
        self.end.record(&gemm.card.compute)?;
        let row = key.outputs * key.out.bytes();
        let rows = key.rows.min(VERIFIED_ROWS);
        let comparison = Comparison {
            out: self.out.address(),
            stride: stride(key.rows) * row,
            reference: self.reference.address(),
            row,
            rows,
            counts: self.counts.address(),
        };
        // SAFETY: as above, and the last row compared is among those computed.
        unsafe { gemm.chains.compare(&comparison) }?;
        let mut counts = [0_u32; 2];
        self.counts.read(0, bytemuck::cast_slice_mut(&mut counts))?;
        let [different, alive] = [0, 1].map(|index| counts[index].wrapping_sub(self.counted[index]) as usize);
        self.counted = counts;
        let proven = alive * 2 >= rows * row / 2;
        let time = self.start.milliseconds_to(&self.end)?;
        // SAFETY: as above; it is not run.
        let mut enqueue = || unsafe { gemm.library.multiply(problem, algorithm, &product) };
        let single = operations(&gemm.card, &mut enqueue).is_ok_and(|operations| operations == 1);
        let equal = proven && different == 0;
        Ok(Some(Trial { algorithm: *algorithm, equal, proven, single, times: vec![time] }))
    }

    /// Which of `trials` has the least middle time.
    fn fastest(
        &mut self,
        task: &Task<'_>,
        problem: &mut Problem,
        mut trials: Vec<Trial>,
    ) -> Result<Option<Algorithm>, TensorError> {
        // Those that also run with even shares.
        let algorithms = trials.iter().map(|trial| trial.algorithm);
        let even = algorithms.filter(|algorithm| algorithm.multiprocessors != 0);
        let evened: Vec<_> = even.map(|algorithm| Algorithm { multiprocessors: 0, ..algorithm }).collect();
        for trial in &mut trials {
            self.sample(task, problem, trial, FIRST_MS)?;
            // The run that was compared may have been the first of its kernel, which loads it.
            trial.times.remove(0);
        }
        let first = |trial: &Trial| trial.times.first().copied().unwrap_or(f32::MAX);
        let best = trials.iter().map(first).fold(f32::MAX, f32::min);
        trials.retain(|trial| first(trial) <= best * HOPELESS);
        if trials.len() > 1 {
            let sustained = task.largest && task.key.rows >= SUSTAINED_ROWS;
            let work_ms = if sustained { SUSTAINED_MS } else { SAMPLE_MS };
            // In turns, so that whatever else slows the card falls on all of them.
            for _ in 0..SAMPLES {
                for trial in &mut trials {
                    self.sample(task, problem, trial, work_ms)?;
                }
            }
            for trial in &mut trials {
                trial.times.remove(0);
            }
        }
        let middle = |trial: &Trial| {
            let mut times = trial.times.clone();
            times.sort_unstable_by(f32::total_cmp);
            let time = times.get(times.len() / 2).copied().unwrap_or(f32::MAX);
            if evened.contains(&trial.algorithm) { time * EVEN_GAIN } else { time }
        };
        let best = trials.iter().min_by(|a, b| middle(a).total_cmp(&middle(b)));
        Ok(best.map(|trial| trial.algorithm))
    }

    /// Takes a candidate's time once more.
    fn sample(
        &mut self,
        task: &Task<'_>,
        problem: &mut Problem,
        trial: &mut Trial,
        work_ms: f32,
    ) -> Result<(), TensorError> {
        let gemm = self.gemm;
        let estimate = trial.times.first().copied().unwrap_or(work_ms).max(work_ms / 16.0);
        let runs = (work_ms / estimate).ceil().max(1.0);
        self.start.record(&gemm.card.compute)?;
        for _ in 0..runs as usize {
            self.turn += 1;
            if let Some(product) = self.product(task, self.turn) {
                // SAFETY: `new` took enough memory for every task.
                unsafe { gemm.library.multiply(problem, &trial.algorithm, &product) }?;
            }
        }
        self.end.record(&gemm.card.compute)?;
        self.end.wait()?;
        trial.times.push(self.start.milliseconds_to(&self.end)? / runs);
        Ok(())
    }

    /// The whole multiplication by one of the task's matrices.
    fn product(&self, task: &Task<'_>, turn: usize) -> Option<Product> {
        let key = &task.key;
        let matrix = task.matrices.get(turn % task.matrices.len().max(1))?;
        // Logits are scaled: by the library as by us.
        let scale = if key.out == Dtype::F32 && !key.bias { 0.7 } else { 1.0 };
        let [x, out] = [&self.x, &self.out].map(DeviceMemory::address);
        Some(Product::of(matrix, [x, out], (key.rows, key.out), scale))
    }

    /// Random numbers in ±1.
    fn fill(
        &self,
        memory: &DeviceMemory,
        count: usize,
        dtype: Dtype,
        stream: u64,
    ) -> Result<(), TensorError> {
        let compute = if dtype == Dtype::F32 { Compute::F32 } else { Compute::Bf16 };
        // SAFETY: `new` took enough memory for every task.
        unsafe { self.gemm.random.fill(memory.address(), count, compute, (stream, 1.0 / 16_777_216.0)) }
    }
}
