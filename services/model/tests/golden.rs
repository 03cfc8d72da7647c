//! The reference's numbers, for every checkpoint of a supported family in the golden folder.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod chain;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use asterism_model::arch::Family;
use asterism_model::{Checkpoint, DecoderSpec, manifest, rope};
use asterism_tensor::{BLOCK_ROWS, Compute, KvPlace};
use chain::{Chain, On, Seen, Sequence, Setup, golden_folder};
use safetensors::SafeTensors;
use serde_json::Value;

/// Tolerance of logits and hidden states in f32.
const TOLERANCE: f32 = 1e-3;
/// Greedy tokens must be equal wherever the best two are further apart.
const MARGIN: f32 = 2e-3;
/// The most that bf16 moves a logit of the tiny checkpoints in the reference, as the goldens' README says.
const BF16_NOISE: f32 = 0.3;
/// Two bf16 computations of the same numbers round in different places: over many logits, ours may be off by no more than this
/// times what the reference's is.
const BF16_RATIO: f64 = 1.25;
/// Rows of a chunk, so that long prompts take several.
const CHUNK: usize = 512;

/// One set of one checkpoint.
struct Set {
    name: String,
    cases: Vec<Value>,
    tensors: Vec<u8>,
}

/// What may differ, and by how much.
struct Bounds {
    on: On,
    compute: Compute,
    logits: f32,
    margin: f32,
}

#[test]
fn golden_f32() {
    let mut passed = 0;
    for (folder, spec) in supported() {
        for (on, set) in everywhere(&folder) {
            let bounds = Bounds { on, compute: Compute::F32, logits: TOLERANCE, margin: MARGIN };
            run(&folder, &spec, &set, &bounds);
            println!("golden {}/{} f32 {on:?}: passed", name(&folder), set.name);
            passed += 1;
        }
    }
    assert!(passed > 0, "no golden set was found in {}", golden_folder().display());
}

#[test]
fn golden_bf16() {
    for (folder, spec) in supported() {
        // The extreme of 80,896 normal values lies half as far again from their mean as that of a few hundred.
        let logits = if spec.vocab > 10_000 { 1.5 * BF16_NOISE } else { BF16_NOISE };
        for (on, set) in everywhere(&folder) {
            let bounds = Bounds { on, compute: Compute::Bf16, logits, margin: 2.0 * logits };
            run(&folder, &spec, &set, &bounds);
            println!("golden {}/{} bf16 {on:?}: passed", name(&folder), set.name);
        }
        On::all().into_iter().for_each(|on| check_noise(&folder, on));
    }
}

/// The real model of the quick start, where it has been pulled.
#[test]
fn golden_demo() {
    let golden = golden_folder().join("demo-smollm2/golden.json");
    let Some(folder) = manifest::demo_folder().filter(|folder| folder.is_dir() && golden.is_file()) else {
        println!("golden demo-smollm2: skipped: the demo model has not been pulled (asterism pull demo)");
        return;
    };
    let golden: Value = serde_json::from_slice(&fs::read(golden).unwrap()).unwrap();
    let checkpoint = Checkpoint::open(folder).unwrap();
    for setup in Setup::everywhere(Compute::F32) {
        let setup = Setup { stages: 2, max_rows: CHUNK, ..setup };
        let mut chain = Chain::load(&checkpoint, &setup);
        for item in golden["items"].as_array().unwrap() {
            answers(&mut chain, &setup, item);
        }
        println!("golden demo-smollm2 {:?}: passed", setup.on);
    }
}

/// The demo's answer is the golden's wherever the margins tell.
fn answers(chain: &mut Chain, setup: &Setup, item: &Value) {
    let ids = |key: &str| -> Vec<u32> { serde_json::from_value(item[key].clone()).unwrap() };
    let mut sequence = Sequence::new(&ids("prompt_ids"), setup.max_context, 0);
    let mut logits = chain.prefill(&sequence, CHUNK);
    let margins = item["margins"].as_array().unwrap();
    for (step, (token, margin)) in ids("greedy_ids").into_iter().zip(margins).enumerate() {
        let near = margin.as_f64().unwrap() <= f64::from(MARGIN);
        assert!(best(&logits) == token || near, "{} {:?}: step {step}", item["prompt"], setup.on);
        logits = chain.decode(&mut sequence, token);
    }
}

/// The checkpoints of supported families that have goldens; all others are named.
fn supported() -> Vec<(PathBuf, DecoderSpec)> {
    let mut folders: Vec<PathBuf> =
        fs::read_dir(golden_folder()).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    let mut found = Vec::new();
    for folder in folders.into_iter().filter(|folder| folder.join("config.json").is_file()) {
        match DecoderSpec::read(&folder) {
            Err(error) => println!("golden {}: skipped: {error}", name(&folder)),
            // The demo's model lies elsewhere and has a test of its own.
            Ok(_) if folder.join("golden.json").is_file() => {}
            Ok(_) if !folder.join("goldens").is_dir() => {
                println!("golden {}: skipped: no goldens of its numbers", name(&folder));
            }
            Ok(spec) => found.push((folder, spec)),
        }
    }
    found
}

/// All sets on every device.
fn everywhere(folder: &Path) -> impl Iterator<Item = (On, Set)> {
    let sets = |on| sets(folder).into_iter().map(move |set| (on, set));
    On::all().into_iter().flat_map(sets)
}

fn sets(folder: &Path) -> Vec<Set> {
    let goldens = folder.join("goldens");
    let mut names: Vec<String> = fs::read_dir(&goldens)
        .unwrap()
        .filter_map(|entry| {
            entry.unwrap().path().file_name()?.to_str()?.strip_suffix(".json").map(str::to_owned)
        })
        .collect();
    names.sort();
    let read = |name: String| {
        let cases = serde_json::from_slice(&fs::read(goldens.join(format!("{name}.json"))).unwrap()).unwrap();
        let tensors = fs::read(goldens.join(format!("{name}.safetensors"))).unwrap();
        Set { name, cases, tensors }
    };
    names.into_iter().map(read).collect()
}

/// The checkpoint, with the config of the variant that the set is about.
fn open(folder: &Path, set: &str) -> Checkpoint {
    let Some(variant) = set.strip_prefix("variant_") else { return Checkpoint::open(folder).unwrap() };
    let with_variant = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() && !path.ends_with("config.json") {
            fs::copy(&path, with_variant.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    fs::copy(folder.join(format!("config_{variant}.json")), with_variant.path().join("config.json")).unwrap();
    // The weights are mapped, so they outlive the folder.
    Checkpoint::open(with_variant.path()).unwrap()
}

fn run(folder: &Path, spec: &DecoderSpec, set: &Set, bounds: &Bounds) {
    let checkpoint = open(folder, &set.name);
    let tensors = SafeTensors::deserialize(&set.tensors).unwrap();
    let steps = |case: &Value| case["greedy"].as_array().map_or(0, Vec::len);
    let room = set
        .cases
        .iter()
        .map(|case| case["n_tokens"].as_u64().unwrap() as usize + steps(case))
        .max()
        .unwrap_or(1);
    let setup = Setup { on: bounds.on, max_rows: CHUNK, max_context: room, ..Setup::new(bounds.compute) };
    let mut chain = Chain::load(&checkpoint, &setup);
    for case in &set.cases {
        let case_name = case["name"].as_str().unwrap();
        let golden = |tensor: &str| floats(&tensors, &format!("{case_name}.{tensor}"));
        let place = format!("{}/{} {case_name} {} {:?}", name(folder), set.name, bounds.compute, bounds.on);
        let ids = ids(&tensors, &format!("{case_name}.input_ids"));
        let mut sequence = Sequence::new(&ids, ids.len() + steps(case), 0);
        let evidence: Vec<usize> = (0..ids.len()).collect();

        if let Some(all_logits) = golden("all_logits") {
            let seen = chain.watched_step(&[sequence.span(0..ids.len(), &evidence)]);
            close(&format!("{place}: all_logits"), &seen.logits.concat(), &all_logits, bounds.logits);
            if bounds.compute == Compute::F32 {
                check_layers(&place, &seen, &golden("embed_all").unwrap(), &golden("block_out_all").unwrap());
                check_cache(
                    &place,
                    &chain,
                    spec,
                    &sequence,
                    [golden("cache_k").unwrap(), golden("cache_v").unwrap()],
                );
            }
        }
        let logits = chain.prefill(&sequence, CHUNK);
        close(&format!("{place}: last_logits"), &logits, &golden("last_logits").unwrap(), bounds.logits);
        if bounds.compute == Compute::F32 && ids.len() <= CHUNK {
            let seen = chain.watched_step(&[sequence.span(0..ids.len(), &[])]);
            check_last_row(&place, &seen, &golden("embed_last").unwrap(), &golden("block_out_last").unwrap());
        }
        for (key, stop_key, penalty) in
            [("greedy", "stop_at_eos", 1.0), ("greedy_rp1.02", "stop_at_eos_rp1.02", 1.02)]
        {
            sequence.ids.truncate(ids.len());
            let steps = case[key].as_array().cloned().unwrap_or_default();
            let reached =
                greedy(&place, &mut chain, &mut sequence, logits.clone(), (&steps, penalty), bounds);
            if let Some(index) = case[stop_key].as_u64() {
                assert_eq!(steps[index as usize]["token"], 2, "{place}: {stop_key}");
                assert!(
                    bounds.compute != Compute::F32 || reached,
                    "{place}: the step at {stop_key} was too close to tell"
                );
            }
        }
    }
}

/// Follows the golden tokens; each step's choice must be theirs wherever the margin tells. Whether every step's was.
fn greedy(
    place: &str,
    chain: &mut Chain,
    sequence: &mut Sequence,
    mut logits: Vec<f32>,
    (steps, penalty): (&[Value], f32),
    bounds: &Bounds,
) -> bool {
    let mut all = true;
    for (index, step) in steps.iter().enumerate() {
        let number = |key: &str| step[key].as_f64().unwrap() as f32;
        let token = step["token"].as_u64().unwrap() as u32;
        for id in sequence.ids.iter().collect::<BTreeSet<_>>() {
            let logit = &mut logits[*id as usize];
            *logit = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
        }
        let best = best(&logits);
        let place = format!("{place}: step {index} under penalty {penalty}");
        close(&place, &[logits[token as usize]], &[number("top1")], bounds.logits);
        if number("margin") > bounds.margin {
            assert_eq!(best, token, "{place}: margin {}", number("margin"));
        }
        all &= best == token;
        logits = chain.decode(sequence, token);
    }
    all
}

/// The greatest logit's id, the lowest of several.
fn best(logits: &[f32]) -> u32 {
    (0..logits.len()).rev().max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap() as u32
}

/// The residual stream of every row, before the first layer and after each.
fn check_layers(place: &str, seen: &Seen, embed: &[f32], block_out: &[f32]) {
    close(&format!("{place}: embed_all"), &seen.residuals[0].concat(), embed, TOLERANCE);
    let layers: Vec<f32> = seen.residuals[1..].iter().flatten().flatten().copied().collect();
    close(&format!("{place}: block_out_all"), &layers, block_out, TOLERANCE);
}

fn check_last_row(place: &str, seen: &Seen, embed: &[f32], block_out: &[f32]) {
    let last: Vec<&Vec<f32>> = seen.residuals.iter().map(|rows| rows.last().unwrap()).collect();
    close(&format!("{place}: embed_last"), last[0], embed, TOLERANCE);
    let layers: Vec<f32> = last[1..].iter().copied().flatten().copied().collect();
    close(&format!("{place}: block_out_last"), &layers, block_out, TOLERANCE);
}

/// Keys before rotation and values, `[layers, heads, rows, head_dim]`.
fn check_cache(place: &str, chain: &Chain, spec: &DecoderSpec, sequence: &Sequence, golden: [Vec<f32>; 2]) {
    let Family::TeleChat52b = spec.family;
    let (rows, half) = (sequence.prompt_len, spec.head_dim / 2);
    let (cos, sin) = rope::cos_sin(&spec.rope, spec.head_dim, rope::alpha_id(&spec.rope, rows), rows);
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    let stage = &chain.stages[0];
    for layer in 0..spec.layers {
        for head in 0..spec.kv_heads {
            for position in 0..rows {
                let block = sequence.blocks[position / BLOCK_ROWS];
                let at = KvPlace { layer, block, row: position % BLOCK_ROWS, head };
                let (mut key, value) = stage.kv().read(at).unwrap();
                for j in 0..half {
                    let (c, s) = (cos[position * half + j], sin[position * half + j]);
                    (key[j], key[j + half]) =
                        (key[j] * c + key[j + half] * s, key[j + half] * c - key[j] * s);
                }
                keys.extend(key);
                values.extend(value);
            }
        }
    }
    close(&format!("{place}: cache_k"), &keys, &golden[0], TOLERANCE);
    close(&format!("{place}: cache_v"), &values, &golden[1], TOLERANCE);
}

/// Where the goldens show what bf16 does to the reference's logits, it must do the like to ours.
fn check_noise(folder: &Path, on: On) {
    let Ok(bf16) = fs::read(folder.join("goldens/prefill_bf16_compute.safetensors")) else { return };
    let f32s = fs::read(folder.join("goldens/prefill.safetensors")).unwrap();
    let (bf16, f32s) = (SafeTensors::deserialize(&bf16).unwrap(), SafeTensors::deserialize(&f32s).unwrap());
    let setup = Setup { on, ..Setup::new(Compute::Bf16) };
    let mut chain = Chain::load(&Checkpoint::open(folder).unwrap(), &setup);
    let (mut ours, mut theirs) = (0.0, 0.0);
    let squares = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
    for name in bf16.names() {
        let case = name.strip_suffix(".last_logits_bf16_compute").unwrap();
        let exact = floats(&f32s, &format!("{case}.last_logits")).unwrap();
        let prompt = ids(&f32s, &format!("{case}.input_ids"));
        ours += squares(&chain.prefill(&Sequence::new(&prompt, prompt.len(), 0), CHUNK), &exact);
        theirs += squares(&floats(&bf16, name).unwrap(), &exact);
    }
    let ratio = (ours / theirs).sqrt();
    let name = name(folder);
    assert!(ratio <= BF16_RATIO, "{name} {on:?}: {ratio:.3} times the reference's bf16 noise");
    println!("golden {name}/prefill_bf16_compute {on:?}: passed, {ratio:.3} times the reference's noise");
}

fn close(what: &str, found: &[f32], golden: &[f32], tolerance: f32) {
    assert_eq!(found.len(), golden.len(), "{what}: length");
    for (index, (a, b)) in found.iter().zip(golden).enumerate() {
        // Written so that NaN fails.
        let difference = (a - b).abs();
        assert!(difference <= tolerance, "{what}: element {index} is {a}, golden {b}, tolerance {tolerance}");
    }
}

fn floats(tensors: &SafeTensors<'_>, name: &str) -> Option<Vec<f32>> {
    let view = tensors.tensor(name).ok()?;
    assert_eq!(view.dtype(), safetensors::Dtype::F32, "{name}");
    Some(view.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
}

fn ids(tensors: &SafeTensors<'_>, name: &str) -> Vec<u32> {
    let view = tensors.tensor(name).unwrap();
    view.data().as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect()
}

fn name(folder: &Path) -> String {
    folder.file_name().unwrap().to_string_lossy().into_owned()
}
