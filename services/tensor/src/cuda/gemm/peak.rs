//! The fastest that cuBLASLt multiplies at all, whatever its bits.

use super::Gemm;
use super::chain::Product;
use super::cublaslt::Problem;
use super::plan::PlanKey;
use super::store::Algorithm;
use crate::{Compute, Dtype, TensorError};

/// A multiplication of two square matrices of bf16, and the ways that the library knows to do it.
#[derive(Debug)]
pub struct Peak<'a> {
    gemm: &'a Gemm,
    problem: Problem,
    algorithms: Vec<Algorithm>,
    product: Product,
}

impl<'a> Peak<'a> {
    /// Matrices of `size` rows and columns at these addresses: activations, weights, outputs.
    pub fn new(gemm: &'a Gemm, size: usize, [x, weights, out]: [u64; 3]) -> Result<Peak<'a>, TensorError> {
        let (compute, out_type) = (Compute::Bf16, Dtype::Bf16);
        let key = PlanKey { rows: size, outputs: size, inputs: size, compute, out: out_type, bias: false };
        let mut problem = Problem::new(&gemm.library, &key)?;
        let algorithms = gemm.library.candidates(&mut problem)?;
        let product = Product {
            x,
            x_stride: size,
            weights,
            bias: 0,
            library_bias: 0,
            out,
            rows: size,
            outputs: size,
            inputs: size,
            scale: 1.0,
            compute,
            out_type,
        };
        Ok(Peak { gemm, problem, algorithms, product })
    }

    /// How many ways there are.
    pub fn ways(&self) -> usize {
        self.algorithms.len()
    }

    /// Enqueues the multiplication, done in one of the ways.
    ///
    /// # Safety
    /// The three matrices are there.
    pub unsafe fn run(&mut self, way: usize) -> Result<(), TensorError> {
        let way = &self.algorithms[way];
        // SAFETY: the caller's promise.
        unsafe { self.gemm.library.multiply(&mut self.problem, way, &self.product) }
    }
}
