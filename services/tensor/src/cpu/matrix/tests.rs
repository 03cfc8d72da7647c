use std::num::NonZeroUsize;

use super::*;
use crate::cpu::pack::{Columns, Layout};

fn pool(threads: usize) -> Pool {
    Pool::new(NonZeroUsize::new(threads).unwrap()).unwrap()
}

/// Weight `[k, column]` of a tensor in all tests here: exact in every type.
fn value(k: usize, column: usize) -> f32 {
    ((k * 37 + column * 11) % 251) as f32 - 125.0
}

fn encode(value: f32, dtype: Dtype) -> Vec<u8> {
    match dtype {
        Dtype::F32 => value.to_le_bytes().to_vec(),
        Dtype::Bf16 => half::bf16::from_f32(value).to_le_bytes().to_vec(),
        Dtype::F16 => half::f16::from_f32(value).to_le_bytes().to_vec(),
    }
}

fn tensor(inputs: usize, outputs: usize, dtype: Dtype, layout: Layout) -> Vec<u8> {
    let at = |k, column| encode(value(k, column), dtype);
    match layout {
        Layout::InputsFirst => (0..inputs).flat_map(|k| (0..outputs).flat_map(move |c| at(k, c))).collect(),
        Layout::OutputsFirst => (0..outputs).flat_map(|c| (0..inputs).flat_map(move |k| at(k, c))).collect(),
    }
}

/// Weight `[k, column]` of a packed matrix, read by the table in the module's head.
fn unpack(matrix: &PackedMatrix, k: usize, column: usize) -> f32 {
    let panel = matrix.panel(column / PANEL);
    let column = column % PANEL;
    match matrix.stored() {
        Dtype::Bf16 => {
            let word = bytemuck::cast_slice::<u8, u32>(panel)[k / 2 * PANEL + column];
            bf16::widen((if k.is_multiple_of(2) { word >> 16 } else { word & 0xffff }) as u16)
        }
        Dtype::F16 => {
            half::f16::from_bits(bytemuck::cast_slice::<u8, u16>(panel)[k * PANEL + column]).to_f32()
        }
        Dtype::F32 => bytemuck::cast_slice::<u8, f32>(panel)[k * PANEL + column],
    }
}

const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::Bf16, Dtype::F16];
const LAYOUTS: [Layout; 2] = [Layout::InputsFirst, Layout::OutputsFirst];

#[test]
fn every_weight_lands_in_its_place() {
    for threads in [1, 2] {
        let pool = pool(threads);
        for (inputs, outputs) in [(1, 1), (2, 32), (3, 33), (64, 31), (65, 100), (131, 64), (128, 97)] {
            for dtype in DTYPES {
                for layout in LAYOUTS {
                    for compute in [Compute::F32, Compute::Bf16] {
                        let bytes = tensor(inputs, outputs, dtype, layout);
                        let group = Columns { bytes: &bytes, dtype, layout, outputs, select: None };
                        let matrix = MatrixBuilder::new(inputs, compute).columns(group).build(&pool).unwrap();
                        let stored = if compute == Compute::Bf16 { Dtype::Bf16 } else { dtype };
                        assert_eq!(matrix.stored(), stored);
                        assert_eq!((matrix.inputs(), matrix.outputs()), (inputs, outputs));
                        assert_eq!(matrix.bytes(), PackedMatrix::bytes_of(inputs, outputs, stored));
                        for column in 0..matrix.panels() * PANEL {
                            for k in 0..inputs.next_multiple_of(2) {
                                let inside = column < outputs && k < inputs;
                                let want = if inside { value(k, column) } else { 0.0 };
                                assert_eq!(
                                    unpack(&matrix, k, column),
                                    want,
                                    "{dtype:?} {layout:?} {k} {column}"
                                );
                            }
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn groups_follow_each_other_and_may_be_selected_from() {
    let pool = pool(2);
    let inputs = 7;
    let a = tensor(inputs, 20, Dtype::Bf16, Layout::InputsFirst);
    let b = tensor(inputs, 50, Dtype::F16, Layout::OutputsFirst);
    // Starts at an odd address, as a tensor in an archive may.
    let c: Vec<u8> = [0].into_iter().chain(tensor(inputs, 9, Dtype::F32, Layout::InputsFirst)).collect();
    let select: Vec<u32> = (0..50).rev().step_by(2).chain([3, 3, 4]).collect();
    let group = |bytes, dtype, layout, outputs, select| Columns { bytes, dtype, layout, outputs, select };
    let matrix = MatrixBuilder::new(inputs, Compute::F32)
        .columns(group(&a, Dtype::Bf16, Layout::InputsFirst, 20, None))
        .columns(group(&b, Dtype::F16, Layout::OutputsFirst, 50, Some(select.as_slice())))
        .columns(group(&c[1..], Dtype::F32, Layout::InputsFirst, 9, None))
        .build(&pool)
        .unwrap();
    assert_eq!(matrix.stored(), Dtype::F32);
    let columns: Vec<usize> =
        (0..20).chain(select.iter().map(|&column| column as usize)).chain(0..9).collect();
    assert_eq!(matrix.outputs(), columns.len());
    for (column, &source) in columns.iter().enumerate() {
        for k in 0..inputs {
            assert_eq!(unpack(&matrix, k, column), value(k, source));
        }
    }
}

#[test]
fn bf16_compute_rounds_once_and_flushes_denormals() {
    let pool = pool(1);
    let values = [f32::from_bits(0x3f80_8001), 1.0e-39, -1.0e-39, 65504.0, f32::from_bits(0x3f81_8000)];
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let group =
        |bytes, dtype| Columns { bytes, dtype, layout: Layout::InputsFirst, outputs: 5, select: None };
    let build = |bytes, dtype, compute| {
        MatrixBuilder::new(1, compute)
            .columns(group(bytes, dtype))
            .bias(values.to_vec())
            .build(&pool)
            .unwrap()
    };
    let matrix = build(&bytes, Dtype::F32, Compute::Bf16);
    let want = values.map(|value| bf16::widen(bf16::round(value)).to_bits());
    assert_eq!([0, 1, 2, 3, 4].map(|column| unpack(&matrix, 0, column).to_bits()), want);
    assert_eq!(matrix.panel_bias(0).unwrap()[..5].iter().map(|b| b.to_bits()).collect::<Vec<_>>(), want);
    assert_eq!(&matrix.panel_bias(0).unwrap()[5..], &[0.0; 27]);

    let denormals: Vec<u8> =
        [0x0001_u16, 0x8001, 0x007f, 0x0080, 0x3f80].iter().flat_map(|bits| bits.to_le_bytes()).collect();
    let flushed = build(&denormals, Dtype::Bf16, Compute::Bf16);
    let kept = build(&denormals, Dtype::Bf16, Compute::F32);
    let bits =
        |matrix: &PackedMatrix| [0, 1, 2, 3, 4].map(|column| unpack(matrix, 0, column).to_bits() >> 16);
    assert_eq!(bits(&flushed), [0, 0x8000, 0, 0x0080, 0x3f80]);
    assert_eq!(bits(&kept), [0x0001, 0x8001, 0x007f, 0x0080, 0x3f80]);
}

#[test]
fn wrong_sources_are_refused() {
    let pool = pool(1);
    let bytes = [0; 24];
    let group = |outputs, select| {
        let layout = Layout::OutputsFirst;
        MatrixBuilder::new(3, Compute::F32).columns(Columns {
            bytes: &bytes,
            dtype: Dtype::F32,
            layout,
            outputs,
            select,
        })
    };
    assert!(group(2, None).build(&pool).is_ok());
    assert!(matches!(group(3, None).build(&pool), Err(TensorError::WeightBytes { got: 24, .. })));
    assert!(matches!(group(usize::MAX, None).build(&pool), Err(TensorError::WeightBytes { .. })));
    let refused = group(2, Some(&[0, 2])).build(&pool);
    assert!(matches!(refused, Err(TensorError::Column { column: 2, columns: 2 })));
    let refused = group(2, None).bias(vec![0.0]).build(&pool);
    assert!(matches!(refused, Err(TensorError::Bias { columns: 2, got: 1 })));
}
