use super::*;

const INPUTS: usize = 5;

/// Element (output, input) of a tensor, in its type.
fn element(dtype: Dtype, output: usize, input: usize) -> f32 {
    let value = (output * 16 + input) as f32;
    if dtype == Dtype::F32 { value + 0.25 } else { value }
}

fn bytes(dtype: Dtype, layout: Layout, outputs: usize) -> Vec<u8> {
    let (rows, columns) = if layout == Layout::InputsFirst { (INPUTS, outputs) } else { (outputs, INPUTS) };
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

/// Does in plain loops what the card does with the pieces.
fn assemble(group: &Columns<'_>, place: &Place, matrix: &mut [f32]) {
    for piece in cut(group, place) {
        let mut slot = vec![0; place.slot];
        assert!(piece.from.bytes() <= place.slot, "{piece:?}");
        piece.from.copy_to(&mut slot);
        let value = |index: usize| {
            crate::tensor::widen(group.dtype, &slot[index * group.dtype.bytes()..][..group.dtype.bytes()])
        };
        match piece.then {
            Then::Keep { at } => {
                assert_eq!(group.dtype, place.stored);
                (0..piece.from.bytes() / group.dtype.bytes())
                    .for_each(|index| matrix[at + index] = value(index));
            }
            Then::Convert { at, count } => {
                assert_ne!(group.dtype, place.stored);
                assert_eq!(piece.from.bytes(), count * group.dtype.bytes());
                (0..count).for_each(|index| matrix[at + index] = value(index));
            }
            Then::Transpose(turn) => {
                for (output, column) in (0..group.selected())
                    .map(|index| (index, group.select.map_or(index, |select| select[index] as usize)))
                {
                    let Some(here) =
                        column.checked_sub(turn.first_column).filter(|here| *here < turn.columns)
                    else {
                        continue;
                    };
                    for row in 0..turn.rows {
                        matrix[turn.at + output * place.inputs + turn.first_input + row] =
                            value(row * turn.columns + here);
                    }
                }
            }
        }
    }
}

#[test]
fn pieces_of_any_size_make_the_whole_matrix() {
    let outputs = 7;
    let all: Vec<u32> = (0..7).collect();
    let picks = [6_u32, 0, 0, 3, 1];
    for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
        for layout in [Layout::InputsFirst, Layout::OutputsFirst] {
            let bytes = bytes(dtype, layout, outputs);
            for select in [None, Some(&picks[..])] {
                for slot in [4, 8, 12, 20, 28, 56, 64, 1 << 10] {
                    for stored in [Dtype::F32, Dtype::Bf16] {
                        let group = Columns { bytes: &bytes, dtype, layout, outputs, select };
                        let place = Place { inputs: INPUTS, first_output: 2, stored, slot };
                        let chosen = select.unwrap_or(&all);
                        let mut matrix = vec![f32::NAN; (2 + chosen.len() + 1) * INPUTS];
                        assemble(&group, &place, &mut matrix);
                        for (row, values) in matrix.chunks(INPUTS).enumerate() {
                            for (input, value) in values.iter().enumerate() {
                                let want = row.checked_sub(2).and_then(|row| chosen.get(row));
                                match want {
                                    Some(output) => assert_eq!(
                                        *value,
                                        element(dtype, *output as usize, input),
                                        "{group:?}"
                                    ),
                                    None => assert!(value.is_nan(), "written outside: {group:?} {place:?}"),
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn nothing_is_cut_of_empty_tensors() {
    let group =
        Columns { bytes: &[], dtype: Dtype::F32, layout: Layout::OutputsFirst, outputs: 0, select: None };
    let place = Place { inputs: 3, first_output: 0, stored: Dtype::F32, slot: 64 };
    assert_eq!(cut(&group, &place), []);
    let inputs_first = Columns { layout: Layout::InputsFirst, outputs: 4, ..group };
    assert_eq!(cut(&inputs_first, &Place { inputs: 0, ..place }), []);
}

#[test]
fn what_needs_no_change_is_kept() {
    let bytes = bytes(Dtype::Bf16, Layout::OutputsFirst, 8);
    let group =
        Columns { bytes: &bytes, dtype: Dtype::Bf16, layout: Layout::OutputsFirst, outputs: 8, select: None };
    let place = Place { inputs: INPUTS, first_output: 1, stored: Dtype::Bf16, slot: 32 };
    let pieces = cut(&group, &place);
    assert_eq!(pieces.len(), 3);
    assert_eq!(pieces[1], Piece { from: Source::Run(&bytes[32..64]), then: Then::Keep { at: INPUTS + 16 } });
}
