//! Rotation and KV writes: each result is one IEEE operation after another, so all devices give the same numbers.
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

mod support;

use asterism_tensor::{
    AttnSpan, BLOCK_ROWS, Compute, Device, KvPlace, KvPool, RopeTable, RopeTables, Rows, RowsRoom, Tensor,
};
use support::sequence::{Shape, place};
use support::{Rng, all, gpus, rounded, rows, tensor};

/// Query heads, KV heads and head_dim: every way that blocks lie on a card, odd halves, groups.
const SHAPES: [(usize, usize, usize); 11] = [
    (2, 2, 16),
    (3, 1, 18),
    (30, 1, 2),
    (4, 2, 64),
    (3, 3, 80),
    (2, 1, 96),
    (2, 2, 112),
    (8, 1, 128),
    (5, 5, 160),
    (2, 2, 192),
    (4, 1, 256),
];

const COMPUTES: [Compute; 2] = [Compute::F32, Compute::Bf16];
const TABLES: usize = 3;

fn shapes() -> impl Iterator<Item = Shape> {
    let shape = |compute, sizes| Shape::new(sizes, compute);
    COMPUTES.into_iter().flat_map(move |compute| SHAPES.into_iter().map(move |sizes| shape(compute, sizes)))
}

/// Cos and sin of a table, the same on every call.
fn numbers(table: usize, half: usize, positions: usize) -> (Vec<f32>, Vec<f32>) {
    let angle = |i: usize| (i / half) as f64 * (table as f64 + 0.5).powf(-((i % half) as f64) / half as f64);
    (0..positions * half).map(angle).map(|angle| (angle.cos() as f32, angle.sin() as f32)).unzip()
}

fn tables(device: &Device, half: usize, positions: usize) -> RopeTables {
    let table = |table| {
        let (cos, sin) = numbers(table, half, positions);
        RopeTable::new(half, cos, sin).unwrap()
    };
    device.rope_tables((0..TABLES).map(table).collect()).unwrap()
}

/// Some of a sequence's rows, with what the library is told of them.
struct Span {
    first_row: usize,
    first_position: usize,
    blocks: Vec<u32>,
    row_tables: Vec<u16>,
    block_tables: Vec<u16>,
}

impl Span {
    fn borrowed(&self) -> AttnSpan<'_> {
        AttnSpan {
            first_row: self.first_row,
            rows: self.row_tables.len(),
            first_position: self.first_position,
            prompt_rows: self.row_tables.len() / 2,
            blocks: &self.blocks,
            row_tables: &self.row_tables,
            block_tables: &self.block_tables,
        }
    }
}

/// Spans of these (rows, first position), with `gap` rows of padding after each, in random blocks and tables.
fn spans(rng: &mut Rng, chunks: &[(usize, usize)], gap: usize, blocks: usize) -> Vec<Span> {
    let mut free: Vec<u32> = (0..blocks as u32).collect();
    let mut first_row = 0;
    let mut span = |&(rows, first_position): &(usize, usize)| {
        let needed = (first_position + rows).div_ceil(BLOCK_ROWS);
        let span = Span {
            first_row,
            first_position,
            blocks: (0..needed).map(|_| free.swap_remove(rng.below(free.len()))).collect(),
            row_tables: (0..rows).map(|_| rng.below(TABLES) as u16).collect(),
            block_tables: (0..needed).map(|_| rng.below(TABLES) as u16).collect(),
        };
        first_row += rows + gap;
        span
    };
    chunks.iter().map(&mut span).collect()
}

/// The head `x`, turned at `position` by `table`, as `compute` holds it.
fn turned(x: &[f32], (cos, sin): &(Vec<f32>, Vec<f32>), position: usize, compute: Compute) -> Vec<f32> {
    let half = x.len() / 2;
    let turn = |i: usize| {
        let (j, at) = (i % half, position * half + i % half);
        let (cos, sin) = (cos[at], sin[at]);
        let y = if i < half { x[j] * cos - x[j + half] * sin } else { x[j + half] * cos + x[j] * sin };
        rounded(compute.dtype(), f64::from(y)) as f32
    };
    (0..x.len()).map(turn).collect()
}

struct Run {
    qkv: Tensor,
    kv: KvPool,
}

fn run(device: &Device, shape: &Shape, input: &[Vec<f32>], spans: &[Span], blocks: usize) -> Run {
    let borrowed: Vec<AttnSpan<'_>> = spans.iter().map(Span::borrowed).collect();
    let positions = spans.iter().map(|span| span.first_position + span.row_tables.len()).max().unwrap();
    let tables = tables(device, shape.head_dim / 2, positions);
    let mut kv = device.kv_pool(shape.spec(), blocks).unwrap();
    let mut qkv = tensor(device, shape.compute.dtype(), input);
    let room = RowsRoom { rows: input.len(), blocks: spans.iter().map(|span| span.blocks.len()).sum() };
    let mut placed: Rows = device.rows(room).unwrap();
    device.place(&borrowed, &kv, &tables, &mut placed).unwrap();
    device.rope_kv_write(&mut qkv, &placed, &tables, &mut kv, 1).unwrap();
    Run { qkv, kv }
}

fn check(device: &Device, shape: &Shape, input: &[Vec<f32>], spans: &[Span], blocks: usize) {
    let &Shape { heads, kv_heads, head_dim, compute, .. } = shape;
    let Run { qkv, kv } = run(device, shape, input, spans, blocks);
    let (before, after) = (rows(&tensor(device, compute.dtype(), input)), rows(&qkv));
    let positions = spans.iter().map(|span| span.first_position + span.row_tables.len()).max().unwrap();
    let numbers: Vec<_> = (0..TABLES).map(|table| numbers(table, head_dim / 2, positions)).collect();
    let mut untouched: Vec<bool> = vec![true; input.len()];
    let mut written = vec![[false; BLOCK_ROWS]; blocks];
    let head = |row: usize, head: usize| &before[row][head * head_dim..][..head_dim];
    for span in spans {
        for (index, table) in span.row_tables.iter().enumerate() {
            let (row, position) = (span.first_row + index, span.first_position + index);
            let what = format!("{} {shape:?} row {row} at {position}", device.describe());
            untouched[row] = false;
            for query in 0..heads {
                let want = turned(head(row, query), &numbers[usize::from(*table)], position, compute);
                assert_eq!(after[row][query * head_dim..][..head_dim], want, "{what}, query {query}");
            }
            let block = position / BLOCK_ROWS;
            let table = usize::from(span.block_tables[block]);
            written[span.blocks[block] as usize][position % BLOCK_ROWS] = true;
            for kv_head in 0..kv_heads {
                let row_in_block = position % BLOCK_ROWS;
                let place = KvPlace { layer: 1, block: span.blocks[block], row: row_in_block, head: kv_head };
                let (key, value) = kv.read(place).unwrap();
                let want = turned(head(row, heads + kv_head), &numbers[table], position, compute);
                assert_eq!(key, want, "{what}, key {kv_head}");
                assert_eq!(value, head(row, heads + kv_heads + kv_head), "{what}, value {kv_head}");
            }
        }
    }
    for row in (0..input.len()).filter(|row| untouched[*row]) {
        assert_eq!(after[row], before[row], "{} {shape:?} padding row {row}", device.describe());
    }
    for (block, row) in (0..blocks).flat_map(|block| (0..BLOCK_ROWS).map(move |row| (block, row))) {
        for layer in 0..2 {
            if layer == 0 || !written[block][row] {
                let place = KvPlace { layer, block: block as u32, row, head: kv_heads - 1 };
                let zero = vec![0.0; head_dim];
                assert_eq!(
                    kv.read(place).unwrap(),
                    (zero.clone(), zero),
                    "{} {shape:?} {place:?}",
                    device.describe()
                );
            }
        }
    }
}

#[test]
fn queries_and_keys_turn_and_values_rest_where_they_belong() {
    let mut rng = Rng(1);
    let devices = all();
    for shape in shapes() {
        let spans = spans(&mut rng, &[(1, 0), (5, 13), (1, 40), (33, 2)], 0, 12);
        let input = rng.rows(40, shape.cols());
        for device in &devices {
            check(device, &shape, &input, &spans, 12);
        }
    }
}

#[test]
fn padding_rows_touch_nothing() {
    let mut rng = Rng(2);
    let devices = all();
    for shape in shapes() {
        let spans = spans(&mut rng, &[(2, 15), (1, 7), (3, 0)], 2, 6);
        let input = rng.rows(17, shape.cols());
        for device in &devices {
            check(device, &shape, &input, &spans, 6);
        }
    }
}

#[test]
fn the_sizes_of_a_large_model_are_right_on_a_card() {
    let mut rng = Rng(3);
    for device in gpus() {
        let shape = Shape::new((64, 64, 128), Compute::Bf16);
        for chunks in [&[(1, 575)][..], &[(24, 0), (1, 100)], &[(200, 30)]] {
            let blocks = 60;
            let spans = spans(&mut rng, chunks, 0, blocks);
            let input = rng.rows(chunks.iter().map(|chunk| chunk.0).sum(), shape.cols());
            check(&device, &shape, &input, &spans, blocks);
        }
    }
}

#[test]
fn a_step_is_placed_anew_while_the_last_one_is_under_way() {
    let mut rng = Rng(4);
    for device in all() {
        let shape = Shape::new((2, 2, 64), Compute::Bf16);
        let tables = tables(&device, 32, 64);
        let mut kv = device.kv_pool(shape.spec(), 4).unwrap();
        let input = rng.rows(64, shape.cols());
        let mut placed = device.rows(RowsRoom { rows: 1, blocks: 4 }).unwrap();
        let mut steps: Vec<Tensor> = input
            .iter()
            .map(|row| tensor(&device, shape.compute.dtype(), std::slice::from_ref(row)))
            .collect();
        for (position, qkv) in steps.iter_mut().enumerate() {
            let span = AttnSpan {
                first_row: 0,
                rows: 1,
                first_position: position,
                prompt_rows: 0,
                blocks: &[2, 0, 3, 1],
                row_tables: &[0],
                block_tables: &[0; 4],
            };
            device.place(&[span], &kv, &tables, &mut placed).unwrap();
            device.rope_kv_write(qkv, &placed, &tables, &mut kv, 0).unwrap();
        }
        // The same in one step, in a pool of its own.
        let mut whole = device.kv_pool(shape.spec(), 4).unwrap();
        let span = AttnSpan {
            first_row: 0,
            rows: 64,
            first_position: 0,
            prompt_rows: 64,
            blocks: &[0, 1, 2, 3],
            row_tables: &[0; 64],
            block_tables: &[0; 4],
        };
        let mut qkv = tensor(&device, shape.compute.dtype(), &input);
        let placed = place(&device, &[span], &whole, &tables);
        device.rope_kv_write(&mut qkv, &placed, &tables, &mut whole, 0).unwrap();
        for (position, want) in rows(&qkv).into_iter().enumerate() {
            assert_eq!(rows(&steps[position]), [want], "{} {position}", device.describe());
            let at = |block| KvPlace { layer: 0, block, row: position % BLOCK_ROWS, head: 1 };
            let (got, want) = (at([2, 0, 3, 1][position / BLOCK_ROWS]), at((position / BLOCK_ROWS) as u32));
            assert_eq!(kv.read(got).unwrap(), whole.read(want).unwrap(), "{} {position}", device.describe());
        }
    }
}
