use serde_json::json;

use super::*;
use asterism_tensor::{Compute, Dtype, KvType};

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
        kv_type: KvType::Bf16,
        weights: Dtype::F16,
        max_rows: 512,
        evidence_rows: 64,
        logits_slots: 128,
        max_context: 4096,
    }
}

/// As fast as each other.
fn devices<const N: usize>(memory: [u64; N]) -> [DeviceSize; N] {
    memory.map(|memory| DeviceSize { memory, bandwidth: 1.0 })
}

fn layers(split: &Split) -> Vec<usize> {
    split.stages.iter().map(|stage| stage.layers.len()).collect()
}

#[test]
fn the_official_checkpoint_has_its_official_size() {
    // total_size of the official index, less 64 scalars of two bytes.
    assert_eq!(parameters(&telechat_52b()) * 2, 105_665_020_032 - 128);
}

#[test]
fn telechat_52b_over_four_devices_of_40_gb() {
    let split = split(&telechat_52b(), &sizing(), &devices([40 * GB; 4]), Prefer::Speed).unwrap();
    assert_eq!(layers(&split), [16, 16, 16, 16]);
    assert_eq!(split.stages[3].layers, 48..64);
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
    let split = split(&telechat_52b(), &sizing(), &devices([141 * GB]), Prefer::Speed).unwrap();
    assert_eq!(split.stages[0].layers, 0..64);
    assert!((15_000..18_000).contains(&split.kv_tokens()), "{}", split.kv_tokens());
}

#[test]
fn what_does_not_fit_is_said_with_the_numbers() {
    match split(&telechat_52b(), &sizing(), &devices([40 * GB; 2]), Prefer::Speed) {
        Err(error @ ModelError::DoesNotFit { enough: Some(3), .. }) => {
            let text = error.to_string();
            assert!(text.contains("37.25 GiB are given; 3 such devices are enough"), "{text}");
        }
        other => panic!("{other:?}"),
    }
    match split(&telechat_52b(), &sizing(), &devices([GB; 64]), Prefer::Speed) {
        Err(ModelError::DoesNotFit { enough: None, .. }) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn devices_of_unequal_memory_get_what_they_can_hold() {
    let memory = [80 * GB, 40 * GB, 24 * GB];
    let split = split(&telechat_52b(), &sizing(), &devices(memory), Prefer::Speed).unwrap();
    let layers = layers(&split);
    assert_eq!(layers.iter().sum::<usize>(), 64);
    assert!(layers[0] > layers[1] && layers[1] > layers[2], "{layers:?}");
}

#[test]
fn devices_of_unequal_bandwidth_get_what_they_can_read() {
    // As fast as an H200, an H100 and an A100, with room enough on each.
    let bandwidths = [4.8e12, 3.35e12, 2.0e12];
    let unequal = bandwidths.map(|bandwidth| DeviceSize { memory: 141 * GB, bandwidth });
    let split = split(&telechat_52b(), &sizing(), &unequal, Prefer::Speed).unwrap();
    assert_eq!(layers(&split), [30, 21, 13]);
    assert!(split.times.iter().all(|&time| (0.9..=1.0).contains(&time)), "{:?}", split.times);
    assert!(split.times.contains(&1.0));
}

#[test]
fn speed_takes_half_of_the_room_at_most() {
    // The fast device could take nearly all layers, but then there would be no room for KV.
    let unequal =
        [(40 * GB, 10e12), (141 * GB, 1e12)].map(|(memory, bandwidth)| DeviceSize { memory, bandwidth });
    let with = |prefer| split(&telechat_52b(), &sizing(), &unequal, prefer).unwrap();
    let (fast, roomy) = (with(Prefer::Speed), with(Prefer::Room));
    assert!(layers(&fast)[0] > layers(&roomy)[0], "{:?} {:?}", layers(&fast), layers(&roomy));
    assert!(fast.kv_tokens() < roomy.kv_tokens());
    assert!(2 * (fast.kv_tokens() + BLOCK_ROWS as u64) > roomy.kv_tokens());
}

#[test]
fn nothing_has_more_room_than_the_roomiest_split() {
    let spec = DecoderSpec { layers: 9, ..telechat_52b() };
    let unequal = devices([8 * GB, 14 * GB, 11 * GB]);
    let holds = |cut: &[Range<usize>]| {
        let stages = cut.iter().zip(&unequal);
        stages
            .map(|(layers, it)| {
                sizing().stage(&spec, layers.clone(), it.memory).map_or(0, |stage| stage.kv_tokens)
            })
            .min()
    };
    let cuts = (1..8).flat_map(|a| (a + 1..9).map(move |b| [0..a, a..b, b..9]));
    let most = cuts.map(|cut| holds(&cut).unwrap()).max().unwrap();
    assert!(most > 0);
    let split = split(&spec, &sizing(), &unequal, Prefer::Room).unwrap();
    assert_eq!(split.kv_tokens(), most);
}

#[test]
fn a_head_counts_for_what_it_costs() {
    // As large as many layers; the embedding is as large, but only looked up.
    let spec = DecoderSpec { vocab: 1 << 21, ..telechat_52b() };
    let ranges = even(&spec, &sizing(), 4).unwrap();
    let layers: Vec<_> = ranges.iter().map(|range| range.len()).collect();
    assert_eq!(layers, [17, 17, 17, 13]);
}

#[test]
fn a_small_model_over_two_shards() {
    // SmolLM2's shape: its head is as large as seven layers. In prompts 16 layers stand against 14 and a part, in decode steps
    // against 14 and the head.
    let spec = DecoderSpec {
        layers: 30,
        hidden: 576,
        heads: 9,
        kv_heads: 9,
        head_dim: 64,
        inner: 1536,
        vocab: 49_152,
        ..telechat_52b()
    };
    assert_eq!(even(&spec, &sizing(), 2).unwrap(), [0..16, 16..30]);
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
fn no_other_cut_has_a_faster_slowest_stage() {
    let spec = DecoderSpec { layers: 9, vocab: 250_000, ..telechat_52b() };
    let sizing = sizing();
    let largest =
        |cut: &[Range<usize>]| cut.iter().map(|layers| sizing.cost(&spec, layers)).fold(0.0, f64::max);
    let best = (1..8)
        .flat_map(|a| (a + 1..9).map(move |b| [0..a, a..b, b..9]))
        .map(|cut| largest(&cut))
        .fold(f64::INFINITY, f64::min);
    assert_eq!(largest(&even(&spec, &sizing, 3).unwrap()), best);
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
    let split = split(&spec, &sizing, &devices([memory; 2]), Prefer::Speed).unwrap();
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
fn blocks_are_as_large_as_the_type_of_kv_makes_them() {
    let (spec, memory) = (telechat_52b(), 40 * GB);
    let stage = |kv_type| Sizing { kv_type, ..sizing() }.stage(&spec, 0..16, memory).unwrap();
    let (narrow, wide) = (stage(KvType::Bf16), stage(KvType::F32));
    assert_eq!(wide.block_bytes, 2 * narrow.block_bytes);
    let taken = |stage: &StageSize| (stage.weight_bytes, stage.buffer_bytes);
    assert_eq!(taken(&wide), taken(&narrow));
    assert!(narrow.kv_tokens.abs_diff(2 * wide.kv_tokens) <= BLOCK_ROWS as u64);
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
