//! Multiplication by weights.
//!
//! Every output is one chain of sums in ascending K, whatever multiplies: our own kernels do it so, and of cuBLASLt's
//! plans only those are kept that gave the same bits when they were tried. So a row's bits depend neither on the other
//! rows nor on how many they are. Plans are found for buckets of rows before the first step; the rows between are
//! computed along with the rest of their bucket, which tensors have memory for.
#![allow(unsafe_code, reason = "hands addresses of tensors to kernels")]

mod chain;
mod cublaslt;
pub mod peak;
pub mod plan;
mod store;
mod tune;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::cuda::card::Card;
use crate::cuda::matrix::CardMatrix;
use crate::cuda::synthetic::Random;
use crate::cuda::{Cuda, CudaOptions};
use crate::{Dtype, Matrix, Tensor, TensorError};

use chain::{Chains, Product};
use cublaslt::{Library, Problem};
use plan::{PlanKey, bucket, buckets};
use store::{Algorithm, Store};
use tune::{Bench, Task};

/// cuBLASLt, its plans, and our own kernels.
#[derive(Debug)]
pub struct Gemm {
    card: Arc<Card>,
    deterministic: bool,
    chains: Chains,
    random: Random,
    plans: Mutex<HashMap<PlanKey, Plan>>,
    library: Library,
    store: Mutex<Store>,
    unprepared: AtomicU64,
}

/// How a bucket of rows is multiplied.
#[derive(Debug)]
enum Plan {
    /// By our own kernel.
    Own,
    /// By cuBLASLt. If not `equal`, its bits may differ from those of other plans.
    Library { problem: Problem, algorithm: Algorithm, equal: bool },
}

/// How a card multiplies: whose plans there are, and what they promise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MatmulPlans {
    /// Plans of cuBLASLt that gave the bits of our own kernel when they were tried at this start.
    pub verified: usize,
    /// Plans that are our own kernel.
    pub own: usize,
    /// Plans of cuBLASLt with other bits: a row may depend on how many rows it is computed with.
    pub unequal: usize,
    /// Multiplications that came without a plan, and were left to our own kernel.
    pub unprepared: u64,
}

impl MatmulPlans {
    /// Whether a row's products depend on that row alone.
    pub fn are_deterministic(&self) -> bool {
        self.unequal == 0
    }
}

impl Gemm {
    /// Compiles our own kernels, opens cuBLASLt and reads the plans that were found before.
    pub fn new(card: &Arc<Card>, options: &CudaOptions, random: &Random) -> Result<Gemm, TensorError> {
        Ok(Gemm {
            card: Arc::clone(card),
            deterministic: options.deterministic,
            chains: Chains::new(card)?,
            random: random.clone(),
            plans: Mutex::default(),
            library: Library::new(card)?,
            store: Mutex::new(Store::open(options.cache.as_deref(), card.name(), card.libraries().cublaslt)),
            unprepared: AtomicU64::new(0),
        })
    }

    /// Finds plans for multiplying up to `rows` rows by each of `matrices` into outputs of type `out`.
    fn prepare(&self, matrices: &[&CardMatrix], rows: usize, out: Dtype) -> Result<(), TensorError> {
        let buckets = buckets(rows);
        let mut tasks: Vec<Task<'_>> = Vec::new();
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        for &matrix in matrices {
            for &rows in &buckets {
                let key = PlanKey::of(matrix, rows, out);
                if plans.contains_key(&key) {
                    continue;
                }
                if !key.suits_library() {
                    plans.insert(key, Plan::Own);
                    continue;
                }
                match tasks.iter_mut().find(|task| task.key == key) {
                    Some(task) => task.matrices.push(matrix),
                    None => {
                        let largest = Some(&rows) == buckets.last();
                        tasks.push(Task { key, matrices: vec![matrix], largest });
                    }
                }
            }
        }
        if tasks.is_empty() {
            return Ok(());
        }
        let mut bench = Bench::new(self, &tasks)?;
        for task in &tasks {
            plans.insert(task.key, bench.plan(task)?);
        }
        self.card.compute.synchronize()?;
        // A store that cannot be written costs the next start some time and nothing else.
        let _ = self.store.lock().unwrap_or_else(PoisonError::into_inner).save();
        Ok(())
    }

    /// Enqueues a multiplication by the plan for its rows; our own kernel does what has none.
    ///
    /// # Safety
    /// The addresses are those of memory that holds what `product` says; x and the outputs have room for `room` rows.
    unsafe fn multiply(&self, product: &Product, room: usize) -> Result<(), TensorError> {
        let key = PlanKey {
            rows: bucket(product.rows),
            outputs: product.outputs,
            inputs: product.inputs,
            compute: product.compute,
            out: product.out_type,
            bias: product.bias != 0,
        };
        // The library scales before it adds the bias, we after.
        let fits = key.rows <= room && (product.scale == 1.0 || !key.bias);
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        match plans.get_mut(&key) {
            Some(Plan::Library { problem, algorithm, .. }) if fits => {
                // SAFETY: the caller's promise, and there is room for the bucket.
                return unsafe { self.library.multiply(problem, algorithm, product) };
            }
            Some(Plan::Own) => {}
            _ => {
                self.unprepared.fetch_add(1, Ordering::Relaxed);
            }
        }
        // SAFETY: the caller's promise.
        unsafe { self.chains.multiply(product) }
    }

    fn plans(&self) -> MatmulPlans {
        let mut counts =
            MatmulPlans { unprepared: self.unprepared.load(Ordering::Relaxed), ..MatmulPlans::default() };
        for plan in self.plans.lock().unwrap_or_else(PoisonError::into_inner).values() {
            match plan {
                Plan::Own => counts.own += 1,
                Plan::Library { equal: true, .. } => counts.verified += 1,
                Plan::Library { equal: false, .. } => counts.unequal += 1,
            }
        }
        counts
    }
}

impl PlanKey {
    fn of(matrix: &CardMatrix, rows: usize, out: Dtype) -> PlanKey {
        let (outputs, inputs, compute) = (matrix.outputs(), matrix.inputs(), matrix.compute());
        PlanKey { rows, outputs, inputs, compute, out, bias: matrix.bias().is_some() }
    }
}

impl Product {
    /// So many rows at `x` times `matrix`, to outputs of a type at `out`.
    fn of(matrix: &CardMatrix, [x, out]: [u64; 2], (rows, out_type): (usize, Dtype), scale: f32) -> Product {
        let bias = matrix.bias();
        Product {
            x,
            x_stride: matrix.inputs(),
            weights: matrix.address(),
            bias: bias.map_or(0, |bias| bias.address(Dtype::F32)),
            library_bias: bias.map_or(0, |bias| bias.address(out_type)),
            out,
            rows,
            outputs: matrix.outputs(),
            inputs: matrix.inputs(),
            scale,
            compute: matrix.compute(),
            out_type,
        }
    }
}

impl Cuda {
    /// out ← (x · matrix + bias) · scale.
    pub(crate) fn multiply(
        &self,
        x: &Tensor,
        matrix: &CardMatrix,
        scale: f32,
        out: &mut Tensor,
    ) -> Result<(), TensorError> {
        if x.rows() == 0 || matrix.outputs() == 0 {
            return Ok(());
        }
        let room = |tensor: &Tensor| tensor.storage().bytes() / tensor.row_bytes().max(1);
        let room = room(x).min(room(out));
        let product = Product::of(matrix, [x.address()?, out.address()?], (x.rows(), out.dtype()), scale);
        // SAFETY: the tensors' memory, of the sizes that were checked by the operation.
        unsafe { self.gemm.multiply(&product, room) }
    }

    pub(crate) fn prepare_matmul(
        &self,
        matrices: &[&Matrix],
        rows: usize,
        out: Dtype,
    ) -> Result<(), TensorError> {
        let matrices: Vec<_> = matrices.iter().map(|matrix| matrix.card()).collect::<Result<_, _>>()?;
        self.gemm.prepare(&matrices, rows, out)
    }

    /// What multiplies, and what that promises.
    pub(crate) fn matmul_plans(&self) -> MatmulPlans {
        self.gemm.plans()
    }
}
