//! Embedding, residual addition, RMSNorm, SiLU·up, copies: against f64; the same bits on every path of the
//! processor, and on a card for a row alone and among others.
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

mod support;

use asterism_tensor::{Compute, Device, Dtype, TensorError, Vector};
use support::{Rng, all, assert_near, best, bits, devices, gpus, indices, rounded, rows, tensor};

/// Rows and columns: row lengths around the lanes, odd ones, and those of real models.
const SHAPES: [[usize; 2]; 9] =
    [[5, 1], [5, 7], [5, 16], [3, 31], [5, 32], [7, 172], [4, 576], [5, 1029], [2, 2048]];

/// More of them for cards: many rows, rows wider than a block of threads takes at once, odd ones among them.
const CARD_SHAPES: [[usize; 2]; 8] =
    [[1, 8192], [128, 8192], [1, 21824], [300, 520], [300, 77], [65, 1000], [9, 12_296], [3, 5001]];

const DTYPES: [Dtype; 2] = [Dtype::F32, Dtype::Bf16];

type Rows = Vec<Vec<f32>>;

/// From the operands to the results, on a device.
type Run<'a> = &'a dyn Fn(&Device, Vec<Rows>, Dtype) -> Vec<Rows>;

/// From one row of each operand to one row of each result, and how near to it the result must be.
type Want<'a> = &'a dyn Fn(&[&[f32]], Dtype) -> Vec<(Vec<f64>, f64)>;

/// An operation on rows, and what it must give.
struct Op<'a> {
    /// Columns of each operand, as multiples of the shape's.
    operands: &'a [usize],
    /// Operands' values are about so large.
    size: f32,
    run: Run<'a>,
    want: Want<'a>,
}

impl Op<'_> {
    fn check(&self) {
        let (processors, cards) = (devices(), gpus());
        for dtype in DTYPES {
            for shape in SHAPES {
                let operands = self.values(shape, dtype);
                let mut first = None;
                for device in &processors {
                    let got = self.check_on(device, &operands, dtype);
                    assert_eq!(
                        *first.get_or_insert_with(|| got.clone()),
                        got,
                        "{} {shape:?}",
                        device.describe()
                    );
                }
            }
            for shape in SHAPES.iter().chain(&CARD_SHAPES) {
                let operands = self.values(*shape, dtype);
                for device in &cards {
                    self.check_on(device, &operands, dtype);
                }
            }
        }
    }

    /// Operands as the devices hold them.
    fn values(&self, [rows, cols]: [usize; 2], dtype: Dtype) -> Vec<Rows> {
        let mut rng = Rng((rows * 100_000 + cols) as u64);
        let mut operand = |width: &usize| -> Rows {
            let mut operand = rng.rows(rows, width * cols);
            for x in operand.iter_mut().flatten() {
                *x = rounded(dtype, f64::from(*x * self.size)) as f32;
            }
            operand
        };
        self.operands.iter().map(&mut operand).collect()
    }

    /// Checks every row, and that some of them have the same bits alone. Returns the bits.
    fn check_on(&self, device: &Device, operands: &[Rows], dtype: Dtype) -> Vec<Vec<Vec<u32>>> {
        let bits = |results: &[Rows]| -> Vec<Vec<Vec<u32>>> {
            let row = |row: &Vec<f32>| row.iter().map(|x| x.to_bits()).collect();
            results.iter().map(|rows| rows.iter().map(row).collect()).collect()
        };
        let results = (self.run)(device, operands.to_vec(), dtype);
        let count = operands[0].len();
        for row in 0..count {
            let inputs: Vec<&[f32]> = operands.iter().map(|operand| &operand[row][..]).collect();
            for (result, (want, tolerance)) in results.iter().zip((self.want)(&inputs, dtype)) {
                assert_eq!(result[row].len(), want.len());
                for (col, (got, want)) in result[row].iter().zip(want).enumerate() {
                    let what = format!("{} {dtype} row {row} of {count}, column {col}", device.describe());
                    assert_near(f64::from(*got), want, tolerance, &what);
                }
            }
        }
        let results = bits(&results);
        for row in [0, count / 2, count - 1] {
            let operands = operands.iter().map(|operand| vec![operand[row].clone()]).collect();
            for (alone, result) in bits(&(self.run)(device, operands, dtype)).iter().zip(&results) {
                assert_eq!(alone[0], result[row], "{} {dtype} row {row} of {count}", device.describe());
            }
        }
        results
    }
}

fn vector(device: &Device, values: &[f32], compute: Compute) -> Vector {
    let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    device.vector(Dtype::F32, &bytes, compute).unwrap()
}

fn compute(dtype: Dtype) -> Compute {
    if dtype == Dtype::Bf16 { Compute::Bf16 } else { Compute::F32 }
}

/// Tolerance of results that are rounded to `dtype` once or twice: where the first rounding falls to the other side, a
/// whole step and the half of the second.
fn tolerance(dtype: Dtype) -> f64 {
    if dtype == Dtype::Bf16 { 1.5 / 128.0 } else { 1e-6 }
}

/// A sum of two elements of `dtype`, in it.
fn sum(dtype: Dtype, x: f32, y: f32) -> f64 {
    rounded(dtype, f64::from(x + y))
}

#[test]
fn add_rms_norm_is_right_and_the_same_everywhere() {
    let weight = |cols| Rng(cols as u64).row(cols);
    Op {
        operands: &[1, 1],
        size: 1.0,
        run: &|device, operands, dtype| {
            let (count, cols) = (operands[0].len(), operands[0][0].len());
            let mut residual = tensor(device, dtype, &operands[0]);
            let delta = tensor(device, dtype, &operands[1]);
            let weight = vector(device, &weight(cols), compute(dtype));
            let mut out = device.tensor(dtype, count, cols).unwrap();
            device.add_rms_norm(&mut residual, Some(&delta), &weight, 1e-5, &mut out).unwrap();
            vec![rows(&residual), rows(&out)]
        },
        want: &|operands, dtype| {
            let sums: Vec<f64> =
                operands[0].iter().zip(operands[1]).map(|(x, y)| sum(dtype, *x, *y)).collect();
            let mean = sums.iter().map(|x| x * x).sum::<f64>() / sums.len() as f64;
            let weight = weight(sums.len());
            let norm = |(x, weight): (&f64, &f32)| {
                rounded(dtype, x / (mean + 1e-5).sqrt()) * rounded(dtype, f64::from(*weight))
            };
            let normed = sums.iter().zip(&weight).map(norm).collect();
            vec![(sums, 0.0), (normed, tolerance(dtype))]
        },
    }
    .check();
}

#[test]
fn a_norm_without_delta_leaves_its_input() {
    let x = Rng(2).rows(3, 104);
    for device in [best()].into_iter().chain(gpus()) {
        for cols in [100, 104] {
            let x: Rows = x.iter().map(|row| row[..cols].to_vec()).collect();
            let mut residual = tensor(&device, Dtype::F32, &x);
            let before = bits(&residual);
            let mut out = device.tensor(Dtype::F32, 4, cols).unwrap();
            let weight = vector(&device, &vec![2.0; cols], Compute::F32);
            device.add_rms_norm(&mut residual, None, &weight, 0.0, &mut out).unwrap();
            assert_eq!(bits(&residual), before);
            for (x, normed) in x.iter().zip(rows(&out)) {
                let rms = (x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / cols as f64).sqrt();
                assert_near(f64::from(normed[7]), 2.0 * f64::from(x[7]) / rms, 1e-6, "norm");
            }
        }
    }
}

#[test]
fn silu_mul_is_right_and_the_same_everywhere() {
    Op {
        operands: &[2],
        size: 8.0,
        run: &|device, operands, dtype| {
            let (count, cols) = (operands[0].len(), operands[0][0].len() / 2);
            let gate_up = tensor(device, dtype, &operands[0]);
            let mut out = device.tensor(dtype, count, cols).unwrap();
            device.silu_mul(&gate_up, &mut out).unwrap();
            vec![rows(&out)]
        },
        want: &|operands, dtype| {
            let (gate, up) = operands[0].split_at(operands[0].len() / 2);
            let silu = |x: f64| x / (1.0 + (-x).exp());
            let want =
                gate.iter().zip(up).map(|(gate, up)| silu(f64::from(*gate)) * f64::from(*up)).collect();
            vec![(want, tolerance(dtype))]
        },
    }
    .check();
}

#[test]
fn silu_of_large_and_small_gates_is_finite() {
    let gates = [0.0, -0.0, 200.0, -200.0, 88.0, -88.0, -87.5, -89.0, 1e-30, -1e-30, 3e38, -3e38];
    let x: Vec<f32> = gates.into_iter().chain([0.5; 12]).collect();
    for device in all() {
        for dtype in DTYPES {
            let gate_up = tensor(&device, dtype, std::slice::from_ref(&x));
            let mut out = device.tensor(dtype, 1, gates.len()).unwrap();
            device.silu_mul(&gate_up, &mut out).unwrap();
            for (gate, got) in rows(&gate_up)[0].iter().zip(&rows(&out)[0]) {
                let gate = f64::from(*gate);
                let want = rounded(dtype, gate / (1.0 + (-gate).exp()) * 0.5);
                assert_near(f64::from(*got), want, tolerance(dtype), &format!("silu({gate}) / 2"));
            }
        }
    }
}

#[test]
fn add_is_rounded_once() {
    Op {
        operands: &[1, 1],
        size: 1.0,
        run: &|device, operands, dtype| {
            let mut x = tensor(device, dtype, &operands[0]);
            device.add(&mut x, &tensor(device, dtype, &operands[1])).unwrap();
            vec![rows(&x)]
        },
        want: &|operands, dtype| {
            let sums = operands[0].iter().zip(operands[1]).map(|(x, y)| sum(dtype, *x, *y)).collect();
            vec![(sums, 0.0)]
        },
    }
    .check();
}

#[test]
fn embedding_rows_are_scaled_and_rounded() {
    let mut rng = Rng(5);
    for cols in [33, 576, 1032] {
        let table = rng.rows(50, cols);
        let ids: Vec<u32> = (0..200).map(|_| rng.below(50) as u32).collect();
        let f16 = |x: f32| half::f16::from_f32(x).to_le_bytes();
        let bf16 = |x: f32| half::bf16::from_f32(x).to_le_bytes();
        let flat = || table.iter().flatten().copied();
        let stored = [
            (Dtype::F32, flat().flat_map(f32::to_le_bytes).collect::<Vec<_>>()),
            (Dtype::F16, flat().flat_map(f16).collect()),
            (Dtype::Bf16, flat().flat_map(bf16).collect()),
        ];
        for device in all() {
            let list = indices(&device, &ids);
            for (dtype, (kind, bytes)) in
                DTYPES.into_iter().flat_map(|dtype| stored.iter().map(move |x| (dtype, x)))
            {
                let embedding = device.embedding(*kind, [50, cols], bytes, compute(dtype)).unwrap();
                assert_eq!((embedding.vocab(), embedding.cols()), (50, cols));
                let mut out = device.tensor(dtype, 200, cols).unwrap();
                device.embed(&list, &embedding, 1.25, &mut out).unwrap();
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
fn a_table_of_another_type_is_read_as_it_is_stored() {
    let mut rng = Rng(8);
    for cols in [24, 37] {
        let table = rng.rows(5, cols);
        let bytes: Vec<u8> =
            table.iter().flatten().flat_map(|x| half::f16::from_f32(*x).to_le_bytes()).collect();
        for device in all() {
            let embedding = device.embedding(Dtype::F16, [5, cols], &bytes, Compute::F32).unwrap();
            for dtype in DTYPES {
                let mut out = device.tensor(dtype, 1, cols).unwrap();
                device.embed(&indices(&device, &[4]), &embedding, 0.5, &mut out).unwrap();
                let want = table[4].iter().map(|x| rounded(dtype, half::f16::from_f32(*x).to_f64() * 0.5));
                assert!(
                    rows(&out)[0].iter().map(|x| f64::from(*x)).eq(want),
                    "{} {dtype}",
                    device.describe()
                );
            }
        }
    }
}

#[test]
fn gathered_rows_are_copies() {
    let mut rng = Rng(6);
    for cols in [21, 1000, 1032] {
        let x = rng.rows(9, cols);
        for device in [best()].into_iter().chain(gpus()) {
            for dtype in DTYPES {
                let x = tensor(&device, dtype, &x);
                let mut out = device.tensor(dtype, 9, cols).unwrap();
                device.gather_rows(&x, &indices(&device, &[8, 0, 8, 3]), &mut out).unwrap();
                assert_eq!(rows(&out), [8, 0, 8, 3].map(|row| x.read_row(row).unwrap()));
            }
        }
    }
}

#[test]
fn lists_in_flight_do_not_mix() {
    for device in all() {
        let x: Rows = (0..100).map(|row| vec![row as f32; 40]).collect();
        let x = tensor(&device, Dtype::F32, &x);
        let mut list = device.indices(100).unwrap();
        let mut outs: Vec<_> = (0..20).map(|_| device.tensor(Dtype::F32, 100, 40).unwrap()).collect();
        for (turn, out) in outs.iter_mut().enumerate() {
            let values: Vec<u32> = (0..60).map(|i| (i * 7 + turn as u32) % 100).collect();
            device.write_indices(&values, 100, &mut list).unwrap();
            device.gather_rows(&x, &list, out).unwrap();
        }
        for (turn, out) in outs.iter().enumerate() {
            let want = (0..100).map(|i| if i < 60 { ((i * 7 + turn) % 100) as f32 } else { 0.0 });
            assert!(rows(out).iter().map(|row| row[39]).eq(want), "{} list {turn}", device.describe());
        }
        assert!(matches!(device.write_indices(&[], 101, &mut list), Err(TensorError::Capacity { .. })));
    }
}

#[test]
fn bytes_and_rows_round_trip() {
    for device in [best()].into_iter().chain(gpus()) {
        let x = Rng(7).rows(3, 5);
        for dtype in DTYPES {
            let from = tensor(&device, dtype, &x);
            let mut to = device.tensor(dtype, 4, 5).unwrap();
            to.write_bytes(&bits(&from)).unwrap();
            assert_eq!(rows(&to), rows(&from));
            to.set_rows(4).unwrap();
            to.write_row(3, &x[1]).unwrap();
            assert_eq!(to.read_row(3).unwrap(), from.read_row(1).unwrap());
            assert_eq!(to.read_row(0).unwrap(), from.read_row(0).unwrap());
        }
    }
}

#[test]
fn nothing_to_do_is_fine() {
    for device in all() {
        let (mut empty, weight) =
            (device.tensor(Dtype::F32, 3, 0).unwrap(), vector(&device, &[], Compute::F32));
        empty.set_rows(3).unwrap();
        let mut out = device.tensor(Dtype::F32, 3, 0).unwrap();
        device.add_rms_norm(&mut empty, None, &weight, 1e-5, &mut out).unwrap();
        device.silu_mul(&empty, &mut out).unwrap();
        device.gather_rows(&empty, &indices(&device, &[2, 0]), &mut out).unwrap();
        let (mut none, weight) =
            (device.tensor(Dtype::F32, 3, 8).unwrap(), vector(&device, &[1.0; 8], Compute::F32));
        let mut out = device.tensor(Dtype::F32, 3, 8).unwrap();
        device.add_rms_norm(&mut none, None, &weight, 1e-5, &mut out).unwrap();
        device.gather_rows(&none, &indices(&device, &[]), &mut out).unwrap();
        assert_eq!(out.rows(), 0);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    for device in [best()].into_iter().chain(gpus()) {
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
        let error = device.gather_rows(&small, &indices(&device, &[2]), &mut out).unwrap_err();
        assert_eq!(error.to_string(), "gather_rows: row 2 is not below 2");

        let table = device.embedding(Dtype::F32, [2, 8], &[0; 64], Compute::F32).unwrap();
        let mut embed = |ids: &[u32]| device.embed(&indices(&device, ids), &table, 1.0, &mut out);
        assert!(matches!(embed(&[2]), Err(TensorError::OutOfRange { index: 2, .. })));
        assert!(matches!(embed(&[0; 3]), Err(TensorError::Capacity { .. })));
        assert!(device.embedding(Dtype::F32, [2, 8], &[0; 63], Compute::F32).is_err());
    }
}

#[test]
fn values_of_another_device_are_refused() {
    for card in gpus() {
        let device = best();
        let mut here = tensor(&device, Dtype::F32, &[vec![1.0; 8]]);
        let mut there = tensor(&card, Dtype::F32, &[vec![1.0; 8]]);
        assert!(matches!(card.add(&mut there, &here), Err(TensorError::OtherDevice)));
        assert!(matches!(device.add(&mut here, &there), Err(TensorError::OtherDevice)));
        let list = indices(&device, &[0]);
        let mut out = card.tensor(Dtype::F32, 1, 8).unwrap();
        assert!(matches!(card.gather_rows(&there, &list, &mut out), Err(TensorError::OtherDevice)));
    }
}
