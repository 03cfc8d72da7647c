use std::path::PathBuf;

use proptest::prelude::*;

use super::*;
use crate::DecoderSpec;
use crate::weights::{Checkpoint, StoredDtype};

/// A GGUF file under construction.
#[derive(Clone, Default)]
struct Builder {
    metadata: Vec<(&'static str, Vec<u8>)>,
    tensors: Vec<(String, Vec<u64>, u32, Vec<u8>)>,
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

fn texts(values: &[&str]) -> Vec<u8> {
    values.iter().flat_map(|value| text(value)).collect()
}

impl Builder {
    fn entry(&mut self, key: &'static str, kind: u32, bytes: &[u8]) {
        self.metadata.push((key, [&kind.to_le_bytes()[..], bytes].concat()));
    }

    fn array(&mut self, key: &'static str, kind: u32, count: usize, bytes: &[u8]) {
        let head = [&kind.to_le_bytes()[..], &(count as u64).to_le_bytes()].concat();
        self.entry(key, 9, &[&head[..], bytes].concat());
    }

    fn f32_tensor(&mut self, name: &str, dims: &[u64], values: impl Iterator<Item = f32>) {
        let bytes = values.flat_map(f32::to_le_bytes).collect();
        self.tensors.push((name.to_owned(), dims.to_vec(), 0, bytes));
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF\x03\0\0\0".to_vec();
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            out.extend(text(key));
            out.extend(value);
        }
        let mut data = Vec::new();
        for (name, dims, kind, bytes) in &self.tensors {
            out.extend(text(name));
            out.extend((dims.len() as u32).to_le_bytes());
            dims.iter().for_each(|dim| out.extend(dim.to_le_bytes()));
            out.extend(kind.to_le_bytes());
            out.extend((data.len() as u64).to_le_bytes());
            data.extend(bytes);
            data.resize(data.len().next_multiple_of(32), 0);
        }
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(data);
        out
    }
}

/// One layer of 2 query heads of width 4 that share one key head; its weights count up.
fn tiny() -> Builder {
    let mut file = Builder::default();
    file.entry("general.architecture", 8, &text("llama"));
    for (key, value) in [
        ("llama.block_count", 1u32),
        ("llama.context_length", 8192),
        ("llama.embedding_length", 8),
        ("llama.feed_forward_length", 3),
        ("llama.attention.head_count", 2),
        ("llama.attention.head_count_kv", 1),
        ("llama.rope.dimension_count", 4),
        ("tokenizer.ggml.bos_token_id", 1),
        ("tokenizer.ggml.eos_token_id", 2),
    ] {
        file.entry(key, 4, &value.to_le_bytes());
    }
    file.entry("llama.rope.freq_base", 6, &100_000f32.to_le_bytes());
    file.entry("llama.attention.layer_norm_rms_epsilon", 6, &1e-5f32.to_le_bytes());
    file.entry("tokenizer.ggml.model", 8, &text("gpt2"));
    file.entry("tokenizer.ggml.pre", 8, &text("smollm"));
    file.array("tokenizer.ggml.tokens", 8, 5, &texts(&["<unk>", "<s>", "</s>", "a", "aa"]));
    let kinds: Vec<u8> = [3i32, 3, 4, 1, 1].iter().flat_map(|kind| kind.to_le_bytes()).collect();
    file.array("tokenizer.ggml.token_type", 5, 5, &kinds);
    file.array("tokenizer.ggml.merges", 8, 1, &texts(&["a a"]));
    for (name, dims) in [
        ("token_embd", &[8, 5][..]),
        ("output_norm", &[8]),
        ("blk.0.attn_norm", &[8]),
        ("blk.0.ffn_norm", &[8]),
        ("blk.0.attn_q", &[8, 8]),
        ("blk.0.attn_k", &[8, 4]),
        ("blk.0.attn_v", &[8, 4]),
        ("blk.0.attn_output", &[8, 8]),
        ("blk.0.ffn_gate", &[8, 3]),
        ("blk.0.ffn_up", &[8, 3]),
        ("blk.0.ffn_down", &[3, 8]),
    ] {
        let count: u64 = dims.iter().product();
        file.f32_tensor(&format!("{name}.weight"), dims, (0..count).map(|value| value as f32));
    }
    file
}

fn saved(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    (folder, path)
}

fn opened(file: &Builder) -> Result<Checkpoint, ModelError> {
    let (_folder, path) = saved(&file.bytes());
    Checkpoint::open(path)
}

fn values(checkpoint: &Checkpoint, name: &str) -> Vec<f32> {
    let bytes = checkpoint.bytes(name).unwrap();
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

#[test]
fn a_llama_file_becomes_a_52b_checkpoint() {
    let checkpoint = opened(&tiny()).unwrap();
    let spec = DecoderSpec::from_config(&checkpoint.config().unwrap()).unwrap();
    assert_eq!((spec.layers, spec.hidden, spec.heads, spec.head_dim), (1, 8, 2, 4));
    assert_eq!((spec.max_positions, spec.rope.theta, spec.norm_epsilon), (4096, 100_000.0, 1e-5));
    assert_eq!(checkpoint.tensors().len(), spec.sources().len());
    for source in spec.sources() {
        source.check(&checkpoint).unwrap();
    }
    // The tied head is written out.
    assert_eq!(values(&checkpoint, "lm_head.weight"), values(&checkpoint, "transformer.wte.weight"));
    // [in, out]: row 0 is each output's weight of input 0. Stored output rows start at 0, 8, 16, … and stand for 0, 2, 1, 3.
    let qkv = values(&checkpoint, "transformer.h.0.attn.c_attn.weight");
    let q = [0.0, 16.0, 8.0, 24.0, 32.0, 48.0, 40.0, 56.0];
    let k = [0.0, 16.0, 8.0, 24.0, 0.0, 16.0, 8.0, 24.0];
    let v = [0.0, 8.0, 16.0, 24.0, 0.0, 8.0, 16.0, 24.0];
    assert_eq!(qkv[..24], [q, k, v].concat());
    assert_eq!(qkv[24..32], q.map(|weight| weight + 1.0));
    let gate_up = values(&checkpoint, "transformer.h.0.mlp.c_fc.weight");
    assert_eq!(gate_up[..6], [0.0, 8.0, 16.0, 0.0, 8.0, 16.0]);
    let down = values(&checkpoint, "transformer.h.0.mlp.c_proj.weight");
    assert_eq!(down[..8], [0.0, 3.0, 6.0, 9.0, 12.0, 15.0, 18.0, 21.0]);
}

#[test]
fn half_types_stay_as_they_are() {
    let mut file = tiny();
    for tensor in &mut file.tensors {
        let bf16 = tensor.3.chunks_exact(4).flat_map(|b| [b[2], b[3]]).collect();
        (tensor.2, tensor.3) = (30, bf16);
    }
    let checkpoint = opened(&file).unwrap();
    assert!(checkpoint.tensors().all(|info| info.dtype == StoredDtype::Bf16));
}

#[test]
fn the_tokenizer_becomes_files() {
    let checkpoint = opened(&tiny()).unwrap();
    let companion = |name: &str| {
        let (_, companion) = checkpoint.companions().iter().find(|(known, _)| known == name).unwrap();
        let crate::weights::Companion::Text(text) = companion else { panic!("{companion:?}") };
        serde_json::from_str::<Value>(text).unwrap()
    };
    let tokenizer = companion("tokenizer.json");
    assert_eq!(tokenizer["model"]["vocab"]["aa"], 4);
    assert_eq!(tokenizer["model"]["merges"][0], serde_json::json!(["a", "a"]));
    let added = tokenizer["added_tokens"].as_array().unwrap();
    assert_eq!(added.iter().map(|token| token["special"] == true).collect::<Vec<_>>(), [true, true, false]);
    assert_eq!(companion("tokenizer_config.json")["eos_token"], "</s>");
    assert_eq!(companion("generation_config.json")["do_sample"], false);
}

#[test]
fn what_cannot_be_expressed_is_refused_by_name() {
    let refused = |change: fn(&mut Builder), what: &str| {
        let mut file = tiny();
        change(&mut file);
        let error = opened(&file).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    };
    refused(|file| file.metadata[0].1 = [&8u32.to_le_bytes()[..], &text("gemma3")].concat(), "`gemma3`");
    refused(
        |file| file.f32_tensor("blk.0.attn_q.bias", &[8], (0..8).map(|_| 0.0)),
        "`blk.0.attn_q.bias` is not",
    );
    refused(
        |file| file.f32_tensor("rope_freqs.weight", &[2], (0..2).map(|_| 1.0)),
        "`rope_freqs.weight` is not",
    );
    refused(|file| drop(file.tensors.pop()), "`blk.0.ffn_down.weight` is missing");
    refused(
        |file| file.tensors[4].1 = vec![4, 16],
        "`blk.0.attn_q.weight` has shape [16, 4], expected [8, 8]",
    );
    refused(|file| file.tensors[4].2 = 14, "`blk.0.attn_q.weight` has the type 14");
    refused(|file| file.entry("llama.rope.scaling.type", 8, &text("yarn")), "`yarn`");
    refused(|file| file.metadata.retain(|(key, _)| *key != "llama.block_count"), "`llama.block_count`");
}

#[test]
fn a_truncated_file_is_refused_wherever_it_ends() {
    let whole = tiny().bytes();
    let (_folder, path) = saved(&whole);
    // The last tensor is padded to the alignment, which a reader does not need.
    for len in (0..whole.len() - 32).step_by(7) {
        std::fs::write(&path, &whole[..len]).unwrap();
        assert!(matches!(read(&path), Err(ModelError::Malformed { .. })), "{len} of {} bytes", whole.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn no_damage_to_a_header_makes_it_panic(at in 0usize..1600, byte: u8) {
        let mut bytes = tiny().bytes();
        let at = at % bytes.len();
        bytes[at] = byte;
        let (_folder, path) = saved(&bytes);
        if let Ok(checkpoint) = Checkpoint::open(&path) {
            for info in checkpoint.tensors() {
                prop_assert_eq!(checkpoint.bytes(&info.name).map(|bytes| bytes.len()), info.byte_len());
            }
        }
    }
}
