//! Prompt rows on a card, where tiles of them are computed together: right, and the same bits however a prompt is cut.
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

mod support;

use asterism_tensor::{BLOCK_ROWS, Compute, Device};
use support::sequence::{Chunk, Sequence, Shape, alone, deal_blocks, poisoned_pool, step, tables};
use support::{Rng, assert_near, best, gpus};

/// Heads, KV heads and head size: every size of tiled blocks, alone and in groups.
const SHAPES: [(usize, usize, usize); 9] = [
    (2, 2, 64),
    (8, 2, 64),
    (2, 1, 80),
    (2, 2, 96),
    (3, 1, 112),
    (2, 2, 128),
    (4, 1, 128),
    (2, 2, 144),
    (2, 1, 160),
];

fn shapes() -> impl Iterator<Item = Shape> {
    SHAPES.into_iter().map(|sizes| Shape::new(sizes, Compute::Bf16))
}

fn bits(rows: &[Vec<f32>]) -> Vec<u32> {
    rows.iter().flatten().map(|x| x.to_bits()).collect()
}

/// A prompt of so many rows, all with one rope table.
fn prompt(shape: &Shape, rng: &mut Rng, len: usize) -> Sequence {
    shape.sequence(rng, len, len.max(256))
}

/// All rows of prompts that are cut at `ends`, a step after the other, in a pool that holds NaN.
fn cut(device: &Device, shape: &Shape, prompts: &mut [Sequence], ends: &[Vec<usize>]) -> Vec<Vec<u32>> {
    let needed: usize = prompts.iter().map(|prompt| prompt.qkv.len().div_ceil(BLOCK_ROWS)).sum();
    let blocks = needed + 8;
    deal_blocks(&mut Rng(9), prompts, blocks);
    let longest = prompts.iter().map(|prompt| prompt.qkv.len()).max().unwrap();
    let tables = tables(device, shape.head_dim / 2, longest);
    let mut kv = poisoned_pool(device, shape, blocks, &tables);
    let mut got = vec![Vec::new(); prompts.len()];
    let steps = ends.iter().map(Vec::len).max().unwrap();
    for at in 0..steps {
        let chunk = |(sequence, ends): (usize, &Vec<usize>)| {
            let start = if at == 0 { 0 } else { *ends.get(at - 1)? };
            Some(Chunk { sequence, start, end: *ends.get(at)? })
        };
        let chunks: Vec<Chunk> = ends.iter().enumerate().filter_map(chunk).collect();
        let outs = step(device, shape, prompts, &chunks, (&mut kv, &tables));
        for (chunk, rows) in chunks.iter().zip(outs) {
            got[chunk.sequence].extend(bits(&rows));
        }
    }
    got
}

#[test]
fn prompt_rows_are_right() {
    let mut rng = Rng(21);
    for device in gpus() {
        for shape in shapes() {
            for len in [5, 64, 200, 300] {
                let prompt = prompt(&shape, &mut rng, len);
                let want = alone(&best(), &shape, &prompt);
                let got = alone(&device, &shape, &prompt);
                for (position, (got, want)) in got.iter().zip(&want).enumerate() {
                    for (got, want) in got.iter().zip(want) {
                        let what = format!("{shape:?} at {position} of {len}");
                        assert_near(f64::from(*got), f64::from(*want), 0.02, &what);
                    }
                }
            }
        }
    }
}

#[test]
fn prompt_rows_do_not_depend_on_how_prompts_are_cut() {
    let mut rng = Rng(22);
    for device in gpus() {
        for shape in shapes() {
            let mut prompts = [300, 37, 129, 190].map(|len| prompt(&shape, &mut rng, len));
            let want: Vec<_> = prompts.iter().map(|prompt| bits(&alone(&device, &shape, prompt))).collect();
            for ends in [
                vec![vec![300], vec![37], vec![129], vec![190]],
                vec![vec![100, 300], vec![37], vec![3, 129], vec![64, 128, 190]],
                vec![vec![63, 64, 127, 193, 256, 300], vec![5, 16, 37], vec![128, 129], vec![127, 190]],
            ] {
                let got = cut(&device, &shape, &mut prompts, &ends);
                for (prompt, (got, want)) in got.iter().zip(&want).enumerate() {
                    assert!(got == want, "prompt {prompt} of {shape:?} cut at {ends:?}");
                }
            }
        }
    }
}

/// More tiles and heads than a card has multiprocessors: blocks take several in turn.
#[test]
fn long_prompts_are_the_same_in_one_step_and_in_many() {
    let mut rng = Rng(23);
    for device in gpus() {
        for head_dim in [64, 96, 128] {
            let shape = Shape::new((40, 8, head_dim), Compute::Bf16);
            let mut prompts = [prompt(&shape, &mut rng, 1000)];
            let whole = cut(&device, &shape, &mut prompts, &[vec![1000]]);
            let ends: Vec<usize> = (1..=20).map(|step| 50 * step).collect();
            assert!(whole == cut(&device, &shape, &mut prompts, &[ends]), "{shape:?}");
        }
    }
}

/// More keys and values than a card's cache holds, so that the heads are taken in sets, the last of fewer heads; the first
/// rows are computed without sets too.
#[test]
fn long_prompts_are_the_same_with_their_heads_in_sets() {
    let mut rng = Rng(24);
    for device in gpus() {
        let shape = Shape::new((40, 40, 128), Compute::Bf16);
        let mut prompts = [prompt(&shape, &mut rng, 3300)];
        let whole = cut(&device, &shape, &mut prompts, &[vec![3300]]);
        assert!(whole == cut(&device, &shape, &mut prompts, &[vec![700, 1003, 3300]]), "{shape:?}");
    }
}
