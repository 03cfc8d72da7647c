//! Tensors that are read part by part, by several threads, and hashed on the way.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;

use asterism_tensor::{PART, SentPart};

use super::stored::{Place, Stored};
use super::{Checkpoint, TensorInfo};
use crate::ModelError;
use crate::content::Parts;

/// Bytes that are read and hashed before the next are read: a core's own cache still holds them.
const STEP: usize = 256 << 10;

/// A tensor that is read once, part by part.
#[derive(Debug)]
pub(crate) struct TensorReader<'a> {
    stored: &'a Stored,
    bytes: usize,
    /// The elements of one that does not lie in its file as it is; made with the first part.
    made: OnceLock<Vec<u8>>,
    parts: Parts,
}

impl<'a> TensorReader<'a> {
    pub(super) fn new(stored: &'a Stored) -> Self {
        let bytes = stored.info.byte_len().unwrap_or_default();
        Self { stored, bytes, made: OnceLock::new(), parts: Parts::new(bytes) }
    }

    /// Its name, type and shape.
    pub fn info(&self) -> &'a TensorInfo {
        &self.stored.info
    }

    /// Its size.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Reads the part at `offset`, a multiple of [`PART`], into all of `to`; every part once, in any order. With the last one of
    /// all it tells the content's hash.
    pub fn read(&self, offset: usize, to: &mut [u8]) -> Result<Option<String>, ModelError> {
        let mut hasher = Parts::hasher(offset);
        self.steps(offset, to, &mut |step| {
            hasher.update(step);
        })?;
        Ok(self.parts.take(offset, &hasher))
    }

    /// Reads a part as [`TensorReader::read`] does, unhashed.
    pub fn copy(&self, offset: usize, to: &mut [u8]) -> Result<(), ModelError> {
        self.steps(offset, to, &mut |_| {})
    }

    /// Takes the part at `offset`, which was copied, with what a card has hashed of it. With the last one of all it tells the
    /// content's hash.
    pub fn sent(&self, offset: usize, part: SentPart<'_>) -> Option<String> {
        self.parts.take_sent(offset, part)
    }

    fn steps(&self, offset: usize, to: &mut [u8], then: &mut dyn FnMut(&[u8])) -> Result<(), ModelError> {
        let mut at = offset;
        for step in to.chunks_mut(STEP) {
            match &self.stored.place {
                Place::Mapped { map, offset, .. } => {
                    map.read(offset + at, step).map_err(|source| ModelError::Unreadable {
                        name: self.stored.info.name.clone(),
                        path: map.path().to_owned(),
                        source,
                    })?;
                }
                Place::Strided { .. } | Place::Llama(_) => {
                    let made = self.made.get_or_init(|| self.stored.bytes().into_owned());
                    step.copy_from_slice(made.get(at..at + step.len()).unwrap_or_default());
                }
            }
            then(step);
            at += step.len();
        }
        Ok(())
    }
}

/// Parts that are still to be read. A tensor is let go when the last of its parts has been read.
struct Queue<'a, I> {
    tensors: I,
    now: Option<(Arc<TensorReader<'a>>, usize)>,
}

impl<'a, I: Iterator<Item = TensorReader<'a>>> Queue<'a, I> {
    /// A tensor, and where its next part begins.
    fn next(&mut self) -> Option<(Arc<TensorReader<'a>>, usize)> {
        let (tensor, offset) = match self.now.take() {
            Some(now) => now,
            None => (Arc::new(self.tensors.next()?), 0),
        };
        if offset + PART < tensor.bytes() {
            self.now = Some((Arc::clone(&tensor), offset + PART));
        }
        Some((tensor, offset))
    }
}

impl Checkpoint {
    /// Readers of all tensors.
    pub(crate) fn readers(&self) -> impl Iterator<Item = TensorReader<'_>> {
        self.tensors.values().map(TensorReader::new)
    }

    /// Reads all tensors as they are read for a card, by so many threads, and does nothing with them: what loading can be judged
    /// by. The bytes that were read.
    pub fn read_through(&self, threads: NonZeroUsize) -> Result<u64, ModelError> {
        let read = AtomicU64::new(0);
        each_part(self.readers(), threads, |tensor, offset, memory| {
            tensor.copy(offset, memory)?;
            read.fetch_add(memory.len() as u64, Ordering::Relaxed);
            Ok(())
        })?;
        Ok(read.into_inner())
    }

    /// A reader of the tensor of this name.
    pub(crate) fn reader(&self, name: &str) -> Option<TensorReader<'_>> {
        self.tensors.get(name).map(TensorReader::new)
    }
}

/// Has up to `threads` threads do `work` for every part of these tensors: where it begins, and memory of its size. After the first
/// error no further part is begun.
pub(crate) fn each_part<'a>(
    tensors: impl Iterator<Item = TensorReader<'a>> + Send,
    threads: NonZeroUsize,
    work: impl Fn(&TensorReader<'a>, usize, &mut [u8]) -> Result<(), ModelError> + Sync,
) -> Result<(), ModelError> {
    let queue = Mutex::new(Some(Queue { tensors, now: None }));
    let lock = || queue.lock().unwrap_or_else(PoisonError::into_inner);
    let thread = || {
        let mut memory = vec![0; PART];
        loop {
            let next = lock().as_mut().and_then(Queue::next);
            let Some((tensor, offset)) = next else { return Ok(()) };
            let bytes = PART.min(tensor.bytes() - offset);
            work(&tensor, offset, &mut memory[..bytes]).inspect_err(|_| drop(lock().take()))?;
        }
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..threads.get()).map(|_| scope.spawn(thread)).collect();
        threads.into_iter().try_for_each(|thread| {
            // A panic of a thread is raised again here, by joining it.
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })
}
