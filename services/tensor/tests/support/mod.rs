//! What all tests of operations share: every device there is, and reproducible numbers.
#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::panic, reason = "a test that fails says where")]

pub mod sequence;

use std::env;
use std::num::NonZeroUsize;
use std::sync::Once;

use asterism_tensor::{CpuOptions, CudaOptions, Device, Dtype, Indices, Isa, Tensor, TensorError};

/// Threads that tests run with.
pub const THREADS: [usize; 2] = [1, 2];

/// The processor with every instruction set it has and every number of threads; the first is the scalar
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

/// The first card; none, said aloud, where there is no card. `ASTERISM_TEST_CUDA` set to 0 leaves it out, set to 1
/// fails without one.
pub fn gpus() -> Vec<Device> {
    let wish = env::var("ASTERISM_TEST_CUDA").unwrap_or_default();
    if wish == "0" {
        return Vec::new();
    }
    let cache = Some(env::temp_dir().join("asterism-test-kernels"));
    match Device::cuda(CudaOptions { ordinal: 0, deterministic: true, cache }) {
        Ok(device) => vec![device],
        Err(
            error @ (TensorError::Library { .. }
            | TensorError::NoCard { .. }
            | TensorError::OldCard { .. }
            | TensorError::Cuda { what: "cuInit", .. }),
        ) if wish != "1" => {
            static SAID: Once = Once::new();
            SAID.call_once(|| eprintln!("not run on a card: {error}"));
            Vec::new()
        }
        Err(error) => panic!("{error}"),
    }
}

/// The processor in every way, then the card.
pub fn all() -> Vec<Device> {
    devices().into_iter().chain(gpus()).collect()
}

/// A tensor of these rows, rounded to `dtype`.
pub fn tensor(device: &Device, dtype: Dtype, rows: &[Vec<f32>]) -> Tensor {
    let mut tensor = device.tensor(dtype, rows.len(), rows.first().map_or(0, Vec::len)).unwrap();
    let values = rows.iter().flatten().copied();
    let bytes: Vec<u8> = match dtype {
        Dtype::F32 => values.flat_map(f32::to_le_bytes).collect(),
        _ => values.flat_map(|x| half::bf16::from_f32(x).to_le_bytes()).collect(),
    };
    tensor.write_bytes(&bytes).unwrap();
    tensor.set_rows(rows.len()).unwrap();
    tensor
}

/// All rows in use.
pub fn rows(tensor: &Tensor) -> Vec<Vec<f32>> {
    if tensor.cols() == 0 {
        return vec![Vec::new(); tensor.rows()];
    }
    let bytes = bits(tensor);
    let row = |bytes: &[u8]| match tensor.dtype() {
        Dtype::F32 => bytes.as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect(),
        _ => bytes.as_chunks().0.iter().map(|x| half::bf16::from_le_bytes(*x).to_f32()).collect(),
    };
    bytes.chunks_exact(tensor.row_bytes()).map(row).collect()
}

/// All bits in use.
pub fn bits(tensor: &Tensor) -> Vec<u8> {
    let mut bytes = Vec::new();
    tensor.read_bytes(&mut bytes).unwrap();
    bytes
}

/// A list of ids or row numbers.
pub fn indices(device: &Device, values: &[u32]) -> Indices {
    let mut indices = device.indices(values.len()).unwrap();
    device.write_indices(values, values.len(), &mut indices).unwrap();
    indices
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
