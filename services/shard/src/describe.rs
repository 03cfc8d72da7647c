//! What a shard says of itself.

use asterism_model::stage::StageInfo;
use asterism_proto::PROTOCOL_VERSION;
use asterism_proto::shard::v1::{Compute as WireCompute, DescribeResponse, DeviceKind, ModelSpec};
use asterism_tensor::{BLOCK_ROWS, Compute};

use crate::config::{DeviceName, ShardConfig};
use crate::sequences::Room;

/// All but who holds it.
pub fn describe(config: &ShardConfig, info: &StageInfo, logits_slots: usize) -> DescribeResponse {
    let spec = &info.spec;
    DescribeResponse {
        protocol_version: PROTOCOL_VERSION,
        pipeline: config.pipeline.clone(),
        stage: config.stage,
        stages: config.stages,
        first_layer: narrow(info.layers.start),
        end_layer: narrow(info.layers.end),
        model: Some(ModelSpec {
            family: spec.family.name().to_owned(),
            layers: narrow(spec.layers),
            hidden: narrow(spec.hidden),
            vocab_size: narrow(spec.vocab),
            // What this shard was told to allow, which is the config's unless told otherwise.
            max_positions: narrow(info.max_context),
            rope_base_length: narrow(spec.rope.base_length),
        }),
        checkpoint_id: info.checkpoint_id.clone(),
        compute: match info.compute {
            Compute::F32 => WireCompute::F32,
            Compute::Bf16 => WireCompute::Bf16,
        }
        .into(),
        path: info.path.clone(),
        device: info.device.clone(),
        kv_blocks: narrow(info.kv_blocks),
        block_rows: narrow(BLOCK_ROWS),
        max_rows: narrow(info.max_rows),
        max_evidence_rows: narrow(info.evidence_rows),
        logits_slots: narrow(if info.is_last() { logits_slots } else { 0 }),
        max_steps_in_flight: config.steps_in_flight(),
        holder: None,
        holder_lives: false,
        draining: false,
        advertised_address: config.advertise.clone().unwrap_or_default(),
        device_kind: match config.device {
            DeviceName::Cpu => DeviceKind::Cpu,
            DeviceName::Cuda(_) => DeviceKind::Cuda,
        }
        .into(),
        row_classes: info.row_classes,
    }
}

/// What plans are checked against.
pub fn room(info: &StageInfo, logits_slots: usize) -> Room {
    Room {
        vocab: info.spec.vocab,
        max_context: info.max_context,
        kv_blocks: info.kv_blocks,
        max_rows: info.max_rows,
        evidence_rows: info.evidence_rows,
        logits_slots: info.is_last().then_some(logits_slots),
    }
}

/// Counts on the wire are 32 bits wide, which every checked configuration fits.
fn narrow(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
