//! Rope, KV writes and paged attention: against f64, and the same bits however rows are batched. Processors agree bit
//! for bit; a card agrees with itself, and with them but for rounding.
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

mod support;

use asterism_tensor::{
    Attention, AttnSpan, BLOCK_ROWS, Compute, Device, KvPlace, KvSpec, RowsRoom, TensorError,
};
use support::sequence::{Chunk, Sequence, Shape, alone, deal_blocks, fed, oracle, place, step, tables};
use support::{Rng, all, assert_near, best, bf16, devices, gpus, tensor};

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
    let shape = |compute, sizes| Shape::new(sizes, compute);
    COMPUTES.into_iter().flat_map(move |compute| SHAPES.into_iter().map(move |sizes| shape(compute, sizes)))
}

/// Heads whose blocks a card tiles, alone and in groups of all kinds.
const TILED_SHAPES: [(usize, usize, usize); 11] = [
    (2, 2, 64),
    (3, 1, 64),
    (24, 2, 64),
    (2, 2, 80),
    (8, 1, 80),
    (1, 1, 96),
    (1, 1, 112),
    (4, 1, 128),
    (3, 3, 128),
    (12, 1, 128),
    (8, 2, 160),
];

fn tiled_shapes() -> impl Iterator<Item = Shape> {
    TILED_SHAPES.into_iter().map(|sizes| Shape::new(sizes, Compute::Bf16))
}

/// How far a row may be from the exact one.
fn tolerance(compute: Compute) -> f64 {
    if compute == Compute::Bf16 { 0.012 } else { 4e-6 }
}

fn assert_rows_near<W: Into<f64> + Copy>(shape: &Shape, got: &[Vec<f32>], want: &[Vec<W>]) {
    for (position, (got, want)) in got.iter().zip(want).enumerate() {
        for (got, want) in got.iter().zip(want) {
            let what = format!("{shape:?} at {position}");
            assert_near(f64::from(*got), (*want).into(), tolerance(shape.compute), &what);
        }
    }
}

fn bits(rows: &[Vec<f32>]) -> Vec<u32> {
    rows.iter().flatten().map(|x| x.to_bits()).collect()
}

fn assert_right(shape: &Shape, sequence: &Sequence) {
    let want = oracle(shape, sequence);
    let mut first = None;
    for device in devices() {
        let got = alone(&device, shape, sequence);
        assert_rows_near(shape, &got, &want);
        let got = bits(&got);
        assert_eq!(*first.get_or_insert_with(|| got.clone()), got, "{} {shape:?}", device.describe());
    }
    for device in gpus() {
        assert_rows_near(shape, &alone(&device, shape, sequence), &want);
    }
}

#[test]
fn attention_is_right_and_the_same_everywhere() {
    let mut rng = Rng(1);
    for shape in shapes() {
        // One table: a prompt within the first span, or one that is rotated as a longer one from its start.
        // Prompts, and sequences of which all but the first rows were drawn.
        for (len, prompt_len) in [(1, 1), (17, 60), (130, 200), (60, 5)] {
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

/// Devices that must have the same bits, each time with the one they are compared to: a card goes by itself.
fn alike() -> Vec<(Device, Vec<Device>)> {
    let cards = gpus().into_iter().zip(gpus()).map(|(card, again)| (card, vec![again]));
    [(best(), devices().into_iter().skip(2).collect())].into_iter().chain(cards).collect()
}

#[test]
fn a_row_does_not_depend_on_batch_chunking_or_threads() {
    let mut rng = Rng(3);
    for shape in shapes() {
        let lens = [rng.below(90) + 1, 65 + rng.below(100), 3];
        let mut sequences: Vec<Sequence> =
            lens.iter().map(|len| shape.sequence(&mut rng, *len, len / 3 + 1)).collect();
        for (reference, devices) in alike() {
            let want: Vec<_> =
                sequences.iter().map(|sequence| bits(&alone(&reference, &shape, sequence))).collect();
            for device in devices {
                deal_blocks(&mut rng, &mut sequences, 24);
                // Decode rows, small chunks, and now and then all that is left.
                let mut cut = |_, left| [0, 1, 1 + rng.below(9), 1 + rng.below(40), left][rng.below(5)];
                let got = fed(&device, &shape, &sequences, 24, &mut cut);
                for (got, want) in got.iter().zip(&want) {
                    assert_eq!(bits(got), *want, "{} {shape:?}", device.describe());
                }
            }
        }
    }
}

#[test]
fn drawn_rows_have_the_same_bits_alone_in_a_batch_and_computed_again() {
    let mut rng = Rng(6);
    for device in gpus() {
        for shape in tiled_shapes() {
            // One table throughout, so that no key is corrected; up to nine leaves of 128 keys.
            let lens = [1_100, 640, 300 + rng.below(100)];
            let mut sequences: Vec<Sequence> =
                lens.iter().map(|len| shape.sequence(&mut rng, *len, 200)).collect();
            deal_blocks(&mut rng, &mut sequences, 150);
            // Again in one go: so many rows that their units are as long as they are.
            let want: Vec<_> = sequences.iter().map(|sequence| alone(&device, &shape, sequence)).collect();
            for (sequence, want) in sequences.iter().zip(&want) {
                assert_rows_near(&shape, want, &alone(&best(), &shape, sequence));
            }
            // Alone or among few, row by row around the ends of leaves and units: units are short.
            let mut fine = |index: usize, left: usize| {
                let at = lens[index] - left;
                let near_an_end = (at + 2) % 128 < 4 || left < 3;
                if near_an_end { 1 } else { (128 - at % 128).max(3) - 2 }
            };
            let got = fed(&device, &shape, &sequences, 150, &mut fine);
            for (got, want) in got.iter().zip(&want) {
                assert_eq!(bits(got), bits(want), "{shape:?}");
            }
            // In chunks of any size.
            let got = fed(&device, &shape, &sequences, 150, &mut |_, _| rng.below(500));
            for (got, want) in got.iter().zip(&want) {
                assert_eq!(bits(got), bits(want), "{shape:?}");
            }
        }
    }
}

#[test]
fn keys_and_values_are_stored_rotated_and_as_they_came() {
    let mut rng = Rng(4);
    for shape in shapes() {
        let Shape { heads, kv_heads, head_dim, compute, .. } = shape;
        let mut sequences = [shape.sequence(&mut rng, 40, 70)];
        deal_blocks(&mut rng, &mut sequences, 5);
        for device in all() {
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
    for (shape, prompt_len) in shapes().flat_map(|shape| [(shape, 90), (shape, 30)]) {
        let mut sequences = [0, 1].map(|_| shape.sequence(&mut rng, 90, prompt_len));
        let cols = shape.heads * shape.head_dim;
        for (reference, devices) in alike() {
            let clean = bits(&alone(&reference, &shape, &sequences[0]));
            deal_blocks(&mut rng, &mut sequences, 12);
            let mut spoilt = sequences.clone();
            spoilt[0].qkv[40].fill(f32::NAN);
            for device in devices {
                let tables = tables(&device, shape.head_dim / 2, 90);
                let mut kv = device.kv_pool(shape.spec(), 12).unwrap();
                let chunks = [0, 1].map(|sequence| Chunk { sequence, start: 0, end: 90 });
                let outs = step(&device, &shape, &spoilt, &chunks, (&mut kv, &tables));
                let what = format!("{} {shape:?}", device.describe());
                assert_eq!(bits(&outs[0][..40]), clean[..40 * cols], "{what}");
                assert!(outs[0][40..].iter().flatten().all(|x| x.is_nan()), "{what}");
                assert!(outs[1].iter().flatten().all(|x| x.is_finite()), "{what}");
            }
        }
    }
}

#[test]
fn rows_of_no_span_hold_what_they_held() {
    let mut rng = Rng(7);
    for device in all() {
        for shape in [(2, 2, 24), (2, 1, 64)]
            .into_iter()
            .flat_map(|sizes| COMPUTES.map(|compute| Shape::new(sizes, compute)))
        {
            let (dtype, cols) = (shape.compute.dtype(), shape.heads * shape.head_dim);
            let tables = tables(&device, shape.head_dim / 2, 20);
            let mut kv = device.kv_pool(shape.spec(), 4).unwrap();
            let mut qkv = tensor(&device, dtype, &rng.rows(9, shape.cols()));
            let mut out = tensor(&device, dtype, &vec![vec![7.0; cols]; 9]);
            let span = |first_row: usize, prompt_rows: usize, blocks: &'static [u32]| AttnSpan {
                first_row,
                rows: 2,
                first_position: 15,
                prompt_rows,
                blocks,
                row_tables: &[0; 2],
                block_tables: &[0; 2],
            };
            let spans = [span(1, 2, &[3, 1]), span(5, 0, &[0, 2])];
            let mut placed = device.rows(RowsRoom { rows: 9, blocks: 4 }).unwrap();
            device.place(&spans, &kv, &tables, &mut placed).unwrap();
            device.rope_kv_write(&mut qkv, &placed, &tables, &mut kv, 0).unwrap();
            let attention = Attention { kv: &kv, layer: 0, rows: &placed, tables: &tables, scale: 1.0 };
            device.attention(&qkv, &attention, &mut out).unwrap();
            for row in 0..9 {
                let held = out.read_row(row).unwrap().iter().all(|x| *x == 7.0);
                assert_eq!(held, ![1, 2, 5, 6].contains(&row), "{} {shape:?} row {row}", device.describe());
            }
        }
    }
}

#[test]
fn spans_that_name_what_is_not_there_are_refused() {
    let device = best();
    let shape = Shape::new((2, 1, 8), Compute::F32);
    let tables = tables(&device, 4, 64);
    let kv = device.kv_pool(shape.spec(), 4).unwrap();
    let mut rows = device.rows(RowsRoom { rows: 6, blocks: 4 }).unwrap();
    let good = AttnSpan {
        first_row: 0,
        rows: 2,
        first_position: 15,
        prompt_rows: 1,
        blocks: &[3, 1],
        row_tables: &[0, 0],
        block_tables: &[0, 0],
    };
    let mut placed = |spans: &[AttnSpan<'_>]| {
        device.place(spans, &kv, &tables, &mut rows).map_err(|error| error.to_string())
    };
    assert_eq!(placed(&[good, AttnSpan { first_row: 2, ..good }]), Ok(()));
    let rule = "place: spans must be in ascending order, of 1 row or more, of the prompt at most all";
    for (spans, message) in [
        (vec![AttnSpan { first_row: 5, ..good }], "place: row 6 is not below 6"),
        (vec![AttnSpan { blocks: &[3, 4], ..good }], "place: block 4 is not below 4"),
        (vec![AttnSpan { blocks: &[3], ..good }], "place: a span's last block 1 is not below 1"),
        (vec![AttnSpan { row_tables: &[0, 4], ..good }], "place: rope table 4 is not below 4"),
        (vec![AttnSpan { block_tables: &[0], ..good }], "place: a span's last block table 1 is not below 1"),
        (vec![AttnSpan { row_tables: &[0], ..good }], "place: a span's row tables is 1, must be 2"),
        (vec![AttnSpan { first_position: 63, ..good }], "place: position 64 is not below 64"),
        (
            vec![AttnSpan { first_position: usize::MAX, ..good }],
            "place: position 18446744073709551615 is not below 64",
        ),
        (vec![good, good], rule),
        (vec![AttnSpan { rows: 0, row_tables: &[], ..good }], rule),
        (vec![AttnSpan { prompt_rows: 3, ..good }], rule),
        (
            [0, 2, 4].map(|first_row| AttnSpan { first_row, ..good }).to_vec(),
            "place: block table entry 5 is not below 4",
        ),
    ] {
        assert_eq!(placed(&spans), Err(message.into()));
    }
    let qkv = tensor(&device, shape.compute.dtype(), &vec![vec![0.0; shape.cols()]; 2]);
    let mut out = device.tensor(shape.compute.dtype(), 6, 16).unwrap();
    let rows = place(&device, &[good], &kv, &tables);
    let mut attend = |layer: usize| {
        let attention = Attention { kv: &kv, layer, rows: &rows, tables: &tables, scale: 1.0 };
        device.attention(&qkv, &attention, &mut out).map_err(|error| error.to_string())
    };
    assert_eq!(attend(1), Ok(()));
    assert_eq!(attend(2), Err("attention: layer 2 is not below 2".into()));
    for head_dim in [0, 7, 258] {
        let spec = KvSpec { head_dim, ..shape.spec() };
        assert!(matches!(device.kv_pool(spec, 1), Err(TensorError::Setting { .. })));
    }
    let none = KvSpec { kv_heads: 0, ..shape.spec() };
    assert!(matches!(device.kv_pool(none, 1), Err(TensorError::Setting { .. })));
    let huge = KvSpec { layers: usize::MAX, ..shape.spec() };
    assert!(matches!(device.kv_pool(huge, usize::MAX), Err(TensorError::Memory { .. })));
}
