use serde_json::json;

use super::*;

const GB: u64 = 1_000_000_000;

/// TeleChat-52B's official numbers.
fn telechat_52b() -> DecoderSpec {
    DecoderSpec::from_config(&json!({
        "model_type": "telechat", "n_layer": 64, "n_embd": 8192, "n_head": 64, "n_inner": 21824, "vocab_size": 80896,
        "n_positions": 4096, "rotary_theta": 10000, "layer_norm_epsilon": 1e-5, "use_mup": true, "input_mult": 1.0,
        "output_mult": 1.0, "mup_scale_factor": 32.0, "tie_word_embeddings": false
    }))
    .unwrap()
}

fn sizing() -> Sizing {
    Sizing {
        device: DeviceKind::Cpu,
        compute: Compute::Bf16,
        weights: Dtype::F16,
        max_rows: 512,
        evidence_rows: 64,
        logits_slots: 128,
        max_context: 4096,
    }
}

#[test]
fn the_official_checkpoint_has_its_official_size() {
    // total_size of the official index, less 64 scalars of two bytes.
    assert_eq!(parameters(&telechat_52b()) * 2, 105_665_020_032 - 128);
}

#[test]
fn telechat_52b_over_four_devices_of_40_gb() {
    let split = split(&telechat_52b(), &sizing(), &[40 * GB; 4]).unwrap();
    let layers: Vec<_> = split.stages.iter().map(|stage| stage.layers.clone()).collect();
    assert_eq!(layers, [0..16, 16..32, 32..48, 48..64]);
    // 32 KiB of KV a token and layer in bf16.
    assert_eq!(split.stages[0].block_bytes, 16 * 16 * 32_768);
    for stage in &split.stages {
        let kv = stage.kv_tokens * stage.block_bytes / BLOCK_ROWS as u64;
        let used = stage.weight_bytes + stage.buffer_bytes + kv;
        assert!(used <= 40 * GB && 40 * GB - used < stage.block_bytes);
    }
    assert!((20_000..26_000).contains(&split.kv_tokens()), "{}", split.kv_tokens());
}

#[test]
fn telechat_52b_on_one_device_of_141_gb() {
    let split = split(&telechat_52b(), &sizing(), &[141 * GB]).unwrap();
    assert_eq!(split.stages[0].layers, 0..64);
    assert!((15_000..18_000).contains(&split.kv_tokens()), "{}", split.kv_tokens());
}

#[test]
fn what_does_not_fit_is_said_with_the_numbers() {
    match split(&telechat_52b(), &sizing(), &[40 * GB; 2]) {
        Err(error @ ModelError::DoesNotFit { enough: Some(3), .. }) => {
            let text = error.to_string();
            assert!(text.contains("37.25 GiB are given; 3 such devices are enough"), "{text}");
        }
        other => panic!("{other:?}"),
    }
    match split(&telechat_52b(), &sizing(), &[GB; 64]) {
        Err(ModelError::DoesNotFit { enough: None, .. }) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn unequal_devices_get_unequal_shares() {
    let memory = [80 * GB, 40 * GB, 24 * GB];
    let split = split(&telechat_52b(), &sizing(), &memory).unwrap();
    let layers: Vec<_> = split.stages.iter().map(|stage| stage.layers.len()).collect();
    assert_eq!(layers.iter().sum::<usize>(), 64);
    assert!(layers[0] > layers[1] && layers[1] > layers[2], "{layers:?}");
}

#[test]
fn the_ends_count_for_what_they_hold() {
    // A head as large as many layers: the last stage has fewer of them.
    let spec = DecoderSpec { vocab: 1 << 19, ..telechat_52b() };
    let ranges = even(&spec, &sizing(), 4).unwrap();
    let layers: Vec<_> = ranges.iter().map(|range| range.len()).collect();
    assert!(layers[0] < layers[1] && layers[3] < layers[2], "{layers:?}");
}

#[test]
fn a_split_covers_all_layers_in_order() {
    let spec = DecoderSpec { layers: 7, ..telechat_52b() };
    for stages in 1..=7 {
        let ranges = even(&spec, &sizing(), stages).unwrap();
        assert_eq!(ranges.len(), stages);
        assert_eq!(ranges.iter().cloned().flatten().collect::<Vec<_>>(), (0..7).collect::<Vec<_>>());
        assert!(ranges.iter().all(|range| !range.is_empty()));
    }
    for stages in [0, 8] {
        assert!(matches!(even(&spec, &sizing(), stages), Err(ModelError::WrongStages { .. })));
    }
}

#[test]
fn no_other_cut_has_a_smaller_largest_stage() {
    let spec = DecoderSpec { layers: 9, vocab: 250_000, ..telechat_52b() };
    let sizing = sizing();
    let largest =
        |cut: &[Range<usize>]| cut.iter().map(|layers| sizing.weight_bytes(&spec, layers)).max().unwrap();
    let best =
        (1..8).flat_map(|a| (a + 1..9).map(move |b| [0..a, a..b, b..9])).map(|cut| largest(&cut)).min();
    assert_eq!(Some(largest(&even(&spec, &sizing, 3).unwrap())), best);
}

#[test]
fn where_even_stages_do_not_fit_another_split_may() {
    // The last stage's logits take as much memory as several layers.
    let spec = DecoderSpec { layers: 12, ..telechat_52b() };
    let sizing = Sizing { logits_slots: 20_000, ..sizing() };
    let ranges = even(&spec, &sizing, 2).unwrap();
    let need = |layers: &Range<usize>| {
        sizing.weight_bytes(&spec, layers)
            + sizing.buffer_bytes(&spec, layers)
            + sizing.block_bytes(&spec, layers.len())
    };
    let memory = need(&ranges[1]) - 1;
    assert!(memory > need(&ranges[0]));
    let split = split(&spec, &sizing, &[memory; 2]).unwrap();
    assert!(split.stages[1].layers.len() < ranges[1].len());
}

#[test]
fn a_card_holds_weights_in_the_compute_type() {
    let spec = telechat_52b();
    let on = |device, compute| Sizing { device, compute, ..sizing() };
    let weights = |sizing: Sizing| sizing.weight_bytes(&spec, &(0..64));
    let stored = weights(on(DeviceKind::Cpu, Compute::F32));
    assert_eq!(weights(on(DeviceKind::Cuda, Compute::Bf16)), stored, "f16 and bf16 are as wide");
    let widened = weights(on(DeviceKind::Cuda, Compute::F32));
    assert!(widened > 2 * stored - (1 << 30) && widened <= 2 * stored, "{widened}");
}

#[test]
fn telechat_52b_on_one_card_of_150_gb() {
    // What an H200 has free; 24 sequences of 640 tokens fit beside the weights.
    let memory = crate::stage::default_memory(149_500_000_000, 1);
    let sizing = Sizing {
        device: DeviceKind::Cuda,
        max_rows: 2048,
        evidence_rows: 128,
        logits_slots: 256,
        ..sizing()
    };
    let stage = sizing.stage(&telechat_52b(), 0..64, memory).unwrap();
    assert!(stage.kv_tokens >= 24 * 640, "{}", stage.kv_tokens);
}
