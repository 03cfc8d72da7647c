use asterism_proto::PROTOCOL_VERSION;
use asterism_proto::shard::v1::{Compute, DescribeResponse, Holder, ModelSpec};

use super::*;

/// A pipeline whose stages end at these layers.
fn members(ends: &[u32]) -> Vec<Member> {
    let stages = ends.len() as u32;
    let mut first_layer = 0;
    let mut members = Vec::new();
    for (stage, end_layer) in (0..).zip(ends.iter().copied()) {
        members.push(Member {
            address: format!("shard-{stage}:7070"),
            description: DescribeResponse {
                protocol_version: PROTOCOL_VERSION,
                stage,
                stages,
                first_layer,
                end_layer,
                model: Some(ModelSpec {
                    layers: ends[ends.len() - 1],
                    vocab_size: 10,
                    max_positions: 90 - stage,
                    ..ModelSpec::default()
                }),
                checkpoint_id: "id".to_owned(),
                compute: Compute::Bf16.into(),
                path: "dp".to_owned(),
                kv_blocks: 100 + stage,
                block_rows: BLOCK_ROWS,
                max_rows: 50 - stage,
                max_evidence_rows: 8,
                logits_slots: 40 + stage,
                max_steps_in_flight: 16,
                ..DescribeResponse::default()
            },
        });
        first_layer = end_layer;
    }
    members
}

fn mistakes(change: impl FnOnce(&mut Vec<Member>)) -> Vec<String> {
    let mut members = members(&[2, 4, 7]);
    change(&mut members);
    Pipeline::check(members).unwrap_err().iter().map(ToString::to_string).collect()
}

#[test]
fn a_whole_pipeline_passes_in_any_order() {
    let whole = members(&[2, 4, 7]);
    let mut shuffled = whole.clone();
    shuffled.rotate_left(1);
    let pipeline = Pipeline::check(shuffled).unwrap();
    assert_eq!(pipeline.members, whole);
    assert_eq!(pipeline.checkpoint_id, "id");
    let capacity = Capacity {
        blocks: 100,
        rows: 48,
        evidence_rows: 8,
        logits_slots: 42,
        steps_in_flight: 5,
        positions: 88,
    };
    assert_eq!(pipeline.capacity(), capacity);
    assert_eq!(Pipeline::check(members(&[3])).unwrap().capacity().steps_in_flight, 2);
}

#[test]
fn steps_in_flight_stay_within_what_every_shard_offers() {
    let mut members = members(&[1, 2, 3]);
    members[1].description.max_steps_in_flight = 3;
    assert_eq!(Pipeline::check(members).unwrap().capacity().steps_in_flight, 3);
}

#[test]
fn every_mistake_is_told() {
    let wrong = mistakes(|members| {
        members[1].description.checkpoint_id = "other".to_owned();
        members[1].description.path = "fma".to_owned();
        members[2].description.compute = Compute::F32.into();
        members[2].description.first_layer = 5;
        members[2].description.end_layer = 8;
    });
    assert_eq!(
        wrong,
        [
            "checkpoint id differs: shard-0:7070 has id, shard-1:7070 has other",
            "compute type differs: shard-0:7070 has bf16, shard-2:7070 has f32",
            "instruction path differs: shard-0:7070 has \"dp\", shard-1:7070 has \"fma\"",
            "layers 4..5 are missing before stage 2 at shard-2:7070",
            "the last stage at shard-2:7070 ends at layer 8, the model has 7",
        ]
    );
}

#[test]
fn missing_doubled_and_overlapping_stages_are_named() {
    assert_eq!(mistakes(|members| drop(members.remove(1))), ["no shard has stage 1 of 3"]);
    assert_eq!(
        mistakes(|members| members[2].description.stage = 1),
        ["shard-1:7070 and shard-2:7070 both have stage 1", "no shard has stage 2 of 3"]
    );
    assert_eq!(
        mistakes(|members| members[1].description.first_layer = 1),
        ["layers 1..2 of stage 1 at shard-1:7070 overlap those of the stage before"]
    );
    let beyond = mistakes(|members| members[2].description.stage = u32::MAX);
    assert_eq!(beyond[0], "shard-2:7070 has stage 4294967295 of only 3");
}

#[test]
fn foreign_descriptions_cannot_hurt() {
    let endless =
        mistakes(|members| members.iter_mut().for_each(|member| member.description.stages = u32::MAX));
    assert!(endless.len() <= 4, "{endless:?}");
    let foreign = mistakes(|members| members[0].description.protocol_version = 99);
    assert_eq!(
        foreign,
        [format!("shard-0:7070 speaks protocol version 99, this gateway {PROTOCOL_VERSION}")]
    );
    let empty = mistakes(|members| members[1].description.kv_blocks = 0);
    assert_eq!(empty, ["shard-1:7070 offers no KV blocks"]);
    let blocks = mistakes(|members| members.iter_mut().for_each(|member| member.description.block_rows = 32));
    assert_eq!(blocks, ["block rows differs: this gateway has 16, shard-0:7070 has 32"]);
    assert_eq!(Pipeline::check(Vec::new()), Err(Vec::new()));
}

#[test]
fn a_living_holder_counts_unless_it_is_this_driver() {
    let mut members = members(&[2, 4]);
    let holder = |epoch, id: &str| Some(Holder { epoch, driver_id: id.to_owned() });
    members[0].description.holder = holder(9, "gone");
    members[1].description.holder = holder(4, "other");
    members[1].description.holder_lives = true;
    let pipeline = Pipeline::check(members).unwrap();
    assert_eq!(pipeline.highest_epoch(), 9);
    assert_eq!(pipeline.held_by_another("me"), Some(("other", "shard-1:7070")));
    assert_eq!(pipeline.held_by_another("other"), None);
}
