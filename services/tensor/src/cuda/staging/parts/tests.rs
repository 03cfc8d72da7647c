use super::*;

const INPUTS: usize = 5;
const OUTPUTS: usize = 7;

/// Element (output, input) of a tensor, in its type.
fn element(dtype: Dtype, output: usize, input: usize) -> f32 {
    let value = (output * 16 + input) as f32;
    if dtype == Dtype::F32 { value + 0.25 } else { value }
}

fn bytes(dtype: Dtype, layout: Layout) -> Vec<u8> {
    let (rows, columns) = if layout == Layout::InputsFirst { (INPUTS, OUTPUTS) } else { (OUTPUTS, INPUTS) };
    let mut bytes = Vec::new();
    for row in 0..rows {
        for column in 0..columns {
            let value = match layout {
                Layout::InputsFirst => element(dtype, column, row),
                Layout::OutputsFirst => element(dtype, row, column),
            };
            match dtype {
                Dtype::F32 => bytes.extend(value.to_le_bytes()),
                Dtype::Bf16 => bytes.extend(half::bf16::from_f32(value).to_le_bytes()),
                Dtype::F16 => bytes.extend(half::f16::from_f32(value).to_le_bytes()),
            }
        }
    }
    bytes
}

/// Does in plain loops what the card does with a part.
fn unpack(place: &Place, select: &[usize], (offset, part): (usize, &[u8]), matrix: &mut [f32]) {
    let size = place.from.bytes();
    let value = |index: usize| crate::tensor::widen(place.from, &part[index * size..][..size]);
    match place.of(offset, part.len()) {
        Then::Keep { at } => {
            assert_eq!(place.from, place.to);
            (0..part.len() / size).for_each(|index| matrix[at + index] = value(index));
        }
        Then::Convert { at, count } => {
            assert_ne!(place.from, place.to);
            assert_eq!(part.len(), count * size);
            (0..count).for_each(|index| matrix[at + index] = value(index));
        }
        Then::Transpose { at, first, count } => {
            // As many rows as the kernel's grid spans.
            for row in first / OUTPUTS..=(first + count - 1) / OUTPUTS {
                for (output, column) in select.iter().enumerate() {
                    let here = (row * OUTPUTS + column).wrapping_sub(first);
                    if here < count {
                        matrix[at + output * place.inputs + row] = value(here);
                    }
                }
            }
        }
    }
}

#[test]
fn parts_of_any_size_make_the_whole_matrix() {
    let all: Vec<usize> = (0..OUTPUTS).collect();
    let picks = [6, 0, 0, 3, 1];
    for from in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
        for layout in [Layout::InputsFirst, Layout::OutputsFirst] {
            let bytes = bytes(from, layout);
            let select: &[usize] = if layout == Layout::InputsFirst { &picks } else { &all };
            for part in [4, 8, 12, 20, 28, 56, 64, 1 << 10] {
                for to in [Dtype::F32, Dtype::Bf16] {
                    let place = Place { inputs: INPUTS, first_output: 2, layout, from, to };
                    let mut matrix = vec![f32::NAN; (2 + select.len() + 1) * INPUTS];
                    for (index, bytes) in bytes.chunks(part).enumerate() {
                        unpack(&place, select, (index * part, bytes), &mut matrix);
                    }
                    for (row, values) in matrix.chunks(INPUTS).enumerate() {
                        for (input, value) in values.iter().enumerate() {
                            match row.checked_sub(2).and_then(|row| select.get(row)) {
                                Some(output) => {
                                    assert_eq!(*value, element(from, *output, input), "{place:?}");
                                }
                                None => assert!(value.is_nan(), "written outside: {place:?}"),
                            }
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn what_needs_no_change_is_kept() {
    let place = Place {
        inputs: INPUTS,
        first_output: 1,
        layout: Layout::OutputsFirst,
        from: Dtype::Bf16,
        to: Dtype::Bf16,
    };
    assert_eq!(place.of(32, 32), Then::Keep { at: INPUTS + 16 });
}
