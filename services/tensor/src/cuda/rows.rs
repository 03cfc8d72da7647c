//! Where a step's rows are, on the card: one upload a step.

use crate::cuda::Cuda;
use crate::cuda::attention::TiledPool;
use crate::cuda::attention::plan::{Areas, Plan, Shape};
use crate::cuda::attention::prefill::TILE_ROWS;
use crate::cuda::upload::Upload;
use crate::kv::BLOCK_ROWS;
use crate::rows::PlacedSpan;
use crate::{KvPool, Rows, RowsRoom, TensorError};

/// A row that is padding.
const PADDING: i32 = -1;

/// What kernels read of a step's rows: arrays of i32, one after the other, whose addresses are the same in every step.
#[derive(Debug)]
pub struct CudaRows {
    upload: Upload,
    areas: Areas,
    plan: Plan,
}

impl CudaRows {
    /// i32 by row: its position, −1 where the row is padding.
    pub fn position(&self) -> u64 {
        self.row_array(0)
    }

    /// i32 by row: the KV block that it goes to.
    pub fn block(&self) -> u64 {
        self.row_array(1)
    }

    /// i32 by row: the rope table of its query.
    pub fn row_table(&self) -> u64 {
        self.row_array(2)
    }

    /// i32 by row: the rope table of its block's keys.
    pub fn key_table(&self) -> u64 {
        self.row_array(3)
    }

    /// How much of everything the plan has.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// i32: how many units, tiles and general rows there are, and the keys of a unit.
    pub fn counts(&self) -> u64 {
        self.word(0)
    }

    /// The plan's tiles.
    pub fn tiles(&self) -> u64 {
        self.word(self.areas.tiles())
    }

    /// The plan's general rows.
    pub fn generals(&self) -> u64 {
        self.word(self.areas.generals())
    }

    /// The plan's units.
    pub fn units(&self) -> u64 {
        self.word(self.areas.units())
    }

    /// All words: where the plan's block tables lie.
    pub fn words(&self) -> u64 {
        self.word(0)
    }

    fn row_array(&self, index: usize) -> u64 {
        self.word(self.areas.row_arrays()[index])
    }

    fn word(&self, index: usize) -> u64 {
        self.upload.address() + (index * size_of::<i32>()) as u64
    }
}

impl Cuda {
    pub(crate) fn rows(&self, room: RowsRoom) -> Result<CudaRows, TensorError> {
        let areas = Areas::new(room);
        let upload = Upload::new(self.card().context(), areas.words() * size_of::<i32>())?;
        Ok(CudaRows { upload, areas, plan: Plan::default() })
    }

    /// Plans the step's attention and tells the card where its rows are.
    pub(crate) fn place(&self, rows: &mut Rows, kv: &KvPool) -> Result<(), TensorError> {
        let Rows { card, spans, .. } = rows;
        let card_rows = card.as_deref_mut().ok_or(TensorError::OtherDevice)?;
        let tiled = kv.card()?.attention.tiled.as_ref();
        let shape = Shape {
            tiled: tiled.is_some(),
            kv_heads: kv.spec().kv_heads,
            partials: tiled.map_or(0, TiledPool::partials),
            warps: 8 * self.card().multiprocessors() as usize,
            tile_rows: TILE_ROWS,
        };
        let words = card_rows.upload.area::<i32>()?;
        fill_rows(spans, &card_rows.areas, words);
        card_rows.plan = Plan::lay(spans, &shape, &card_rows.areas, words)?;
        let bytes = card_rows.plan.words * size_of::<i32>();
        card_rows.upload.send(&self.card().compute, bytes)
    }
}

/// Writes the four arrays that have an entry for every row.
fn fill_rows(spans: &[PlacedSpan], areas: &Areas, words: &mut [i32]) {
    let [position, block, row_table, key_table] = areas.row_arrays();
    words[position..block].fill(PADDING);
    for span in spans {
        for (index, table) in span.row_tables.iter().enumerate() {
            let (row, at) = (span.first_row + index, span.first_position + index);
            words[position + row] = at as i32;
            words[block + row] = span.blocks[at / BLOCK_ROWS] as i32;
            words[row_table + row] = i32::from(*table);
            words[key_table + row] = i32::from(span.block_tables[at / BLOCK_ROWS]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_without_a_span_are_padding() {
        let areas = Areas::new(RowsRoom { rows: 6, blocks: 4 });
        let span = PlacedSpan {
            first_row: 2,
            rows: 2,
            first_position: 15,
            prompt_rows: 2,
            blocks: vec![7, 5],
            row_tables: vec![1, 0],
            block_tables: vec![0, 3],
        };
        let mut words = vec![9; areas.words()];
        fill_rows(&[span], &areas, &mut words);
        let array = |index: usize| &words[areas.row_arrays()[index]..][..6];
        assert_eq!(array(0), [-1, -1, 15, 16, -1, -1]);
        assert_eq!(array(1)[2..4], [7, 5]);
        assert_eq!(array(2)[2..4], [1, 0]);
        assert_eq!(array(3)[2..4], [0, 3]);
    }
}
