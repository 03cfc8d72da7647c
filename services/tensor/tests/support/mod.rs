//! What all tests of operations share: every device there is, and reproducible numbers.
#![allow(dead_code, reason = "each test file uses a part of it")]

pub mod sequence;

use std::num::NonZeroUsize;

use asterism_tensor::{CpuOptions, Device, Dtype, Isa, Tensor};

/// Threads that tests run with.
pub const THREADS: [usize; 2] = [1, 2];

/// A device for every instruction set of this processor and every number of threads; the first is the scalar
/// specification on one thread.
pub fn devices() -> Vec<Device> {
    let available = Isa::ALL.into_iter().filter(|isa| isa.is_available());
    available.flat_map(|isa| THREADS.map(|threads| device(isa, threads))).collect()
}

pub fn device(isa: Isa, threads: usize) -> Device {
    let threads = NonZeroUsize::new(threads).unwrap();
    Device::cpu(CpuOptions { threads, isa: Some(isa) }).unwrap()
}

/// The best of this processor, on two threads.
pub fn best() -> Device {
    device(Isa::detect(), 2)
}

/// A tensor of these rows, rounded to `dtype`.
pub fn tensor(device: &Device, dtype: Dtype, rows: &[Vec<f32>]) -> Tensor {
    let mut tensor = device.tensor(dtype, rows.len(), rows.first().map_or(0, Vec::len)).unwrap();
    tensor.set_rows(rows.len()).unwrap();
    for (index, row) in rows.iter().enumerate() {
        tensor.write_row(index, row).unwrap();
    }
    tensor
}

/// All rows in use.
pub fn rows(tensor: &Tensor) -> Vec<Vec<f32>> {
    (0..tensor.rows()).map(|row| tensor.read_row(row).unwrap()).collect()
}

/// All bits in use.
pub fn bits(tensor: &Tensor) -> Vec<u8> {
    let mut bytes = Vec::new();
    tensor.read_bytes(&mut bytes);
    bytes
}

/// `x` to bf16 and back.
pub fn bf16(x: f64) -> f64 {
    f64::from(half::bf16::from_f32(x as f32).to_f32())
}

/// `x` as an activation of `dtype` holds it.
pub fn rounded(dtype: Dtype, x: f64) -> f64 {
    if dtype == Dtype::Bf16 { bf16(x) } else { x }
}

/// Asserts that two numbers differ by at most `tolerance`, relative to the larger of `want` and 1.
pub fn assert_near(got: f64, want: f64, tolerance: f64, what: &str) {
    let error = (got - want).abs() / want.abs().max(1.0);
    assert!(error <= tolerance, "{what}: {got} for {want}, off by {error:e}");
}

/// A small generator (SplitMix64).
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to `n` − 1.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// Roughly normal, of variance 1.
    pub fn normal(&mut self) -> f32 {
        let sum: f32 = (0..4).map(|_| (self.next() >> 40) as f32 / (1_u64 << 24) as f32).sum();
        (sum - 2.0) * 1.732
    }

    pub fn row(&mut self, cols: usize) -> Vec<f32> {
        (0..cols).map(|_| self.normal()).collect()
    }

    pub fn rows(&mut self, rows: usize, cols: usize) -> Vec<Vec<f32>> {
        (0..rows).map(|_| self.row(cols)).collect()
    }
}
