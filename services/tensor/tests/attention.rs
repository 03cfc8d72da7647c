//! Rope, KV writes and paged attention: against f64, and the same bits however rows are batched.
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

mod support;

use asterism_tensor::{Attention, AttnSpan, BLOCK_ROWS, Compute, KvPlace, TensorError};
use support::sequence::{Chunk, Sequence, Shape, alone, deal_blocks, oracle, poisoned_pool, step, tables};
use support::{Rng, assert_near, best, bf16, devices, tensor};

/// Head sizes around the lanes and those of real models.
const SHAPES: [(usize, usize, usize); 9] = [
    (2, 2, 16),
    (3, 1, 18),
    (2, 2, 24),
    (4, 2, 64),
    (3, 3, 80),
    (2, 1, 96),
    (2, 2, 128),
    (1, 1, 160),
    (30, 1, 2),
];

const COMPUTES: [Compute; 2] = [Compute::F32, Compute::Bf16];

fn shapes() -> impl Iterator<Item = Shape> {
    let shape = |compute, (heads, kv_heads, head_dim)| Shape { heads, kv_heads, head_dim, compute };
    COMPUTES.into_iter().flat_map(move |compute| SHAPES.into_iter().map(move |sizes| shape(compute, sizes)))
}

fn bits(rows: &[Vec<f32>]) -> Vec<u32> {
    rows.iter().flatten().map(|x| x.to_bits()).collect()
}

fn assert_right(shape: &Shape, sequence: &Sequence) {
    let want = oracle(shape, sequence);
    let tolerance = if shape.compute == Compute::Bf16 { 0.012 } else { 4e-6 };
    let mut first = None;
    for device in devices() {
        let got = alone(&device, shape, sequence);
        for (position, (got, want)) in got.iter().zip(&want).enumerate() {
            for (got, want) in got.iter().zip(want) {
                assert_near(f64::from(*got), *want, tolerance, &format!("{shape:?} at {position}"));
            }
        }
        let got = bits(&got);
        assert_eq!(*first.get_or_insert_with(|| got.clone()), got, "{} {shape:?}", device.describe());
    }
}

#[test]
fn attention_is_right_and_the_same_everywhere() {
    let mut rng = Rng(1);
    for shape in shapes() {
        // One table: a prompt within the first span, or one that is rotated as a longer one from its start.
        for (len, prompt_len) in [(1, 1), (17, 60), (130, 200)] {
            assert_right(&shape, &shape.sequence(&mut rng, len, prompt_len));
        }
    }
}

#[test]
fn keys_stored_with_another_table_are_turned_when_read() {
    let mut rng = Rng(2);
    for shape in shapes() {
        // Rows from 64 on have another table than the keys before them, and again from 128 on.
        assert_right(&shape, &shape.sequence(&mut rng, 140, 40));
    }
}

#[test]
fn a_row_does_not_depend_on_batch_chunking_or_threads() {
    let mut rng = Rng(3);
    for shape in shapes() {
        let lens = [rng.below(90) + 1, 65 + rng.below(100), 3];
        let mut sequences: Vec<Sequence> =
            lens.iter().map(|len| shape.sequence(&mut rng, *len, len / 3 + 1)).collect();
        let want: Vec<_> = sequences.iter().map(|sequence| bits(&alone(&best(), &shape, sequence))).collect();
        for device in devices().into_iter().skip(2) {
            let tables = tables(&device, shape.head_dim / 2, 200);
            deal_blocks(&mut rng, &mut sequences, 24);
            let mut kv = poisoned_pool(&device, &shape, 24, &tables);
            let mut got = vec![Vec::new(); sequences.len()];
            let mut done = [0; 3];
            while done != lens {
                let mut chunks = Vec::new();
                for (sequence, start) in done.iter_mut().enumerate() {
                    let left = lens[sequence] - *start;
                    // Decode rows, small chunks, and now and then all that is left.
                    let rows = [0, 1, 1 + rng.below(9), 1 + rng.below(40), left][rng.below(5)].min(left);
                    if rows > 0 {
                        chunks.push(Chunk { sequence, start: *start, end: *start + rows });
                        *start += rows;
                    }
                }
                if chunks.is_empty() {
                    continue;
                }
                let outs = step(&device, &shape, &sequences, &chunks, (&mut kv, &tables));
                for (chunk, out) in chunks.iter().zip(outs) {
                    got[chunk.sequence].extend(out);
                }
            }
            for (got, want) in got.iter().zip(&want) {
                assert_eq!(bits(got), *want, "{} {shape:?}", device.describe());
            }
        }
    }
}

#[test]
fn keys_and_values_are_stored_rotated_and_as_they_came() {
    let mut rng = Rng(4);
    for shape in shapes() {
        let Shape { heads, kv_heads, head_dim, compute } = shape;
        let mut sequences = [shape.sequence(&mut rng, 40, 70)];
        deal_blocks(&mut rng, &mut sequences, 5);
        for device in devices() {
            let tables = tables(&device, head_dim / 2, 80);
            let mut kv = device.kv_pool(shape.spec(), 5).unwrap();
            step(
                &device,
                &shape,
                &sequences,
                &[Chunk { sequence: 0, start: 0, end: 40 }],
                (&mut kv, &tables),
            );
            for position in [0, 15, 16, 39] {
                let block = sequences[0].blocks[position / BLOCK_ROWS];
                for head in 0..kv_heads {
                    let place = KvPlace { layer: 1, block, row: position % BLOCK_ROWS, head };
                    let (key, value) = kv.read(place).unwrap();
                    let round = |x: f32| if compute == Compute::Bf16 { bf16(f64::from(x)) as f32 } else { x };
                    let row = &sequences[0].qkv[position];
                    let stored = &row[(heads + kv_heads + head) * head_dim..][..head_dim];
                    assert_eq!(value, stored.iter().map(|x| round(*x)).collect::<Vec<_>>());
                    let plain = &row[(heads + head) * head_dim..][..head_dim];
                    let norm = |x: &[f32]| x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
                    assert_near(norm(&key), norm(plain), 0.02, "rotation keeps the length");
                    if position == 0 {
                        assert_eq!(key, plain.iter().map(|x| round(*x)).collect::<Vec<_>>());
                    }
                    let other = KvPlace { layer: 0, ..place };
                    assert_eq!(kv.read(other).unwrap().0, vec![0.0; head_dim], "another layer");
                }
            }
        }
    }
}

#[test]
fn nan_stays_in_its_sequence_and_after_its_position() {
    let mut rng = Rng(5);
    for shape in shapes() {
        let mut sequences = [shape.sequence(&mut rng, 90, 90), shape.sequence(&mut rng, 90, 90)];
        let clean = bits(&alone(&best(), &shape, &sequences[0]));
        let cols = shape.heads * shape.head_dim;
        sequences[0].qkv[70].fill(f32::NAN);
        for device in devices().into_iter().skip(2) {
            deal_blocks(&mut rng, &mut sequences, 12);
            let tables = tables(&device, shape.head_dim / 2, 90);
            let mut kv = device.kv_pool(shape.spec(), 12).unwrap();
            let chunks = [Chunk { sequence: 0, start: 0, end: 90 }, Chunk { sequence: 1, start: 0, end: 90 }];
            let outs = step(&device, &shape, &sequences, &chunks, (&mut kv, &tables));
            assert_eq!(bits(&outs[0][..70]), clean[..70 * cols], "{} {shape:?}", device.describe());
            assert!(outs[0][70..].iter().flatten().all(|x| x.is_nan()));
            assert!(outs[1].iter().flatten().all(|x| x.is_finite()));
        }
    }
}

#[test]
fn spans_that_name_what_is_not_there_are_refused() {
    let device = best();
    let shape = Shape { heads: 2, kv_heads: 1, head_dim: 8, compute: Compute::F32 };
    let tables = tables(&device, 4, 64);
    let kv = device.kv_pool(shape.spec(), 4).unwrap();
    let qkv = tensor(&device, shape.compute.dtype(), &vec![vec![0.0; shape.cols()]; 6]);
    let mut out = device.tensor(shape.compute.dtype(), 6, 16).unwrap();
    let good = AttnSpan {
        first_row: 0,
        rows: 2,
        first_position: 15,
        blocks: &[3, 1],
        row_tables: &[0, 0],
        block_tables: &[0, 0],
    };
    let mut attend = |spans: &[AttnSpan<'_>], layer: usize| {
        let attention = Attention { kv: &kv, layer, spans, tables: &tables, scale: 1.0 };
        device.attention(&qkv, &attention, &mut out).map_err(|error| error.to_string())
    };
    assert_eq!(attend(&[good, AttnSpan { first_row: 2, ..good }], 1), Ok(()));
    for (spans, layer, message) in [
        (vec![good], 2, "attention: layer 2 is not below 2"),
        (vec![AttnSpan { first_row: 5, ..good }], 0, "attention: row 6 is not below 6"),
        (vec![AttnSpan { blocks: &[3, 4], ..good }], 0, "attention: block 4 is not below 4"),
        (vec![AttnSpan { blocks: &[3], ..good }], 0, "attention: a span's last block 1 is not below 1"),
        (vec![AttnSpan { row_tables: &[0, 4], ..good }], 0, "attention: rope table 4 is not below 4"),
        (
            vec![AttnSpan { block_tables: &[0], ..good }],
            0,
            "attention: a span's last block table 1 is not below 1",
        ),
        (vec![AttnSpan { row_tables: &[0], ..good }], 0, "attention: a span's row tables is 1, must be 2"),
        (vec![AttnSpan { first_position: 63, ..good }], 0, "attention: position 64 is not below 64"),
        (
            vec![AttnSpan { first_position: usize::MAX, ..good }],
            0,
            "attention: position 18446744073709551615 is not below 64",
        ),
        (vec![good, good], 0, "attention: spans must be in ascending order, of 1 row or more"),
        (
            vec![AttnSpan { rows: 0, row_tables: &[], ..good }],
            0,
            "attention: spans must be in ascending order, of 1 row or more",
        ),
    ] {
        assert_eq!(attend(&spans, layer), Err(message.into()));
    }
    for head_dim in [0, 7, 258] {
        let spec = asterism_tensor::KvSpec { head_dim, ..shape.spec() };
        assert!(matches!(device.kv_pool(spec, 1), Err(TensorError::Setting { .. })));
    }
    let none = asterism_tensor::KvSpec { kv_heads: 0, ..shape.spec() };
    assert!(matches!(device.kv_pool(none, 1), Err(TensorError::Setting { .. })));
    let huge = asterism_tensor::KvSpec { layers: usize::MAX, ..shape.spec() };
    assert!(matches!(device.kv_pool(huge, usize::MAX), Err(TensorError::Memory { .. })));
}
