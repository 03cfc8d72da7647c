//! Keys and values in another type than the activations': a card's kernels for rows of any kind convert, the processor
//! refuses.
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

mod support;

use asterism_tensor::{BLOCK_ROWS, Compute, Dtype, KvPlace, KvPool, KvType};
use support::sequence::{Chunk, Sequence, Shape, alone, deal_blocks, fed, oracle, step, tables};
use support::{Rng, all, assert_near, devices, gpus, rounded};

/// Activations, and keys and values that differ from them.
const MIXED: [(Compute, KvType); 2] = [(Compute::F32, KvType::Bf16), (Compute::Bf16, KvType::F32)];

/// Heads, KV heads and head size: odd halves, groups, sizes that are tiled where both types are bf16, the widest.
const SIZES: [(usize, usize, usize); 8] =
    [(3, 1, 18), (2, 2, 24), (4, 2, 64), (3, 3, 80), (4, 1, 128), (1, 1, 160), (2, 1, 256), (30, 1, 2)];

fn shapes() -> impl Iterator<Item = Shape> {
    let shape = |(compute, kv_type), sizes| Shape { kv_type, ..Shape::new(sizes, compute) };
    MIXED.into_iter().flat_map(move |types| SIZES.into_iter().map(move |sizes| shape(types, sizes)))
}

fn bits(rows: &[Vec<f32>]) -> Vec<u32> {
    rows.iter().flatten().map(|x| x.to_bits()).collect()
}

#[test]
fn rows_are_as_exact_as_their_activations_over_what_is_stored() {
    let mut rng = Rng(31);
    for device in gpus() {
        for shape in shapes() {
            let tolerance = if shape.compute == Compute::Bf16 { 0.012 } else { 4e-6 };
            // Prompts, drawn rows, and keys that were stored with another table than the row's.
            for (len, prompt_len) in [(1, 1), (17, 60), (60, 5), (140, 40)] {
                let sequence = shape.sequence(&mut rng, len, prompt_len);
                let (got, want) = (alone(&device, &shape, &sequence), oracle(&shape, &sequence));
                for (position, (got, want)) in got.iter().zip(&want).enumerate() {
                    for (got, want) in got.iter().zip(want) {
                        let what = format!("{shape:?} at {position} of {len}");
                        assert_near(f64::from(*got), *want, tolerance, &what);
                    }
                }
            }
        }
    }
}

#[test]
fn rows_have_the_same_bits_however_they_are_cut() {
    let mut rng = Rng(32);
    for device in gpus() {
        for shape in shapes() {
            let mut sequences = [90, 140, 3].map(|len| shape.sequence(&mut rng, len, len / 3 + 1));
            let want: Vec<_> =
                sequences.iter().map(|sequence| bits(&alone(&device, &shape, sequence))).collect();
            deal_blocks(&mut rng, &mut sequences, 24);
            let mut cut = |_, left| [0, 1, 1 + rng.below(9), 1 + rng.below(40), left][rng.below(5)];
            let got = fed(&device, &shape, &sequences, 24, &mut cut);
            for (got, want) in got.iter().zip(&want) {
                assert_eq!(bits(got), *want, "{shape:?}");
            }
        }
    }
}

/// Rows that one kernel attends either way: bf16 numbers are the same in f32.
#[test]
fn wider_keys_and_values_change_nothing() {
    let mut rng = Rng(33);
    for device in gpus() {
        for sizes in [(3, 1, 18), (2, 2, 24), (2, 1, 256), (30, 1, 2)] {
            let equal = Shape::new(sizes, Compute::Bf16);
            let wider = Shape { kv_type: KvType::F32, ..equal };
            let sequence = equal.sequence(&mut rng, 140, 40);
            let [equal, wider] = [equal, wider].map(|shape| bits(&alone(&device, &shape, &sequence)));
            assert_eq!(equal, wider, "{sizes:?}");
        }
    }
}

/// The key and value of one position, as a pool of the shape's types holds them.
fn stored(kv: &KvPool, sequence: &Sequence, position: usize, head: usize) -> (Vec<f32>, Vec<f32>) {
    let block = sequence.blocks[position / BLOCK_ROWS];
    kv.read(KvPlace { layer: 1, block, row: position % BLOCK_ROWS, head }).unwrap()
}

#[test]
fn keys_and_values_rest_rounded_to_their_own_type() {
    let mut rng = Rng(34);
    for device in gpus() {
        for shape in shapes() {
            let mut sequences = [shape.sequence(&mut rng, 40, 70)];
            deal_blocks(&mut rng, &mut sequences, 5);
            let tables = tables(&device, shape.head_dim / 2, 80);
            let chunks = [Chunk { sequence: 0, start: 0, end: 40 }];
            let [own, equal] = [shape, Shape { kv_type: KvType::of(shape.compute), ..shape }].map(|shape| {
                let mut kv = device.kv_pool(shape.spec(), 5).unwrap();
                step(&device, &shape, &sequences, &chunks, (&mut kv, &tables));
                kv
            });
            let round = |x: &f32| rounded(shape.kv_type.dtype(), f64::from(*x)) as f32;
            for position in [0, 15, 16, 39] {
                for head in 0..shape.kv_heads {
                    let [own, equal] = [&own, &equal].map(|kv| stored(kv, &sequences[0], position, head));
                    let want = [&equal.0, &equal.1].map(|line| line.iter().map(round).collect::<Vec<_>>());
                    assert_eq!([own.0, own.1], want, "{shape:?} at {position}");
                }
            }
        }
    }
}

#[test]
fn blocks_are_as_large_as_their_own_type_makes_them() {
    for (compute, kv_type) in MIXED {
        let equal = Shape::new((4, 2, 64), compute).spec();
        let mixed = Shape { kv_type, ..Shape::new((4, 2, 64), compute) }.spec();
        let elements = KvPool::bytes_per_block(&equal) / compute.dtype().bytes();
        assert_eq!(elements, 2 * 2 * 2 * BLOCK_ROWS * 64, "two layers' keys and values of two heads");
        assert_eq!(KvPool::bytes_per_block(&mixed), elements * kv_type.dtype().bytes());
    }
}

#[test]
fn a_processor_refuses_another_type_than_its_activations() {
    for device in devices() {
        let messages = MIXED.map(|(compute, kv_type)| {
            let shape = Shape { kv_type, ..Shape::new((4, 2, 64), compute) };
            device.kv_pool(shape.spec(), 4).unwrap_err().to_string()
        });
        let message = |kv_type: Dtype, compute: Dtype| {
            format!("the processor has no keys and values in {kv_type} under {compute} activations")
        };
        assert_eq!(messages, [message(Dtype::Bf16, Dtype::F32), message(Dtype::F32, Dtype::Bf16)]);
    }
    for device in all() {
        for compute in [Compute::F32, Compute::Bf16] {
            assert!(device.kv_pool(Shape::new((4, 2, 64), compute).spec(), 4).is_ok());
        }
    }
}
