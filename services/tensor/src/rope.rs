//! Rotary position tables: cos and sin for every position, one table per base ("alpha").
//!
//! Rotation is the half form over the whole head: elements j and j + h (h = head_dim / 2) turn together,
//! `(a, b) -> (a·cos − b·sin, b·cos + a·sin)` with entry j of the position's row.

use std::sync::Arc;

use crate::cuda::card::Context;
use crate::cuda::memory::DeviceMemory;
use crate::error::{TensorError, check_eq};

/// Positions in a group of the grouped layout: the rows of a KV block.
const GROUP: usize = crate::BLOCK_ROWS;

/// Cos and sin `[positions, half]`, row-major.
#[derive(Clone, Debug)]
pub struct RopeTable {
    half: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

/// The tables of a model on a device; an index into them is what spans call a table.
#[derive(Debug)]
pub struct RopeTables {
    half: usize,
    positions: usize,
    tables: Vec<RopeTable>,
    /// The same numbers as `[group of 16 positions][half][16 positions]`: how stored keys lie. Only needed,
    /// and only there, if there are several tables to correct between.
    grouped: Vec<Grouped>,
    /// `[table][position][half]` pairs (cos, sin) on a card, where one computes.
    card: Option<DeviceMemory>,
}

#[derive(Debug)]
pub(crate) struct Grouped {
    pub(crate) cos: Vec<f32>,
    pub(crate) sin: Vec<f32>,
    /// 1 / (cos² + sin²): not 1 where a table carries a magnitude.
    pub(crate) inverse_norm: f32,
}

impl RopeTable {
    /// A table of `cos.len() / half` positions.
    pub fn new(half: usize, cos: Vec<f32>, sin: Vec<f32>) -> Result<RopeTable, TensorError> {
        check_eq("rope table", "the sine's length", sin.len(), cos.len())?;
        check_eq("rope table", "entries beyond whole rows", cos.len() % half.max(1), 0)?;
        Ok(RopeTable { half, cos, sin })
    }

    /// Cos and sin of one position, `[half]` each.
    pub(crate) fn row(&self, position: usize) -> (&[f32], &[f32]) {
        let range = position * self.half..(position + 1) * self.half;
        (&self.cos[range.clone()], &self.sin[range])
    }

    fn grouped(&self) -> Grouped {
        let norm = match (self.cos.first(), self.sin.first()) {
            (Some(cos), Some(sin)) => cos * cos + sin * sin,
            _ => 1.0,
        };
        Grouped { cos: self.group(&self.cos), sin: self.group(&self.sin), inverse_norm: 1.0 / norm }
    }

    fn group(&self, rows: &[f32]) -> Vec<f32> {
        let positions = rows.len() / self.half.max(1);
        let mut grouped = vec![0.0; positions.next_multiple_of(GROUP) * self.half];
        for (position, row) in rows.chunks_exact(self.half.max(1)).enumerate() {
            let group = position / GROUP * GROUP * self.half;
            for (j, &value) in row.iter().enumerate() {
                grouped[group + j * GROUP + position % GROUP] = value;
            }
        }
        grouped
    }
}

impl RopeTables {
    pub(crate) fn new(tables: Vec<RopeTable>) -> Result<RopeTables, TensorError> {
        let Some(first) = tables.first() else {
            return Err(TensorError::Setting {
                op: "rope tables",
                what: "the list",
                rule: "of one table or more",
            });
        };
        let half = first.half;
        for table in &tables {
            check_eq("rope tables", "half of a table", table.half, half)?;
        }
        let positions = tables.iter().map(|table| table.cos.len() / half.max(1)).min().unwrap_or(0);
        let several = if tables.len() > 1 { &tables[..] } else { &[] };
        let grouped = several.iter().map(RopeTable::grouped).collect();
        Ok(RopeTables { half, positions, tables, grouped, card: None })
    }

    /// The same tables, on a card too.
    pub(crate) fn on_card(self, context: &Arc<Context>) -> Result<RopeTables, TensorError> {
        let used = self.positions * self.half;
        let pairs = |table: &RopeTable| -> Vec<[f32; 2]> {
            table.cos.iter().zip(&table.sin).take(used).map(|(&cos, &sin)| [cos, sin]).collect()
        };
        let all: Vec<[f32; 2]> = self.tables.iter().flat_map(pairs).collect();
        let memory = DeviceMemory::zeroed(context, size_of_val(&all[..]))?;
        memory.write(0, bytemuck::cast_slice(&all))?;
        Ok(RopeTables { card: Some(memory), ..self })
    }

    /// Where they are on the card.
    pub(crate) fn address(&self) -> Result<u64, TensorError> {
        self.card.as_ref().map(DeviceMemory::address).ok_or(TensorError::OtherDevice)
    }

    /// Positions that every table has.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// Pairs that turn together: half of head_dim.
    pub fn half(&self) -> usize {
        self.half
    }

    /// The number of tables, at least 1.
    pub fn count(&self) -> usize {
        self.tables.len()
    }

    pub(crate) fn table(&self, index: u16) -> &RopeTable {
        &self.tables[usize::from(index)]
    }

    pub(crate) fn in_groups(&self, index: u16) -> &Grouped {
        &self.grouped[usize::from(index)]
    }
}
