use asterism_tensor::{Compute, CpuOptions, KvType};
use serde_json::json;

use super::*;
use crate::stage::{LoadTimes, Span};

fn info(max_rows: usize, evidence_rows: usize, end: usize) -> StageInfo {
    let config = json!({
        "model_type": "telechat", "n_layer": 4, "n_embd": 64, "n_head": 4, "n_inner": 96, "vocab_size": 128,
        "n_positions": 8192, "rotary_theta": 10000, "layer_norm_epsilon": 1e-5
    });
    StageInfo {
        spec: DecoderSpec::from_config(&config).unwrap(),
        layers: 0..end,
        compute: Compute::F32,
        kv_type: KvType::F32,
        checkpoint_id: String::new(),
        device: String::new(),
        row_classes: false,
        path: String::new(),
        kv_blocks: 1024,
        max_rows,
        evidence_rows,
        logits_slots: 0,
        max_context: 8192,
        weight_bytes: 0,
        buffer_bytes: 0,
        kv_bytes: 0,
        times: LoadTimes::default(),
    }
}

#[test]
fn recorded_steps_have_no_more_rows_than_there_is_memory_for() {
    assert_eq!(buckets(&info(512, 128, 4)), BUCKETS);
    assert_eq!(buckets(&info(512, 20, 2)), BUCKETS, "without a head evidence does not matter");
    assert_eq!(buckets(&info(512, 20, 4)), [1, 2, 4, 8, 16, 20]);
    assert_eq!(buckets(&info(3, 3, 4)), [1, 2, 3]);
}

#[test]
fn which_rows_read_keys_of_another_table() {
    let device = Device::cpu(CpuOptions::new(std::num::NonZeroUsize::MIN)).unwrap();
    let info = info(512, 128, 4);
    let mut ropes = Ropes::new(&device, &info).unwrap();
    let blocks: Vec<u32> = (0..512).collect();
    let mut crosses = |first_position, prompt_len| {
        let span = Span { first_position, token_ids: &[1], blocks: &blocks, prompt_len, evidence: &[] };
        let batch = Batch { spans: &[span] };
        assert_eq!(batch.is_decode(), first_position >= prompt_len);
        let placed = ropes.place(&device, &batch, &info).unwrap();
        placed.iter().any(PlacedSpan::crosses_tables)
    };
    assert!(!crosses(4095, 10), "all keys have the first table");
    assert!(crosses(4096, 10), "the row has the second table, the keys before it have the first");
    assert!(!crosses(5000, 5001), "a long prompt has one table");
    assert!(!crosses(5002, 5001));
}
