//! Checkpoints from file to logits: conversion keeps the numbers, and what is wrong is refused by name.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod chain;

use std::fs;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::Path;

use asterism_model::convert::{ConvertOptions, WeightDtype, convert};
use asterism_model::stage::{Batch, Input, Span, StageOptions, unwatched};
use asterism_model::weights::StoredDtype;
use asterism_model::{BatchError, Checkpoint, Manifest, ModelError, Stage, WeightSource};
use asterism_tensor::{BLOCK_ROWS, Compute, CpuOptions, Device, KvType};
use chain::{Chain, Sequence, Setup, own_checkpoint};
use serde_json::Value;

fn golden(name: &str) -> Checkpoint {
    Checkpoint::open(own_checkpoint(name)).unwrap()
}

fn logits(checkpoint: &Checkpoint, compute: Compute) -> Vec<f32> {
    let mut chain = Chain::load(checkpoint, &Setup::new(compute));
    chain.prefill(&Sequence::new(&[5, 77, 130, 2, 9], 16, 0), 5)
}

fn converted(
    checkpoint: &Checkpoint,
    out: &Path,
    dtype: Option<WeightDtype>,
    shard_bytes: u64,
) -> Checkpoint {
    let mut progress = Vec::new();
    let options = ConvertOptions { dtype, shard_bytes };
    let written = convert(checkpoint, out, options, &mut |done, total| progress.push((done, total))).unwrap();
    assert_eq!(progress.last(), Some(&(written.bytes, written.bytes)));
    let checkpoint = Checkpoint::open(out).unwrap();
    // The manifest beside it is the one that a full read makes.
    assert_eq!(Manifest::make(&checkpoint, &unwatched).unwrap(), written.manifest);
    assert_eq!(Manifest::of(&checkpoint, &|_, _| panic!("it lies there")).unwrap(), written.manifest);
    checkpoint
}

#[test]
fn conversion_keeps_the_numbers() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["tiny-52b", "tiny-52b-bin", "tiny-52b-bias"] {
        let original = golden(name);
        let expected = logits(&original, Compute::F32);
        // The weights are exact in all three types.
        let kinds = [None, Some(WeightDtype::Bf16), Some(WeightDtype::F16), Some(WeightDtype::F32)];
        for (index, dtype) in kinds.into_iter().enumerate() {
            let out = folder.path().join(format!("{name}-{index}"));
            let clean = converted(&original, &out, dtype, 50_000);
            assert_eq!(logits(&clean, Compute::F32), expected, "{name} as {dtype:?}");
            assert!(clean.tensor("transformer.h.0.attn.masked_bias").is_none());
            assert!(out.join("generation_config.json").is_file());
        }
    }
}

#[test]
fn bf16_compute_does_not_depend_on_the_stored_type() {
    let folder = tempfile::tempdir().unwrap();
    let original = golden("tiny-52b-bias");
    let wide = converted(&original, &folder.path().join("f32"), Some(WeightDtype::F32), u64::MAX);
    assert!(wide.tensors().all(|info| info.dtype == StoredDtype::F32));
    assert_eq!(logits(&wide, Compute::Bf16), logits(&original, Compute::Bf16));
}

#[test]
fn a_large_checkpoint_becomes_several_files() {
    let folder = tempfile::tempdir().unwrap();
    let original = golden("tiny-52b");
    let one = converted(&original, &folder.path().join("one"), None, u64::MAX);
    let many = converted(&original, &folder.path().join("many"), None, 100_000);
    assert!(folder.path().join("one/model.safetensors").is_file());
    assert!(folder.path().join("many/model.safetensors.index.json").is_file());
    // The id tells what a checkpoint is, not how it is cut into files.
    let id = |checkpoint: &Checkpoint| Manifest::of(checkpoint, &unwatched).unwrap().checkpoint_id;
    assert_eq!(id(&one), id(&many));
    let narrow = converted(&original, &folder.path().join("narrow"), Some(WeightDtype::F16), u64::MAX);
    assert_ne!(id(&one), id(&narrow));
}

#[test]
fn conversion_does_not_write_over_anything() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("mine"), "text").unwrap();
    let result = convert(&golden("tiny-52b"), folder.path(), ConvertOptions::default(), &mut |_, _| {});
    assert!(matches!(result, Err(ModelError::Occupied { .. })));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

/// A copy of tiny-52b whose tensors and config can be changed.
struct Copy {
    folder: tempfile::TempDir,
    header: serde_json::Map<String, Value>,
    data: Vec<u8>,
    /// Whether the manifest stays as it is, whatever changes.
    keeps_manifest: bool,
}

impl Copy {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let source = own_checkpoint("tiny-52b");
        fs::copy(source.join("config.json"), folder.path().join("config.json")).unwrap();
        let file = fs::read(source.join("model.safetensors")).unwrap();
        let (len, rest) = file.split_first_chunk().unwrap();
        let (header, data) = rest.split_at(u64::from_le_bytes(*len) as usize);
        Self {
            folder,
            header: serde_json::from_slice(header).unwrap(),
            data: data.to_vec(),
            keeps_manifest: false,
        }
    }

    fn open(&self) -> Checkpoint {
        let header = Value::Object(self.header.clone()).to_string();
        let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &self.data].concat();
        // A new file, since the old one may be mapped still.
        let path = self.folder.path().join("model.safetensors");
        drop(fs::remove_file(&path));
        fs::write(path, file).unwrap();
        let checkpoint = Checkpoint::open(self.folder.path()).unwrap();
        // Beside it, so that the user's cache is left alone.
        let manifest = self.folder.path().join(asterism_model::manifest::FILE_NAME);
        if !self.keeps_manifest {
            Manifest::make(&checkpoint, &unwatched).unwrap().write(&manifest).unwrap();
        }
        checkpoint
    }
}

fn options() -> StageOptions {
    StageOptions {
        layers: 0..6,
        compute: Compute::F32,
        kv_type: KvType::F32,
        memory: None,
        max_rows: 8,
        evidence_rows: 2,
        logits_slots: 0,
        max_context: 64,
    }
}

fn load(checkpoint: &Checkpoint, options: StageOptions) -> Result<Stage, ModelError> {
    let device = Device::cpu(CpuOptions::new(NonZeroUsize::MIN)).unwrap();
    Stage::load(device, WeightSource::Checkpoint(checkpoint), options, &unwatched)
}

#[test]
fn a_missing_tensor_is_named_with_its_shape() {
    let mut copy = Copy::new();
    // Renamed, so that the file stays whole.
    let entry = copy.header.remove("transformer.h.3.mlp.c_fc.weight").unwrap();
    copy.header.insert("transformer.h.3.mlp.other".into(), entry);
    let checkpoint = copy.open();
    let text = load(&checkpoint, options()).unwrap_err().to_string();
    assert_eq!(text, "tensor `transformer.h.3.mlp.c_fc.weight` is missing, expected shape [64, 344]");
    // A stage looks at its own tensors only.
    assert!(load(&checkpoint, StageOptions { layers: 4..6, ..options() }).is_ok());
    let result =
        convert(&checkpoint, &copy.folder.path().join("out"), ConvertOptions::default(), &mut |_, _| {});
    assert!(matches!(result, Err(ModelError::MissingTensor { .. })));
    assert!(!copy.folder.path().join("out").exists());
}

#[test]
fn a_mis_shaped_tensor_is_named_with_both_shapes() {
    let mut copy = Copy::new();
    copy.header["transformer.h.0.attn.c_proj.weight"]["shape"] = serde_json::json!([32, 128]);
    let text = load(&copy.open(), options()).unwrap_err().to_string();
    assert_eq!(text, "tensor `transformer.h.0.attn.c_proj.weight` has shape [32, 128], expected [64, 64]");
}

#[test]
fn a_weight_that_is_no_float_is_refused() {
    let mut copy = Copy::new();
    copy.header["transformer.ln_f.weight"]["dtype"] = "I16".into();
    let text = load(&copy.open(), options()).unwrap_err().to_string();
    assert_eq!(text, "tensor `transformer.ln_f.weight` is stored as I16, expected F32, BF16 or F16");
}

#[test]
fn a_changed_weight_is_found_by_its_stage() {
    let mut copy = Copy::new();
    let manifest = Manifest::make(&copy.open(), &unwatched).unwrap();
    assert_eq!(load(&copy.open(), options()).unwrap().info().checkpoint_id, manifest.checkpoint_id);
    copy.keeps_manifest = true;
    let name = "transformer.h.2.attn.c_attn.weight";
    let offset = copy.header[name]["data_offsets"][0].as_u64().unwrap() as usize;
    copy.data[offset + 1000] ^= 1;
    let checkpoint = copy.open();
    match load(&checkpoint, options()) {
        Err(ModelError::WrongContent { name: named, .. }) => assert_eq!(named, name),
        other => panic!("{:?}", other.map(|stage| stage.info().clone())),
    }
    assert!(load(&checkpoint, StageOptions { layers: 3..6, ..options() }).is_ok());
}

#[test]
fn ranges_beyond_the_model_are_refused() {
    let checkpoint = golden("tiny-52b");
    for layers in [0..7, 6..6, 7..9] {
        let result = load(&checkpoint, StageOptions { layers, ..options() });
        assert!(matches!(result, Err(ModelError::WrongLayers { layers: 6, .. })));
    }
}

#[test]
fn memory_decides_how_many_blocks_there_are() {
    let checkpoint = golden("tiny-52b");
    let info = |memory| {
        load(&checkpoint, StageOptions { memory: Some(memory), ..options() }).map(|s| s.info().clone())
    };
    let needed = match info(1000) {
        Err(ModelError::DoesNotFit { weights, buffers, least_kv, memory: 1000, .. }) => {
            weights + buffers + least_kv
        }
        other => panic!("{other:?}"),
    };
    assert!(matches!(info(needed - 1), Err(ModelError::DoesNotFit { .. })));
    let least = info(needed).unwrap();
    assert_eq!(least.kv_blocks, 1);
    // 6 layers of 4 heads of 16 values each; values are padded to 32.
    assert_eq!(least.kv_bytes, (6 * 4 * BLOCK_ROWS * (16 + 32) * 4) as u64);
    assert_eq!(least.weight_bytes + least.buffer_bytes + least.kv_bytes, needed);
    assert_eq!(info(needed + 9 * least.kv_bytes).unwrap().kv_blocks, 10);
}

#[test]
fn a_batch_that_cannot_be_run_is_refused_and_leaves_no_trace() {
    let checkpoint = golden("tiny-52b");
    let mut stage = load(&checkpoint, options()).unwrap();
    let mut later = load(&checkpoint, StageOptions { layers: 2..6, ..options() }).unwrap();
    let good = Span { first_position: 0, token_ids: &[1, 2, 3], blocks: &[0], prompt_len: 3, evidence: &[2] };
    let mut refused = |span: Span<'_>, expected: BatchError| {
        let result =
            stage.forward(&Batch { spans: &[span] }, Input::Tokens, &mut |_| panic!("nothing is computed"));
        match result {
            Err(ModelError::Batch(error)) => assert_eq!(error, expected),
            other => panic!("{other:?}"),
        }
    };
    let vocab = 512;
    refused(Span { token_ids: &[], evidence: &[], ..good }, BatchError::Empty);
    refused(Span { token_ids: &[0; 9], ..good }, BatchError::TooManyRows { rows: 9, most: 8 });
    refused(Span { evidence: &[0, 1, 2], ..good }, BatchError::TooMuchEvidence { rows: 3, most: 2 });
    refused(Span { token_ids: &[1, 512, 3], ..good }, BatchError::TokenId { span: 0, id: 512, vocab });
    refused(Span { prompt_len: 65, ..good }, BatchError::Position { span: 0, position: 64, context: 64 });
    refused(Span { first_position: 63, ..good }, BatchError::Position { span: 0, position: 65, context: 64 });
    refused(
        Span { first_position: usize::MAX, ..good },
        BatchError::Position { span: 0, position: usize::MAX - 1, context: 64 },
    );
    refused(
        Span { first_position: 14, evidence: &[], ..good },
        BatchError::BlockTable { span: 0, blocks: 1, positions: 17 },
    );
    refused(Span { blocks: &[16], ..good }, BatchError::Block { span: 0, block: 16, blocks: 16 });
    refused(Span { evidence: &[3], ..good }, BatchError::Evidence { span: 0, position: 3 });
    refused(Span { evidence: &[1, 1], ..good }, BatchError::Evidence { span: 0, position: 1 });

    let batch = Batch { spans: &[good] };
    let mut go_on = |_: asterism_model::stage::Beat| ControlFlow::Continue(());
    let short = [0; 10];
    for (is_first, input, expected) in [
        (true, Input::Hidden(&short[..]), BatchError::InputKind),
        (false, Input::Tokens, BatchError::InputKind),
        (false, Input::Hidden(&short[..]), BatchError::Input { found: 10, expected: 3 * 64 * 4 }),
    ] {
        let stage = if is_first { &mut stage } else { &mut later };
        match stage.forward(&batch, input, &mut go_on) {
            Err(ModelError::Batch(error)) => assert_eq!(error, expected),
            other => panic!("{other:?}"),
        }
    }
    assert!(stage.forward(&batch, Input::Tokens, &mut go_on).is_ok());
}

#[test]
fn a_step_can_be_stopped_between_layers() {
    let mut stage = load(&golden("tiny-52b"), StageOptions { layers: 0..5, ..options() }).unwrap();
    let span = Span { first_position: 0, token_ids: &[1, 2, 3], blocks: &[0], prompt_len: 3, evidence: &[] };
    let batch = Batch { spans: &[span] };
    let mut beats = Vec::new();
    let result = stage.forward(&batch, Input::Tokens, &mut |beat| {
        beats.push(beat.layers_done);
        if beat.layers_done == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(matches!(result, Err(ModelError::Stopped { layer: 2 })));
    assert_eq!(beats, [0, 1, 2]);
}

#[test]
fn a_row_of_nan_stays_alone() {
    // One embedding row of NaN: whoever feeds it gets NaN, whoever stands beside it does not.
    let mut copy = Copy::new();
    let offset = copy.header["transformer.wte.weight"]["data_offsets"][0].as_u64().unwrap() as usize;
    copy.data[offset + 7 * 128..offset + 8 * 128].fill(0xff);
    let mut chain = Chain::load(&copy.open(), &Setup::new(Compute::F32));
    let good = Sequence::new(&[5, 77, 130], 16, 0);
    let bad = Sequence::new(&[5, 7, 130], 16, 1);
    let alone = chain.prefill(&good, 3);
    let both = chain.step(&[bad.span(0..3, &[2]), good.span(0..3, &[2])]).logits;
    assert!(both[0].iter().all(|logit| logit.is_nan()));
    assert_eq!(both[1], alone);
    // Blocks that hold its NaN may be used again.
    let reused = Sequence { blocks: vec![1], ..good };
    assert_eq!(chain.prefill(&reused, 3), alone);
}
