//! From a checkpoint's bytes straight into panels (see [`super::matrix`] for their layout).
#![allow(unsafe_code, reason = "threads write disjoint panels of one area")]

use std::ops::Range;

use crate::cpu::bf16;
use crate::cpu::disjoint::Disjoint;
use crate::cpu::matrix::PANEL;
use crate::cpu::pool::Pool;
use crate::{Compute, Dtype, TensorError};

/// Pairs of K packed for all columns before the next: source lines and the written lines stay in L1.
const BLOCK: usize = 32;

/// How a checkpoint lays out a weight tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `[K, N]`: one row per input, as `Conv1D` keeps it.
    InputsFirst,
    /// `[N, K]`: one row per output, as `Linear` keeps it.
    OutputsFirst,
}

/// Output columns taken from one weight tensor.
#[derive(Clone, Copy, Debug)]
pub struct Columns<'a> {
    /// The whole tensor, row-major, little-endian, of any alignment.
    pub bytes: &'a [u8],
    /// Its element type.
    pub dtype: Dtype,
    /// The order of its two dimensions.
    pub layout: Layout,
    /// Its number of output columns N.
    pub outputs: usize,
    /// Which of its columns to take, in this order, repetition allowed; `None`: all as they stand.
    pub select: Option<&'a [u32]>,
}

/// What is packed into.
pub(super) struct Target {
    pub inputs: usize,
    pub compute: Compute,
    pub stored: Dtype,
}

/// Neighbouring columns of one panel that come from one tensor.
struct Run<'a> {
    group: &'a Columns<'a>,
    /// The first column's place in the panel.
    at: usize,
    /// The tensor's column for each.
    sources: &'a [usize],
}

impl Columns<'_> {
    /// How many columns are taken.
    pub fn selected(&self) -> usize {
        self.select.map_or(self.outputs, <[u32]>::len)
    }

    /// Whether the bytes hold what is said of them, for `inputs` rows.
    pub(crate) fn check(&self, inputs: usize) -> Result<(), TensorError> {
        check_size([inputs, self.outputs], self.dtype, self.bytes.len())?;
        let outside = |column: &&u32| **column as usize >= self.outputs;
        match self.select.and_then(|select| select.iter().find(outside)) {
            Some(&column) => Err(TensorError::Column { column, columns: self.outputs }),
            None => Ok(()),
        }
    }

    fn source(&self, index: usize) -> usize {
        self.select.map_or(index, |select| select[index] as usize)
    }
}

/// Whether `got` bytes are a weight tensor of this size.
pub(crate) fn check_size([inputs, outputs]: [usize; 2], dtype: Dtype, got: usize) -> Result<(), TensorError> {
    let bytes = inputs.checked_mul(outputs).and_then(|count| count.checked_mul(dtype.bytes()));
    if bytes == Some(got) {
        return Ok(());
    }
    Err(TensorError::WeightBytes { inputs, outputs, dtype, got })
}

/// Packs checked `groups` into `panels`, which are zero.
pub(super) fn pack(pool: &Pool, groups: &[Columns<'_>], target: &Target, panels: &mut [u8]) {
    let panel_bytes = target.inputs.next_multiple_of(2) * PANEL * target.stored.bytes();
    if panel_bytes == 0 {
        return;
    }
    let count = panels.len() / panel_bytes;
    let panels = Disjoint::new(panels);
    pool.run(&|worker| {
        for index in worker.share(count) {
            // SAFETY: shares do not overlap, so this thread alone touches panel `index`.
            let panel = unsafe { panels.part(index * panel_bytes..(index + 1) * panel_bytes) };
            pack_panel(groups, target, index * PANEL, panel);
        }
    });
}

/// Packs the columns from `first` on into one panel, run by run.
fn pack_panel(groups: &[Columns<'_>], target: &Target, first: usize, panel: &mut [u8]) {
    let mut group_start = 0;
    for group in groups {
        let group_end = group_start + group.selected();
        let (start, end) = (first.max(group_start), (first + PANEL).min(group_end));
        if start < end {
            let mut sources = [0; PANEL];
            for (source, column) in sources.iter_mut().zip(start..end) {
                *source = group.source(column - group_start);
            }
            let run = Run { group, at: start - first, sources: &sources[..end - start] };
            pack_run(&run, target, panel);
        }
        group_start = group_end;
    }
}

/// Chooses the conversion once per run, so that the loops below are free of it.
fn pack_run(run: &Run<'_>, target: &Target, panel: &mut [u8]) {
    let inputs = target.inputs;
    let half = |bytes| widen_f16(u16::from_le_bytes(bytes));
    match (run.group.dtype, target.stored, target.compute) {
        (Dtype::Bf16, Dtype::Bf16, Compute::F32) => pairs(run, inputs, panel, u16::from_le_bytes),
        (Dtype::Bf16, Dtype::Bf16, Compute::Bf16) => {
            pairs(run, inputs, panel, |bytes| bf16::flush(u16::from_le_bytes(bytes)));
        }
        (Dtype::F16, Dtype::Bf16, _) => pairs(run, inputs, panel, |bytes| bf16::round(half(bytes))),
        (Dtype::F32, Dtype::Bf16, _) => pairs(run, inputs, panel, |b| bf16::round(f32::from_le_bytes(b))),
        (_, Dtype::F16, _) => rows(run, inputs, panel, |bytes: [u8; 2]| bytes),
        (Dtype::F32, Dtype::F32, _) => rows(run, inputs, panel, |bytes: [u8; 4]| bytes),
        (Dtype::F16, Dtype::F32, _) => rows(run, inputs, panel, |bytes| half(bytes).to_ne_bytes()),
        (Dtype::Bf16, Dtype::F32, _) => {
            rows(run, inputs, panel, |bytes| bf16::widen(u16::from_le_bytes(bytes)).to_ne_bytes());
        }
    }
}

/// The f32 of an f16, exactly: denormals too, since the product by 2¹¹² is exact. (No branch, no table: loops
/// over it become vector code.)
fn widen_f16(x: u16) -> f32 {
    let magnitude = f32::from_bits(u32::from(x & 0x7fff) << 13) * f32::from_bits(0x7780_0000);
    let special = if x & 0x7c00 == 0x7c00 { f32::INFINITY.to_bits() } else { 0 };
    f32::from_bits(magnitude.to_bits() | special | u32::from(x & 0x8000) << 16)
}

/// bf16: a word of 32 bits per pair of K and column, the even K in its high half.
fn pairs<const W: usize>(run: &Run<'_>, inputs: usize, panel: &mut [u8], bf16: impl Fn([u8; W]) -> u16) {
    let words: &mut [[u32; PANEL]] = bytemuck::cast_slice_mut(panel);
    let word = |even, odd: Option<&[u8; W]>| {
        u32::from(bf16(even)) << 16 | odd.map_or(0, |odd| u32::from(bf16(*odd)))
    };
    match run.group.layout {
        Layout::InputsFirst => {
            let columns = run.contiguous();
            for (pair, words) in words.iter_mut().enumerate() {
                let words = &mut words[run.at..][..run.sources.len()];
                let even = run.row(2 * pair);
                let odd = (2 * pair + 1 < inputs).then(|| run.row(2 * pair + 1));
                match (columns.clone(), odd) {
                    (Some(columns), Some(odd)) => {
                        let sources = even[columns.clone()].iter().zip(&odd[columns]);
                        for (to, (even, odd)) in words.iter_mut().zip(sources) {
                            *to = word(*even, Some(odd));
                        }
                    }
                    _ => {
                        for (to, &column) in words.iter_mut().zip(run.sources) {
                            *to = word(even[column], odd.map(|odd| &odd[column]));
                        }
                    }
                }
            }
        }
        Layout::OutputsFirst => {
            for (block, words) in words.chunks_mut(BLOCK).enumerate() {
                for (at, &column) in (run.at..).zip(run.sources) {
                    let values = &run.column(column, inputs)[2 * BLOCK * block..];
                    for (words, values) in words.iter_mut().zip(values.chunks(2)) {
                        words[at] = word(values[0], values.get(1));
                    }
                }
            }
        }
    }
}

/// f16 and f32: the columns of one K side by side.
fn rows<const W: usize, const S: usize>(
    run: &Run<'_>,
    inputs: usize,
    panel: &mut [u8],
    convert: impl Fn([u8; W]) -> [u8; S],
) {
    let rows: &mut [[[u8; S]; PANEL]] = panel.as_chunks_mut().0.as_chunks_mut().0;
    match run.group.layout {
        Layout::InputsFirst => {
            let columns = run.contiguous();
            for (k, to) in rows.iter_mut().take(inputs).enumerate() {
                let (from, to) = (run.row(k), &mut to[run.at..][..run.sources.len()]);
                if let Some(columns) = columns.clone() {
                    for (to, &from) in to.iter_mut().zip(&from[columns]) {
                        *to = convert(from);
                    }
                } else {
                    for (to, &column) in to.iter_mut().zip(run.sources) {
                        *to = convert(from[column]);
                    }
                }
            }
        }
        Layout::OutputsFirst => {
            for (block, rows) in rows.chunks_mut(2 * BLOCK).enumerate() {
                for (at, &column) in (run.at..).zip(run.sources) {
                    let values = &run.column(column, inputs)[2 * BLOCK * block..];
                    for (to, &value) in rows.iter_mut().zip(values) {
                        to[at] = convert(value);
                    }
                }
            }
        }
    }
}

impl Run<'_> {
    /// The tensor's columns as a range, if they are one.
    fn contiguous(&self) -> Option<Range<usize>> {
        let (first, last) = (*self.sources.first()?, *self.sources.last()?);
        let straight = self.sources.iter().zip(first..).all(|(source, at)| *source == at);
        straight.then_some(first..last + 1)
    }

    /// Row `k` of a tensor with inputs first.
    fn row<const W: usize>(&self, k: usize) -> &[[u8; W]] {
        &self.group.bytes.as_chunks().0[k * self.group.outputs..][..self.group.outputs]
    }

    /// One column of a tensor with outputs first.
    fn column<const W: usize>(&self, column: usize, inputs: usize) -> &[[u8; W]] {
        &self.group.bytes.as_chunks().0[column * inputs..][..inputs]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_f16_is_widened_exactly() {
        for bits in 0..=u16::MAX {
            let (got, want) = (widen_f16(bits), half::f16::from_bits(bits).to_f32());
            assert!(got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(), "{bits:x}");
        }
    }
}
