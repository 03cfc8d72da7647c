//! A weight tensor cut into pieces that fit a staging slot, and what becomes of each on the card.

use crate::{Columns, Dtype, Layout};

/// A part of a tensor that travels as one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece<'a> {
    /// What travels.
    pub from: Source<'a>,
    /// What becomes of it.
    pub then: Then,
}

/// Bytes of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source<'a> {
    /// One run.
    Run(&'a [u8]),
    /// Rows of a table, in this order.
    Rows {
        /// The whole table.
        table: &'a [u8],
        /// Bytes of a row.
        row: usize,
        /// Which rows.
        picks: &'a [u32],
    },
}

/// What becomes of a piece. Places are elements of the whole matrix `[outputs, inputs]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// Its elements rest from `at` on as they are.
    Keep {
        /// The first element.
        at: usize,
    },
    /// They rest there in another type.
    Convert {
        /// The first element.
        at: usize,
        /// How many.
        count: usize,
    },
    /// They are rows of a tensor with inputs first, and become columns.
    Transpose(Turn),
}

/// Rows of a tensor that has inputs first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// Where the tensor's first output rests.
    pub at: usize,
    /// The first row's input.
    pub first_input: usize,
    /// How many rows.
    pub rows: usize,
    /// The first column, of the tensor's.
    pub first_column: usize,
    /// How many columns.
    pub columns: usize,
}

/// Where a tensor goes.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Inputs of the matrix.
    pub inputs: usize,
    /// Outputs before the tensor's first.
    pub first_output: usize,
    /// The matrix' element type.
    pub stored: Dtype,
    /// Bytes of a staging slot.
    pub slot: usize,
}

/// Cuts a checked tensor; every piece has at most `place.slot` bytes.
pub fn cut<'a>(group: &Columns<'a>, place: &Place) -> Vec<Piece<'a>> {
    if place.inputs == 0 || group.selected() == 0 {
        return Vec::new();
    }
    match (group.layout, group.select) {
        (Layout::OutputsFirst, None) => {
            straight(group.bytes, group.dtype, place, place.first_output * place.inputs)
        }
        (Layout::OutputsFirst, Some(select)) => picked(group, select, place),
        (Layout::InputsFirst, _) => turned(group, place),
    }
}

/// A run of elements that come to rest from `at` on, one after the other.
fn straight<'a>(bytes: &'a [u8], dtype: Dtype, place: &Place, at: usize) -> Vec<Piece<'a>> {
    let most = (place.slot / dtype.bytes()).max(1);
    let piece = |(index, part): (usize, &'a [u8])| {
        let (at, count) = (at + index * most, part.len() / dtype.bytes());
        Piece { from: Source::Run(part), then: resting(dtype, place, at, count) }
    };
    bytes.chunks(most * dtype.bytes()).enumerate().map(piece).collect()
}

/// Selected outputs of a tensor with outputs first.
fn picked<'a>(group: &Columns<'a>, select: &'a [u32], place: &Place) -> Vec<Piece<'a>> {
    let row = place.inputs * group.dtype.bytes();
    let most = place.slot / row;
    if most == 0 {
        let output = |(index, pick): (usize, &u32)| {
            let bytes = &group.bytes[*pick as usize * row..][..row];
            straight(bytes, group.dtype, place, (place.first_output + index) * place.inputs)
        };
        return select.iter().enumerate().flat_map(output).collect();
    }
    let piece = |(index, picks): (usize, &'a [u32])| {
        let at = (place.first_output + index * most) * place.inputs;
        let from = Source::Rows { table: group.bytes, row, picks };
        Piece { from, then: resting(group.dtype, place, at, picks.len() * place.inputs) }
    };
    select.chunks(most).enumerate().map(piece).collect()
}

/// Rows of a tensor with inputs first; parts of rows where a slot does not hold one.
fn turned<'a>(group: &Columns<'a>, place: &Place) -> Vec<Piece<'a>> {
    let (outputs, element) = (group.outputs, group.dtype.bytes());
    let most_columns = (place.slot / element).clamp(1, outputs);
    let most_rows = if most_columns < outputs { 1 } else { (place.slot / (outputs * element)).max(1) };
    let mut pieces = Vec::new();
    for first_input in (0..place.inputs).step_by(most_rows) {
        let rows = most_rows.min(place.inputs - first_input);
        for first_column in (0..outputs).step_by(most_columns) {
            let columns = most_columns.min(outputs - first_column);
            let start = (first_input * outputs + first_column) * element;
            let turn =
                Turn { at: place.first_output * place.inputs, first_input, rows, first_column, columns };
            pieces.push(Piece {
                from: Source::Run(&group.bytes[start..][..rows * columns * element]),
                then: Then::Transpose(turn),
            });
        }
    }
    pieces
}

fn resting(dtype: Dtype, place: &Place, at: usize, count: usize) -> Then {
    if dtype == place.stored { Then::Keep { at } } else { Then::Convert { at, count } }
}

impl Source<'_> {
    /// Its size in bytes.
    pub fn bytes(&self) -> usize {
        match self {
            Source::Run(bytes) => bytes.len(),
            Source::Rows { row, picks, .. } => row * picks.len(),
        }
    }

    /// Copies all of it to the beginning of `slot`.
    pub fn copy_to(&self, slot: &mut [u8]) {
        match self {
            Source::Run(bytes) => slot[..bytes.len()].copy_from_slice(bytes),
            Source::Rows { table, row, picks } => {
                for (to, pick) in slot.chunks_exact_mut(*row).zip(*picks) {
                    to.copy_from_slice(&table[*pick as usize * row..][..*row]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
