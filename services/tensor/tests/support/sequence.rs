//! Sequences through rope, KV pool and attention: as the library does it, and by an oracle in f64.

use asterism_tensor::{
    Attention, AttnSpan, BLOCK_ROWS, Compute, Device, KvPool, KvSpec, KvType, RopeTable, RopeTables, Rows,
    RowsRoom,
};

use super::{Rng, rounded, rows, tensor};

/// Sizes of an attention layer.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub compute: Compute,
    pub kv_type: KvType,
}

/// A sequence's rows Q|K|V, and which rope tables they use.
#[derive(Clone, Debug)]
pub struct Sequence {
    pub qkv: Vec<Vec<f32>>,
    /// The table of a position: its rope length is the prompt's, or its own.
    pub prompt_len: usize,
    pub blocks: Vec<u32>,
}

/// Rows of one sequence in one call.
#[derive(Clone, Copy, Debug)]
pub struct Chunk {
    pub sequence: usize,
    pub start: usize,
    pub end: usize,
}

/// Positions that share a table; in models 4,096.
pub const TABLE_SPAN: usize = 64;

pub const TABLES: usize = 4;

impl Shape {
    /// Keys and values in the type of the activations.
    pub fn new((heads, kv_heads, head_dim): (usize, usize, usize), compute: Compute) -> Shape {
        Shape { heads, kv_heads, head_dim, compute, kv_type: KvType::of(compute) }
    }

    pub fn cols(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    pub fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    pub fn spec(&self) -> KvSpec {
        let Shape { kv_heads, head_dim, compute, kv_type, .. } = *self;
        KvSpec { layers: 2, kv_heads, head_dim, compute, kv_type }
    }

    pub fn sequence(&self, rng: &mut Rng, len: usize, prompt_len: usize) -> Sequence {
        Sequence { qkv: rng.rows(len, self.cols()), prompt_len, blocks: Vec::new() }
    }
}

impl Sequence {
    pub fn table(&self, position: usize) -> u16 {
        let length = self.prompt_len.max(position + 1);
        ((length - 1) / TABLE_SPAN).min(TABLES - 1) as u16
    }
}

fn angle(table: usize, position: usize, j: usize, half: usize) -> f64 {
    let base = 10_000.0 * (2_u32.pow(table as u32 + 1) - 1) as f64;
    position as f64 * base.powf(-(j as f64) / half as f64)
}

pub fn tables(device: &Device, half: usize, positions: usize) -> RopeTables {
    let tables = (0..TABLES).map(|table| {
        let angles = (0..positions * half).map(|i| angle(table, i / half, i % half, half));
        let (cos, sin) = angles.map(|angle| (angle.cos() as f32, angle.sin() as f32)).unzip();
        RopeTable::new(half, cos, sin).unwrap()
    });
    device.rope_tables(tables.collect()).unwrap()
}

/// Gives every sequence distinct blocks out of `blocks`, in a random order.
pub fn deal_blocks(rng: &mut Rng, sequences: &mut [Sequence], blocks: usize) {
    let mut free: Vec<u32> = (0..blocks as u32).collect();
    for sequence in sequences {
        let needed = sequence.qkv.len().div_ceil(BLOCK_ROWS);
        sequence.blocks = (0..needed).map(|_| free.swap_remove(rng.below(free.len()))).collect();
    }
}

/// The rows of these spans, placed.
pub fn place(device: &Device, spans: &[AttnSpan<'_>], kv: &KvPool, tables: &RopeTables) -> Rows {
    let room = RowsRoom {
        rows: spans.last().map_or(0, |span| span.first_row + span.rows),
        blocks: spans.iter().map(|span| span.blocks.len()).sum(),
    };
    let mut rows = device.rows(room).unwrap();
    device.place(spans, kv, tables, &mut rows).unwrap();
    rows
}

/// A pool all of whose values are NaN.
pub fn poisoned_pool(device: &Device, shape: &Shape, blocks: usize, tables: &RopeTables) -> KvPool {
    let mut kv = device.kv_pool(shape.spec(), blocks).unwrap();
    let all: Vec<u32> = (0..blocks as u32).collect();
    let span = |(index, block)| AttnSpan {
        first_row: index * BLOCK_ROWS,
        rows: BLOCK_ROWS,
        first_position: 0,
        prompt_rows: BLOCK_ROWS,
        blocks: std::slice::from_ref(block),
        row_tables: &[0; BLOCK_ROWS],
        block_tables: &[0],
    };
    let spans: Vec<_> = all.iter().enumerate().map(span).collect();
    let rows = place(device, &spans, &kv, tables);
    let nan = vec![vec![f32::NAN; shape.cols()]; blocks * BLOCK_ROWS];
    let mut qkv = tensor(device, shape.compute.dtype(), &nan);
    for layer in 0..2 {
        device.rope_kv_write(&mut qkv, &rows, tables, &mut kv, layer).unwrap();
    }
    kv
}

/// Writes and attends the chunks in one call each; the outputs by chunk.
pub fn step(
    device: &Device,
    shape: &Shape,
    sequences: &[Sequence],
    chunks: &[Chunk],
    (kv, tables): (&mut KvPool, &RopeTables),
) -> Vec<Vec<Vec<f32>>> {
    let inputs: Vec<Vec<f32>> =
        chunks.iter().flat_map(|c| sequences[c.sequence].qkv[c.start..c.end].to_vec()).collect();
    let mut qkv = tensor(device, shape.compute.dtype(), &inputs);
    let tables_of = |c: &Chunk| {
        let sequence = &sequences[c.sequence];
        let rows: Vec<u16> = (c.start..c.end).map(|p| sequence.table(p)).collect();
        let blocks: Vec<u16> =
            (0..c.end.div_ceil(BLOCK_ROWS)).map(|b| sequence.table(b * BLOCK_ROWS)).collect();
        (rows, blocks)
    };
    let all_tables: Vec<_> = chunks.iter().map(tables_of).collect();
    let mut first_row = 0;
    let mut spans = Vec::new();
    for (chunk, (row_tables, block_tables)) in chunks.iter().zip(&all_tables) {
        spans.push(AttnSpan {
            first_row,
            rows: chunk.end - chunk.start,
            first_position: chunk.start,
            prompt_rows: sequences[chunk.sequence].prompt_len.clamp(chunk.start, chunk.end) - chunk.start,
            blocks: &sequences[chunk.sequence].blocks,
            row_tables,
            block_tables,
        });
        first_row += chunk.end - chunk.start;
    }
    let layer = 1;
    let placed = place(device, &spans, kv, tables);
    device.rope_kv_write(&mut qkv, &placed, tables, kv, layer).unwrap();
    let mut out = device.tensor(shape.compute.dtype(), inputs.len(), shape.heads * shape.head_dim).unwrap();
    let attention = Attention { kv, layer, rows: &placed, tables, scale: shape.scale() };
    device.attention(&qkv, &attention, &mut out).unwrap();
    let out = rows(&out);
    spans.iter().map(|span| out[span.first_row..span.first_row + span.rows].to_vec()).collect()
}

/// One call with the whole sequence, in a pool of its own.
pub fn alone(device: &Device, shape: &Shape, sequence: &Sequence) -> Vec<Vec<f32>> {
    let len = sequence.qkv.len();
    let blocks = len.div_ceil(BLOCK_ROWS);
    let tables = tables(device, shape.head_dim / 2, len);
    let mut kv = device.kv_pool(shape.spec(), blocks).unwrap();
    let sequence = Sequence { blocks: (0..blocks as u32).collect(), ..sequence.clone() };
    let chunk = Chunk { sequence: 0, start: 0, end: len };
    step(device, shape, &[sequence], &[chunk], (&mut kv, &tables)).remove(0)
}

/// Feeds the sequences in the chunks that `cut` gives of what is left (sequence, rows left), until nothing is, and
/// returns all rows. The pool holds NaN wherever nothing was written.
pub fn fed(
    device: &Device,
    shape: &Shape,
    sequences: &[Sequence],
    blocks: usize,
    cut: &mut dyn FnMut(usize, usize) -> usize,
) -> Vec<Vec<Vec<f32>>> {
    let longest = sequences.iter().map(|sequence| sequence.qkv.len()).max().unwrap();
    let tables = tables(device, shape.head_dim / 2, longest);
    let mut kv = poisoned_pool(device, shape, blocks, &tables);
    let mut got = vec![Vec::new(); sequences.len()];
    while got.iter().zip(sequences).any(|(got, sequence)| got.len() < sequence.qkv.len()) {
        let mut chunks = Vec::new();
        for (index, (got, sequence)) in got.iter().zip(sequences).enumerate() {
            let left = sequence.qkv.len() - got.len();
            let rows = if left > 0 { cut(index, left).min(left) } else { 0 };
            if rows > 0 {
                chunks.push(Chunk { sequence: index, start: got.len(), end: got.len() + rows });
            }
        }
        if chunks.is_empty() {
            continue;
        }
        let outs = step(device, shape, sequences, &chunks, (&mut kv, &tables));
        for (chunk, out) in chunks.iter().zip(outs) {
            got[chunk.sequence].extend(out);
        }
    }
    got
}

/// The same in f64, rounding only what bf16 activations or bf16 keys and values round, with every key turned by the
/// reading row's table. What is stored is turned in f32, as it is defined: what that rounds decides what bf16 rounds to.
pub fn oracle(shape: &Shape, sequence: &Sequence) -> Vec<Vec<f64>> {
    let Shape { heads, kv_heads, head_dim, compute, kv_type } = *shape;
    let half = head_dim / 2;
    let round = |x: f64| rounded(compute.dtype(), x);
    let stored = |x: f64| rounded(kv_type.dtype(), round(x));
    let value = |row: usize, head: usize, i: usize| round(f64::from(sequence.qkv[row][head * head_dim + i]));
    let turned = |x: &[f64], position: usize, by: &dyn Fn(usize) -> f64| -> Vec<f64> {
        let _ = position;
        let turn = |i: usize| {
            let (j, (sin, cos)) = (i % half, by(i % half).sin_cos());
            if i < half { x[j] * cos - x[j + half] * sin } else { x[j + half] * cos + x[j] * sin }
        };
        (0..head_dim).map(turn).collect()
    };
    let turned_f32 = |x: &[f64], by: &dyn Fn(usize) -> f64| -> Vec<f64> {
        let turn = |i: usize| {
            let (j, (sin, cos)) = (i % half, by(i % half).sin_cos());
            let (a, b, sin, cos) = (x[j] as f32, x[j + half] as f32, sin as f32, cos as f32);
            f64::from(if i < half { a * cos - b * sin } else { b * cos + a * sin })
        };
        (0..head_dim).map(turn).collect()
    };
    let len = sequence.qkv.len();
    let group = heads / kv_heads;
    let head_row = |position: usize, head: usize| -> Vec<f64> {
        (0..head_dim).map(|i| value(position, head, i)).collect()
    };
    let mut out = vec![vec![0.0; heads * head_dim]; len];
    for head in 0..heads {
        let keys: Vec<Vec<f64>> = (0..len)
            .map(|k| {
                let table = usize::from(sequence.table(k / BLOCK_ROWS * BLOCK_ROWS));
                let key = head_row(k, heads + head / group);
                turned_f32(&key, &|j| angle(table, k, j, half)).into_iter().map(stored).collect()
            })
            .collect();
        for (position, out) in out.iter_mut().enumerate() {
            let table = usize::from(sequence.table(position));
            let query = turned(&head_row(position, head), position, &|j| angle(table, position, j, half));
            let query: Vec<f64> = query.into_iter().map(round).collect();
            let scores: Vec<f64> = (0..=position)
                .map(|k| {
                    let from = usize::from(sequence.table(k / BLOCK_ROWS * BLOCK_ROWS));
                    let key = turned(&keys[k], k, &|j| angle(table, k, j, half) - angle(from, k, j, half));
                    query.iter().zip(key).map(|(q, k)| q * k).sum::<f64>() * f64::from(shape.scale())
                })
                .collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
            let total: f64 = weights.iter().sum();
            for i in 0..head_dim {
                let sum: f64 = (0..=position)
                    .map(|k| weights[k] * stored(value(k, heads + kv_heads + head / group, i)))
                    .sum();
                out[head * head_dim + i] = sum / total;
            }
        }
    }
    out
}
