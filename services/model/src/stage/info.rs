//! What a stage is asked to be, and what it became.

use std::ops::Range;
use std::time::Duration;

use asterism_tensor::{Compute, KvType};

use crate::spec::DecoderSpec;
use crate::split::table_entries;

/// Which part of a model to load, and how.
#[derive(Clone, Debug)]
pub struct StageOptions {
    /// The stage's layers.
    pub layers: Range<usize>,
    /// The type of activations.
    pub compute: Compute,
    /// The type that KV rests in.
    pub kv_type: KvType,
    /// Bytes for weights, buffers and KV together. `None`: on a card most of what is free, see [`super::default_memory`]; on
    /// the CPU KV for a few sequences, whatever the rest takes.
    pub memory: Option<u64>,
    /// The most rows of a step.
    pub max_rows: usize,
    /// The most evidence rows of a step.
    pub evidence_rows: usize,
    /// Logits rows that the shard will keep beside; they are counted into the memory.
    pub logits_slots: usize,
    /// Positions of the longest sequence.
    pub max_context: usize,
}

/// What a stage is, for whoever plans its work.
#[derive(Clone, Debug)]
pub struct StageInfo {
    /// The whole model.
    pub spec: DecoderSpec,
    /// The stage's layers.
    pub layers: Range<usize>,
    /// The type of activations.
    pub compute: Compute,
    /// The type that KV rests in.
    pub kv_type: KvType,
    /// SHA-256 over config.json and the manifest, or over config.json and the seed, in hexadecimal.
    pub checkpoint_id: String,
    /// The device in words; of a card also whether a row's numbers depend on that row alone.
    pub device: String,
    /// Whether rows of prompts and rows of answers have numbers of their own, and each always the same: on a card that is
    /// deterministic.
    pub row_classes: bool,
    /// The instruction path, where several give different bits.
    pub path: String,
    /// Blocks in the KV pool, of [`asterism_tensor::BLOCK_ROWS`] rows each.
    pub kv_blocks: usize,
    /// The most rows of a step.
    pub max_rows: usize,
    /// The most evidence rows of a step.
    pub evidence_rows: usize,
    /// Logits rows that were counted into the memory.
    pub logits_slots: usize,
    /// Positions of the longest sequence.
    pub max_context: usize,
    /// Bytes of the weights.
    pub weight_bytes: u64,
    /// Bytes of activations, logits and tables.
    pub buffer_bytes: u64,
    /// Bytes of the KV pool.
    pub kv_bytes: u64,
    /// Where the time of loading went.
    pub times: LoadTimes,
}

/// Where the time of loading went, part after part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadTimes {
    /// The manifest: read, or made by reading everything once.
    pub manifest: Duration,
    /// The weights, read, checked and packed; or made up.
    pub weights: Duration,
    /// The ways to multiply: found and checked, or read from the cache.
    pub plans: Duration,
    /// Memory for KV and activations.
    pub memory: Duration,
    /// Recorded steps.
    pub graphs: Duration,
}

impl LoadTimes {
    /// All parts by name, in order.
    pub fn parts(&self) -> [(&'static str, Duration); 5] {
        [
            ("manifest", self.manifest),
            ("weights", self.weights),
            ("plans", self.plans),
            ("memory", self.memory),
            ("graphs", self.graphs),
        ]
    }
}

impl StageInfo {
    /// Whether the stage has the embedding.
    pub fn is_first(&self) -> bool {
        self.layers.start == 0
    }

    /// Whether the stage has the head.
    pub fn is_last(&self) -> bool {
        self.layers.end == self.spec.layers
    }

    /// Entries of block tables that a step may have in all.
    pub(crate) fn table_entries(&self) -> usize {
        table_entries(self.max_rows, self.max_context)
    }

    /// Bytes of one row of the residual stream.
    pub fn row_bytes(&self) -> usize {
        self.spec.hidden * self.compute.dtype().bytes()
    }
}
