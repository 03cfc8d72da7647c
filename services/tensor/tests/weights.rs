//! Weights that come in several parts, from wherever they are kept.
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

mod support;

use std::error::Error;
use std::io;

use asterism_tensor::{
    Columns, Compute, Device, Dtype, Elements, KeptColumns, Layout, Matrix, MatrixBuilder, PART, TensorError,
};
use support::{best, gpus, rows, tensor};

/// Rows of 6,002 or 12,004 bytes: parts end within them.
const SHAPE: [usize; 2] = [1031, 3001];
/// Inputs around the ends of parts, for every type and layout.
const INPUTS: [usize; 9] = [0, 348, 349, 350, 698, 699, 700, 1029, 1030];

const LAYOUTS: [Layout; 2] = [Layout::InputsFirst, Layout::OutputsFirst];

/// A number that every type holds.
fn weight(input: usize, output: usize) -> f32 {
    ((input * 31 + output * 17) % 251) as f32 - 125.0
}

fn bytes(dtype: Dtype, layout: Layout) -> Vec<u8> {
    let [inputs, outputs] = SHAPE;
    let (first, second) = if layout == Layout::InputsFirst { (inputs, outputs) } else { (outputs, inputs) };
    let mut bytes = Vec::new();
    for i in 0..first {
        for j in 0..second {
            let value = if layout == Layout::InputsFirst { weight(i, j) } else { weight(j, i) };
            match dtype {
                Dtype::F32 => bytes.extend(value.to_le_bytes()),
                Dtype::Bf16 => bytes.extend(half::bf16::from_f32(value).to_le_bytes()),
                Dtype::F16 => bytes.extend(half::f16::from_f32(value).to_le_bytes()),
            }
        }
    }
    bytes
}

/// Whether the matrix has the weights of these outputs, in this order.
fn check(device: &Device, matrix: &Matrix, outputs: &[usize], what: &str) {
    let unit = |&one: &usize| (0..SHAPE[0]).map(|input| if input == one { 1.0 } else { 0.0 }).collect();
    let x = tensor(device, matrix.compute().dtype(), &INPUTS.iter().map(unit).collect::<Vec<_>>());
    let mut product = device.tensor(Dtype::F32, INPUTS.len(), matrix.outputs()).unwrap();
    device.head(&x, matrix, 1.0, &mut product).unwrap();
    for (input, row) in INPUTS.into_iter().zip(rows(&product)) {
        let expected: Vec<f32> = outputs.iter().map(|&output| weight(input, output)).collect();
        assert!(row == expected, "{what}: input {input}");
    }
}

#[test]
fn large_tensors_in_memory_are_where_they_belong() {
    let picks: Vec<u32> = (0..SHAPE[1] as u32).rev().step_by(2).collect();
    let picked: Vec<usize> = picks.iter().map(|&pick| pick as usize).collect();
    let all: Vec<usize> = (0..SHAPE[1]).collect();
    for device in std::iter::once(best()).chain(gpus()) {
        for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
            for layout in LAYOUTS {
                let bytes = bytes(dtype, layout);
                assert!(bytes.len() > PART);
                for compute in [Compute::F32, Compute::Bf16] {
                    for (select, outputs) in [(None, &all), (Some(&picks[..]), &picked)] {
                        let columns = Columns { bytes: &bytes, dtype, layout, outputs: SHAPE[1], select };
                        let builder = MatrixBuilder::new(SHAPE[0], compute).columns(columns);
                        let matrix = device.matrix(builder).unwrap();
                        let what = format!("{} {compute} {dtype} {layout:?}", device.describe());
                        check(&device, &matrix, outputs, &what);
                    }
                }
            }
        }
    }
}

#[test]
fn kept_tensors_are_sent_side_by_side() {
    let all: Vec<usize> = (0..SHAPE[1]).chain(0..SHAPE[1]).collect();
    for device in gpus() {
        for layout in LAYOUTS {
            let bytes = bytes(Dtype::Bf16, layout);
            let columns = || KeptColumns {
                elements: Box::new(&bytes[..]),
                dtype: Dtype::Bf16,
                layout,
                outputs: SHAPE[1],
            };
            let matrices = device.send_weights(|sender| {
                let matrix = || sender.matrix(SHAPE[0], Compute::Bf16, vec![columns(), columns()], None);
                (0..5).map(|_| matrix()).collect::<Result<Vec<_>, TensorError>>()
            });
            for matrix in matrices.unwrap() {
                check(&device, &matrix, &all, "sent");
            }
        }
    }
}

/// Elements that cannot be read from some offset on.
struct Torn(usize);

impl Elements for Torn {
    fn bytes(&self) -> usize {
        SHAPE[0] * SHAPE[1] * 2
    }

    fn read(&self, offset: usize, _: &mut [u8]) -> Result<(), Box<dyn Error + Send + Sync>> {
        if offset < self.0 { Ok(()) } else { Err(Box::new(io::Error::other("torn"))) }
    }
}

#[test]
fn what_cannot_be_read_is_told_and_leaves_the_card_usable() {
    let torn = |offset| KeptColumns {
        elements: Box::new(Torn(offset)),
        dtype: Dtype::Bf16,
        layout: Layout::InputsFirst,
        outputs: SHAPE[1],
    };
    for device in gpus() {
        for offset in [0, PART] {
            let result = device
                .send_weights(|sender| sender.matrix(SHAPE[0], Compute::Bf16, vec![torn(offset)], None));
            assert!(matches!(&result, Err(TensorError::Elements { source }) if source.to_string() == "torn"));
        }
        device.synchronize().unwrap();
        let bytes = bytes(Dtype::Bf16, Layout::InputsFirst);
        let (dtype, layout) = (Dtype::Bf16, Layout::InputsFirst);
        let columns = Columns { bytes: &bytes, dtype, layout, outputs: SHAPE[1], select: None };
        let matrix = device.matrix(MatrixBuilder::new(SHAPE[0], Compute::Bf16).columns(columns)).unwrap();
        check(&device, &matrix, &(0..SHAPE[1]).collect::<Vec<_>>(), "after an error");
    }
}

#[test]
fn the_cpu_packs_what_is_in_memory() {
    let result = best().send_weights(|_| Ok::<(), TensorError>(()));
    assert!(matches!(result, Err(TensorError::OtherDevice)));
}
