//! Embedding, residual addition, RMSNorm, SiLU·up, copies: against f64, and the same bits everywhere.
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

mod support;

use asterism_tensor::{Compute, Device, Dtype, TensorError, Vector};
use support::{Rng, assert_near, best, bits, devices, rounded, rows, tensor};

/// Row lengths around the lanes, odd ones, and those of real models.
const COLS: [usize; 9] = [1, 7, 16, 31, 32, 172, 576, 1029, 2048];

const DTYPES: [Dtype; 2] = [Dtype::F32, Dtype::Bf16];

fn vector(device: &Device, values: &[f32], compute: Compute) -> Vector {
    let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    device.vector(Dtype::F32, &bytes, compute).unwrap()
}

fn compute(dtype: Dtype) -> Compute {
    if dtype == Dtype::Bf16 { Compute::Bf16 } else { Compute::F32 }
}

/// Tolerance of results that are rounded to `dtype` once or twice.
fn tolerance(dtype: Dtype) -> f64 {
    if dtype == Dtype::Bf16 { 1.0 / 128.0 } else { 1e-6 }
}

#[test]
fn add_rms_norm_is_right_and_the_same_everywhere() {
    let mut rng = Rng(1);
    for dtype in DTYPES {
        for cols in COLS {
            let (x, delta) = (rng.rows(5, cols), rng.rows(5, cols));
            let weight = rng.row(cols);
            let mut first = None;
            for device in devices() {
                let mut residual = tensor(&device, dtype, &x);
                let delta = tensor(&device, dtype, &delta);
                let weight = vector(&device, &weight, compute(dtype));
                let mut out = device.tensor(dtype, 5, cols).unwrap();
                device.add_rms_norm(&mut residual, Some(&delta), &weight, 1e-5, &mut out).unwrap();
                for ((sum, normed), (x, delta)) in rows(&residual)
                    .iter()
                    .zip(rows(&out))
                    .zip(rows(&tensor(&device, dtype, &x)).iter().zip(rows(&delta)))
                {
                    for ((sum, x), delta) in sum.iter().zip(x).zip(delta) {
                        assert_near(
                            f64::from(*sum),
                            rounded(dtype, f64::from(*x) + f64::from(delta)),
                            1e-6,
                            "sum",
                        );
                    }
                    let mean = sum.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / cols as f64;
                    for ((x, got), weight) in sum.iter().zip(normed).zip(weight.values()) {
                        let want = rounded(dtype, f64::from(*x) / (mean + 1e-5).sqrt()) * f64::from(*weight);
                        assert_near(f64::from(got), want, tolerance(dtype), "norm");
                    }
                }
                let all = (bits(&residual), bits(&out));
                assert_eq!(*first.get_or_insert_with(|| all.clone()), all, "{} {cols}", device.describe());
            }
        }
    }
}

#[test]
fn a_norm_without_delta_leaves_its_input() {
    let mut rng = Rng(2);
    let device = best();
    let x = rng.rows(3, 100);
    let mut residual = tensor(&device, Dtype::F32, &x);
    let before = bits(&residual);
    let mut out = device.tensor(Dtype::F32, 4, 100).unwrap();
    let weight = vector(&device, &[2.0; 100], Compute::F32);
    device.add_rms_norm(&mut residual, None, &weight, 0.0, &mut out).unwrap();
    assert_eq!(bits(&residual), before);
    for (x, normed) in x.iter().zip(rows(&out)) {
        let rms = (x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / 100.0).sqrt();
        assert_near(f64::from(normed[7]), 2.0 * f64::from(x[7]) / rms, 1e-6, "norm");
    }
}

#[test]
fn silu_mul_is_right_and_the_same_everywhere() {
    let mut rng = Rng(3);
    for dtype in DTYPES {
        for cols in COLS {
            let mut x = rng.rows(4, 2 * cols);
            for row in &mut x {
                row.iter_mut().for_each(|x| *x *= 8.0);
            }
            x[1][0] = 200.0;
            x[2][0] = -200.0;
            x[3][0] = 0.0;
            let mut first = None;
            for device in devices() {
                let gate_up = tensor(&device, dtype, &x);
                let mut out = device.tensor(dtype, 4, cols).unwrap();
                device.silu_mul(&gate_up, &mut out).unwrap();
                for (x, out) in rows(&gate_up).iter().zip(rows(&out)) {
                    for (i, got) in out.into_iter().enumerate() {
                        let gate = f64::from(x[i]);
                        let want = gate / (1.0 + (-gate).exp()) * f64::from(x[cols + i]);
                        assert_near(f64::from(got), want, tolerance(dtype), "silu");
                    }
                }
                let all = bits(&out);
                assert_eq!(*first.get_or_insert_with(|| all.clone()), all, "{} {cols}", device.describe());
            }
        }
    }
}

#[test]
fn add_is_rounded_once() {
    let mut rng = Rng(4);
    for dtype in DTYPES {
        let (x, y) = (rng.rows(40, 1029), rng.rows(40, 1029));
        let mut first = None;
        for device in devices() {
            let (mut sum, y) = (tensor(&device, dtype, &x), tensor(&device, dtype, &y));
            let before = rows(&sum);
            device.add(&mut sum, &y).unwrap();
            for ((x, y), sum) in before.iter().zip(rows(&y)).zip(rows(&sum)) {
                for ((x, y), sum) in x.iter().zip(y).zip(sum) {
                    assert_eq!(f64::from(sum), rounded(dtype, f64::from(x + y)), "{x} + {y}");
                }
            }
            let all = bits(&sum);
            assert_eq!(*first.get_or_insert_with(|| all.clone()), all, "{}", device.describe());
        }
    }
}

#[test]
fn embedding_rows_are_scaled_and_rounded() {
    let mut rng = Rng(5);
    let table = rng.rows(50, 33);
    let ids: Vec<u32> = (0..20).map(|_| rng.below(50) as u32).collect();
    let f16 = |x: f32| half::f16::from_f32(x).to_le_bytes();
    let bf16 = |x: f32| half::bf16::from_f32(x).to_le_bytes();
    let flat = || table.iter().flatten().copied();
    let stored = [
        (Dtype::F32, flat().flat_map(f32::to_le_bytes).collect::<Vec<_>>()),
        (Dtype::F16, flat().flat_map(f16).collect()),
        (Dtype::Bf16, flat().flat_map(bf16).collect()),
    ];
    for dtype in DTYPES {
        for (kind, bytes) in &stored {
            for device in devices() {
                let embedding = device.embedding(*kind, [50, 33], bytes, compute(dtype)).unwrap();
                assert_eq!((embedding.vocab(), embedding.cols()), (50, 33));
                let mut out = device.tensor(dtype, 20, 33).unwrap();
                device.embed(&ids, &embedding, 1.25, &mut out).unwrap();
                for (id, got) in ids.iter().zip(rows(&out)) {
                    for (x, got) in table[*id as usize].iter().zip(got) {
                        let stored = match kind {
                            Dtype::F32 => *x,
                            Dtype::F16 => half::f16::from_f32(*x).to_f32(),
                            Dtype::Bf16 => half::bf16::from_f32(*x).to_f32(),
                        };
                        let want = rounded(dtype, rounded(dtype, f64::from(stored)) * 1.25);
                        assert_near(f64::from(got), want, 1e-7, "embedding");
                    }
                }
            }
        }
    }
}

#[test]
fn gathered_rows_are_copies() {
    let mut rng = Rng(6);
    let x = rng.rows(9, 21);
    for dtype in DTYPES {
        let device = best();
        let x = tensor(&device, dtype, &x);
        let mut out = device.tensor(dtype, 9, 21).unwrap();
        device.gather_rows(&x, &[8, 0, 8, 3], &mut out).unwrap();
        assert_eq!(rows(&out), [8, 0, 8, 3].map(|row| x.read_row(row).unwrap()));
    }
}

#[test]
fn bytes_round_trip() {
    let device = best();
    let x = Rng(7).rows(3, 5);
    for dtype in DTYPES {
        let from = tensor(&device, dtype, &x);
        let mut to = device.tensor(dtype, 4, 5).unwrap();
        to.write_bytes(&bits(&from)).unwrap();
        assert_eq!(rows(&to), rows(&from));
    }
}

#[test]
fn nothing_to_do_is_fine() {
    for device in devices() {
        let (mut empty, weight) =
            (device.tensor(Dtype::F32, 3, 0).unwrap(), vector(&device, &[], Compute::F32));
        empty.set_rows(3).unwrap();
        let mut out = device.tensor(Dtype::F32, 3, 0).unwrap();
        device.add_rms_norm(&mut empty, None, &weight, 1e-5, &mut out).unwrap();
        device.silu_mul(&empty, &mut out).unwrap();
        device.gather_rows(&empty, &[2, 0], &mut out).unwrap();
        let (mut none, weight) =
            (device.tensor(Dtype::F32, 3, 8).unwrap(), vector(&device, &[1.0; 8], Compute::F32));
        let mut out = device.tensor(Dtype::F32, 3, 8).unwrap();
        device.add_rms_norm(&mut none, None, &weight, 1e-5, &mut out).unwrap();
        assert_eq!(out.rows(), 0);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let device = best();
    let mut small = device.tensor(Dtype::F32, 2, 8).unwrap();
    assert!(matches!(small.set_rows(3), Err(TensorError::Capacity { rows: 3, capacity: 2 })));
    assert!(matches!(small.write_bytes(&[0; 33]), Err(TensorError::Shape { .. })));
    assert!(matches!(device.tensor(Dtype::F16, 2, 8), Err(TensorError::Setting { .. })));

    small.set_rows(2).unwrap();
    let mut out = device.tensor(Dtype::F32, 2, 8).unwrap();
    let weight = vector(&device, &[1.0; 7], Compute::F32);
    let error = device.add_rms_norm(&mut small, None, &weight, 1e-5, &mut out).unwrap_err();
    assert_eq!(error.to_string(), "add_rms_norm: the weight's length is 7, must be 8");

    let other = device.tensor(Dtype::Bf16, 2, 8).unwrap();
    assert!(matches!(device.add(&mut small, &other), Err(TensorError::Type { .. })));
    assert!(matches!(device.silu_mul(&small, &mut out), Err(TensorError::Shape { .. })));
    let error = device.gather_rows(&small, &[2], &mut out).unwrap_err();
    assert_eq!(error.to_string(), "gather_rows: row 2 is not below 2");

    let table = device.embedding(Dtype::F32, [2, 8], &[0; 64], Compute::F32).unwrap();
    assert!(matches!(
        device.embed(&[2], &table, 1.0, &mut out),
        Err(TensorError::OutOfRange { index: 2, .. })
    ));
    assert!(matches!(device.embed(&[0; 3], &table, 1.0, &mut out), Err(TensorError::Capacity { .. })));
    assert!(device.embedding(Dtype::F32, [2, 8], &[0; 63], Compute::F32).is_err());
}
