//! Multiplication by weights of every type and layout: against f64, the same bits for a row alone and among others,
//! with a plan and without; and weights made up by rule.
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

mod support;

use asterism_tensor::{
    Columns, Compute, CudaOptions, Device, Dtype, Layout, Matrix, MatrixBuilder, SyntheticColumns,
    SyntheticKey, SyntheticMatrix, Tensor,
};
use support::{Rng, all, best, bits, gpus, indices, rows, tensor};

const COMPUTES: [Compute; 2] = [Compute::F32, Compute::Bf16];
const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::Bf16, Dtype::F16];
const LAYOUTS: [Layout; 2] = [Layout::InputsFirst, Layout::OutputsFirst];

/// Inputs and outputs: odd ones, those below a tile, and around its ends.
const SHAPES: [[usize; 2]; 9] =
    [[1, 1], [7, 3], [16, 32], [33, 65], [64, 64], [72, 200], [129, 127], [256, 136], [1000, 264]];

/// Numbers of rows around the ends of tiles and buckets.
const ROWS: [usize; 9] = [1, 2, 3, 8, 9, 17, 64, 65, 130];

/// A weight tensor, and what it holds.
struct Weights {
    inputs: usize,
    outputs: usize,
    dtype: Dtype,
    layout: Layout,
    bytes: Vec<u8>,
    /// `[outputs, inputs]`.
    values: Vec<f32>,
}

impl Weights {
    fn new(rng: &mut Rng, [inputs, outputs]: [usize; 2], dtype: Dtype, layout: Layout) -> Weights {
        let scale = 1.0 / (inputs as f32).sqrt();
        let values: Vec<f32> = (0..inputs * outputs).map(|_| through(dtype, rng.normal() * scale)).collect();
        let order: Vec<f32> = match layout {
            Layout::OutputsFirst => values.clone(),
            Layout::InputsFirst => (0..inputs)
                .flat_map(|input| (0..outputs).map(move |output| output * inputs + input))
                .map(|at| values[at])
                .collect(),
        };
        let bytes = order.into_iter().flat_map(|value| encode(dtype, value)).collect();
        Weights { inputs, outputs, dtype, layout, bytes, values }
    }

    fn columns<'a>(&'a self, select: Option<&'a [u32]>) -> Columns<'a> {
        let Weights { dtype, layout, outputs, .. } = *self;
        Columns { bytes: &self.bytes, dtype, layout, outputs, select }
    }

    fn output(&self, output: usize) -> &[f32] {
        &self.values[output * self.inputs..][..self.inputs]
    }
}

fn through(dtype: Dtype, value: f32) -> f32 {
    match dtype {
        Dtype::F32 => value,
        Dtype::Bf16 => half::bf16::from_f32(value).to_f32(),
        Dtype::F16 => half::f16::from_f32(value).to_f32(),
    }
}

fn encode(dtype: Dtype, value: f32) -> Vec<u8> {
    match dtype {
        Dtype::F32 => value.to_le_bytes().to_vec(),
        Dtype::Bf16 => half::bf16::from_f32(value).to_le_bytes().to_vec(),
        Dtype::F16 => half::f16::from_f32(value).to_le_bytes().to_vec(),
    }
}

/// Rows of numbers that the compute type holds.
fn activations(rng: &mut Rng, rows: usize, cols: usize, compute: Compute) -> Vec<Vec<f32>> {
    let row = |rng: &mut Rng| rng.row(cols).into_iter().map(|x| through(compute.dtype(), x)).collect();
    (0..rows).map(|_| row(rng)).collect()
}

fn multiply(device: &Device, x: &Tensor, matrix: &Matrix, scale: f32, out: Dtype) -> Tensor {
    let mut product = device.tensor(out, x.rows(), matrix.outputs()).unwrap();
    if out == Dtype::F32 {
        device.head(x, matrix, scale, &mut product).unwrap();
    } else {
        device.matmul(x, matrix, &mut product).unwrap();
    }
    product
}

/// Unit rows: their products are the weights themselves.
fn weights_of(device: &Device, matrix: &Matrix) -> Vec<u8> {
    let (inputs, compute) = (matrix.inputs(), matrix.compute());
    let unit = |one: usize| (0..inputs).map(|input| if input == one { 1.0 } else { 0.0 }).collect();
    let x = tensor(device, compute.dtype(), &(0..inputs).map(unit).collect::<Vec<_>>());
    bits(&multiply(device, &x, matrix, 1.0, Dtype::F32))
}

#[test]
fn products_are_those_of_f64() {
    // That the processor's other paths have the same bits, its own tests show.
    let devices: Vec<_> = std::iter::once(best()).chain(gpus()).collect();
    let mut rng = Rng(1);
    for (number, shape) in SHAPES.into_iter().enumerate() {
        for compute in COMPUTES {
            for dtype in DTYPES {
                for layout in LAYOUTS {
                    let weights = Weights::new(&mut rng, shape, dtype, layout);
                    let count = ROWS[(number + dtype as usize) % ROWS.len()];
                    let x = activations(&mut rng, count, shape[0], compute);
                    for bias in [false, true] {
                        let bias = bias.then(|| rng.row(shape[1]));
                        for (out, scale) in [(Dtype::F32, 0.3), (compute.dtype(), 1.0)] {
                            for device in &devices {
                                let what =
                                    format!("{} {shape:?} {compute} {dtype} {layout:?}", device.describe());
                                let got =
                                    product(device, &weights, bias.as_deref(), (&x, compute), (out, scale));
                                check(&got, &weights, bias.as_deref(), (&x, compute), (out, scale), &what);
                            }
                        }
                    }
                }
            }
        }
    }
}

fn product(
    device: &Device,
    weights: &Weights,
    bias: Option<&[f32]>,
    (x, compute): (&[Vec<f32>], Compute),
    (out, scale): (Dtype, f32),
) -> Vec<Vec<f32>> {
    let mut builder = MatrixBuilder::new(weights.inputs, compute).columns(weights.columns(None));
    if let Some(bias) = bias {
        builder = builder.bias(bias.to_vec());
    }
    let matrix = device.matrix(builder).unwrap();
    let x = tensor(device, compute.dtype(), x);
    rows(&multiply(device, &x, &matrix, scale, out))
}

fn check(
    got: &[Vec<f32>],
    weights: &Weights,
    bias: Option<&[f32]>,
    (x, compute): (&[Vec<f32>], Compute),
    (out, scale): (Dtype, f32),
    what: &str,
) {
    assert_eq!(got.len(), x.len());
    let kept = |value: f32| if compute == Compute::Bf16 { through(Dtype::Bf16, value) } else { value };
    for (row, (got, x)) in got.iter().zip(x).enumerate() {
        for (column, got) in got.iter().enumerate() {
            let products =
                || x.iter().zip(weights.output(column)).map(|(x, w)| f64::from(*x) * f64::from(kept(*w)));
            let bias = bias.map_or(0.0, |bias| f64::from(kept(bias[column])));
            let want = (products().sum::<f64>() + bias) * f64::from(scale);
            let size = products().map(f64::abs).sum::<f64>() + bias.abs();
            let rounding = if out == Dtype::Bf16 { want.abs() / 256.0 } else { 0.0 };
            let off = (f64::from(*got) - want).abs();
            assert!(off <= size * 4e-6 + rounding, "{what}, row {row}, column {column}: {got} for {want}");
        }
    }
}

#[test]
fn groups_and_selections_stand_side_by_side() {
    let mut rng = Rng(2);
    let devices = all();
    for compute in COMPUTES {
        for layout in LAYOUTS {
            let first = Weights::new(&mut rng, [40, 70], Dtype::F16, layout);
            let second = Weights::new(&mut rng, [40, 9], Dtype::Bf16, layout);
            let picks: Vec<u32> = (0..70).rev().chain([3, 3, 69]).collect();
            let picked = picks.iter().map(|pick| first.output(*pick as usize));
            let outputs: Vec<&[f32]> = picked.chain((0..9).map(|output| second.output(output))).collect();
            let kept = |value: f32| through(compute.dtype(), value);
            let want: Vec<u8> = (0..40)
                .flat_map(|input| outputs.iter().map(move |output| output[input]))
                .flat_map(|value| kept(value).to_le_bytes())
                .collect();
            for device in &devices {
                let builder = MatrixBuilder::new(40, compute);
                let builder = builder.columns(first.columns(Some(&picks))).columns(second.columns(None));
                let matrix = device.matrix(builder).unwrap();
                assert_eq!(matrix.outputs(), 73 + 9);
                assert_eq!(weights_of(device, &matrix), want, "{} {compute} {layout:?}", device.describe());
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_in_any_number_of_rows() {
    let mut rng = Rng(3);
    for device in gpus() {
        for compute in COMPUTES {
            for [inputs, outputs] in [[512, 384], [1000, 264], [77, 33], [4096, 1024], [21_824, 256]] {
                for bias in [false, true] {
                    let weights =
                        Weights::new(&mut rng, [inputs, outputs], compute.dtype(), Layout::OutputsFirst);
                    let mut builder = MatrixBuilder::new(inputs, compute).columns(weights.columns(None));
                    if bias {
                        builder = builder.bias(rng.row(outputs));
                    }
                    let matrix = device.matrix(builder).unwrap();
                    let x = activations(&mut rng, 300, inputs, compute);
                    for out in [compute.dtype(), Dtype::F32] {
                        let products = |count: usize| {
                            let x = tensor(&device, compute.dtype(), &x[..count]);
                            bits(&multiply(&device, &x, &matrix, 1.0, out))
                        };
                        // Without plans, all come from our own kernels.
                        let whole = products(300);
                        let counts = [1, 2, 7, 8, 16, 24, 33, 64, 65, 100, 128, 200, 256, 300];
                        let compare = |when: &str| {
                            for count in counts {
                                let what = format!(
                                    "{compute} {out} [{inputs}, {outputs}] bias {bias}, {count} rows"
                                );
                                assert!(
                                    products(count) == whole[..count * outputs * out.bytes()],
                                    "{what}, {when}"
                                );
                            }
                        };
                        compare("without plans");
                        device.prepare_matmul(&[&matrix], 300, out).unwrap();
                        let before = device.matmul_plans().unwrap();
                        assert!(before.are_deterministic(), "{before:?}");
                        compare("with plans");
                        let after = device.matmul_plans().unwrap();
                        assert_eq!(after.unprepared, before.unprepared, "every bucket has a plan");
                    }
                }
            }
        }
        let plans = device.matmul_plans().unwrap();
        eprintln!("{}: {plans:?}", device.describe());
        assert!(plans.verified > 0, "cuBLASLt has the bits of our kernel nowhere");
    }
}

#[test]
fn in_f32_a_card_has_the_processors_bits() {
    let mut rng = Rng(4);
    let cpu = best();
    for device in gpus() {
        for shape in [[7, 3], [512, 384], [1000, 264], [5000, 40]] {
            let weights = Weights::new(&mut rng, shape, Dtype::Bf16, Layout::InputsFirst);
            let bias = rng.row(shape[1]);
            let x = activations(&mut rng, 70, shape[0], Compute::F32);
            let products =
                |device| product(device, &weights, Some(&bias), (&x, Compute::F32), (Dtype::F32, 0.7));
            assert!(products(&device) == products(&cpu), "{shape:?}");
        }
    }
}

#[test]
fn many_pieces_arrive_in_their_places() {
    let mut rng = Rng(5);
    for device in gpus() {
        for (layout, dtype) in [
            (Layout::OutputsFirst, Dtype::F32),
            (Layout::OutputsFirst, Dtype::Bf16),
            (Layout::InputsFirst, Dtype::F32),
            (Layout::InputsFirst, Dtype::Bf16),
        ] {
            // 48 or 24 MB: several slots, the last one not full.
            let weights = Weights::new(&mut rng, [1000, 12_001], dtype, layout);
            let builder = MatrixBuilder::new(1000, Compute::Bf16).columns(weights.columns(None));
            let matrix = device.matrix(builder).unwrap();
            let got = weights_of(&device, &matrix);
            let got: &[[u8; 4]] = got.as_chunks().0;
            for input in 0..1000 {
                for output in 0..12_001 {
                    let want = through(Dtype::Bf16, weights.output(output)[input]);
                    let got = f32::from_le_bytes(got[input * 12_001 + output]);
                    assert!(
                        got == want,
                        "{dtype} {layout:?}: input {input}, output {output}: {got} for {want}"
                    );
                }
            }
        }
    }
}

#[test]
fn plans_of_an_earlier_start_are_taken_again() {
    let cache = std::env::temp_dir().join(format!("asterism-test-plans-{}", std::process::id()));
    for first in gpus() {
        let open =
            || Device::cuda(CudaOptions { ordinal: 0, deterministic: true, cache: Some(cache.clone()) });
        let mut rng = Rng(6);
        let weights = Weights::new(&mut rng, [1024, 768], Dtype::Bf16, Layout::OutputsFirst);
        let prepare = |device: &Device| {
            let builder = MatrixBuilder::new(1024, Compute::Bf16).columns(weights.columns(None));
            let matrix = device.matrix(builder).unwrap();
            device.prepare_matmul(&[&matrix], 128, Dtype::Bf16).unwrap();
            device.matmul_plans().unwrap()
        };
        let (found, again) = (prepare(&open().unwrap()), prepare(&open().unwrap()));
        assert_eq!(found, again);
        assert_eq!(prepare(&first), again);
    }
    let _ = std::fs::remove_dir_all(&cache);
}

#[test]
fn embeddings_hold_their_rows() {
    let mut rng = Rng(7);
    let ids = [5_u32, 0, 10, 5, 3];
    for device in all() {
        for compute in COMPUTES {
            for dtype in DTYPES {
                let table = Weights::new(&mut rng, [33, 11], dtype, Layout::OutputsFirst);
                let embedding = device.embedding(dtype, [11, 33], &table.bytes, compute).unwrap();
                let mut out = device.tensor(compute.dtype(), ids.len(), 33).unwrap();
                device.embed(&indices(&device, &ids), &embedding, 1.0, &mut out).unwrap();
                let want =
                    ids.map(|id| table.output(id as usize).iter().map(|x| through(compute.dtype(), *x)));
                let want: Vec<Vec<f32>> = want.map(Iterator::collect).to_vec();
                assert_eq!(rows(&out), want, "{} {compute} {dtype}", device.describe());
            }
        }
    }
}

#[test]
fn synthetic_weights_are_the_same_on_every_device() {
    let group = |name: &str, outputs| SyntheticColumns { key: SyntheticKey::named(9, name), outputs };
    let groups = [group("q", 48), group("k", 17), group("v", 16)];
    for compute in COMPUTES {
        let spec = SyntheticMatrix { inputs: 37, compute, columns: &groups, bias: None };
        let mut first: Option<(Vec<u8>, Vec<u8>)> = None;
        for device in all() {
            let what = format!("{} {compute}", device.describe());
            let fused = device.synthetic_matrix(&spec).unwrap();
            let fused = weights_of(&device, &fused);
            let mut at = 0;
            for group in &groups {
                let alone = SyntheticMatrix { columns: std::slice::from_ref(group), ..spec };
                let alone = weights_of(&device, &device.synthetic_matrix(&alone).unwrap());
                for input in 0..37 {
                    let fused = &fused[(input * 81 + at) * 4..][..group.outputs * 4];
                    assert_eq!(fused, &alone[input * group.outputs * 4..][..group.outputs * 4], "{what}");
                }
                at += group.outputs;
            }
            let table = device.synthetic_embedding([20, 31], compute, SyntheticKey::named(9, "wte")).unwrap();
            let mut embedded = device.tensor(compute.dtype(), 3, 31).unwrap();
            device.embed(&indices(&device, &[0, 7, 19]), &table, 1.0, &mut embedded).unwrap();
            let got = (fused, bits(&embedded));
            assert!(first.get_or_insert_with(|| got.clone()) == &got, "{what}");
        }
    }
}

#[test]
fn a_synthetic_bias_is_added() {
    let columns = [SyntheticColumns { key: SyntheticKey::named(1, "dense.weight"), outputs: 24 }];
    for compute in COMPUTES {
        let mut first: Option<Vec<u8>> = None;
        for device in all() {
            let bias = Some(SyntheticKey::named(1, "dense.bias"));
            let with =
                device.synthetic_matrix(&SyntheticMatrix { inputs: 64, compute, columns: &columns, bias });
            let x = tensor(&device, compute.dtype(), &[vec![0.0; 64]]);
            let product = multiply(&device, &x, &with.unwrap(), 1.0, Dtype::F32);
            let limit = 0.5 * (3.0_f32 / 64.0).sqrt();
            assert!(rows(&product)[0].iter().all(|value| *value != 0.0 && value.abs() <= limit));
            let got = bits(&product);
            assert_eq!(first.get_or_insert_with(|| got.clone()), &got, "{} {compute}", device.describe());
        }
    }
}
