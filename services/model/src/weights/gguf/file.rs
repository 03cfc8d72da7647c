//! The GGUF container: metadata and where each tensor lies.

use std::collections::BTreeMap;
use std::path::Path;

use super::super::map::Mapped;
use super::kind::Kind;
use crate::ModelError;

const MAGIC: &[u8] = b"GGUF";
const VERSION: u32 = 3;
/// Bounds on what a header may claim; real files stay far below.
const MOST_ENTRIES: u64 = 1 << 16;
const MOST_DIMENSIONS: u32 = 4;
const DEFAULT_ALIGNMENT: u64 = 32;

/// A metadata value. Arrays hold what the demo and llama files put into them.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Metadata {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    Integers(Vec<i64>),
    /// Arrays of floats, booleans or arrays: skipped.
    Unread,
}

/// A tensor's place. `columns` run fastest.
#[derive(Clone, Debug)]
pub(super) struct GgufTensor {
    pub name: String,
    pub kind: Kind,
    pub rows: usize,
    pub columns: usize,
    /// Of the first block, from the file's start; all blocks lie within the file.
    pub offset: usize,
}

/// An opened file.
#[derive(Clone, Debug)]
pub(super) struct GgufFile {
    pub map: Mapped,
    pub metadata: BTreeMap<String, Metadata>,
    pub tensors: BTreeMap<String, GgufTensor>,
}

impl GgufFile {
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let map = Mapped::open(path)?;
        let mut reader = Reader { bytes: map.bytes(), at: 0 };
        let (metadata, tensors) = reader.header().map_err(|what| ModelError::malformed(path, what))?;
        Ok(Self { map, metadata, tensors })
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

type Header = (BTreeMap<String, Metadata>, BTreeMap<String, GgufTensor>);

impl Reader<'_> {
    fn header(&mut self) -> Result<Header, String> {
        if self.take(4)? != MAGIC {
            return Err("not a GGUF file".into());
        }
        let version = self.u32()?;
        if version != VERSION {
            return Err(format!("GGUF version {version}, only version {VERSION} is read"));
        }
        let (tensor_count, metadata_count) = (self.u64()?, self.u64()?);
        if tensor_count > MOST_ENTRIES || metadata_count > MOST_ENTRIES {
            return Err(format!("claims {tensor_count} tensors and {metadata_count} metadata entries"));
        }
        let mut metadata = BTreeMap::new();
        for _ in 0..metadata_count {
            let key = self.text()?;
            let kind = self.u32()?;
            let value = self.value(kind).map_err(|what| format!("metadata `{key}`: {what}"))?;
            metadata.insert(key, value);
        }
        let mut tensors = BTreeMap::new();
        for _ in 0..tensor_count {
            let tensor = self.tensor()?;
            tensors.insert(tensor.name.clone(), tensor);
        }
        if tensors.len() as u64 != tensor_count {
            return Err("holds a tensor twice".into());
        }
        let alignment = match metadata.get("general.alignment") {
            Some(Metadata::Unsigned(value)) if value.is_power_of_two() => *value,
            Some(other) => return Err(format!("general.alignment is {other:?}")),
            None => DEFAULT_ALIGNMENT,
        };
        let data = usize::try_from(alignment)
            .ok()
            .and_then(|alignment| self.at.checked_next_multiple_of(alignment))
            .ok_or("general.alignment is too large")?;
        for tensor in tensors.values_mut() {
            let whole = data
                .checked_add(tensor.offset)
                .zip(tensor.kind.bytes(tensor.columns).and_then(|row| row.checked_mul(tensor.rows)))
                .filter(|(start, len)| start.checked_add(*len).is_some_and(|end| end <= self.bytes.len()));
            let Some((start, _)) = whole else {
                return Err(format!("tensor `{}` lies outside the file: it is truncated", tensor.name));
            };
            tensor.offset = start;
        }
        Ok((metadata, tensors))
    }

    fn tensor(&mut self) -> Result<GgufTensor, String> {
        let name = self.text()?;
        let dimensions = self.u32()?;
        if dimensions > MOST_DIMENSIONS {
            return Err(format!("tensor `{name}` has {dimensions} dimensions"));
        }
        let mut sizes = [1usize; 2];
        for axis in 0..dimensions as usize {
            let size = usize::try_from(self.u64()?).map_err(|e| e.to_string())?;
            match sizes.get_mut(axis) {
                Some(slot) => *slot = size,
                None if size == 1 => {}
                None => {
                    return Err(format!("tensor `{name}` has {dimensions} dimensions, at most 2 are read"));
                }
            }
        }
        let code = self.u32()?;
        let kind = Kind::from_code(code).ok_or_else(|| {
            format!("tensor `{name}` has the type {code}; read are F32, F16, BF16, Q8_0, Q4_0 and Q4_1")
        })?;
        let offset = usize::try_from(self.u64()?).map_err(|e| e.to_string())?;
        let [columns, rows] = sizes;
        Ok(GgufTensor { name, kind, rows, columns, offset })
    }

    fn value(&mut self, kind: u32) -> Result<Metadata, String> {
        Ok(match kind {
            0 => Metadata::Unsigned(u64::from(self.array::<1>()?[0])),
            1 => Metadata::Signed(i64::from(i8::from_le_bytes(self.array()?))),
            2 => Metadata::Unsigned(u64::from(u16::from_le_bytes(self.array()?))),
            3 => Metadata::Signed(i64::from(i16::from_le_bytes(self.array()?))),
            4 => Metadata::Unsigned(u64::from(self.u32()?)),
            5 => Metadata::Signed(i64::from(i32::from_le_bytes(self.array()?))),
            // The shortest decimal of an f32 is what its writer meant: 1e-5, not 9.999999747378752e-6.
            6 => Metadata::Float(f32::from_le_bytes(self.array()?).to_string().parse().unwrap_or(f64::NAN)),
            7 => Metadata::Bool(self.array::<1>()?[0] != 0),
            8 => Metadata::Text(self.text()?),
            9 => self.values()?,
            10 => Metadata::Unsigned(self.u64()?),
            11 => Metadata::Signed(i64::from_le_bytes(self.array()?)),
            12 => Metadata::Float(f64::from_le_bytes(self.array()?)),
            other => return Err(format!("unknown type {other}")),
        })
    }

    fn values(&mut self) -> Result<Metadata, String> {
        let kind = self.u32()?;
        let count = self.u64()?;
        // Every element takes at least one byte, so a count beyond the file ends below before memory does.
        let count = usize::try_from(count)
            .ok()
            .filter(|&count| count <= self.bytes.len())
            .ok_or("too many elements")?;
        match kind {
            8 => (0..count).map(|_| self.text()).collect::<Result<_, _>>().map(Metadata::Texts),
            0..=5 | 10 | 11 => {
                let mut integers = Vec::new();
                for _ in 0..count {
                    integers.push(match self.value(kind)? {
                        Metadata::Unsigned(value) => i64::try_from(value).map_err(|e| e.to_string())?,
                        Metadata::Signed(value) => value,
                        _ => return Err("not an integer".into()),
                    });
                }
                Ok(Metadata::Integers(integers))
            }
            6 | 7 | 12 => {
                for _ in 0..count {
                    self.value(kind)?;
                }
                Ok(Metadata::Unread)
            }
            other => Err(format!("an array of type {other}")),
        }
    }

    fn take(&mut self, len: usize) -> Result<&[u8], String> {
        let end = self.at.checked_add(len).filter(|&end| end <= self.bytes.len());
        let end = end.ok_or("ends within its header: it is truncated")?;
        let bytes = &self.bytes[self.at..end];
        self.at = end;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        self.take(N)?.try_into().map_err(|_| "ends within its header".into())
    }

    fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn text(&mut self) -> Result<String, String> {
        let len = usize::try_from(self.u64()?).map_err(|e| e.to_string())?;
        let bytes = self.take(len)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| "a text is not UTF-8".into())
    }
}
