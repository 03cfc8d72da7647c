//! The row's distribution against a plain transcription of the reference's order.

use proptest::prelude::*;

use super::*;

/// Probability by id: each step fills what it drops with −∞, as the reference does, but in f64.
fn reference(row: &[f32], shape: &Shape) -> Vec<f64> {
    let mut logits: Vec<f64> = row.iter().map(|&x| f64::from(x) / shape.temperature).collect();
    let softmax = |logits: &[f64]| {
        let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = logits.iter().map(|x| (x - max).exp()).collect();
        let sum: f64 = weights.iter().sum();
        weights.iter().map(|weight| weight / sum).collect::<Vec<f64>>()
    };
    if let Some(k) = shape.top_k {
        let mut sorted = logits.clone();
        sorted.sort_by(|a, b| b.total_cmp(a));
        let kth = sorted[k.get() as usize - 1];
        logits.iter_mut().filter(|x| **x < kth).for_each(|x| *x = f64::NEG_INFINITY);
    }
    if shape.top_p < 1.0 {
        // Ascending; of equals the lower id comes last, so that it is dropped last.
        let mut ids: Vec<usize> = (0..row.len()).collect();
        ids.sort_by(|&a, &b| logits[a].total_cmp(&logits[b]).then(b.cmp(&a)));
        let probabilities = softmax(&logits);
        let mut sum = 0.0;
        for &id in &ids[..ids.len() - 1] {
            sum += probabilities[id];
            if sum <= 1.0 - shape.top_p {
                logits[id] = f64::NEG_INFINITY;
            }
        }
    }
    if shape.min_p > 0.0 {
        let probabilities = softmax(&logits);
        let bar = shape.min_p * probabilities.iter().copied().fold(0.0, f64::max);
        let dropped = logits.iter_mut().zip(probabilities).filter(|(_, probability)| *probability < bar);
        dropped.for_each(|(x, _)| *x = f64::NEG_INFINITY);
    }
    softmax(&logits)
}

fn shape(vocab: u32) -> impl Strategy<Value = Shape> {
    let top_k = prop_oneof![Just(None), (1..vocab).prop_map(k)];
    let top_p = prop_oneof![Just(1.0), 0.01..1.0];
    let min_p = prop_oneof![Just(0.0), 0.001..1.0];
    (0.05..3.0, top_k, top_p, min_p).prop_map(|(temperature, top_k, top_p, min_p)| {
        // As they come through a request.
        let rounded = |x: f64| f64::from(x as f32);
        Shape { temperature: rounded(temperature), top_k, top_p: rounded(top_p), min_p: rounded(min_p) }
    })
}

fn logit() -> impl Strategy<Value = f32> {
    prop_oneof![8 => -12.0f32..12.0, 4 => (-8i8..8).prop_map(|x| f32::from(x) / 2.0), 1 => Just(f32::NEG_INFINITY)]
}

fn row() -> impl Strategy<Value = Vec<f32>> {
    proptest::collection::vec(logit(), 3..80).prop_map(|mut row| {
        row[0] = row[0].max(-12.0);
        row
    })
}

proptest! {
    #[test]
    fn a_row_has_the_reference_distribution((row, shape) in row().prop_flat_map(|row| {
        let vocab = row.len() as u32;
        (Just(row), shape(vocab))
    })) {
        let ranks = Ranks::of(&row);
        let distribution = distribution(&shape, &ranks, Some(log_sum_exp(&row, shape.temperature)));
        let expected = reference(&row, &shape);
        let mut found = vec![0.0; row.len()];
        for (probability, &id) in distribution.probabilities().iter().zip(&ranks.ids) {
            found[id as usize] = *probability;
        }
        for (id, (found, expected)) in found.iter().zip(&expected).enumerate() {
            prop_assert!((found - expected).abs() < 1e-9, "id {id}: {found}, not {expected}");
        }
    }

    #[test]
    fn any_evidence_yields_the_row_s_token((row, shape) in row().prop_flat_map(|row| {
        let vocab = row.len() as u32;
        (Just(row), shape(vocab))
    }), uniforms in proptest::collection::vec(0.0..1.0, 20)) {
        let sampling = resolved(&asking(&shape), &v1::Output::default(), row.len());
        let vocab = row.len() as u32;
        let whole = whole(&row, &sampling);
        for uniform in uniforms {
            let mut enough = false;
            let token = crate::sampler::draw_from_row_at(&sampling, &evidence(&row, 1, &sampling), &whole, uniform);
            for k in 1..=row.len() {
                match crate::sampler::draw_at(&sampling, &evidence(&row, k, &sampling), vocab, uniform) {
                    crate::sampler::Draw::Token(found) => {
                        prop_assert_eq!(&found, &token, "K = {}", k);
                        enough = true;
                    }
                    crate::sampler::Draw::NeedsRow => prop_assert!(!enough, "more evidence is never worth less"),
                }
            }
            prop_assert!(enough, "K = V always holds");
            prop_assert!(row[token.id as usize] > f32::NEG_INFINITY);
        }
    }

    #[test]
    fn ranks_are_sorted(row in proptest::collection::vec(prop_oneof![logit(), Just(0.0), Just(-0.0), any::<f32>()
        .prop_filter("a number", |x| !x.is_nan())], 0..200)) {
        let ranks = Ranks::of(&row);
        let mut expected: Vec<u32> = (0..row.len() as u32).collect();
        expected.sort_by(|&a, &b| row[b as usize].partial_cmp(&row[a as usize]).unwrap().then(a.cmp(&b)));
        prop_assert_eq!(ranks.ids, expected);
    }
}
