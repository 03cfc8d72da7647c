use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::*;

/// A tensor's memory on a card that takes its time: what is sent to it arrives when it is waited for.
type Memory = Arc<Mutex<Vec<u8>>>;

#[derive(Default)]
struct Late {
    area: Vec<u8>,
    pending: Option<(Memory, usize, usize)>,
}

impl Slot<Memory> for Late {
    fn area(&mut self) -> &mut [u8] {
        assert!(self.pending.is_none(), "filled before it was free");
        self.area.resize(PART, 0);
        &mut self.area
    }

    fn send(&mut self, target: &Memory, (offset, bytes): (usize, usize), _: bool) -> Result<(), TensorError> {
        self.pending = Some((Arc::clone(target), offset, bytes));
        Ok(())
    }

    fn wait(&mut self) -> Result<SentPart<'_>, TensorError> {
        let (memory, offset, bytes) = self.pending.take().unwrap();
        let bytes = &self.area[..bytes];
        memory.lock().unwrap()[offset..offset + bytes.len()].copy_from_slice(bytes);
        Ok(SentPart { bytes, subtrees: &[] })
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

/// A tensor whose parts are checked; the one that begins at `wrong` is not what it should be.
struct Checked {
    bytes: usize,
    wrong: usize,
    checked: Arc<Mutex<Vec<(usize, usize)>>>,
}

impl Elements for Checked {
    fn bytes(&self) -> usize {
        self.bytes
    }

    fn read(&self, offset: usize, to: &mut [u8]) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        to.fill((offset / PART) as u8);
        Ok(())
    }

    fn is_checked(&self) -> bool {
        true
    }

    fn check(
        &self,
        offset: usize,
        part: SentPart<'_>,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        assert!(part.bytes.iter().all(|&byte| usize::from(byte) == offset / PART));
        self.checked.lock().unwrap().push((offset, part.bytes.len()));
        if offset == self.wrong { Err(Box::new(io::Error::other("wrong"))) } else { Ok(()) }
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
fn every_part_is_checked_once_before_it_is_over() {
    let lengths = [3 * PART, 1, PART + 3, 2 * PART];
    for count in [1, 2, 5] {
        let queue = Queue::new();
        let checked = lengths.map(|_| Arc::<Mutex<Vec<_>>>::default());
        let result = send(&queue, threads(count), &slot, || {
            lengths.iter().zip(&checked).try_for_each(|(&bytes, checked)| {
                let target = Arc::new(Mutex::new(vec![0; bytes]));
                let elements = Checked { bytes, wrong: usize::MAX, checked: Arc::clone(checked) };
                queue.push(Job { elements: Box::new(elements), target }, bytes.div_ceil(PART))
            })
        });
        result.unwrap();
        for (bytes, checked) in lengths.into_iter().zip(checked) {
            let mut checked = std::mem::take(&mut *checked.lock().unwrap());
            checked.sort_unstable();
            let parts = (0..bytes).step_by(PART).map(|offset| (offset, PART.min(bytes - offset)));
            assert_eq!(checked, parts.collect::<Vec<_>>(), "{bytes} bytes by {count} threads");
        }
    }
}

#[test]
fn a_wrong_part_ends_the_sending_even_if_it_is_the_last() {
    let bytes = 3 * PART;
    for (count, wrong) in [(1, 0), (1, 2 * PART), (4, PART)] {
        let queue = Queue::new();
        let result = send(&queue, threads(count), &slot, || {
            let elements = Checked { bytes, wrong, checked: Arc::default() };
            let target = Arc::new(Mutex::new(vec![0; bytes]));
            queue.push(Job { elements: Box::new(elements), target }, 3)
        });
        match result {
            Err(error @ TensorError::Elements { .. }) => assert_eq!(error.to_string(), "wrong"),
            other => panic!("{other:?}"),
        }
    }
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
    fn area(&mut self) -> &mut [u8] {
        self.area.resize(PART, 0);
        &mut self.area
    }

    fn send(&mut self, _: &Nowhere, _: (usize, usize), _: bool) -> Result<(), TensorError> {
        Ok(())
    }

    fn wait(&mut self) -> Result<SentPart<'_>, TensorError> {
        Ok(SentPart { bytes: &[], subtrees: &[] })
    }
}
