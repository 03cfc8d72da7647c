//! What is reported of rows of logits: one upload, two kernels, one download and one wait for all rows of a pass.
#![allow(unsafe_code, reason = "launches kernels")]

mod pass;

use std::sync::Arc;

use self::pass::{Pass, PassRoom, Places};
use crate::cpu::evidence::CHUNK;
use crate::cuda::Cuda;
use crate::cuda::card::Card;
use crate::cuda::compile::Theme;
use crate::cuda::launch::{Arg, Grid, Kernel};
use crate::cuda::memory::{DeviceMemory, PinnedMemory};
use crate::cuda::stream::Event;
use crate::{EvidenceRequest, EvidenceRoom, Processors, RowEvidence, Tensor, TensorError};

/// Ids whose best is listed.
const GROUP: usize = 32;

/// Threads of a block that processes, and of one that searches.
const PROCESS_THREADS: u32 = 256;
const SEARCH_THREADS: u32 = 512;

/// Kernels of this theme.
#[derive(Debug)]
pub struct Kernels {
    process: Kernel,
    search: Kernel,
}

/// Memory of one pass, on the card and page-locked.
#[derive(Debug)]
pub struct CudaEvidence {
    room: PassRoom,
    staging: PinnedMemory,
    upload: DeviceMemory,
    processed: DeviceMemory,
    groups: DeviceMemory,
    tops: DeviceMemory,
    non_finite: DeviceMemory,
    results: DeviceMemory,
    answers: PinnedMemory,
    done: Event,
}

/// The kernels' argument of this name.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Lists {
    groups: u64,
    tops: u64,
    non_finite: u64,
    rows: u32,
    vocab: u32,
}

impl Kernels {
    pub fn new(card: &Arc<Card>) -> Result<Kernels, TensorError> {
        let module = card.kernels(Theme::Evidence, &[])?;
        Ok(Kernels { process: module.kernel("evidence_process")?, search: module.kernel("evidence_search")? })
    }
}

impl CudaEvidence {
    fn new(card: &Card, room: EvidenceRoom) -> Result<CudaEvidence, TensorError> {
        let room = PassRoom::new(room);
        let PassRoom { rows, vocab, .. } = room;
        let context = card.context();
        let (chunks, groups) = (vocab.div_ceil(CHUNK), vocab.div_ceil(GROUP));
        let device = |bytes| DeviceMemory::zeroed(context, bytes);
        Ok(CudaEvidence {
            staging: PinnedMemory::zeroed(context, room.upload_bytes)?,
            upload: device(room.upload_bytes)?,
            processed: device(rows * vocab * size_of::<f32>())?,
            groups: device(2 * rows * groups * size_of::<u64>())?,
            tops: device(2 * rows * chunks * size_of::<u32>())?,
            non_finite: device(rows * chunks * size_of::<u32>())?,
            results: device(room.result_bytes)?,
            answers: PinnedMemory::zeroed(context, room.result_bytes.max(vocab * size_of::<f32>()))?,
            done: Event::new(context)?,
            room,
        })
    }

    fn lists(&self) -> Lists {
        Lists {
            groups: self.groups.address(),
            tops: self.tops.address(),
            non_finite: self.non_finite.address(),
            rows: self.room.rows as u32,
            vocab: self.room.vocab as u32,
        }
    }

    fn places(&self, logits: u64, slots: Option<u64>) -> Places {
        Places {
            logits,
            slots,
            processed: self.processed.address(),
            upload: self.upload.address(),
            results: self.results.address(),
        }
    }
}

impl Cuda {
    pub(crate) fn evidence_memory(&self, room: EvidenceRoom) -> Result<CudaEvidence, TensorError> {
        CudaEvidence::new(self.card(), room)
    }

    pub(crate) fn evidence(
        &self,
        logits: &Tensor,
        slots: &mut Tensor,
        requests: &[EvidenceRequest<'_>],
        memory: &mut CudaEvidence,
    ) -> Result<Vec<RowEvidence>, TensorError> {
        self.card().context().bind()?;
        let places = memory.places(logits.address()?, Some(slots.address()?));
        let mut told = Vec::with_capacity(requests.len());
        while told.len() < requests.len() {
            let rest = &requests[told.len()..];
            let pass = Pass::lay_out(rest, &memory.room, &places, memory.staging.as_mut_slice())?;
            // SAFETY: the requests were checked against the tensors and the room.
            let enqueued = unsafe { self.enqueue_pass(&pass, memory) };
            // Page-locked memory may be used by the card until here, whatever failed.
            memory.done.record(&self.card().compute)?;
            memory.done.wait()?;
            enqueued?;
            pass.read(rest, memory.answers.as_slice(), &mut told);
        }
        Ok(told)
    }

    pub(crate) fn process_row(
        &self,
        rows: &Tensor,
        row: usize,
        processors: &Processors<'_>,
        memory: &mut CudaEvidence,
    ) -> Result<Vec<u8>, TensorError> {
        self.card().context().bind()?;
        let bytes = rows.row_bytes();
        let place = rows.address()? + (row * bytes) as u64;
        let enqueued = if processors.is_plain() {
            // SAFETY: the row was checked, and the answers have room for a row.
            unsafe { self.card().compute.download(&mut memory.answers.as_mut_slice::<u8>()[..bytes], place) }
        } else {
            let request = EvidenceRequest {
                row: 0,
                slot: 0,
                processors: *processors,
                top_k: 0,
                temperature: None,
                logprobs: None,
            };
            let places = memory.places(place, None);
            let pass = Pass::lay_out(&[request], &memory.room, &places, memory.staging.as_mut_slice())?;
            // SAFETY: the row and its processors were checked.
            unsafe { self.enqueue_processed(&pass, memory) }
        };
        memory.done.record(&self.card().compute)?;
        memory.done.wait()?;
        enqueued?;
        Ok(memory.answers.as_slice::<u8>()[..bytes].to_vec())
    }

    /// # Safety
    /// The pass was laid out in the memory's staging, of rows that exist.
    unsafe fn enqueue_pass(&self, pass: &Pass, memory: &mut CudaEvidence) -> Result<(), TensorError> {
        // SAFETY: the caller's promise.
        unsafe { self.enqueue_process(pass, memory) }?;
        let chunks = memory.room.vocab.div_ceil(CHUNK);
        let (card, lists) = (self.card(), memory.lists());
        let (rows, searches) = (pass.rows as u32, pass.searches as u32);
        let at = |offset: usize| memory.upload.address() + offset as u64;
        let (searches_at, sums_at) = (at(pass.searches_at), at(pass.sums_at));
        let non_finite = memory.results.address() + pass.non_finite_at as u64;
        let arguments = [
            Arg::of(&searches_at),
            Arg::of(&searches),
            Arg::of(&sums_at),
            Arg::of(&non_finite),
            Arg::of(&rows),
            Arg::of(&lists),
        ];
        let grid = Grid::line((pass.searches + pass.sums * chunks) as u32, SEARCH_THREADS);
        let answers = &mut memory.answers.as_mut_slice::<u8>()[..pass.result_bytes];
        // SAFETY: the jobs name places that were checked; they were uploaded before; the results fit their room.
        unsafe {
            card.launch(&self.evidence.search, grid, &arguments)?;
            card.compute.download(answers, memory.results.address())
        }
    }

    /// # Safety
    /// As for [`Cuda::enqueue_pass`].
    unsafe fn enqueue_processed(&self, pass: &Pass, memory: &mut CudaEvidence) -> Result<(), TensorError> {
        // SAFETY: the caller's promise.
        unsafe { self.enqueue_process(pass, memory) }?;
        let answers = &mut memory.answers.as_mut_slice::<u8>()[..memory.room.vocab * size_of::<f32>()];
        // SAFETY: the answers have room for a row.
        unsafe { self.card().compute.download(answers, memory.processed.address()) }
    }

    /// # Safety
    /// As for [`Cuda::enqueue_pass`].
    unsafe fn enqueue_process(&self, pass: &Pass, memory: &CudaEvidence) -> Result<(), TensorError> {
        let lists = memory.lists();
        let rows = memory.upload.address();
        let blocks = [memory.room.vocab.div_ceil(CHUNK) as u32, pass.rows as u32, 1];
        let grid = Grid { blocks, threads: PROCESS_THREADS };
        // SAFETY: what was laid out fits the upload area of the same size; rows and processors were checked.
        unsafe {
            let staged = &memory.staging.as_slice::<u8>()[..pass.upload_bytes];
            self.card().compute.upload(memory.upload.address(), staged)?;
            self.card().launch(&self.evidence.process, grid, &[Arg::of(&rows), Arg::of(&lists)])
        }
    }
}

#[cfg(test)]
mod tests;
