//! Which kernel attends each row of a step, and what it reads: a pure function of the spans.
//!
//! A row's kernel follows from that row alone:
//! - decode units: a row that was drawn. Its keys are cut into units of 128 · 2ⁿ, whose results are joined in one
//!   fixed tree whatever n is, so the load may choose it;
//! - prompt tiles: neighbouring rows of a prompt;
//! - general rows: all rows of a pool whose blocks are not tiled, and any row that has to correct a key, because one
//!   of its blocks was stored with another rope table than the row's own.
//!
//! Everything is written as i32 words into one area, which the card gets in one copy.

use bytemuck::{Pod, Zeroable};

use crate::error::check_below;
use crate::kv::BLOCK_ROWS;
use crate::rows::PlacedSpan;
use crate::{RowsRoom, TensorError};

/// Keys whose sums are always made together.
pub const LEAF_KEYS: usize = 128;

/// The longest unit, unless the memory for partial results asks for longer ones.
const LONG_UNIT_KEYS: usize = 512;

/// Block numbers that a unit carries itself.
const UNIT_BLOCKS: usize = 8;

/// The most units that are one of several of their row: there is memory for as many partial results at most.
pub const MOST_PARTIALS: usize = 512;

/// Units that may be read, though not used, whatever there are: as many as any card has warps that begin.
const READABLE_UNITS: usize = 2048;

const UNIT_WORDS: usize = size_of::<Unit>() / size_of::<i32>();
const TILE_WORDS: usize = size_of::<Tile>() / size_of::<i32>();
const GENERAL_WORDS: usize = size_of::<General>() / size_of::<i32>();
const COUNT_WORDS: usize = 8;

/// A run of one row's keys, for one warp at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Unit {
    pub row: i32,
    pub first_key: i32,
    pub keys: i32,
    /// Among the words, the number of the unit's first block.
    pub blocks_at: i32,
    /// Where its partial result goes; −1 for a row's only unit.
    pub partial: i32,
    /// Units of the row, and which of them this is.
    pub partials: i32,
    pub index: i32,
    pub spare: i32,
    /// The first blocks, so that they can be loaded without another look.
    pub first_blocks: [i32; UNIT_BLOCKS],
}

/// Neighbouring rows of a prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Tile {
    pub first_row: i32,
    pub rows: i32,
    pub first_position: i32,
    /// Among the words, the number of the sequence's first block.
    pub blocks_at: i32,
}

/// A row of any kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct General {
    pub row: i32,
    pub position: i32,
    /// Among the words, pairs of the sequence's blocks and the tables that their keys are stored with.
    pub blocks_at: i32,
    /// The row's own table.
    pub table: i32,
}

/// Where things lie among the words. All but the units' end is the same in every step, as recorded launches need it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Areas {
    /// Rows there is room for.
    pub rows: usize,
    blocks: usize,
}

/// What the plan depends on besides the spans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Whether blocks are tiled, so that units and tiles can be.
    pub tiled: bool,
    pub kv_heads: usize,
    /// Partial results there is memory for, at most [`MOST_PARTIALS`].
    pub partials: usize,
    /// Warps that can work at once.
    pub warps: usize,
    /// The most rows of a tile.
    pub tile_rows: usize,
}

/// How much of everything there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub units: usize,
    pub tiles: usize,
    /// Keys that tiles read, those of a span once.
    pub tile_keys: usize,
    pub generals: usize,
    /// Rows that units belong to.
    pub unit_rows: usize,
    /// Keys of a unit that is not its row's last.
    pub unit_keys: usize,
    /// Words in use.
    pub words: usize,
}

// === impl Areas ===

impl Areas {
    /// The areas of rows with this room.
    pub fn new(room: RowsRoom) -> Areas {
        Areas { rows: room.rows, blocks: room.blocks }
    }

    /// Position, block, row table and key table of every row begin here.
    pub fn row_arrays(&self) -> [usize; 4] {
        [0, 1, 2, 3].map(|array| COUNT_WORDS + array * self.rows)
    }

    pub fn tiles(&self) -> usize {
        COUNT_WORDS + 4 * self.rows
    }

    pub fn generals(&self) -> usize {
        self.tiles() + TILE_WORDS * self.rows
    }

    pub fn units(&self) -> usize {
        (self.generals() + GENERAL_WORDS * self.rows).next_multiple_of(UNIT_WORDS)
    }

    /// All words: units, then block tables as such and as pairs.
    pub fn words(&self) -> usize {
        let units = (self.rows + MOST_PARTIALS) * UNIT_WORDS + 3 * self.blocks;
        self.units() + units.max(READABLE_UNITS * UNIT_WORDS)
    }
}

// === impl Plan ===

impl Plan {
    /// Writes the plan for `spans`, which were checked, into `words`.
    pub fn lay(
        spans: &[PlacedSpan],
        shape: &Shape,
        areas: &Areas,
        words: &mut [i32],
    ) -> Result<Plan, TensorError> {
        let unit_keys = shape.unit_keys(spans);
        let mut full = 0;
        let mut plan = Plan { unit_keys, ..Plan::default() };
        for keys in unit_rows(spans, shape.tiled) {
            full += keys / unit_keys;
            plan.units += keys.div_ceil(unit_keys);
            plan.unit_rows += 1;
        }
        plan.words = areas.units() + plan.units * UNIT_WORDS;
        check_below("place", "a plan's last word", areas.words().max(words.len()), words.len() + 1)?;
        check_below("place", "unit", plan.units, areas.rows + MOST_PARTIALS + 1)?;
        let cursors = Cursors { full: 0, tail: full, partial: 0 };
        let mut writer = Writer { shape, areas, words, plan, cursors };
        for span in spans {
            writer.span(span)?;
        }
        let Writer { words, plan, .. } = writer;
        // The longest first, so that all end together; rows decide among equals, so that the order is one.
        let tails = &mut units_mut(words, areas)[full..plan.units];
        tails.sort_unstable_by_key(|unit| (-unit.keys, unit.row));
        let tiles = &mut tiles_mut(words, areas)[..plan.tiles];
        tiles.sort_unstable_by_key(|tile| (-(tile.first_position + tile.rows), tile.first_row));
        for (word, count) in words.iter_mut().zip([plan.units, plan.tiles, plan.generals, unit_keys]) {
            *word = count as i32;
        }
        Ok(plan)
    }
}

impl Shape {
    /// Keys of a unit: long units have little to join, but there must be enough of them for all warps, and few enough
    /// for the memory of partial results.
    fn unit_keys(&self, spans: &[PlacedSpan]) -> usize {
        let keys: usize = unit_rows(spans, self.tiled).sum();
        let mut unit_keys = LONG_UNIT_KEYS;
        while unit_keys > LEAF_KEYS && keys * self.kv_heads / unit_keys < self.warps * 7 / 16 {
            unit_keys /= 2;
        }
        let partials = |unit_keys: usize| -> usize {
            unit_rows(spans, self.tiled).map(|keys| keys.div_ceil(unit_keys)).filter(|units| *units > 1).sum()
        };
        while partials(unit_keys) > self.partials.min(MOST_PARTIALS) {
            unit_keys *= 2;
        }
        unit_keys
    }
}

/// Keys of every row that units belong to.
fn unit_rows(spans: &[PlacedSpan], tiled: bool) -> impl Iterator<Item = usize> {
    spans.iter().flat_map(move |span| {
        let uniform = Uniform::of(span);
        let drawn = span.prompt_rows..span.rows;
        let positions = drawn.filter(move |&row| tiled && uniform.has(span, row));
        positions.map(|row| span.first_position + row + 1)
    })
}

/// A span's blocks from the first on that were stored with the same table.
#[derive(Clone, Copy)]
struct Uniform {
    table: u16,
    blocks: usize,
}

impl Uniform {
    fn of(span: &PlacedSpan) -> Uniform {
        let table = span.block_tables.first().copied().unwrap_or_default();
        Uniform { table, blocks: span.block_tables.iter().take_while(|other| **other == table).count() }
    }

    /// Whether the span's row `row` reads all its keys as they are stored.
    fn has(self, span: &PlacedSpan, row: usize) -> bool {
        let block = (span.first_position + row) / BLOCK_ROWS;
        block < self.blocks && span.row_tables.get(row) == Some(&self.table)
    }
}

/// Where the next of each kind goes.
struct Cursors {
    full: usize,
    tail: usize,
    partial: usize,
}

struct Writer<'a> {
    shape: &'a Shape,
    areas: &'a Areas,
    words: &'a mut [i32],
    plan: Plan,
    cursors: Cursors,
}

impl Writer<'_> {
    fn span(&mut self, span: &PlacedSpan) -> Result<(), TensorError> {
        let (uniform, tiled) = (Uniform::of(span), self.shape.tiled);
        let as_stored = |row: usize| tiled && uniform.has(span, row);
        let stored_rows = (0..span.rows).filter(|row| as_stored(*row)).count();
        let blocks_at = if stored_rows > 0 { self.blocks(span)? } else { 0 };
        let pairs_at = if stored_rows < span.rows { self.pairs(span)? } else { 0 };
        let (mut row, mut tile_keys) = (0, 0);
        while row < span.rows {
            if !as_stored(row) {
                self.general(span, row, pairs_at);
                row += 1;
            } else if row < span.prompt_rows {
                let most = (row + self.shape.tile_rows.max(1)).min(span.prompt_rows);
                let end = (row..most).find(|row| !as_stored(*row)).unwrap_or(most);
                self.tile(span, row..end, blocks_at);
                row = end;
                tile_keys = span.first_position + end;
            } else {
                self.units(span, row, blocks_at);
                row += 1;
            }
        }
        self.plan.tile_keys += tile_keys;
        Ok(())
    }

    /// Appends `count` words and returns where they begin.
    fn append(&mut self, count: usize) -> Result<(usize, &mut [i32]), TensorError> {
        let start = self.plan.words;
        let (op, what, limit) = ("place", "a plan's word", self.words.len());
        self.plan.words += count;
        let words = self.words.get_mut(start..start + count);
        words.map(|words| (start, words)).ok_or(TensorError::OutOfRange {
            op,
            what,
            index: start + count,
            limit,
        })
    }

    fn blocks(&mut self, span: &PlacedSpan) -> Result<usize, TensorError> {
        let (start, words) = self.append(span.blocks.len())?;
        for (word, block) in words.iter_mut().zip(&span.blocks) {
            *word = *block as i32;
        }
        Ok(start)
    }

    fn pairs(&mut self, span: &PlacedSpan) -> Result<usize, TensorError> {
        let (start, words) = self.append(2 * span.blocks.len())?;
        let pairs = words.as_chunks_mut().0.iter_mut();
        for (pair, (block, table)) in pairs.zip(span.blocks.iter().zip(&span.block_tables)) {
            *pair = [*block as i32, i32::from(*table)];
        }
        Ok(start)
    }

    fn general(&mut self, span: &PlacedSpan, row: usize, pairs_at: usize) {
        let general = General {
            row: (span.first_row + row) as i32,
            position: (span.first_position + row) as i32,
            blocks_at: pairs_at as i32,
            table: span.row_tables.get(row).copied().map_or(0, i32::from),
        };
        generals_mut(self.words, self.areas)[self.plan.generals] = general;
        self.plan.generals += 1;
    }

    fn tile(&mut self, span: &PlacedSpan, rows: std::ops::Range<usize>, blocks_at: usize) {
        let tile = Tile {
            first_row: (span.first_row + rows.start) as i32,
            rows: rows.len() as i32,
            first_position: (span.first_position + rows.start) as i32,
            blocks_at: blocks_at as i32,
        };
        tiles_mut(self.words, self.areas)[self.plan.tiles] = tile;
        self.plan.tiles += 1;
    }

    fn units(&mut self, span: &PlacedSpan, row: usize, blocks_at: usize) {
        let (keys, unit_keys) = (span.first_position + row + 1, self.plan.unit_keys);
        let count = keys.div_ceil(unit_keys);
        for index in 0..count {
            let first_key = index * unit_keys;
            let own = (keys - first_key).min(unit_keys);
            let first_block = first_key / BLOCK_ROWS;
            let mut unit = Unit {
                row: (span.first_row + row) as i32,
                first_key: first_key as i32,
                keys: own as i32,
                blocks_at: (blocks_at + first_block) as i32,
                partial: if count > 1 { (self.cursors.partial + index) as i32 } else { -1 },
                partials: count as i32,
                index: index as i32,
                ..Unit::default()
            };
            let blocks = span.blocks.iter().skip(first_block).take(own.div_ceil(BLOCK_ROWS));
            for (to, block) in unit.first_blocks.iter_mut().zip(blocks) {
                *to = *block as i32;
            }
            let cursor = if own == unit_keys { &mut self.cursors.full } else { &mut self.cursors.tail };
            units_mut(self.words, self.areas)[*cursor] = unit;
            *cursor += 1;
        }
        if count > 1 {
            self.cursors.partial += count;
        }
    }
}

fn units_mut<'a>(words: &'a mut [i32], areas: &Areas) -> &'a mut [Unit] {
    bytemuck::cast_slice_mut(&mut words[areas.units()..][..(areas.rows + MOST_PARTIALS) * UNIT_WORDS])
}

fn tiles_mut<'a>(words: &'a mut [i32], areas: &Areas) -> &'a mut [Tile] {
    bytemuck::cast_slice_mut(&mut words[areas.tiles()..][..areas.rows * TILE_WORDS])
}

fn generals_mut<'a>(words: &'a mut [i32], areas: &Areas) -> &'a mut [General] {
    bytemuck::cast_slice_mut(&mut words[areas.generals()..][..areas.rows * GENERAL_WORDS])
}

#[cfg(test)]
mod tests;
