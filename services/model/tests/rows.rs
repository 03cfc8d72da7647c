//! A row's numbers depend on that row's sequence alone, bit for bit: not on the split, the chunks, the batch or the threads.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod chain;

use asterism_model::Checkpoint;
use asterism_tensor::Compute;
use chain::{Chain, Sequence, Setup, own_checkpoint};

const COMPUTES: [Compute; 2] = [Compute::F32, Compute::Bf16];
const CHECKPOINTS: [&str; 3] = ["tiny-52b", "tiny-52b-bin", "tiny-52b-bias"];

/// Both compute types on every device there is.
fn setups() -> impl Iterator<Item = Setup> {
    COMPUTES.into_iter().flat_map(Setup::everywhere)
}

fn open(name: &str) -> Checkpoint {
    Checkpoint::open(own_checkpoint(name)).unwrap()
}

/// Deterministic token ids below 256, which all tiny checkpoints have.
fn prompt(seed: u32, len: usize) -> Vec<u32> {
    let next = |state: &mut u32| {
        *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        Some(*state >> 24)
    };
    std::iter::repeat_n((), len).scan(seed, |state, ()| next(state)).collect()
}

/// Bits of the logits after every token of a prompt and three decoded tokens.
fn bits(chain: &mut Chain, sequence: &Sequence, chunk: usize) -> Vec<u32> {
    let mut sequence = sequence.clone();
    let mut logits = Vec::new();
    for start in (0..sequence.prompt_len).step_by(chunk) {
        let end = sequence.prompt_len.min(start + chunk);
        let evidence: Vec<usize> = (start..end).collect();
        logits.extend(chain.step(&[sequence.span(start..end, &evidence)]).logits.concat());
    }
    for id in [7, 199, 42] {
        logits.extend(chain.decode(&mut sequence, id));
    }
    logits.into_iter().map(f32::to_bits).collect()
}

#[test]
fn rows_do_not_depend_on_the_split() {
    for setup in setups() {
        for name in CHECKPOINTS {
            let checkpoint = open(name);
            let sequence = Sequence::new(&prompt(1, 37), 64, 3);
            let mut chain = Chain::load(&checkpoint, &setup);
            let whole = bits(&mut chain, &sequence, 37);
            let layers = chain.stages[0].info().spec.layers;
            for stages in [2, 3, layers].into_iter().filter(|stages| *stages <= layers) {
                let setup = Setup { stages, ..setup.clone() };
                let mut chain = Chain::load(&checkpoint, &setup);
                assert_eq!(bits(&mut chain, &sequence, 37), whole, "{name} {setup:?}");
            }
        }
    }
}

#[test]
fn rows_do_not_depend_on_chunks_or_blocks() {
    for setup in setups() {
        for name in CHECKPOINTS {
            let mut chain = Chain::load(&open(name), &setup);
            let prompt = prompt(2, 53);
            let whole = bits(&mut chain, &Sequence::new(&prompt, 64, 0), 53);
            for (chunk, first_block) in [(1, 0), (3, 9), (16, 2), (17, 5), (40, 1)] {
                let sequence = Sequence::new(&prompt, 64, first_block);
                assert_eq!(
                    bits(&mut chain, &sequence, chunk),
                    whole,
                    "{name} {setup:?} in chunks of {chunk}"
                );
            }
        }
    }
}

#[test]
fn rows_do_not_depend_on_threads() {
    for compute in COMPUTES {
        for name in CHECKPOINTS {
            let checkpoint = open(name);
            let sequence = Sequence::new(&prompt(3, 50), 64, 0);
            let one = bits(&mut Chain::load(&checkpoint, &Setup::new(compute)), &sequence, 50);
            for (threads, stages) in [(2, 1), (2, 2), (3, 1)] {
                let mut chain = Chain::load(&checkpoint, &Setup { threads, stages, ..Setup::new(compute) });
                assert_eq!(bits(&mut chain, &sequence, 50), one, "{name} {compute} on {threads} threads");
            }
        }
    }
}

#[test]
fn rows_do_not_depend_on_the_batch() {
    for setup in setups() {
        let checkpoint = open("tiny-52b");
        let mut chain = Chain::load(&checkpoint, &Setup { stages: 2, threads: 2, ..setup.clone() });
        let prompts = [prompt(4, 21), prompt(5, 1), prompt(6, 40), prompt(7, 16)];
        let alone: Vec<Vec<f32>> =
            prompts.iter().map(|prompt| chain.prefill(&Sequence::new(prompt, 64, 0), prompt.len())).collect();

        // Now all at once: chunks of different lengths beside decode rows of others.
        let sequences: Vec<Sequence> = prompts
            .iter()
            .zip([0, 4, 8, 12])
            .map(|(prompt, block)| Sequence::new(prompt, 64, block))
            .collect();
        chain.step(&[
            sequences[0].span(0..20, &[]),
            sequences[2].span(0..7, &[]),
            sequences[3].span(0..15, &[]),
        ]);
        let mixed = chain.step(&[
            sequences[2].span(7..40, &[39]),
            sequences[0].span(20..21, &[20]),
            sequences[1].span(0..1, &[0]),
            sequences[3].span(15..16, &[15]),
        ]);
        for (logits, index) in mixed.logits.iter().zip([2, 0, 1, 3]) {
            assert_eq!(logits, &alone[index], "{setup:?}: sequence {index}");
        }
    }
}

#[test]
fn a_replay_across_the_change_of_rope_gives_the_same_rows() {
    for setup in setups() {
        let checkpoint = open("tiny-52b");
        let setup = Setup { max_rows: 512, max_context: 4200, threads: 2, ..setup };
        let mut chain = Chain::load(&checkpoint, &setup);
        let mut sequence = Sequence::new(&prompt(8, 4090), 4120, 0);
        let mut first = vec![chain.prefill(&sequence, 512)];
        for id in prompt(9, 12) {
            first.push(chain.decode(&mut sequence, id));
        }
        // The same tokens once more, elsewhere, the answer in one span with the prompt's end.
        let again = Sequence { blocks: Sequence::new(&[], 4120, 1).blocks, ..sequence };
        let setup = Setup { stages: 3, ..setup };
        let mut chain = Chain::load(&checkpoint, &setup);
        for start in (0..4080).step_by(510) {
            chain.step(&[again.span(start..start + 510, &[])]);
        }
        let evidence: Vec<usize> = (4089..4102).collect();
        let replayed = chain.step(&[again.span(4080..4102, &evidence)]).logits;
        assert_eq!(replayed, first, "{setup:?}");
    }
}
