//! Weights on their way to a card: out of pieces of a checkpoint into rows of the compute type.
#![allow(unsafe_code, reason = "starts kernels")]

use std::sync::{Arc, Mutex, PoisonError};

use crate::cuda::card::Card;
use crate::cuda::compile::Theme;
use crate::cuda::launch::{Arg, Grid, Kernel, Module};
use crate::cuda::memory::DeviceMemory;
use crate::cuda::staging::pieces::{Piece, Place, Then, cut};
use crate::cuda::staging::{Route, SLOT, Staging, Unpack};
use crate::cuda::synthetic::Random;
use crate::{Columns, Dtype, Layout, TensorError};

/// Brings weights to the card.
#[derive(Debug)]
pub struct Loader {
    card: Arc<Card>,
    /// To bf16, and to f32; from each of [`SOURCES`].
    kernels: [[PackKernels; 3]; 2],
    random: Random,
    /// Made for the first weights, given back when all are there.
    staging: Mutex<Option<Staging>>,
}

/// The kernels of one pair of types.
#[derive(Debug)]
struct PackKernels {
    convert: Kernel,
    transpose: Kernel,
}

/// Types that weights come in.
const SOURCES: [Dtype; 3] = [Dtype::F32, Dtype::Bf16, Dtype::F16];

/// A tensor on its way into memory on the card.
struct Unpacking<'a> {
    loader: &'a Loader,
    /// Where element 0 of the whole matrix rests.
    base: u64,
    inputs: usize,
    /// The tensor's outputs that are taken.
    outputs: usize,
    /// The column of each on the card, or 0: as they stand.
    select: u64,
    from: Dtype,
    to: Dtype,
}

/// `Transpose` of `kernels/pack.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Transpose {
    from: u64,
    to: u64,
    select: u64,
    inputs: u64,
    first_input: u64,
    rows: u32,
    first_column: u32,
    columns: u32,
    outputs: u32,
}

// === impl Loader ===

impl Loader {
    /// Compiles the kernels.
    pub fn new(card: &Arc<Card>) -> Result<Loader, TensorError> {
        let module = card.kernels(Theme::Pack, &[])?;
        let to = |to| -> Result<_, TensorError> {
            let [a, b, c] = SOURCES.map(|from| PackKernels::new(&module, from, to));
            Ok([a?, b?, c?])
        };
        Ok(Loader {
            kernels: [to(Dtype::Bf16)?, to(Dtype::F32)?],
            random: Random::new(card, &module)?,
            card: Arc::clone(card),
            staging: Mutex::default(),
        })
    }

    /// Fills memory with numbers.
    pub fn random(&self) -> &Random {
        &self.random
    }

    /// Waits until all weights are where they belong, and gives the staging slots back.
    pub fn settle(&self) {
        self.staging.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Loads column groups of one matrix into memory of `stored` elements that begins at `base`.
    pub fn load(
        &self,
        groups: &[Columns<'_>],
        inputs: usize,
        stored: Dtype,
        base: u64,
    ) -> Result<(), TensorError> {
        let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        let staging = staging.get_or_insert_with(|| Staging::new(&self.card));
        let mut first_output = 0;
        for group in groups {
            let pieces = cut(group, &Place { inputs, first_output, stored, slot: SLOT });
            first_output += group.selected();
            // Only kernels that transpose look at the selection; else the host has seen to it.
            let select = group.select.filter(|_| group.layout == Layout::InputsFirst && !pieces.is_empty());
            let select = select.map(|select| upload(&self.card, select)).transpose()?;
            let unpacking = Unpacking {
                loader: self,
                base,
                inputs,
                outputs: group.selected(),
                select: select.as_ref().map_or(0, DeviceMemory::address),
                from: group.dtype,
                to: stored,
            };
            staging.send(&pieces, &unpacking)?;
            if select.is_some() {
                // Kernels read the selection until then.
                self.card.compute.synchronize()?;
            }
        }
        Ok(())
    }

    fn kernels(&self, from: Dtype, to: Dtype) -> &PackKernels {
        let [bf16, f32] = &self.kernels;
        let [from_f32, from_bf16, from_f16] = if to == Dtype::F32 { f32 } else { bf16 };
        match from {
            Dtype::F32 => from_f32,
            Dtype::Bf16 => from_bf16,
            Dtype::F16 => from_f16,
        }
    }
}

fn upload(card: &Card, values: &[u32]) -> Result<DeviceMemory, TensorError> {
    let memory = DeviceMemory::unwritten(card.context(), size_of_val(values))?;
    memory.write(0, bytemuck::cast_slice(values))?;
    Ok(memory)
}

impl PackKernels {
    fn new(module: &Module, from: Dtype, to: Dtype) -> Result<PackKernels, TensorError> {
        Ok(PackKernels {
            convert: module.kernel(&format!("pack_convert_{from}_{to}"))?,
            transpose: module.kernel(&format!("pack_transpose_{from}_{to}"))?,
        })
    }
}

impl Unpacking<'_> {
    fn place(&self, element: usize) -> u64 {
        self.base + (element * self.to.bytes()) as u64
    }
}

impl Unpack for Unpacking<'_> {
    fn route(&self, piece: &Piece<'_>) -> Route {
        match piece.then {
            Then::Keep { at } => Route::To(self.place(at)),
            Then::Convert { .. } | Then::Transpose(_) => Route::Through,
        }
    }

    fn unpack(&self, piece: &Piece<'_>, slot: u64) -> Result<(), TensorError> {
        let card = &self.loader.card;
        let kernels = self.loader.kernels(self.from, self.to);
        match piece.then {
            Then::Keep { .. } => Ok(()),
            Then::Convert { at, count } => {
                let (to, most) = (self.place(at), card.multiprocessors() as usize * 8);
                let grid = Grid::line(count.div_ceil(256).min(most) as u32, 256);
                let count = count as u64;
                // SAFETY: the kernel's arguments in order: a slot that holds `count` elements, and their place in the
                // matrix.
                unsafe {
                    card.launch(&kernels.convert, grid, &[Arg::of(&slot), Arg::of(&to), Arg::of(&count)])
                }
            }
            Then::Transpose(turn) => {
                let call = Transpose {
                    from: slot,
                    to: self.place(turn.at),
                    select: self.select,
                    inputs: self.inputs as u64,
                    first_input: turn.first_input as u64,
                    rows: turn.rows as u32,
                    first_column: turn.first_column as u32,
                    columns: turn.columns as u32,
                    outputs: self.outputs as u32,
                };
                let blocks = [self.outputs.div_ceil(64) as u32, turn.rows.div_ceil(64) as u32, 1];
                // SAFETY: the kernel's one argument: a slot that holds these rows, the group's part of the matrix, and
                // a selection of as many columns, all checked to exist.
                unsafe { card.launch(&kernels.transpose, Grid { blocks, threads: 256 }, &[Arg::of(&call)]) }
            }
        }
    }
}
