//! Weights that come in several parts, from wherever they are kept.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails says where")]

mod support;

use std::error::Error;
use std::io;
use std::sync::Mutex;

use asterism_tensor::{
    Columns, Compute, Device, Dtype, Elements, KeptColumns, Layout, Matrix, MatrixBuilder, PART, SUBTREE,
    SentPart, TensorError,
};
use blake3::hazmat::{
    ChainingValue, HasherExt as _, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root,
};
use support::{best, gpus, rows, tensor};

/// Rows of 6,002 or 12,004 bytes: parts end within them.
const SHAPE: [usize; 2] = [1031, 3001];
/// Inputs around the ends of parts, for every type and layout.
const INPUTS: [usize; 9] = [0, 348, 349, 350, 698, 699, 700, 1029, 1030];

const LAYOUTS: [Layout; 2] = [Layout::InputsFirst, Layout::OutputsFirst];

/// A number that every type holds.
fn weight(input: usize, output: usize) -> f32 {
    ((input * 31 + output * 17) % 251) as f32 - 125.0
}

fn bytes(dtype: Dtype, layout: Layout) -> Vec<u8> {
    let [inputs, outputs] = SHAPE;
    let (first, second) = if layout == Layout::InputsFirst { (inputs, outputs) } else { (outputs, inputs) };
    let mut bytes = Vec::new();
    for i in 0..first {
        for j in 0..second {
            let value = if layout == Layout::InputsFirst { weight(i, j) } else { weight(j, i) };
            match dtype {
                Dtype::F32 => bytes.extend(value.to_le_bytes()),
                Dtype::Bf16 => bytes.extend(half::bf16::from_f32(value).to_le_bytes()),
                Dtype::F16 => bytes.extend(half::f16::from_f32(value).to_le_bytes()),
            }
        }
    }
    bytes
}

/// Whether the matrix has the weights of these outputs, in this order.
fn check(device: &Device, matrix: &Matrix, outputs: &[usize], what: &str) {
    let unit = |&one: &usize| (0..SHAPE[0]).map(|input| if input == one { 1.0 } else { 0.0 }).collect();
    let x = tensor(device, matrix.compute().dtype(), &INPUTS.iter().map(unit).collect::<Vec<_>>());
    let mut product = device.tensor(Dtype::F32, INPUTS.len(), matrix.outputs()).unwrap();
    device.head(&x, matrix, 1.0, &mut product).unwrap();
    for (input, row) in INPUTS.into_iter().zip(rows(&product)) {
        let expected: Vec<f32> = outputs.iter().map(|&output| weight(input, output)).collect();
        assert!(row == expected, "{what}: input {input}");
    }
}

#[test]
fn large_tensors_in_memory_are_where_they_belong() {
    let picks: Vec<u32> = (0..SHAPE[1] as u32).rev().step_by(2).collect();
    let picked: Vec<usize> = picks.iter().map(|&pick| pick as usize).collect();
    let all: Vec<usize> = (0..SHAPE[1]).collect();
    for device in std::iter::once(best()).chain(gpus()) {
        for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
            for layout in LAYOUTS {
                let bytes = bytes(dtype, layout);
                assert!(bytes.len() > PART);
                for compute in [Compute::F32, Compute::Bf16] {
                    for (select, outputs) in [(None, &all), (Some(&picks[..]), &picked)] {
                        let columns = Columns { bytes: &bytes, dtype, layout, outputs: SHAPE[1], select };
                        let builder = MatrixBuilder::new(SHAPE[0], compute).columns(columns);
                        let matrix = device.matrix(builder).unwrap();
                        let what = format!("{} {compute} {dtype} {layout:?}", device.describe());
                        check(&device, &matrix, outputs, &what);
                    }
                }
            }
        }
    }
}

#[test]
fn kept_tensors_are_sent_side_by_side() {
    let all: Vec<usize> = (0..SHAPE[1]).chain(0..SHAPE[1]).collect();
    for device in gpus() {
        for layout in LAYOUTS {
            let bytes = bytes(Dtype::Bf16, layout);
            let columns = || KeptColumns {
                elements: Box::new(&bytes[..]),
                dtype: Dtype::Bf16,
                layout,
                outputs: SHAPE[1],
            };
            let matrices = device.send_weights(|sender| {
                let matrix = || sender.matrix(SHAPE[0], Compute::Bf16, vec![columns(), columns()], None);
                (0..5).map(|_| matrix()).collect::<Result<Vec<_>, TensorError>>()
            });
            for matrix in matrices.unwrap() {
                check(&device, &matrix, &all, "sent");
            }
        }
    }
}

/// Elements that cannot be read from some offset on.
struct Torn(usize);

impl Elements for Torn {
    fn bytes(&self) -> usize {
        SHAPE[0] * SHAPE[1] * 2
    }

    fn read(&self, offset: usize, _: &mut [u8]) -> Result<(), Box<dyn Error + Send + Sync>> {
        if offset < self.0 { Ok(()) } else { Err(Box::new(io::Error::other("torn"))) }
    }
}

#[test]
fn what_cannot_be_read_is_told_and_leaves_the_card_usable() {
    let torn = |offset| KeptColumns {
        elements: Box::new(Torn(offset)),
        dtype: Dtype::Bf16,
        layout: Layout::InputsFirst,
        outputs: SHAPE[1],
    };
    for device in gpus() {
        for offset in [0, PART] {
            let result = device
                .send_weights(|sender| sender.matrix(SHAPE[0], Compute::Bf16, vec![torn(offset)], None));
            assert!(matches!(&result, Err(TensorError::Elements { source }) if source.to_string() == "torn"));
        }
        device.synchronize().unwrap();
        let bytes = bytes(Dtype::Bf16, Layout::InputsFirst);
        let (dtype, layout) = (Dtype::Bf16, Layout::InputsFirst);
        let columns = Columns { bytes: &bytes, dtype, layout, outputs: SHAPE[1], select: None };
        let matrix = device.matrix(MatrixBuilder::new(SHAPE[0], Compute::Bf16).columns(columns)).unwrap();
        check(&device, &matrix, &(0..SHAPE[1]).collect::<Vec<_>>(), "after an error");
    }
}

/// Elements whose hash, out of what the card finds, must be this one.
struct Hashed<'a> {
    name: &'a str,
    bytes: &'a [u8],
    expected: blake3::Hash,
    /// Whether the card can hash it.
    is_aligned: bool,
    /// Of each subtree.
    values: Mutex<Vec<Option<ChainingValue>>>,
}

impl<'a> Hashed<'a> {
    fn new(name: &'a str, bytes: &'a [u8], expected: blake3::Hash) -> Hashed<'a> {
        let values = Mutex::new(vec![None; bytes.len().div_ceil(SUBTREE)]);
        Hashed { name, bytes, expected, is_aligned: true, values }
    }
}

/// The value of a subtree of two leaves or more of `SUBTREE` bytes, the last one of fewer, which is not the root.
fn merged(values: &[ChainingValue]) -> ChainingValue {
    let [first, rest] = match values {
        [one] => return *one,
        _ => halves(values),
    };
    merge_subtrees_non_root(&first, &rest, Mode::Hash)
}

fn halves(values: &[ChainingValue]) -> [ChainingValue; 2] {
    let left = left_subtree_len((values.len() * SUBTREE) as u64) as usize / SUBTREE;
    [merged(&values[..left]), merged(&values[left..])]
}

impl Elements for Hashed<'_> {
    fn bytes(&self) -> usize {
        self.bytes.len()
    }

    fn read(&self, offset: usize, to: &mut [u8]) -> Result<(), Box<dyn Error + Send + Sync>> {
        self.bytes.read(offset, to)
    }

    fn is_checked(&self) -> bool {
        true
    }

    fn check(
        &self,
        offset: usize,
        SentPart { bytes, subtrees }: SentPart<'_>,
    ) -> Result<(), Box<dyn Error + Send + Sync>> {
        assert!(bytes == &self.bytes[offset..offset + bytes.len()], "{}", self.name);
        let by_card = if self.is_aligned { bytes.len() / SUBTREE } else { 0 };
        assert_eq!(subtrees.len(), by_card, "{}: subtrees hashed at {offset}", self.name);
        let mut values = self.values.lock().unwrap();
        for (index, subtree) in bytes.chunks(SUBTREE).enumerate() {
            let at = offset + index * SUBTREE;
            let value = subtrees.get(index).copied().unwrap_or_else(|| {
                blake3::Hasher::new().set_input_offset(at as u64).update(subtree).finalize_non_root()
            });
            assert!(values[at / SUBTREE].replace(value).is_none(), "{}: twice at {at}", self.name);
        }
        let Some(values) = values.iter().copied().collect::<Option<Vec<_>>>() else { return Ok(()) };
        let found = match &values[..] {
            [_] => blake3::hash(self.bytes),
            values => {
                let [first, rest] = halves(values);
                merge_subtrees_root(&first, &rest, Mode::Hash)
            }
        };
        if found == self.expected { Ok(()) } else { Err(Box::new(io::Error::other(self.name.to_owned()))) }
    }
}

/// Every way that a part takes on the card: as it is, into another type, into another order.
const WAYS: [(Dtype, Layout); 3] = [
    (Dtype::Bf16, Layout::OutputsFirst),
    (Dtype::F32, Layout::OutputsFirst),
    (Dtype::Bf16, Layout::InputsFirst),
];

fn noise(bytes: usize) -> Vec<u8> {
    (0..bytes as u64).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u8).collect()
}

#[test]
fn a_card_hashes_as_blake3_does() {
    let lengths: Vec<usize> = [1024, SUBTREE, 2 * SUBTREE, 3 * SUBTREE, PART, PART + SUBTREE, 2 * PART]
        .into_iter()
        .flat_map(|len| [len - 4, len, len + 4])
        .chain([4, 3 * PART + 5 * SUBTREE + 3000])
        .collect();
    let bytes = noise(4 * PART);
    for device in gpus() {
        for (dtype, layout) in WAYS {
            let sent = device.send_weights(|sender| {
                for &len in &lengths {
                    let bytes = &bytes[..len];
                    let elements = Box::new(Hashed::new("of one output", bytes, blake3::hash(bytes)));
                    let columns = KeptColumns { elements, dtype, layout, outputs: 1 };
                    sender.matrix(len / dtype.bytes(), Compute::Bf16, vec![columns], None)?;
                }
                Ok::<_, TensorError>(())
            });
            sent.unwrap();
        }
    }
}

#[test]
fn what_a_card_cannot_load_is_left_to_the_host() {
    let len = PART + 2 * SUBTREE + 2;
    let bytes = noise(len);
    for device in gpus() {
        let column = |is_aligned| {
            let elements =
                Box::new(Hashed { is_aligned, ..Hashed::new("column", &bytes, blake3::hash(&bytes)) });
            KeptColumns { elements, dtype: Dtype::Bf16, layout: Layout::OutputsFirst, outputs: 1 }
        };
        // The second output begins between the addresses that the kernel loads from.
        let columns = || vec![column(true), column(false)];
        let sent = device.send_weights(|sender| sender.matrix(len / 2, Compute::Bf16, columns(), None));
        sent.unwrap();
    }
}

#[test]
fn a_changed_byte_is_found_by_the_card_and_names_its_tensor() {
    let whole = noise(2 * PART + 3 * SUBTREE + 500);
    let expected = blake3::hash(&whole);
    for device in gpus() {
        for (dtype, layout) in WAYS {
            for at in [0, SUBTREE - 1, PART + 77_777, 2 * PART + SUBTREE, whole.len() - 1] {
                let mut changed = whole.clone();
                changed[at] ^= 0x10;
                let result = device.send_weights(|sender| {
                    let matrix = |name, bytes| {
                        let elements = Box::new(Hashed::new(name, bytes, expected));
                        let columns = KeptColumns { elements, dtype, layout, outputs: 1 };
                        sender.matrix(whole.len() / dtype.bytes(), Compute::Bf16, vec![columns], None)
                    };
                    // When the first has failed already, the second is refused.
                    let first = matrix("changed", &changed[..])?;
                    Ok::<_, TensorError>((first, matrix("whole", &whole[..])?))
                });
                match result {
                    Err(TensorError::Elements { source }) => assert_eq!(source.to_string(), "changed"),
                    other => panic!("byte {at}: {:?}", other.map(|_| "not found")),
                }
            }
        }
    }
}

#[test]
fn the_cpu_packs_what_is_in_memory() {
    let result = best().send_weights(|_| Ok::<(), TensorError>(()));
    assert!(matches!(result, Err(TensorError::OtherDevice)));
}
