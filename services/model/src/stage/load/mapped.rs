//! For the CPU: while one thread packs mapped tensors with the device's threads, others check the same tensors against the
//! manifest. Both read the same pages, so nothing is in memory twice.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;

use super::{Loading, Tensors, Weights, tell};
use crate::ModelError;
use crate::arch::Source;
use crate::manifest::Manifest;
use crate::weights::Checkpoint;

/// Hashing threads past a few only wait for the disk.
const MOST_HASHERS: usize = 8;

/// Loads and checks `sources`, `total` bytes, each told to the watch by halves: once packed, once hashed.
pub(super) fn load(
    loading: &Loading<'_>,
    sources: &[Source],
    (checkpoint, manifest): (&Checkpoint, &Manifest),
    total: u64,
) -> Result<Weights, ModelError> {
    let done = AtomicU64::new(0);
    let advance = |source: &Source| {
        let info = checkpoint.tensor(&source.name);
        let bytes = info.and_then(|info| info.byte_len()).unwrap_or_default() as u64;
        tell(loading.watch, (done.fetch_add(bytes, Ordering::Relaxed) + bytes) / 2, total)
    };
    let next = AtomicUsize::new(0);
    let stop = AtomicBool::new(false);
    let hash = || -> Result<(), ModelError> {
        while let Some(source) = sources.get(next.fetch_add(1, Ordering::Relaxed)) {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let bytes = checkpoint.bytes(&source.name).unwrap_or_default();
            let checked = manifest.verify(&source.name, &bytes).and_then(|()| advance(source));
            checked.inspect_err(|_| stop.store(true, Ordering::Relaxed))?;
        }
        Ok(())
    };
    let packed = |source: &Source| match stop.load(Ordering::Relaxed) {
        // The hasher that stopped everything says why.
        true => Err(ModelError::LoadStopped),
        false => advance(source),
    };
    let hashers = thread::available_parallelism().map_or(1, usize::from).min(MOST_HASHERS);
    thread::scope(|scope| {
        let hashers: Vec<_> = (0..hashers).map(|_| scope.spawn(hash)).collect();
        let weights = loading.pack(Tensors::Mapped(checkpoint), &packed);
        if weights.is_err() {
            stop.store(true, Ordering::Relaxed);
        }
        for hasher in hashers {
            // A panic of a hasher is raised again here, by joining it.
            hasher.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        weights
    })
}
