//! Memory of whichever device a value lives on.

use bytemuck::Pod;

use crate::TensorError;
use crate::cpu::memory::Memory;
use crate::cuda::memory::DeviceMemory;

/// An area of one device's memory.
#[derive(Debug)]
pub enum Storage {
    /// The host's, for the CPU.
    Host(Memory),
    /// A card's.
    Card(DeviceMemory),
}

impl Storage {
    /// `bytes` zeros of the host's memory.
    pub fn host(bytes: usize) -> Result<Storage, TensorError> {
        Memory::zeroed(bytes).map(Storage::Host).map_err(|source| TensorError::Memory { bytes, source })
    }

    /// Its size in bytes.
    pub fn bytes(&self) -> usize {
        match self {
            Storage::Host(memory) => memory.bytes(),
            Storage::Card(memory) => memory.bytes(),
        }
    }

    /// The elements, where the CPU computes.
    pub fn elements<E: Pod>(&self) -> Result<&[E], TensorError> {
        match self {
            Storage::Host(memory) => Ok(memory.as_slice()),
            Storage::Card(_) => Err(TensorError::OtherDevice),
        }
    }

    /// The elements, where the CPU computes.
    pub fn elements_mut<E: Pod>(&mut self) -> Result<&mut [E], TensorError> {
        match self {
            Storage::Host(memory) => Ok(memory.as_mut_slice()),
            Storage::Card(_) => Err(TensorError::OtherDevice),
        }
    }

    /// Writes `bytes` at `offset`; there is room for them.
    pub fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<(), TensorError> {
        match self {
            Storage::Host(memory) => {
                memory.as_mut_slice::<u8>()[offset..offset + bytes.len()].copy_from_slice(bytes);
                Ok(())
            }
            Storage::Card(memory) => memory.write(offset, bytes),
        }
    }

    /// Appends `bytes` bytes from `offset` on to `out`.
    pub fn read(&self, offset: usize, bytes: usize, out: &mut Vec<u8>) -> Result<(), TensorError> {
        match self {
            Storage::Host(memory) => {
                out.extend_from_slice(&memory.as_slice::<u8>()[offset..offset + bytes]);
                Ok(())
            }
            Storage::Card(memory) => {
                let start = out.len();
                out.resize(start + bytes, 0);
                memory.read(offset, &mut out[start..])
            }
        }
    }

    /// The memory, where a card computes.
    pub fn card(&self) -> Result<&DeviceMemory, TensorError> {
        match self {
            Storage::Host(_) => Err(TensorError::OtherDevice),
            Storage::Card(memory) => Ok(memory),
        }
    }
}
