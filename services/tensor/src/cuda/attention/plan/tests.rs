use std::collections::BTreeMap;

use super::*;

/// A small generator (SplitMix64).
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}

const SHAPE: Shape = Shape { tiled: true, kv_heads: 4, partials: 64, warps: 1056, tile_rows: 128 };

/// A span whose every row has table 0, as its blocks have.
fn span(
    rng: &mut Rng,
    first_row: usize,
    first_position: usize,
    rows: usize,
    prompt_rows: usize,
) -> PlacedSpan {
    let blocks = (first_position + rows).div_ceil(BLOCK_ROWS);
    PlacedSpan {
        first_row,
        rows,
        first_position,
        prompt_rows,
        blocks: (0..blocks).map(|_| rng.below(10_000) as u32).collect(),
        row_tables: vec![0; rows],
        block_tables: vec![0; blocks],
    }
}

/// What the plan says of every row: its kind, and its keys' blocks in order.
#[derive(Clone, Debug, PartialEq)]
enum Kind {
    Unit,
    Tile,
    General,
}

struct Laid {
    plan: Plan,
    areas: Areas,
    words: Vec<i32>,
}

impl Laid {
    fn new(spans: &[PlacedSpan], shape: &Shape) -> Laid {
        let rows = spans.last().map_or(0, |span| span.first_row + span.rows);
        let blocks = spans.iter().map(|span| span.blocks.len()).sum();
        let areas = Areas::new(RowsRoom { rows, blocks });
        let mut words = vec![-7; areas.words()];
        let plan = Plan::lay(spans, shape, &areas, &mut words).unwrap();
        assert!(plan.words <= words.len());
        assert_eq!(
            words[..4],
            [plan.units, plan.tiles, plan.generals, plan.unit_keys].map(|count| count as i32)
        );
        Laid { plan, areas, words }
    }

    fn units(&mut self) -> Vec<Unit> {
        units_mut(&mut self.words, &self.areas)[..self.plan.units].to_vec()
    }

    fn tiles(&mut self) -> Vec<Tile> {
        tiles_mut(&mut self.words, &self.areas)[..self.plan.tiles].to_vec()
    }

    fn generals(&mut self) -> Vec<General> {
        generals_mut(&mut self.words, &self.areas)[..self.plan.generals].to_vec()
    }

    /// Checks that every row is there once and reads its own blocks, and returns the rows' kinds.
    fn check(&mut self, spans: &[PlacedSpan], shape: &Shape) -> BTreeMap<usize, Kind> {
        let mut kinds = BTreeMap::new();
        let find = |row: usize| {
            let span = spans
                .iter()
                .find(|span| (span.first_row..span.first_row + span.rows).contains(&row))
                .unwrap();
            (span, span.first_position + row - span.first_row)
        };
        let (units, tiles, generals) = (self.units(), self.tiles(), self.generals());
        let mut by_row: BTreeMap<i32, Vec<Unit>> = BTreeMap::new();
        for unit in &units {
            by_row.entry(unit.row).or_default().push(*unit);
        }
        let mut partials = Vec::new();
        for (row, mut units) in by_row {
            let (span, position) = find(row as usize);
            units.sort_by_key(|unit| unit.first_key);
            let mut next = 0;
            for (index, unit) in units.iter().enumerate() {
                assert_eq!((unit.index, unit.partials), (index as i32, units.len() as i32));
                assert_eq!(unit.first_key, next, "keys follow each other");
                assert_eq!(unit.first_key as usize, index * self.plan.unit_keys);
                next += unit.keys;
                let blocks = &span.blocks[unit.first_key as usize / BLOCK_ROWS..]
                    [..(unit.keys as usize).div_ceil(BLOCK_ROWS)];
                let written = &self.words[unit.blocks_at as usize..][..blocks.len()];
                assert!(written.iter().zip(blocks).all(|(word, block)| *word == *block as i32));
                assert!(unit.first_blocks.iter().zip(blocks).all(|(word, block)| *word == *block as i32));
                if units.len() > 1 {
                    assert_eq!(
                        unit.partial - unit.index,
                        units[0].partial,
                        "a row's partial results lie side by side"
                    );
                    partials.push(unit.partial as usize);
                } else {
                    assert_eq!(unit.partial, -1);
                }
            }
            assert_eq!(next as usize, position + 1, "all keys up to the row's own");
            assert_eq!(kinds.insert(row as usize, Kind::Unit), None);
        }
        partials.sort_unstable();
        assert!(partials.iter().copied().eq(0..partials.len()), "no place twice");
        assert!(partials.len() <= shape.partials);
        for tile in &tiles {
            assert!((1..=shape.tile_rows as i32).contains(&tile.rows));
            for index in 0..tile.rows {
                let row = (tile.first_row + index) as usize;
                let (span, position) = find(row);
                assert_eq!(position as i32, tile.first_position + index);
                let blocks = &span.blocks[..=position / BLOCK_ROWS];
                let written = &self.words[tile.blocks_at as usize..][..blocks.len()];
                assert!(written.iter().zip(blocks).all(|(word, block)| *word == *block as i32));
                assert_eq!(kinds.insert(row, Kind::Tile), None);
            }
        }
        for general in &generals {
            let (span, position) = find(general.row as usize);
            assert_eq!(position as i32, general.position);
            assert_eq!(general.table, i32::from(span.row_tables[general.row as usize - span.first_row]));
            for block in 0..=position / BLOCK_ROWS {
                let pair = &self.words[general.blocks_at as usize + 2 * block..][..2];
                assert_eq!(pair, [span.blocks[block] as i32, i32::from(span.block_tables[block])]);
            }
            assert_eq!(kinds.insert(general.row as usize, Kind::General), None);
        }
        let keys_of = |span: &PlacedSpan| {
            let own = tiles.iter().filter(|tile| {
                (span.first_row..span.first_row + span.rows).contains(&(tile.first_row as usize))
            });
            own.map(|tile| (tile.first_position + tile.rows) as usize).max().unwrap_or(0)
        };
        assert_eq!(self.plan.tile_keys, spans.iter().map(keys_of).sum::<usize>());
        let ends: Vec<i32> = tiles.iter().map(|tile| tile.first_position + tile.rows).collect();
        assert!(ends.is_sorted_by(|a, b| a >= b), "the longest tiles come first");
        assert!(units.is_sorted_by(|a, b| a.keys >= b.keys), "the longest units come first");
        kinds
    }
}

#[test]
fn every_row_is_attended_once_by_its_kernel() {
    let mut rng = Rng(1);
    for round in 0..300 {
        let mut spans = Vec::new();
        let mut row = 0;
        for _ in 0..1 + rng.below(12) {
            let rows = [1, 1, 1 + rng.below(40), 1 + rng.below(400)][rng.below(4)];
            let first_position = [0, rng.below(300), rng.below(6_000)][rng.below(3)];
            let prompt_rows = [0, rows, rng.below(rows + 1)][rng.below(3)];
            let mut span = span(&mut rng, row, first_position, rows, prompt_rows);
            if rng.below(3) == 0 {
                // From some block, and from some row on, another table.
                let (block, other) = (rng.below(span.blocks.len()), rng.below(rows));
                span.block_tables[block..].fill(1);
                span.row_tables[other..].fill(1);
            }
            row += rows + rng.below(2);
            spans.push(span);
        }
        let tile_rows = [64, 128][rng.below(2)];
        let shape = Shape { tile_rows, partials: 1 + rng.below(64), tiled: round % 5 > 0, ..SHAPE };
        let mut laid = Laid::new(&spans, &shape);
        let kinds = laid.check(&spans, &shape);
        for span in &spans {
            for index in 0..span.rows {
                let blocks = &span.block_tables[..=(span.first_position + index) / BLOCK_ROWS];
                let stored = shape.tiled && blocks.iter().all(|table| *table == span.row_tables[index]);
                let want = match (stored, index < span.prompt_rows) {
                    (false, _) => Kind::General,
                    (true, true) => Kind::Tile,
                    (true, false) => Kind::Unit,
                };
                assert_eq!(kinds.get(&(span.first_row + index)), Some(&want));
            }
        }
        assert_eq!(kinds.len(), spans.iter().map(|span| span.rows).sum::<usize>());
    }
}

#[test]
fn units_are_long_where_there_are_enough_of_them() {
    let mut rng = Rng(2);
    let wide = Shape { kv_heads: 64, partials: 512, ..SHAPE };
    for (rows, keys, want) in [
        (1, 576, 128),
        (2, 576, 128),
        (4, 576, 256),
        (8, 576, 512),
        (24, 576, 512),
        (1, 1_024, 128),
        (1, 4_096, 512),
        (8, 4_096, 512),
    ] {
        let spans: Vec<_> = (0..rows).map(|row| span(&mut rng, row, keys - 1, 1, 0)).collect();
        assert_eq!(Laid::new(&spans, &wide).plan.unit_keys, want, "{rows} rows of {keys} keys");
    }
}

#[test]
fn units_grow_where_partial_results_would_not_fit() {
    let mut rng = Rng(3);
    // A long answer computed again: every row for itself.
    let spans = [span(&mut rng, 0, 2_000, 1_500, 0)];
    let shape = Shape { partials: 32, ..SHAPE };
    let mut laid = Laid::new(&spans, &shape);
    assert_eq!(laid.plan.unit_keys, 4_096);
    assert_eq!(laid.plan.units, 1_500);
    laid.check(&spans, &shape);
}

#[test]
fn nothing_and_too_much() {
    let mut laid = Laid::new(&[], &SHAPE);
    assert_eq!((laid.plan.units, laid.plan.tiles, laid.plan.generals), (0, 0, 0));
    assert!(laid.check(&[], &SHAPE).is_empty());
    let spans = [span(&mut Rng(4), 0, 0, 64, 64)];
    let areas = Areas::new(RowsRoom { rows: 64, blocks: 4 });
    let mut short = vec![0; areas.words() - 1];
    let refused = Plan::lay(&spans, &SHAPE, &areas, &mut short);
    assert!(matches!(refused, Err(TensorError::OutOfRange { op: "place", .. })));
}
