//! Multiplications of a small model (30 layers of 576, head of 49,152), best of several, beside the limits
//! measured just before and after: `cargo bench -p asterism-tensor --bench matmul -- [INSTRUCTIONS] [bf16|f32]
//! [THREADS [ROWS ...]]`.
//!
//! Decode reads every weight once a pass, so its limit is reading memory; prefill multiplies. A pass is the
//! matrices of all layers and the head, for all rows in decode and one in prefill.
#![allow(clippy::unwrap_used, reason = "a bench ends at its first error")]

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use asterism_tensor::{
    Columns, Compute, CpuOptions, Device, Dtype, Isa, Layout, Limits, Matrix, MatrixBuilder, Tensor,
};

const LAYERS: usize = 30;

/// Inputs and outputs of a layer's matrices.
const SHAPES: [(usize, usize); 4] = [(576, 1728), (576, 576), (576, 3072), (1536, 576)];
const HEAD: (usize, usize) = (576, 49152);

/// Beyond so many rows only one wants the head.
const DECODE_ROWS: usize = 16;

struct Model {
    layers: Vec<Matrix>,
    head: Matrix,
    /// One per row length of a matrix' input, and one per output.
    inputs: Vec<Tensor>,
    outputs: Vec<Tensor>,
    last: Tensor,
    logits: Tensor,
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let numbers: Vec<usize> = words.iter().filter_map(|word| word.parse().ok()).collect();
    let named = |name: &str| words.iter().any(|word| word == name);
    let threads: Vec<usize> = numbers.first().map_or(vec![1, 2], |threads| vec![*threads]);
    let rows: Vec<usize> =
        if numbers.len() > 1 { numbers[1..].to_vec() } else { vec![1, 2, 4, 8, 16, 128, 512] };
    for isa in Isa::ALL.into_iter().skip(1).filter(|isa| isa.is_available()) {
        if Isa::ALL.iter().any(|isa| named(isa.name())) && !named(isa.name()) {
            continue;
        }
        for &threads in &threads {
            let threads = NonZeroUsize::new(threads).unwrap();
            let device = Device::cpu(CpuOptions { threads, isa: Some(isa) }).unwrap();
            for (compute, stored) in
                [(Compute::Bf16, Dtype::Bf16), (Compute::F32, Dtype::Bf16), (Compute::F32, Dtype::F32)]
            {
                if !(named("bf16") || named("f32")) || named(compute.name()) {
                    println!("\n{}, {compute} with weights in {stored}", device.describe());
                    bench(&device, compute, stored, &rows);
                }
            }
        }
    }
}

fn bench(device: &Device, compute: Compute, stored: Dtype, rows: &[usize]) {
    let most = rows.iter().copied().max().unwrap();
    let mut model = Model::new(device, compute, stored, most);
    let bytes = model.layers.iter().chain([&model.head]).map(Matrix::bytes).sum::<usize>();
    for &rows in rows {
        model.set_rows(rows);
        let before = device.limits(bytes).unwrap();
        let time = best(if rows > DECODE_ROWS { 4 } else { 12 }, || model.pass(device));
        let after = device.limits(bytes).unwrap();
        let weights = |matrix: &Matrix| (matrix.inputs() * matrix.outputs()) as f64;
        let head_rows = if rows > DECODE_ROWS { 1 } else { rows };
        let operations = 2.0 * model.layers.iter().map(weights).sum::<f64>() * rows as f64
            + 2.0 * weights(&model.head) * head_rows as f64;
        let peak = |limits: Limits| match device.path(compute).as_str() {
            "dp" => limits.dp.unwrap_or(limits.fma),
            _ => limits.fma,
        };
        let (read, peak) = (before.read.max(after.read), peak(before).max(peak(after)));
        let (bytes, operations) = (bytes as f64 / time.as_secs_f64(), operations / time.as_secs_f64());
        println!(
            "{rows:4} rows {:8.2} ms | {:5.1} of {:5.1} GB/s {:3.0} % | {:6.1} of {:6.1} GFLOP/s {:3.0} %",
            time.as_secs_f64() * 1e3,
            bytes / 1e9,
            read / 1e9,
            bytes / read * 100.0,
            operations / 1e9,
            peak / 1e9,
            operations / peak * 100.0,
        );
    }
}

impl Model {
    fn new(device: &Device, compute: Compute, stored: Dtype, rows: usize) -> Model {
        let matrix = |(inputs, outputs): (usize, usize)| {
            let bytes: Vec<u8> = (0..inputs * outputs * stored.bytes())
                // Exponents around 2^-6 in every type, so that no number is denormal or infinite.
                .map(|i| if i % stored.bytes() == stored.bytes() - 1 { 0x3c } else { (i / 7) as u8 })
                .collect();
            let layout = Layout::OutputsFirst;
            let columns = Columns { bytes: &bytes, dtype: stored, layout, outputs, select: None };
            device.matrix(MatrixBuilder::new(inputs, compute).columns(columns)).unwrap()
        };
        let layers: Vec<Matrix> = (0..LAYERS).flat_map(|_| SHAPES.map(matrix)).collect();
        let tensor = |dtype, rows, cols| device.tensor(dtype, rows, cols).unwrap();
        let dtype = compute.dtype();
        device.reserve(rows, 1536).unwrap();
        Model {
            layers,
            head: matrix(HEAD),
            inputs: SHAPES.map(|(inputs, _)| filled(tensor(dtype, rows, inputs))).into(),
            outputs: SHAPES.map(|(_, outputs)| tensor(dtype, rows, outputs)).into(),
            last: filled(tensor(dtype, rows.min(DECODE_ROWS), HEAD.0)),
            logits: tensor(Dtype::F32, rows.min(DECODE_ROWS), HEAD.1),
        }
    }

    fn set_rows(&mut self, rows: usize) {
        for input in &mut self.inputs {
            input.set_rows(rows).unwrap();
        }
        self.last.set_rows(if rows > DECODE_ROWS { 1 } else { rows }).unwrap();
    }

    fn pass(&mut self, device: &Device) {
        for (i, matrix) in self.layers.iter().enumerate() {
            let i = i % SHAPES.len();
            device.matmul(&self.inputs[i], matrix, &mut self.outputs[i]).unwrap();
        }
        device.head(&self.last, &self.head, 1.0, &mut self.logits).unwrap();
    }
}

fn filled(mut tensor: Tensor) -> Tensor {
    tensor.set_rows(tensor.capacity()).unwrap();
    let row: Vec<f32> = (0..tensor.cols()).map(|i| (i % 13) as f32 / 8.0 - 0.7).collect();
    for i in 0..tensor.capacity() {
        tensor.write_row(i, &row).unwrap();
    }
    tensor
}

fn best(times: usize, mut job: impl FnMut()) -> Duration {
    let time = |_| {
        let start = Instant::now();
        job();
        start.elapsed()
    };
    (0..times).map(time).min().unwrap()
}
