//! What a card can do at most: the limits that speeds are judged against.
//!
//! Decoding reads every weight once, so reading or copying memory is its limit; prompts multiply, so the fastest large
//! multiplication is theirs. Cards of one model differ by several percent and slow down when they are warm: limits are
//! measured in the same run as the speeds beside them, on random numbers.
#![allow(unsafe_code, reason = "copies and reads memory of its own")]

use std::io;

use crate::cuda::Cuda;
use crate::cuda::compile::Theme;
use crate::cuda::gemm::peak::Peak;
use crate::cuda::launch::{Arg, Grid, Kernel};
use crate::cuda::memory::{DeviceMemory, PinnedMemory};
use crate::cuda::stream::{Event, Stream};
use crate::{Compute, TensorError};

/// The most and the least memory that is copied; two such areas are taken.
const MOST_BYTES: usize = 8 << 30;
const LEAST_BYTES: usize = 64 << 20;

/// Page-locked memory that is copied to and from the card.
const HOST_BYTES: usize = 256 << 20;

/// Sizes of the square matrices that are multiplied, if there is room: the largest, else a smaller one.
const SIZES: [usize; 3] = [8192, 4096, 2048];

/// Times taken of each limit, of which the middle one counts, and runs in each time.
const TIMES: usize = 5;
const RUNS: usize = 3;

/// Grids that read: thread blocks of a multiprocessor, and threads of a block. The faster one counts.
const READERS: [(u32, u32); 3] = [(4, 512), (8, 256), (16, 256)];

/// Measured limits of a card.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CudaLimits {
    /// Copying within the card, in bytes read and written a second.
    pub copy: f64,
    /// Reading the card's memory, in bytes a second.
    pub read: f64,
    /// A large bf16 multiplication, in floating-point operations a second.
    pub gemm: f64,
    /// From page-locked memory of the host, in bytes a second.
    pub upload: f64,
    /// To page-locked memory of the host, in bytes a second.
    pub download: f64,
    /// Bytes that were copied and read: 8 GiB, or what was free. Below a few hundred MiB a cache helps.
    pub bytes: usize,
}

/// Memory to measure in.
struct Probe<'a> {
    cuda: &'a Cuda,
    from: DeviceMemory,
    to: DeviceMemory,
    host: PinnedMemory,
    read: Kernel,
    /// One u32 that `read` leaves its bits in.
    bits: DeviceMemory,
    clock: Clock,
}

/// Takes the time of what a stream does.
struct Clock {
    start: Event,
    end: Event,
}

impl Cuda {
    /// Measures for about a second, in up to 16 GiB of free memory.
    pub(crate) fn limits(&self) -> Result<CudaLimits, TensorError> {
        let mut probe = Probe::new(self)?;
        Ok(CudaLimits {
            copy: probe.copy()?,
            read: probe.read()?,
            gemm: probe.gemm()?,
            // In this order: what is uploaded has been downloaded, and is random.
            download: probe.download()?,
            upload: probe.upload()?,
            bytes: probe.from.bytes(),
        })
    }
}

impl<'a> Probe<'a> {
    fn new(cuda: &'a Cuda) -> Result<Probe<'a>, TensorError> {
        let card = cuda.card();
        let context = card.context();
        let free = usize::try_from(card.memory()?.0).unwrap_or(usize::MAX);
        let bytes = (free / 3).min(MOST_BYTES) / LEAST_BYTES * LEAST_BYTES;
        if bytes == 0 {
            let source = io::Error::other(format!("{free} bytes are free"));
            return Err(TensorError::Memory { bytes: 3 * LEAST_BYTES, source });
        }
        let probe = Probe {
            cuda,
            from: DeviceMemory::unwritten(context, bytes)?,
            to: DeviceMemory::unwritten(context, bytes)?,
            host: PinnedMemory::zeroed(context, HOST_BYTES.min(bytes))?,
            read: card.kernels(Theme::Probe, &[])?.kernel("probe_read")?,
            bits: DeviceMemory::zeroed(context, size_of::<u32>())?,
            clock: Clock { start: Event::timed(context)?, end: Event::timed(context)? },
        };
        let numbers = (1, 1.0 / 16_777_216.0);
        let count = bytes / Compute::Bf16.dtype().bytes();
        // SAFETY: the area was just taken and has so many elements.
        unsafe { cuda.weights.random().fill(probe.from.address(), count, Compute::Bf16, numbers)? };
        Ok(probe)
    }

    fn copy(&self) -> Result<f64, TensorError> {
        let (from, to, bytes) = (self.from.address(), self.to.address(), self.from.bytes());
        // SAFETY: two areas of this size.
        let seconds = self.seconds(&mut || unsafe { self.cuda.card().compute.copy(to, from, bytes) })?;
        Ok(2.0 * bytes as f64 / seconds)
    }

    fn read(&self) -> Result<f64, TensorError> {
        let card = self.cuda.card();
        let (from, bits) = (self.from.address(), self.bits.address());
        let count = (self.from.bytes() / 16) as u64;
        let mut best = f64::MAX;
        for (blocks, threads) in READERS {
            let grid = Grid::line(card.multiprocessors() * blocks, threads);
            let seconds = self.seconds(&mut || {
                // SAFETY: the kernel's arguments in order; it reads all of the area and writes one u32.
                unsafe { card.launch(&self.read, grid, &[Arg::of(&from), Arg::of(&count), Arg::of(&bits)]) }
            })?;
            best = best.min(seconds);
        }
        Ok(self.from.bytes() as f64 / best)
    }

    fn gemm(&self) -> Result<f64, TensorError> {
        // Both operands come out of one area, the product goes to the other.
        let fits = |size: &usize| 2 * size * size * Compute::Bf16.dtype().bytes() <= self.from.bytes();
        let size = SIZES.into_iter().find(fits).unwrap_or(SIZES[SIZES.len() - 1]);
        let weights = self.from.address() + (self.from.bytes() / 2) as u64;
        let mut peak = Peak::new(&self.cuda.gemm, size, [self.from.address(), weights, self.to.address()])?;
        let mut best = f64::MAX;
        for way in 0..peak.ways() {
            // SAFETY: each operand has half of an area, and the product all of one.
            if let Ok(seconds) = self.seconds(&mut || unsafe { peak.run(way) }) {
                best = best.min(seconds);
            }
        }
        Ok(2.0 * (size as f64).powi(3) / best)
    }

    fn download(&mut self) -> Result<f64, TensorError> {
        let stream = &self.cuda.card().compute;
        let from = self.from.address();
        let to = self.host.as_mut_slice::<u8>();
        // SAFETY: as many bytes are there, and nobody looks at `to` before the last copy has been waited for.
        let seconds = self.clock.seconds(stream, &mut || unsafe { stream.download(to, from) })?;
        Ok(to.len() as f64 / seconds)
    }

    fn upload(&self) -> Result<f64, TensorError> {
        let from = self.host.as_slice::<u8>();
        let to = self.to.address();
        // SAFETY: there is room for all of it, and nobody writes to it.
        let seconds = self.seconds(&mut || unsafe { self.cuda.card().compute.upload(to, from) })?;
        Ok(from.len() as f64 / seconds)
    }

    /// The time of one run of `work` on the compute stream.
    fn seconds(&self, work: &mut dyn FnMut() -> Result<(), TensorError>) -> Result<f64, TensorError> {
        self.clock.seconds(&self.cuda.card().compute, work)
    }
}

impl Clock {
    /// Seconds of one run of `work`, which enqueues something on `stream`. The first run is not timed.
    fn seconds(
        &self,
        stream: &Stream,
        work: &mut dyn FnMut() -> Result<(), TensorError>,
    ) -> Result<f64, TensorError> {
        work()?;
        let mut times = [0.0; TIMES];
        for time in &mut times {
            self.start.record(stream)?;
            for _ in 0..RUNS {
                work()?;
            }
            self.end.record(stream)?;
            self.end.wait()?;
            *time = f64::from(self.start.milliseconds_to(&self.end)?) / 1e3 / RUNS as f64;
        }
        times.sort_unstable_by(f64::total_cmp);
        Ok(times[TIMES / 2])
    }
}
