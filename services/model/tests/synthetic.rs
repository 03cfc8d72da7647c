//! Models that are made up: the same on every device, and what only larger heads can show.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod chain;

use std::fs;

use asterism_model::Synthetic;
use asterism_tensor::Compute;
use chain::{Chain, On, Sequence, Setup, own_checkpoint};
use serde_json::{Value, json};

/// Two computations of the same weights in f32, relative to the largest logit.
const TOLERANCE: f32 = 1e-4;

/// TeleChat-52B's family with heads of 128 values, as wide as a test can bear.
fn geometry(fields: &[(&str, Value)]) -> Synthetic {
    let text = fs::read_to_string(own_checkpoint("tiny-52b").join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    let sizes =
        [("n_embd", json!(256)), ("n_head", json!(2)), ("n_inner", json!(336)), ("n_layer", json!(3))];
    for (field, value) in sizes.iter().chain(fields) {
        config[*field] = value.clone();
    }
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    Synthetic::read(folder.path(), 1).unwrap()
}

fn prompt(seed: u32, len: usize) -> Vec<u32> {
    (0..len as u32).map(|index| (index + seed).wrapping_mul(2_654_435_761) >> 24).collect()
}

/// Logits after a prompt and after each of three tokens drawn.
fn answers(chain: &mut Chain, sequence: &Sequence, chunk: usize) -> Vec<Vec<f32>> {
    let mut sequence = sequence.clone();
    let mut all = vec![chain.prefill(&sequence, chunk)];
    all.extend([7, 199, 42].map(|id| chain.decode(&mut sequence, id)));
    all
}

#[test]
fn a_seed_and_a_config_are_a_model() {
    let model = geometry(&[]);
    let sequence = Sequence::new(&prompt(1, 40), 64, 0);
    let setup = Setup::new(Compute::F32);
    let mut chain = Chain::made_up(&model, &setup);
    let id = chain.stages[0].info().checkpoint_id.clone();
    let expected = answers(&mut chain, &sequence, 40);
    assert!(expected.concat().iter().all(|logit| logit.is_finite()));
    assert!(expected.windows(2).all(|pair| pair[0] != pair[1]), "every token counts");
    let mut again = Chain::made_up(&geometry(&[]), &Setup { stages: 3, ..setup.clone() });
    assert_eq!(answers(&mut again, &sequence, 40), expected);
    for stage in &again.stages {
        assert_eq!(stage.info().checkpoint_id, id, "all stages are of one model");
    }
    let deeper = Chain::made_up(&geometry(&[("n_layer", json!(4))]), &setup);
    assert_ne!(deeper.stages[0].info().checkpoint_id, id);
}

#[test]
fn made_up_weights_are_the_same_everywhere() {
    for biased in [false, true] {
        let model = geometry(&[("add_bias_linear", json!(biased))]);
        let sequence = Sequence::new(&prompt(2, 40), 64, 0);
        let expected = answers(&mut Chain::made_up(&model, &Setup::new(Compute::F32)), &sequence, 40);
        let most = expected.concat().iter().fold(0f32, |most, logit| most.max(logit.abs()));
        for setup in Setup::everywhere(Compute::F32) {
            let found = answers(&mut Chain::made_up(&model, &setup), &sequence, 40);
            for (a, b) in found.concat().iter().zip(expected.concat()) {
                // Written so that NaN fails.
                let off = (a - b).abs() / most;
                assert!(off <= TOLERANCE, "{:?}: {a} where the CPU has {b}", setup.on);
            }
        }
    }
}

#[test]
fn rows_depend_on_themselves_alone() {
    let model = geometry(&[]);
    for compute in [Compute::F32, Compute::Bf16] {
        for setup in Setup::everywhere(compute) {
            let sequences: Vec<Sequence> = [(3, 150), (4, 33), (5, 1), (6, 200)]
                .into_iter()
                .zip([0, 20, 40, 60])
                .map(|((seed, len), block)| Sequence::new(&prompt(seed, len), 256, block))
                .collect();
            let mut chain = Chain::made_up(&model, &setup);
            let alone: Vec<_> = sequences.iter().map(|one| answers(&mut chain, one, 256)).collect();
            // In chunks, over several stages.
            let mut split = Chain::made_up(&model, &Setup { stages: 3, ..setup.clone() });
            for (one, expected) in sequences.iter().zip(&alone) {
                assert_eq!(&answers(&mut split, one, 32), expected, "{setup:?} in chunks");
            }
            // All at once.
            let mut together = sequences.clone();
            for one in &together {
                chain.prefill(one, 77);
            }
            for (step, id) in [7, 199, 42].into_iter().enumerate() {
                together.iter_mut().for_each(|one| one.ids.push(id));
                let last: Vec<[usize; 1]> = together.iter().map(|one| [one.ids.len() - 1]).collect();
                let spans: Vec<_> = together
                    .iter()
                    .zip(&last)
                    .map(|(one, last)| one.span(last[0]..last[0] + 1, last))
                    .collect();
                let seen = chain.step(&spans).logits;
                for (index, logits) in seen.iter().enumerate() {
                    assert_eq!(logits, &alone[index][step + 1], "{setup:?}: sequence {index}, step {step}");
                }
            }
        }
    }
}

#[test]
fn what_is_observed_is_what_is_computed() {
    let model = geometry(&[]);
    for compute in [Compute::F32, Compute::Bf16] {
        for setup in Setup::everywhere(compute) {
            let mut chain = Chain::made_up(&model, &Setup { stages: 2, ..setup });
            let sequence = Sequence::new(&prompt(8, 50), 64, 0);
            let prompt = [sequence.span(0..49, &[10, 48])];
            assert_eq!(chain.watched_step(&prompt).logits, chain.step(&prompt).logits);
            // A drawn row, which a card does as a recorded step.
            let drawn = Sequence { prompt_len: 49, ..sequence };
            let row = [drawn.span(49..50, &[49])];
            let seen = chain.watched_step(&row);
            assert_eq!(seen.logits, chain.step(&row).logits);
            assert_eq!(seen.residuals.len(), 4);
        }
    }
}

#[test]
fn a_card_records_its_steps_once() {
    if !On::all().contains(&On::Card) {
        return;
    }
    let setup = Setup { on: On::Card, ..Setup::new(Compute::Bf16) };
    let mut chain = Chain::made_up(&geometry(&[]), &setup);
    let mut sequence = Sequence::new(&prompt(9, 20), 64, 0);
    chain.prefill(&sequence, 20);
    let before = chain.stages[0].device().counters().unwrap();
    for id in 0..10 {
        chain.decode(&mut sequence, id);
    }
    let after = chain.stages[0].device().counters().unwrap();
    assert_eq!(after.graph_launches - before.graph_launches, 10);
    assert_eq!(after.allocations, before.allocations, "all memory was taken while loading");
    let plans = chain.stages[0].device().matmul_plans().unwrap();
    assert_eq!(plans.unprepared, 0, "every multiplication was planned");
    assert!(plans.are_deterministic(), "{plans:?}");
}
