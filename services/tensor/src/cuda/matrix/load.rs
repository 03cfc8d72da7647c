//! Weights that have come to a card: out of parts of a checkpoint's tensors into rows of the compute type.
#![allow(unsafe_code, reason = "starts kernels")]

use std::sync::Arc;

use crate::cuda::card::Card;
use crate::cuda::compile::Theme;
use crate::cuda::launch::{Arg, Grid, Kernel, Module};
use crate::cuda::memory::DeviceMemory;
use crate::cuda::staging::hashes::Hashes;
use crate::cuda::staging::parts::{Place, Then};
use crate::cuda::staging::pinned::{Pinned, Route, Shared, Unpack};
use crate::cuda::staging::room::{Room, Twins};
use crate::cuda::synthetic::Random;
use crate::{Dtype, TensorError};

/// What unpacks and makes up weights.
#[derive(Debug)]
pub struct Loader {
    card: Arc<Card>,
    /// To bf16, and to f32; from each of [`SOURCES`].
    kernels: [[PackKernels; 3]; 2],
    random: Random,
    hashes: Hashes,
    /// Memory for the first load.
    room: Room,
}

/// The kernels of one pair of types.
#[derive(Clone, Debug)]
pub struct PackKernels {
    convert: Kernel,
    transpose: Kernel,
}

/// Types that weights come in.
const SOURCES: [Dtype; 3] = [Dtype::F32, Dtype::Bf16, Dtype::F16];

/// A tensor on its way into memory on the card.
#[derive(Debug)]
pub struct Unpacking {
    pub card: Arc<Card>,
    pub kernels: PackKernels,
    /// The whole matrix.
    pub memory: DeviceMemory,
    pub place: Place,
    /// The tensor's columns.
    pub columns: usize,
    /// Those of them that are taken, where not all as they stand; kernels that transpose look at it.
    pub select: Option<DeviceMemory>,
    /// How many are taken.
    pub outputs: usize,
}

/// `Transpose` of `kernels/pack.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Transpose {
    from: u64,
    to: u64,
    select: u64,
    inputs: u64,
    first: u64,
    count: u64,
    columns: u32,
    outputs: u32,
}

// === impl Loader ===

impl Loader {
    /// Compiles the kernels, and makes room for weights meanwhile.
    pub fn new(card: &Arc<Card>) -> Result<Loader, TensorError> {
        let room = Room::begin(card.context());
        let module = card.kernels(Theme::Pack, &[])?;
        let to = |to| -> Result<_, TensorError> {
            let [a, b, c] = SOURCES.map(|from| PackKernels::new(&module, from, to));
            Ok([a?, b?, c?])
        };
        Ok(Loader {
            kernels: [to(Dtype::Bf16)?, to(Dtype::F32)?],
            random: Random::new(card, &module)?,
            hashes: Hashes::new(card)?,
            room,
            card: Arc::clone(card),
        })
    }

    /// The card.
    pub fn card(&self) -> &Arc<Card> {
        &self.card
    }

    /// A new slot, with its twin among those of the load.
    pub fn slot<'s>(&'s self, twins: &'s Twins) -> Result<Pinned<'s>, TensorError> {
        Pinned::new(Shared { card: &self.card, hashes: &self.hashes, room: &self.room, twins })
    }

    /// Gives back the room that a load has left.
    pub fn clear_room(&self) {
        self.room.clear();
    }

    /// Fills memory with numbers.
    pub fn random(&self) -> &Random {
        &self.random
    }

    /// What changes one type into another.
    pub fn kernels(&self, from: Dtype, to: Dtype) -> &PackKernels {
        let [bf16, f32] = &self.kernels;
        let [from_f32, from_bf16, from_f16] = if to == Dtype::F32 { f32 } else { bf16 };
        match from {
            Dtype::F32 => from_f32,
            Dtype::Bf16 => from_bf16,
            Dtype::F16 => from_f16,
        }
    }
}

impl PackKernels {
    fn new(module: &Module, from: Dtype, to: Dtype) -> Result<PackKernels, TensorError> {
        Ok(PackKernels {
            convert: module.kernel(&format!("pack_convert_{from}_{to}"))?,
            transpose: module.kernel(&format!("pack_transpose_{from}_{to}"))?,
        })
    }
}

impl Unpacking {
    /// The address of an element of the matrix.
    fn address(&self, element: usize) -> u64 {
        self.memory.address() + (element * self.place.to.bytes()) as u64
    }
}

impl Unpack for Unpacking {
    fn route(&self, offset: usize, bytes: usize) -> Route {
        match self.place.of(offset, bytes) {
            Then::Keep { at } => Route::To(self.address(at)),
            Then::Convert { .. } | Then::Transpose { .. } => Route::Through,
        }
    }

    fn unpack(&self, offset: usize, bytes: usize, slot: u64) -> Result<(), TensorError> {
        let card = &self.card;
        match self.place.of(offset, bytes) {
            Then::Keep { .. } => Ok(()),
            Then::Convert { at, count } => {
                let (to, most) = (self.address(at), card.multiprocessors() as usize * 8);
                let grid = Grid::line(count.div_ceil(256).min(most) as u32, 256);
                let count = count as u64;
                let arguments = [Arg::of(&slot), Arg::of(&to), Arg::of(&count)];
                // SAFETY: the kernel's arguments in order: a slot that holds `count` elements, and their place in the
                // matrix.
                unsafe { card.launch(&self.kernels.convert, grid, &arguments) }
            }
            Then::Transpose { at, first, count } => {
                let call = Transpose {
                    from: slot,
                    to: self.address(at),
                    select: self.select.as_ref().map_or(0, DeviceMemory::address),
                    inputs: self.place.inputs as u64,
                    first: first as u64,
                    count: count as u64,
                    columns: self.columns as u32,
                    outputs: self.outputs as u32,
                };
                let rows = (first + count - 1) / self.columns - first / self.columns + 1;
                let blocks = [self.outputs.div_ceil(64) as u32, rows.div_ceil(64) as u32, 1];
                let grid = Grid { blocks, threads: 256 };
                // SAFETY: the kernel's one argument: a slot that holds these elements, the group's part of the matrix, and
                // a selection of as many columns, all checked to exist.
                unsafe { card.launch(&self.kernels.transpose, grid, &[Arg::of(&call)]) }
            }
        }
    }
}
