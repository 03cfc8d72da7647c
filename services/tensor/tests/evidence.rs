//! Logit processors, the K best, log-sum-exp and the finite check.
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

mod support;

use asterism_tensor::{Candidate, Device, Dtype, Processors, Row, TensorError};
use support::{Rng, assert_near, best, bits, devices, tensor};

const VOCABS: [usize; 6] = [1, 5, 320, 1024, 49_152, 80_896];

fn row(device: &Device, values: &[f32]) -> asterism_tensor::Tensor {
    tensor(device, Dtype::F32, &[values.to_vec()])
}

fn top(device: &Device, values: &[f32], k: usize) -> Vec<Candidate> {
    let mut best = Vec::new();
    device.top_k(Row { tensor: &row(device, values), index: 0 }, k, &mut best).unwrap();
    best
}

/// What `top_k` must give: all sorted, then cut.
fn sorted(values: &[f32], k: usize) -> Vec<Candidate> {
    let mut all: Vec<Candidate> =
        values.iter().enumerate().map(|(id, &logit)| Candidate { id: id as u32, logit }).collect();
    all.sort_by(|a, b| b.logit.partial_cmp(&a.logit).unwrap().then(a.id.cmp(&b.id)));
    all.truncate(k);
    all
}

#[test]
fn the_best_are_exact_with_ties_by_lower_id() {
    let mut rng = Rng(1);
    for vocab in VOCABS {
        let smooth = rng.row(vocab);
        let halves: Vec<f32> = smooth.iter().map(|x| (x * 2.0).round() / 2.0).collect();
        let mut masked = smooth.clone();
        masked.iter_mut().step_by(3).for_each(|x| *x = f32::NEG_INFINITY);
        let rising: Vec<f32> = (0..vocab).map(|i| i as f32).collect();
        let zeros: Vec<f32> = (0..vocab).map(|i| if i % 2 == 0 { -0.0 } else { 0.0 }).collect();
        for values in [&smooth, &halves, &masked, &rising, &zeros] {
            for k in [1, 2, 64, 1024, vocab + 1] {
                let want = sorted(values, k);
                for device in devices() {
                    assert_eq!(top(&device, values, k), want, "{} {vocab} {k}", device.describe());
                }
            }
        }
    }
}

#[test]
fn nan_comes_last_of_the_best() {
    let values = [1.0, f32::NAN, f32::NEG_INFINITY, 3.0, f32::NAN];
    for device in devices() {
        let ids = |k| top(&device, &values, k).iter().map(|best| best.id).collect::<Vec<_>>();
        assert_eq!(ids(2), [3, 0]);
        assert_eq!(ids(5), [3, 0, 2, 1, 4]);
        assert_eq!(ids(0), [0; 0]);
        assert_eq!(
            top(&device, &[f32::NAN; 40], 3).iter().map(|best| best.id).collect::<Vec<_>>(),
            [0, 1, 2]
        );
    }
}

#[test]
fn log_sum_exp_is_exact_and_the_same_everywhere() {
    let mut rng = Rng(2);
    for vocab in VOCABS {
        for (spread, temperature) in [(1.0, 1.0), (30.0, 1.0), (5.0, 0.3), (3.0, 7.5), (200.0, 0.01)] {
            let mut values: Vec<f32> = rng.row(vocab).iter().map(|x| x * spread).collect();
            if vocab > 4 {
                values[3] = f32::NEG_INFINITY;
            }
            let max = values.iter().fold(f64::NEG_INFINITY, |max, x| max.max(f64::from(*x)));
            let sum: f64 = values.iter().map(|x| ((f64::from(*x) - max) / temperature).exp()).sum();
            let want = max / temperature + sum.ln();
            let mut first = None;
            for device in devices() {
                let row = row(&device, &values);
                let got = device.log_sum_exp(Row { tensor: &row, index: 0 }, temperature).unwrap();
                assert_near(got, want, 1e-13, "log-sum-exp");
                assert_eq!(*first.get_or_insert(got.to_bits()), got.to_bits(), "{}", device.describe());
            }
        }
    }
}

#[test]
fn log_sum_exp_says_what_it_cannot_sum() {
    for device in devices() {
        let lse = |values: &[f32]| {
            let row = row(&device, values);
            device.log_sum_exp(Row { tensor: &row, index: 0 }, 1.0).unwrap()
        };
        assert_eq!(lse(&[f32::NEG_INFINITY; 40]), f64::NEG_INFINITY);
        assert!(lse(&[0.0, f32::NAN, 1.0]).is_nan());
        assert!(lse(&[f32::NAN; 20]).is_nan());
        assert!(lse(&[0.0, f32::INFINITY]).is_nan());
        let row = row(&device, &[0.0]);
        for temperature in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let error = device.log_sum_exp(Row { tensor: &row, index: 0 }, temperature).unwrap_err();
            assert!(matches!(error, TensorError::Setting { .. }));
        }
    }
}

#[test]
fn the_first_value_that_is_not_finite_is_found() {
    let mut rng = Rng(3);
    for device in devices() {
        for vocab in [1, 15, 16, 17, 1000] {
            let mut values = rng.row(vocab);
            values[0] = f32::MAX;
            let find = |values: &[f32]| {
                let row = row(&device, values);
                device.first_non_finite(Row { tensor: &row, index: 0 }).unwrap()
            };
            assert_eq!(find(&values), None);
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::from_bits(0x7f80_0001)] {
                for id in [0, vocab / 2, vocab - 1] {
                    let mut values = values.clone();
                    values[id] = bad;
                    values[vocab - 1] = bad;
                    assert_eq!(find(&values), Some(id as u32), "{bad} at {id} of {vocab}");
                }
            }
        }
    }
}

#[test]
fn processors_are_single_f32_operations_in_order() {
    let mut rng = Rng(4);
    let vocab = 1000;
    let values = rng.row(vocab);
    let ids: Vec<u32> = (0..300).map(|_| rng.below(400) as u32).collect();
    let allowed: Vec<u8> = (0..125).map(|_| rng.next() as u8 | 1).collect();
    let bias = [(3, 0.75), (399, -2.5), (3, 0.1), (999, f32::MIN_POSITIVE)];
    let processors = Processors {
        bias: &bias,
        repetition: 1.02,
        presence: 0.3,
        frequency: 0.07,
        allowed: &allowed,
        ids: &ids,
        prompt_len: 120,
    };
    let mut want = values.clone();
    for (id, bias) in bias {
        want[id as usize] += bias;
    }
    for id in 0..vocab as u32 {
        let logit = &mut want[id as usize];
        if ids.contains(&id) {
            *logit = if *logit < 0.0 { *logit * 1.02 } else { *logit / 1.02 };
        }
        let count = ids[120..].iter().filter(|other| **other == id).count();
        if count > 0 {
            *logit -= 0.3;
            *logit -= 0.07 * count as f32;
        }
        if allowed[id as usize / 8] >> (id % 8) & 1 == 0 {
            *logit = f32::NEG_INFINITY;
        }
    }
    for device in devices() {
        let raw = row(&device, &values);
        let mut out = device.tensor(Dtype::F32, 2, vocab).unwrap();
        out.set_rows(2).unwrap();
        // Twice: nothing of the first call may be left over.
        for index in [0, 1] {
            device.process(Row { tensor: &raw, index: 0 }, &processors, &mut out, index).unwrap();
            assert_eq!(out.read_row(index).unwrap(), want, "{}", device.describe());
        }
        device.process(Row { tensor: &raw, index: 0 }, &Processors::NONE, &mut out, 1).unwrap();
        assert_eq!(out.read_row(1).unwrap(), values);
        device.copy_row(Row { tensor: &raw, index: 0 }, &mut out, 0).unwrap();
        assert_eq!(bits(&out)[..4 * vocab], bits(&raw));
    }
}

#[test]
fn processors_with_ids_beyond_the_row_are_refused() {
    let device = best();
    let raw = row(&device, &[0.0; 10]);
    let mut out = device.tensor(Dtype::F32, 1, 10).unwrap();
    out.set_rows(1).unwrap();
    let mut refused = |processors: Processors<'_>| {
        device.process(Row { tensor: &raw, index: 0 }, &processors, &mut out, 0).unwrap_err().to_string()
    };
    assert_eq!(
        refused(Processors { bias: &[(10, 1.0)], ..Processors::NONE }),
        "process: biased id 10 is not below 10"
    );
    let ids = &[4, 11];
    assert_eq!(
        refused(Processors { presence: 1.0, ids, ..Processors::NONE }),
        "process: token id 11 is not below 10"
    );
    assert_eq!(
        refused(Processors { allowed: &[255], ..Processors::NONE }),
        "process: the mask's bytes is 1, must be 2"
    );
}
