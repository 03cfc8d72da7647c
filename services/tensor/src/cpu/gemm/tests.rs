use std::num::NonZeroUsize;

use std::ops::Range;

use super::plan::K_BLOCK;
use super::*;
use crate::Dtype;
use crate::MatrixBuilder;
use crate::cpu::bf16::{round, widen};
use crate::cpu::pack::{Columns, Layout};

mod accuracy;
mod dp;

/// Uniform numbers in ±`size`, the same in every run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self, size: f32) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 40) as f32 / (1_u64 << 23) as f32 - 1.0) * size
    }

    fn vec(&mut self, n: usize, size: f32) -> Vec<f32> {
        (0..n).map(|_| self.next(size)).collect()
    }
}

fn pool(threads: usize) -> Pool {
    Pool::new(NonZeroUsize::new(threads).unwrap()).unwrap()
}

fn isas() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| {
        if !isa.is_available() {
            eprintln!("SKIPPED: this processor has no {}", isa.name());
        }
        isa.is_available()
    })
}

/// A multiplication and all that it needs; weights are `[inputs, outputs]`.
struct Case {
    rows: usize,
    x: Vec<f32>,
    weights: Vec<f32>,
    bias: Option<Vec<f32>>,
    scale: f32,
    matrix: PackedMatrix,
}

impl Case {
    fn new(shape: [usize; 3], compute: Compute, dtype: Dtype, bias: Option<f32>) -> Case {
        let [rows, inputs, outputs] = shape;
        let mut numbers = Numbers(shape.iter().fold(1, |seed, n| seed * 1009 + *n as u64));
        let through = |values: Vec<f32>, dtype| match dtype {
            Dtype::F32 => values,
            Dtype::Bf16 => values.into_iter().map(|value| widen(round(value))).collect(),
            Dtype::F16 => values.into_iter().map(|value| half::f16::from_f32(value).to_f32()).collect(),
        };
        let x = through(numbers.vec(rows * inputs, 2.0), compute.dtype());
        let stored = through(numbers.vec(inputs * outputs, 0.3), dtype);
        let bytes: Vec<u8> = match dtype {
            Dtype::F32 => stored.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Dtype::Bf16 => stored.iter().flat_map(|value| round(*value).to_le_bytes()).collect(),
            Dtype::F16 => stored.iter().flat_map(|value| half::f16::from_f32(*value).to_le_bytes()).collect(),
        };
        let weights = through(stored, if compute == Compute::Bf16 { Dtype::Bf16 } else { dtype });
        let bias = bias.map(|size| through(numbers.vec(outputs, size), compute.dtype()));
        let layout = Layout::InputsFirst;
        let mut builder = MatrixBuilder::new(inputs, compute).columns(Columns {
            bytes: &bytes,
            dtype,
            layout,
            outputs,
            select: None,
        });
        if let Some(bias) = &bias {
            builder = builder.bias(bias.clone());
        }
        let matrix = builder.build(&pool(1)).unwrap();
        Case { rows, x, weights, bias, scale: 1.0, matrix }
    }

    /// Rows `range` in f32.
    fn run(&self, gemm: &Gemm, pool: &Pool, range: Range<usize>) -> Vec<f32> {
        let mut out = vec![f32::NAN; range.len() * self.matrix.outputs()];
        self.call(gemm, pool, range, Outputs::F32(&mut out));
        out
    }

    /// Rows `range` rounded to bf16.
    fn run_bf16(&self, gemm: &Gemm, pool: &Pool, range: Range<usize>) -> Vec<f32> {
        let mut out = vec![bf16::NAN; range.len() * self.matrix.outputs()];
        self.call(gemm, pool, range, Outputs::Bf16(&mut out));
        out.into_iter().map(f32::from).collect()
    }

    fn call(&self, gemm: &Gemm, pool: &Pool, range: Range<usize>, out: Outputs<'_>) {
        let x = &self.x[range.start * self.matrix.inputs()..range.end * self.matrix.inputs()];
        let rounded: Vec<bf16> = x.iter().map(|x| bf16::from_f32(*x)).collect();
        let x = match self.matrix.compute() {
            Compute::F32 => Activations::F32(x),
            Compute::Bf16 => Activations::Bf16(&rounded),
        };
        let call = Matmul { rows: range.len(), x, matrix: &self.matrix, scale: self.scale, out };
        gemm.matmul(pool, call).unwrap();
    }

    /// The specification, from unpacked weights.
    fn specified(&self) -> Vec<f32> {
        let (inputs, outputs) = (self.matrix.inputs(), self.matrix.outputs());
        let mut out = vec![0.0_f32; self.rows * outputs];
        for (row, out) in out.chunks_mut(outputs).enumerate() {
            for k in 0..inputs {
                let x = self.x[row * inputs + k];
                for (out, weight) in out.iter_mut().zip(&self.weights[k * outputs..]) {
                    *out = x.mul_add(*weight, *out);
                }
            }
            for (column, out) in out.iter_mut().enumerate() {
                if let Some(bias) = &self.bias {
                    *out += bias[column];
                }
                *out *= self.scale;
            }
        }
        out
    }
}

const KINDS: [(Compute, Dtype); 4] = [
    (Compute::F32, Dtype::F32),
    (Compute::F32, Dtype::Bf16),
    (Compute::F32, Dtype::F16),
    (Compute::Bf16, Dtype::Bf16),
];

#[test]
fn every_path_equals_the_specification() {
    let pools = [pool(1), pool(2)];
    for (compute, dtype) in KINDS {
        for (inputs, outputs) in [(1, 1), (2, 33), (7, 64), (43, 95), (64, 32), (129, 130), (172, 257)] {
            let case = Case::new([33, inputs, outputs], compute, dtype, None);
            let specified = case.specified();
            for isa in isas() {
                let gemm = Gemm::new(isa).unwrap();
                for rows in [1, 3, 8, 16, 33] {
                    for pool in &pools {
                        let out = case.run(&gemm, pool, 0..rows);
                        let label = (isa, compute, dtype, inputs, outputs, rows, pool.threads());
                        assert_eq!(out, specified[..rows * outputs], "{label:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn every_row_count_equals_the_specification() {
    let pool = pool(1);
    for (compute, dtype) in KINDS {
        let case = Case::new([40, 19, 70], compute, dtype, Some(1.0));
        let specified = case.specified();
        for isa in isas() {
            let gemm = Gemm::new(isa).unwrap();
            for rows in 1..=40 {
                assert_eq!(
                    case.run(&gemm, &pool, 0..rows),
                    specified[..rows * 70],
                    "{isa:?} {dtype:?} {rows}"
                );
            }
        }
    }
}

#[test]
fn a_row_does_not_depend_on_its_batch() {
    let (rows, outputs) = (300, 65);
    let pools = [pool(1), pool(3)];
    for (compute, dtype) in KINDS {
        let case = Case::new([rows, 50, outputs], compute, dtype, None);
        for isa in isas() {
            let gemm = Gemm::new(isa).unwrap();
            let all = case.run(&gemm, &pools[0], 0..rows);
            for (range, pool) in
                [(0..1, 1), (7..8, 1), (299..300, 0), (5..133, 1), (100..103, 0), (0..300, 1)]
            {
                let some = case.run(&gemm, &pools[pool], range.clone());
                assert_eq!(some, all[range.start * outputs..range.end * outputs], "{isa:?} {range:?}");
            }
        }
    }
}

#[test]
fn very_many_rows_come_in_blocks() {
    let (rows, outputs) = (340, 35);
    for (compute, dtype) in KINDS {
        let case = Case::new([rows, 1201, outputs], compute, dtype, None);
        let specified = case.specified();
        for isa in isas() {
            let gemm = Gemm::new(isa).unwrap();
            assert_eq!(case.run(&gemm, &pool(2), 0..rows), specified, "{isa:?} {dtype:?}");
        }
    }
}

#[test]
fn more_threads_than_panels_are_fine() {
    let case = Case::new([5, 40, 70], Compute::Bf16, Dtype::Bf16, None);
    let gemm = Gemm::new(Isa::detect()).unwrap();
    assert_eq!(case.run(&gemm, &pool(5), 0..5), case.specified());
}

#[test]
fn blocks_of_k_hand_the_accumulator_on() {
    for inputs in [K_BLOCK, K_BLOCK + 1, 2 * K_BLOCK + 37] {
        for (compute, dtype) in KINDS {
            let case = Case::new([11, inputs, 40], compute, dtype, None);
            let specified = case.specified();
            for isa in isas() {
                let gemm = Gemm::new(isa).unwrap();
                for rows in [1, 11] {
                    assert_eq!(
                        case.run(&gemm, &pool(2), 0..rows),
                        specified[..rows * 40],
                        "{isa:?} {dtype:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn bias_then_scale_then_one_rounding() {
    for (compute, dtype) in KINDS {
        let mut case = Case::new([9, 31, 77], compute, dtype, Some(3.0));
        case.scale = 0.3;
        let specified = case.specified();
        let rounded: Vec<f32> = specified.iter().map(|value| widen(round(*value))).collect();
        assert_ne!(specified, rounded);
        for isa in isas() {
            let gemm = Gemm::new(isa).unwrap();
            assert_eq!(case.run(&gemm, &pool(2), 0..9), specified, "{isa:?} {dtype:?}");
            assert_eq!(case.run_bf16(&gemm, &pool(2), 0..9), rounded, "{isa:?} {dtype:?}");
        }
    }
}

#[test]
fn a_non_finite_row_spoils_no_other() {
    for (compute, dtype) in KINDS {
        let mut case = Case::new([10, 33, 40], compute, dtype, None);
        let clean = case.specified();
        case.x[4 * 33 + 32] = f32::NAN;
        case.x[7 * 33] = f32::INFINITY;
        for isa in isas() {
            let gemm = Gemm::new(isa).unwrap();
            let out = case.run(&gemm, &pool(2), 0..10);
            for row in 0..10 {
                let (out, clean) = (&out[row * 40..][..40], &clean[row * 40..][..40]);
                match row {
                    4 => assert!(out.iter().all(|value| value.is_nan())),
                    7 => assert!(out.iter().all(|value| !value.is_finite())),
                    _ => assert_eq!(out, clean),
                }
            }
        }
    }
}

#[test]
fn nothing_to_do_is_fine() {
    let gemm = Gemm::new(Isa::detect()).unwrap();
    let case = Case::new([3, 5, 7], Compute::F32, Dtype::F32, None);
    assert!(case.run(&gemm, &pool(2), 1..1).is_empty());
    let empty = Case::new([3, 0, 7], Compute::F32, Dtype::F32, Some(1.0));
    assert_eq!(empty.run(&gemm, &pool(2), 0..3), empty.specified());
    let empty = Case::new([3, 5, 0], Compute::Bf16, Dtype::F32, None);
    assert!(empty.run(&gemm, &pool(2), 0..3).is_empty());
}

#[test]
#[should_panic(expected = "activations of a matmul")]
fn wrong_lengths_are_a_bug_of_the_caller() {
    let gemm = Gemm::new(Isa::detect()).unwrap();
    let mut case = Case::new([3, 5, 7], Compute::F32, Dtype::F32, None);
    case.x.pop();
    let x = Activations::F32(&case.x);
    let out = Outputs::F32(&mut [0.0; 21]);
    let _ = gemm.matmul(&pool(1), Matmul { rows: 3, x, matrix: &case.matrix, scale: 1.0, out });
}
