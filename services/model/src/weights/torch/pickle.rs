//! A pickle reader that understands dictionaries of tensors, and nothing else.
//!
//! Values are flat (containers live in arenas), so no input makes it recurse; every opcode consumes input and pushes at most
//! one value, so memory is bounded by the pickle's length. Names outside [`Global`]'s list end the reading.

use std::collections::HashMap;

use super::super::dtype::StoredDtype;

/// The most dimensions of a tensor. (A shape is copied for each tensor that uses it, so its length needs a bound.)
const MOST_DIMENSIONS: usize = 8;

/// A tensor as the pickle describes it; nothing is checked against the storage yet.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TensorRef<'a> {
    pub name: &'a str,
    /// The storage's key: its file's name in the archive.
    pub storage: &'a str,
    pub dtype: StoredDtype,
    /// First element, in elements.
    pub offset: usize,
    pub shape: Vec<usize>,
    pub strides: Vec<usize>,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum PickleError {
    #[error("names `{0}`")]
    ForbiddenGlobal(String),
    #[error("ends within an instruction")]
    Truncated,
    #[error("instruction {opcode:#04x} at byte {at} is none that tensors need")]
    Opcode { opcode: u8, at: usize },
    #[error("instruction at byte {at} does not fit its operands")]
    Operands { at: usize },
    #[error("is not a dictionary of tensors by name")]
    NotTensors,
}

/// The names that occur in files of tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Global {
    RebuildTensor,
    RebuildParameter,
    OrderedDict,
    Storage(StoredDtype),
}

impl Global {
    fn known(module: &str, name: &str) -> Option<Self> {
        Some(match (module, name) {
            ("torch._utils", "_rebuild_tensor_v2") => Self::RebuildTensor,
            ("torch._utils", "_rebuild_parameter") => Self::RebuildParameter,
            ("collections", "OrderedDict") => Self::OrderedDict,
            ("torch", "FloatStorage") => Self::Storage(StoredDtype::F32),
            ("torch", "HalfStorage") => Self::Storage(StoredDtype::F16),
            ("torch", "BFloat16Storage") => Self::Storage(StoredDtype::Bf16),
            ("torch", "DoubleStorage") => Self::Storage(StoredDtype::F64),
            ("torch", "LongStorage") => Self::Storage(StoredDtype::I64),
            ("torch", "IntStorage") => Self::Storage(StoredDtype::I32),
            ("torch", "ShortStorage") => Self::Storage(StoredDtype::I16),
            ("torch", "CharStorage") => Self::Storage(StoredDtype::I8),
            ("torch", "ByteStorage") => Self::Storage(StoredDtype::U8),
            ("torch", "BoolStorage") => Self::Storage(StoredDtype::Bool),
            _ => return None,
        })
    }
}

/// A value on the stack. The numbers of containers index the reader's arenas.
#[derive(Clone, Copy, Debug)]
enum Value<'a> {
    /// `None`, booleans and floats: never looked at.
    Plain,
    Int(i64),
    Text(&'a str),
    Global(Global),
    Tuple(usize),
    List(usize),
    Dict(usize),
    Storage {
        key: &'a str,
        dtype: StoredDtype,
    },
    Tensor(usize),
}

/// Reads a pickle whose value is a dictionary of tensors.
pub(super) fn read(pickle: &[u8]) -> Result<Vec<TensorRef<'_>>, PickleError> {
    let mut reader = Reader { pickle, ..Reader::default() };
    let Value::Dict(root) = reader.run()? else { return Err(PickleError::NotTensors) };
    let Reader { dicts, tensors, .. } = reader;
    // A later item of the same name replaces an earlier one, as in Python.
    let mut named: HashMap<&str, usize> = HashMap::new();
    for (key, value) in &dicts[root] {
        let (Value::Text(name), Value::Tensor(tensor)) = (key, value) else {
            return Err(PickleError::NotTensors);
        };
        named.insert(name, *tensor);
    }
    let mut named: Vec<_> = named.into_iter().collect();
    named.sort_unstable();
    let mut named_tensors = Vec::with_capacity(named.len());
    for (name, tensor) in named {
        let found = &tensors[tensor];
        let (shape, strides) = (found.shape.clone(), found.strides.clone());
        named_tensors.push(TensorRef { name, shape, strides, ..*found });
    }
    Ok(named_tensors)
}

#[derive(Default)]
struct Reader<'a> {
    pickle: &'a [u8],
    at: usize,
    stack: Vec<Value<'a>>,
    /// Heights of the stack at each open mark.
    marks: Vec<usize>,
    memo: HashMap<u32, Value<'a>>,
    tuples: Vec<Vec<Value<'a>>>,
    lists: Vec<Vec<Value<'a>>>,
    dicts: Vec<Vec<(Value<'a>, Value<'a>)>>,
    tensors: Vec<TensorRef<'a>>,
}

impl<'a> Reader<'a> {
    fn run(&mut self) -> Result<Value<'a>, PickleError> {
        loop {
            let start = self.at;
            let opcode = self.byte()?;
            match opcode {
                // PROTO, FRAME: no meaning for a reader of a whole pickle.
                0x80 => drop(self.take(1)?),
                0x95 => drop(self.take(8)?),
                b'.' => return self.pop(start),
                b'(' => self.marks.push(self.stack.len()),
                // NONE, NEWTRUE, NEWFALSE, BINFLOAT
                b'N' | 0x88 | 0x89 => self.stack.push(Value::Plain),
                b'G' => {
                    self.take(8)?;
                    self.stack.push(Value::Plain);
                }
                b'J' => {
                    let value = i32::from_le_bytes(self.array()?);
                    self.stack.push(Value::Int(i64::from(value)));
                }
                b'K' => {
                    let value = self.byte()?;
                    self.stack.push(Value::Int(i64::from(value)));
                }
                b'M' => {
                    let value = u16::from_le_bytes(self.array()?);
                    self.stack.push(Value::Int(i64::from(value)));
                }
                0x8a => self.long(start)?,
                // BINUNICODE, SHORT_BINUNICODE, and the byte strings of Python 2
                b'X' | b'T' => {
                    let len = u32::from_le_bytes(self.array()?);
                    self.text(len, start)?;
                }
                0x8c | b'U' => {
                    let len = self.byte()?;
                    self.text(u32::from(len), start)?;
                }
                b'c' => {
                    let (module, name) = (self.line(start)?, self.line(start)?);
                    self.global(module, name)?;
                }
                0x93 => {
                    let (Value::Text(name), Value::Text(module)) = (self.pop(start)?, self.pop(start)?)
                    else {
                        return Err(PickleError::Operands { at: start });
                    };
                    self.global(module, name)?;
                }
                b')' => self.tuple(Vec::new()),
                0x85..=0x87 => {
                    let items = self.pop_many(usize::from(opcode - 0x84), start)?;
                    self.tuple(items);
                }
                b't' => {
                    let items = self.pop_mark(start)?;
                    self.tuple(items);
                }
                b']' => self.list(),
                b'}' => self.dict(),
                b'a' => {
                    let item = self.pop_many(1, start)?;
                    self.append(item, start)?;
                }
                b'e' => {
                    let items = self.pop_mark(start)?;
                    self.append(items, start)?;
                }
                b's' => {
                    let pair = self.pop_many(2, start)?;
                    self.set_items(&pair, start)?;
                }
                b'u' => {
                    let pairs = self.pop_mark(start)?;
                    self.set_items(&pairs, start)?;
                }
                // BINPUT, LONG_BINPUT, MEMOIZE
                b'q' => {
                    let slot = self.byte()?;
                    self.memoize(u32::from(slot), start)?;
                }
                b'r' => {
                    let slot = u32::from_le_bytes(self.array()?);
                    self.memoize(slot, start)?;
                }
                0x94 => {
                    let slot =
                        u32::try_from(self.memo.len()).map_err(|_| PickleError::Operands { at: start })?;
                    self.memoize(slot, start)?;
                }
                // BINGET, LONG_BINGET
                b'h' => {
                    let slot = self.byte()?;
                    self.recall(u32::from(slot), start)?;
                }
                b'j' => {
                    let slot = u32::from_le_bytes(self.array()?);
                    self.recall(slot, start)?;
                }
                b'Q' => self.persistent(start)?,
                b'R' => self.reduce(start)?,
                // BUILD: a state dictionary's `_metadata`, which holds module versions.
                b'b' => {
                    self.pop(start)?;
                    let Some(Value::Dict(_)) = self.stack.last() else {
                        return Err(PickleError::Operands { at: start });
                    };
                }
                opcode => return Err(PickleError::Opcode { opcode, at: start }),
            }
        }
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], PickleError> {
        let end = self.at.checked_add(len).ok_or(PickleError::Truncated)?;
        let bytes = self.pickle.get(self.at..end).ok_or(PickleError::Truncated)?;
        self.at = end;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], PickleError> {
        self.take(N)?.try_into().map_err(|_| PickleError::Truncated)
    }

    fn byte(&mut self) -> Result<u8, PickleError> {
        let [byte] = self.array()?;
        Ok(byte)
    }

    fn line(&mut self, at: usize) -> Result<&'a str, PickleError> {
        let rest = self.pickle.get(self.at..).unwrap_or_default();
        let len = rest.iter().position(|&byte| byte == b'\n').ok_or(PickleError::Truncated)?;
        let line = self.take(len + 1)?;
        std::str::from_utf8(&line[..len]).map_err(|_| PickleError::Operands { at })
    }

    fn text(&mut self, len: u32, at: usize) -> Result<(), PickleError> {
        let bytes = self.take(usize::try_from(len).map_err(|_| PickleError::Truncated)?)?;
        let text = std::str::from_utf8(bytes).map_err(|_| PickleError::Operands { at })?;
        self.stack.push(Value::Text(text));
        Ok(())
    }

    fn long(&mut self, at: usize) -> Result<(), PickleError> {
        let len = usize::from(self.byte()?);
        let bytes = self.take(len)?;
        if len > 8 {
            return Err(PickleError::Operands { at });
        }
        let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
        let mut padded = [if negative { 0xff } else { 0 }; 8];
        padded[..len].copy_from_slice(bytes);
        self.stack.push(Value::Int(i64::from_le_bytes(padded)));
        Ok(())
    }

    fn global(&mut self, module: &str, name: &str) -> Result<(), PickleError> {
        let global = Global::known(module, name)
            .ok_or_else(|| PickleError::ForbiddenGlobal(format!("{module}.{name}")))?;
        self.stack.push(Value::Global(global));
        Ok(())
    }

    /// No instruction may reach below the latest mark.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or_default()
    }

    fn pop(&mut self, at: usize) -> Result<Value<'a>, PickleError> {
        if self.stack.len() <= self.floor() {
            return Err(PickleError::Operands { at });
        }
        self.stack.pop().ok_or(PickleError::Operands { at })
    }

    fn pop_many(&mut self, count: usize, at: usize) -> Result<Vec<Value<'a>>, PickleError> {
        match self.stack.len().checked_sub(count) {
            Some(from) if from >= self.floor() => Ok(self.stack.split_off(from)),
            _ => Err(PickleError::Operands { at }),
        }
    }

    fn pop_mark(&mut self, at: usize) -> Result<Vec<Value<'a>>, PickleError> {
        let mark = self.marks.pop().ok_or(PickleError::Operands { at })?;
        Ok(self.stack.split_off(mark))
    }

    fn tuple(&mut self, items: Vec<Value<'a>>) {
        self.stack.push(Value::Tuple(self.tuples.len()));
        self.tuples.push(items);
    }

    fn list(&mut self) {
        self.stack.push(Value::List(self.lists.len()));
        self.lists.push(Vec::new());
    }

    fn dict(&mut self) {
        self.stack.push(Value::Dict(self.dicts.len()));
        self.dicts.push(Vec::new());
    }

    fn append(&mut self, items: Vec<Value<'a>>, at: usize) -> Result<(), PickleError> {
        let Some(&Value::List(list)) = self.stack.last() else { return Err(PickleError::Operands { at }) };
        self.lists[list].extend(items);
        Ok(())
    }

    fn set_items(&mut self, pairs: &[Value<'a>], at: usize) -> Result<(), PickleError> {
        let (pairs, rest) = pairs.as_chunks::<2>();
        let Some(&Value::Dict(dict)) = self.stack.last() else { return Err(PickleError::Operands { at }) };
        if !rest.is_empty() {
            return Err(PickleError::Operands { at });
        }
        self.dicts[dict].extend(pairs.iter().map(|&[key, value]| (key, value)));
        Ok(())
    }

    fn memoize(&mut self, slot: u32, at: usize) -> Result<(), PickleError> {
        let value = *self.stack.last().ok_or(PickleError::Operands { at })?;
        self.memo.insert(slot, value);
        Ok(())
    }

    fn recall(&mut self, slot: u32, at: usize) -> Result<(), PickleError> {
        let value = *self.memo.get(&slot).ok_or(PickleError::Operands { at })?;
        self.stack.push(value);
        Ok(())
    }

    /// BINPERSID of `("storage", type, key, location, elements)`.
    fn persistent(&mut self, at: usize) -> Result<(), PickleError> {
        let Value::Tuple(tuple) = self.pop(at)? else { return Err(PickleError::Operands { at }) };
        let [
            Value::Text("storage"),
            Value::Global(Global::Storage(dtype)),
            Value::Text(key),
            _,
            Value::Int(_),
        ] = self.tuples[tuple][..]
        else {
            return Err(PickleError::Operands { at });
        };
        self.stack.push(Value::Storage { key, dtype });
        Ok(())
    }

    fn reduce(&mut self, at: usize) -> Result<(), PickleError> {
        let operands = PickleError::Operands { at };
        let (Value::Tuple(arguments), Value::Global(global)) = (self.pop(at)?, self.pop(at)?) else {
            return Err(operands);
        };
        let arguments = &self.tuples[arguments][..];
        match (global, arguments) {
            (Global::OrderedDict, []) => self.dict(),
            (Global::RebuildParameter, [Value::Tensor(tensor), ..]) => {
                self.stack.push(Value::Tensor(*tensor))
            }
            (
                Global::RebuildTensor,
                &[
                    Value::Storage { key, dtype },
                    Value::Int(offset),
                    Value::Tuple(shape),
                    Value::Tuple(strides),
                    ..,
                ],
            ) => {
                let (Ok(offset), Some(shape), Some(strides)) =
                    (usize::try_from(offset), self.sizes(shape), self.sizes(strides))
                else {
                    return Err(operands);
                };
                if shape.len() != strides.len() {
                    return Err(operands);
                }
                self.stack.push(Value::Tensor(self.tensors.len()));
                self.tensors.push(TensorRef { name: "", storage: key, dtype, offset, shape, strides });
            }
            _ => return Err(operands),
        }
        Ok(())
    }

    fn sizes(&self, tuple: usize) -> Option<Vec<usize>> {
        let sizes = &self.tuples[tuple];
        if sizes.len() > MOST_DIMENSIONS {
            return None;
        }
        sizes
            .iter()
            .map(|size| if let Value::Int(size) = size { usize::try_from(*size).ok() } else { None })
            .collect()
    }
}
