//! Slots of page-locked memory, which the card empties.
#![allow(unsafe_code, reason = "copies to addresses of the card")]

use crate::TensorError;
use crate::cuda::card::Card;
use crate::cuda::memory::{DeviceMemory, PinnedMemory};
use crate::cuda::staging::Slot;
use crate::cuda::staging::hashes::{Hashes, Value};
use crate::cuda::staging::room::{Room, Twins};
use crate::cuda::stream::Event;
use crate::weights::{PART, SentPart};

/// Where the parts of a tensor go on a card.
pub trait Unpack {
    /// Where a part goes.
    fn route(&self, offset: usize, bytes: usize) -> Route;

    /// Enqueues on the compute stream what takes a part from `slot`, an address of the card.
    fn unpack(&self, offset: usize, bytes: usize, slot: u64) -> Result<(), TensorError>;
}

/// Where a part goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// To this address, as it is.
    To(u64),
    /// Through the slot's twin.
    Through,
}

/// What the slots of a load share.
#[derive(Clone, Copy, Debug)]
pub struct Shared<'a> {
    /// Where parts go.
    pub card: &'a Card,
    /// What hashes them there.
    pub hashes: &'a Hashes,
    /// Memory on the host.
    pub room: &'a Room,
    /// Memory on the card.
    pub twins: &'a Twins,
}

/// A slot.
#[derive(Debug)]
pub struct Pinned<'a> {
    shared: Shared<'a>,
    /// A part, then the values of its subtrees.
    host: PinnedMemory,
    /// Taken for the first part that goes through it: what it is in, and where it begins.
    twin: Option<(DeviceMemory, u64)>,
    /// The part has landed on the card.
    landed: Event,
    /// The card is done with the part.
    free: Event,
    /// Bytes of the part that was sent last, and how many of its subtrees the card hashes.
    sent: (usize, usize),
}

impl<'a> Pinned<'a> {
    /// Room for a part.
    pub fn new(shared: Shared<'a>) -> Result<Pinned<'a>, TensorError> {
        let context = shared.card.context();
        context.bind()?;
        Ok(Pinned {
            shared,
            host: shared.room.slot(context)?,
            twin: None,
            landed: Event::new(context)?,
            free: Event::new(context)?,
            sent: (0, 0),
        })
    }
}

impl<T: Unpack> Slot<T> for Pinned<'_> {
    fn area(&mut self) -> &mut [u8] {
        &mut self.host.as_mut_slice()[..PART]
    }

    fn send(
        &mut self,
        target: &T,
        (offset, bytes): (usize, usize),
        is_checked: bool,
    ) -> Result<(), TensorError> {
        let Shared { card, hashes, twins, .. } = self.shared;
        let route = target.route(offset, bytes);
        let to = match (route, &mut self.twin) {
            (Route::To(address), _) => address,
            (Route::Through, Some((_, twin))) => *twin,
            (Route::Through, none) => none.insert(twins.take(card.context())?).1,
        };
        let subtrees = if is_checked { Hashes::count(to, bytes) } else { 0 };
        self.sent = (bytes, subtrees);
        // SAFETY: `route` names a place in memory that holds the part, and a twin is as large as its slot, which stays as it is
        // until `free`; whoever writes to it or gives it back waits for that.
        unsafe { card.copies.upload(to, &self.host.as_slice()[..bytes]) }?;
        if subtrees == 0 && route != Route::Through {
            return self.free.record(&card.copies);
        }
        self.landed.record(&card.copies)?;
        card.compute.wait(&self.landed)?;
        if subtrees > 0 {
            let values = self.host.address() + PART as u64;
            // SAFETY: the part is at `to`, which is aligned, by `count`; the slot has room for the values behind the part, at
            // a page's beginning, where nobody looks until `free`.
            unsafe { hashes.enqueue(card, (to, offset), subtrees, values) }?;
        }
        if route == Route::Through {
            target.unpack(offset, bytes, to)?;
        }
        self.free.record(&card.compute)
    }

    fn wait(&mut self) -> Result<SentPart<'_>, TensorError> {
        self.free.wait()?;
        let (bytes, subtrees) = self.sent;
        let (part, values) = self.host.as_slice::<u8>().split_at(PART);
        let subtrees = &bytemuck::cast_slice::<_, Value>(values)[..subtrees];
        Ok(SentPart { bytes: &part[..bytes], subtrees })
    }
}
