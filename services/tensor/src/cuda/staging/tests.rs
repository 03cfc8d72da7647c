use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::*;

/// A tensor's memory on a card that takes its time: what is sent to it arrives when the slot is wanted again, or goes.
type Memory = Arc<Mutex<Vec<u8>>>;

#[derive(Default)]
struct Late {
    area: Vec<u8>,
    pending: Option<(Memory, usize, usize)>,
}

impl Late {
    fn land(&mut self) {
        if let Some((memory, offset, bytes)) = self.pending.take() {
            memory.lock().unwrap()[offset..offset + bytes].copy_from_slice(&self.area[..bytes]);
        }
    }
}

impl Slot<Memory> for Late {
    fn area(&mut self) -> Result<&mut [u8], TensorError> {
        self.land();
        self.area.resize(PART, 0);
        Ok(&mut self.area)
    }

    fn send(&mut self, target: &Memory, offset: usize, bytes: usize) -> Result<(), TensorError> {
        assert!(
            self.pending.replace((Arc::clone(target), offset, bytes)).is_none(),
            "filled before it was free"
        );
        Ok(())
    }
}

impl Drop for Late {
    fn drop(&mut self) {
        self.land();
    }
}

/// A tensor whose part number `broken` cannot be read.
struct Broken {
    parts: usize,
    broken: usize,
    reads: Arc<AtomicUsize>,
}

impl Elements for Broken {
    fn bytes(&self) -> usize {
        self.parts * PART
    }

    fn read(&self, offset: usize, _: &mut [u8]) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        if offset / PART == self.broken { Err(Box::new(io::Error::other("torn"))) } else { Ok(()) }
    }
}

fn threads(count: usize) -> NonZeroUsize {
    NonZeroUsize::new(count).unwrap()
}

fn slot() -> Result<Late, TensorError> {
    Ok(Late::default())
}

#[test]
fn every_part_arrives_where_it_belongs() {
    let tensors: Vec<Vec<u8>> = [3 * PART, 1, 0, PART + 3, 2 * PART]
        .into_iter()
        .enumerate()
        .map(|(tensor, bytes)| (0..bytes).map(|at| (at / 7 + at % 251 + tensor) as u8).collect())
        .collect();
    for count in [1, 2, 5] {
        let queue = Queue::new();
        let memories = send(&queue, threads(count), &slot, || {
            let mut memories = Vec::new();
            for tensor in &tensors {
                let memory = Arc::new(Mutex::new(vec![0; tensor.len()]));
                memories.push(Arc::clone(&memory));
                let elements = Box::new(&tensor[..]);
                queue.push(Job { elements, target: memory }, tensor.len().div_ceil(PART))?;
            }
            Ok::<_, TensorError>(memories)
        })
        .unwrap();
        for (memory, tensor) in memories.iter().zip(&tensors) {
            assert!(*memory.lock().unwrap() == *tensor, "{} bytes by {count} threads", tensor.len());
        }
    }
}

#[test]
fn what_cannot_be_read_ends_the_sending() {
    let reads = Arc::<AtomicUsize>::default();
    let queue = Queue::new();
    // The second part may be read and land before the first is found to be broken.
    let memory = Arc::new(Mutex::new(vec![0; 2 * PART]));
    let result = send(&queue, threads(2), &slot, || {
        // Goes on until it is told to stop.
        let next = || {
            let elements = Box::new(Broken { parts: 2, broken: 0, reads: Arc::clone(&reads) });
            queue.push(Job { elements, target: Arc::clone(&memory) }, 2)
        };
        let ended = std::iter::repeat_with(next).find_map(Result::err);
        assert!(matches!(ended, Some(TensorError::SendingEnded)), "{ended:?}");
        ended.map_or(Ok(()), Err)
    });
    match result {
        Err(error @ TensorError::Elements { .. }) => assert_eq!(error.to_string(), "torn"),
        other => panic!("{other:?}"),
    }
    assert!(reads.load(Ordering::Relaxed) <= 4, "each thread ends with the part that it has");
}

#[test]
fn without_slots_nothing_is_sent() {
    let bytes = [1_u8; 3];
    let queue = Queue::new();
    let refused =
        || Err::<Late, _>(TensorError::Memory { bytes: PART, source: io::Error::other("none left") });
    let result = send(&queue, threads(3), &refused, || {
        queue.push(Job { elements: Box::new(&bytes[..]), target: Memory::default() }, 1)
    });
    assert!(matches!(result, Err(TensorError::Memory { bytes: PART, .. })), "{result:?}");
}

#[test]
fn work_that_fails_takes_what_waits_with_it() {
    let reads = Arc::<AtomicUsize>::default();
    let queue = Queue::new();
    let result: Result<(), TensorError> = send(&queue, threads(1), &slot, || {
        let elements = Box::new(Broken { parts: 1 << 40, broken: usize::MAX, reads: Arc::clone(&reads) });
        // More than could ever be read.
        queue.push(Job { elements, target: Nowhere }, 1 << 40)?;
        Err(TensorError::OtherDevice)
    });
    assert!(matches!(result, Err(TensorError::OtherDevice)), "{result:?}");
}

/// Takes everything and keeps nothing.
struct Nowhere;

impl Slot<Nowhere> for Late {
    fn area(&mut self) -> Result<&mut [u8], TensorError> {
        self.area.resize(PART, 0);
        Ok(&mut self.area)
    }

    fn send(&mut self, _: &Nowhere, _: usize, _: usize) -> Result<(), TensorError> {
        Ok(())
    }
}
