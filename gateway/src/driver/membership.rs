//! Whether the shards that answered make one whole pipeline. Pure: descriptions in, a pipeline or all mistakes out.

use std::collections::BTreeMap;

use asterism_proto::PROTOCOL_VERSION;
use asterism_proto::shard::v1::{Compute, DescribeResponse, DeviceKind, ModelSpec};

use super::mismatch::Mismatch;
use crate::scheduler::{BLOCK_ROWS, RowKinds};

#[cfg(test)]
mod tests;

/// One shard: where the gateway dialled it, and what it says of itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Member {
    /// host:port, as configured.
    pub address: String,
    /// Its answer.
    pub description: DescribeResponse,
}

/// The shards of a whole model, in the order of their stages.
#[derive(Clone, Debug, PartialEq)]
pub struct Pipeline {
    /// One for each stage.
    pub members: Vec<Member>,
    /// The model that they hold.
    pub model: ModelSpec,
    /// SHA-256 of its config and tensors.
    pub checkpoint_id: String,
}

/// What all stages have room for: the least of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Blocks of KV.
    pub blocks: u32,
    /// The most rows of a step.
    pub rows: u32,
    /// The most evidence rows of a step.
    pub evidence_rows: u32,
    /// Raw rows that the last stage can keep.
    pub logits_slots: u32,
    /// F: P + 2 (2 for one stage), within what every shard has memory for.
    pub steps_in_flight: u32,
    /// Positions of the longest sequence.
    pub positions: u32,
}

impl Pipeline {
    /// Whether a stage is on a card, which waits for every plan.
    pub fn has_cards(&self) -> bool {
        self.members.iter().any(|member| member.description.device_kind() == DeviceKind::Cuda)
    }

    /// The type that it computes in; stages agree in it.
    pub fn compute(&self) -> &'static str {
        self.members.first().map_or("", |first| compute_name(first.description.compute()))
    }

    /// What a row's numbers depend on, beside the ids up to it.
    pub fn row_kinds(&self) -> RowKinds {
        RowKinds {
            rope_base_length: self.model.rope_base_length,
            have_classes: self.members.iter().any(|member| member.description.row_classes),
        }
    }

    /// Checks that `members`, in any order, hold every layer of one model exactly once, and put them in order.
    ///
    /// # Errors
    /// All that is wrong, not just the first; `members` must not be empty (then nothing is).
    pub fn check(members: Vec<Member>) -> Result<Self, Vec<Mismatch>> {
        let mut wrong = protocol(&members);
        if !wrong.is_empty() {
            return Err(wrong); // Nothing else of such a description can be trusted.
        }
        wrong.extend(differences(&members));
        let stages = members.first().map_or(0, |member| member.description.stages);
        match in_order(members, stages) {
            Err(more) => wrong.extend(more),
            Ok(members) => {
                wrong.extend(layers(&members));
                wrong.extend(members.iter().filter_map(nothing));
                if let (Some(first), true) = (members.first(), wrong.is_empty()) {
                    let model = first.description.model.clone().unwrap_or_default();
                    let checkpoint_id = first.description.checkpoint_id.clone();
                    return Ok(Self { members, model, checkpoint_id });
                }
            }
        }
        Err(wrong)
    }

    /// The least that every stage has room for.
    pub fn capacity(&self) -> Capacity {
        let least = |of: fn(&DescribeResponse) -> u32| {
            self.members.iter().map(|member| of(&member.description)).min().unwrap_or(0)
        };
        let wanted = match self.members.len() {
            0 | 1 => 2,
            stages => u32::try_from(stages).unwrap_or(u32::MAX - 2) + 2,
        };
        Capacity {
            blocks: least(|shard| shard.kv_blocks),
            rows: least(|shard| shard.max_rows),
            evidence_rows: least(|shard| shard.max_evidence_rows),
            logits_slots: self.members.last().map_or(0, |last| last.description.logits_slots),
            steps_in_flight: wanted.min(least(|shard| shard.max_steps_in_flight)),
            positions: least(|shard| shard.model.as_ref().map_or(0, |model| model.max_positions)),
        }
    }

    /// The greatest epoch that any shard has seen.
    pub fn highest_epoch(&self) -> u64 {
        self.members
            .iter()
            .filter_map(|member| member.description.holder.as_ref())
            .map(|holder| holder.epoch)
            .max()
            .unwrap_or(0)
    }

    /// A living holder other than `driver_id`: (its id, where it was seen). The last stage speaks first, as it is the latch.
    pub fn held_by_another(&self, driver_id: &str) -> Option<(&str, &str)> {
        self.members.iter().rev().find_map(|member| {
            let holder = member.description.holder.as_ref()?;
            (member.description.holder_lives && holder.driver_id != driver_id)
                .then_some((holder.driver_id.as_str(), member.address.as_str()))
        })
    }

    /// Whether a shard is about to leave.
    pub fn draining(&self) -> Option<&str> {
        self.members.iter().find(|member| member.description.draining).map(|member| member.address.as_str())
    }
}

fn protocol(members: &[Member]) -> Vec<Mismatch> {
    let foreign = members.iter().filter(|member| member.description.protocol_version != PROTOCOL_VERSION);
    foreign
        .map(|member| Mismatch::Protocol {
            address: member.address.clone(),
            theirs: member.description.protocol_version,
        })
        .collect()
}

/// (name, how a shard has it)
type Shared = (&'static str, fn(&DescribeResponse) -> String);

const SHARED: [Shared; 7] = [
    ("pipeline", |shard| shard.pipeline.clone()),
    ("number of stages", |shard| shard.stages.to_string()),
    ("checkpoint id", |shard| shard.checkpoint_id.clone()),
    ("compute type", |shard| compute_name(shard.compute()).to_owned()),
    ("instruction path", |shard| format!("\"{}\"", shard.path)),
    ("model", |shard| model_line(shard.model.as_ref())),
    ("block rows", |shard| shard.block_rows.to_string()),
];

fn differences(members: &[Member]) -> Vec<Mismatch> {
    let Some((first, others)) = members.split_first() else { return Vec::new() };
    let mut found = Vec::new();
    for (what, value) in SHARED {
        let expected = value(&first.description);
        if let Some(other) = others.iter().find(|other| value(&other.description) != expected) {
            found.push(Mismatch::Differs {
                what,
                first: first.address.clone(),
                expected,
                second: other.address.clone(),
                found: value(&other.description),
            });
        }
    }
    if first.description.block_rows != BLOCK_ROWS {
        found.push(Mismatch::Differs {
            what: "block rows",
            first: "this gateway".to_owned(),
            expected: BLOCK_ROWS.to_string(),
            second: first.address.clone(),
            found: first.description.block_rows.to_string(),
        });
    }
    found
}

fn compute_name(compute: Compute) -> &'static str {
    match compute {
        Compute::F32 => "f32",
        Compute::Bf16 => "bf16",
        Compute::Unspecified => "none",
    }
}

fn model_line(model: Option<&ModelSpec>) -> String {
    model.map_or_else(
        || "none".to_owned(),
        |model| {
            let ModelSpec { family, layers, hidden, vocab_size, rope_base_length, .. } = model;
            // A shard may be told to allow fewer positions than another; the least counts.
            let sizes = format!("layers {layers}, hidden {hidden}, vocabulary {vocab_size}");
            format!("{family} ({sizes}, rope base length {rope_base_length})")
        },
    )
}

fn in_order(members: Vec<Member>, stages: u32) -> Result<Vec<Member>, Vec<Mismatch>> {
    let mut wrong = Vec::new();
    let mut placed = BTreeMap::<u32, Member>::new();
    for member in members {
        let stage = member.description.stage;
        if stage >= stages {
            wrong.push(Mismatch::StageOutOfRange { address: member.address, stage, stages });
        } else if let Some(first) = placed.get(&stage) {
            let first = first.address.clone();
            wrong.push(Mismatch::DuplicateStage { stage, first, second: member.address });
        } else {
            placed.insert(stage, member);
        }
    }
    // A foreign `stages` may be anything: look only at those that a shard could have.
    let missing = (0..stages).filter(|stage| !placed.contains_key(stage)).take(placed.len() + 1);
    wrong.extend(missing.map(|stage| Mismatch::MissingStage { stage, stages }));
    if wrong.is_empty() { Ok(placed.into_values().collect()) } else { Err(wrong) }
}

fn layers(members: &[Member]) -> Vec<Mismatch> {
    let mut wrong = Vec::new();
    let mut expected = 0;
    for member in members {
        let (address, stage) = (member.address.clone(), member.description.stage);
        let found = member.description.first_layer;
        if found > expected {
            wrong.push(Mismatch::MissingLayers { address, stage, expected, found });
        } else if found < expected {
            wrong.push(Mismatch::OverlappingLayers { address, stage, expected, found });
        }
        expected = member.description.end_layer;
    }
    if let Some(last) = members.last() {
        let layers = last.description.model.as_ref().map_or(0, |model| model.layers);
        if expected != layers {
            wrong.push(Mismatch::WrongEnd { address: last.address.clone(), found: expected, layers });
        }
    }
    wrong
}

fn nothing(member: &Member) -> Option<Mismatch> {
    let shard = &member.description;
    let last = shard.stage + 1 == shard.stages;
    let offers = [
        ("layers", shard.end_layer.saturating_sub(shard.first_layer)),
        ("positions", shard.model.as_ref().map_or(0, |model| model.max_positions)),
        ("vocabulary", shard.model.as_ref().map_or(0, |model| model.vocab_size)),
        ("KV blocks", shard.kv_blocks),
        ("rows in a step", shard.max_rows),
        ("evidence rows", shard.max_evidence_rows),
        ("steps in flight", shard.max_steps_in_flight),
        ("logits slots", if last { shard.logits_slots } else { 1 }),
    ];
    let (what, _) = offers.into_iter().find(|(_, count)| *count == 0)?;
    Some(Mismatch::Nothing { address: member.address.clone(), what })
}
