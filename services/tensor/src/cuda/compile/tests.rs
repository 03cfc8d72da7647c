//! Every kernel compiles for every kind of card, and what was compiled once is not compiled again. Needs NVRTC, not a card.

use std::collections::HashSet;
use std::env;
use std::fs;
use std::path::Path;

use super::*;
use crate::KvType;
use crate::cuda::kv::{self, TiledHead};
use crate::cuda::{attention, library};

/// All files of kernels.
const THEMES: [Theme; 11] = [
    Theme::Elementwise,
    Theme::Gemm,
    Theme::Pack,
    Theme::Blake3,
    Theme::Evidence,
    Theme::Probe,
    Theme::Rope,
    Theme::Attention,
    Theme::AttentionDecode,
    Theme::AttentionPrefill,
    Theme::AttentionPrefillMma,
];

/// How many of them, from the first on, are compiled for every card without definitions.
const PLAIN: usize = 6;

/// How many after these are compiled for every type of keys and values, whatever the heads.
const BY_KV_TYPE: usize = 2;

/// NVRTC's version; `None`, said aloud, where there is none. `ASTERISM_TEST_NVRTC=required` makes that a failure.
fn nvrtc() -> Option<(u32, u32)> {
    match library::nvrtc() {
        Ok(version) => Some(version),
        Err(error) if env::var("ASTERISM_TEST_NVRTC").is_ok_and(|value| value == "required") => {
            panic!("{error}")
        }
        Err(error) => {
            eprintln!("skipped: {error}");
            None
        }
    }
}

/// A compiler for Ampere.
fn compiler(cache: Option<&Path>) -> Option<Compiler> {
    Some(Compiler::new((8, 0), nvrtc()?, cache.map(Path::to_owned)).unwrap())
}

/// The sizes of heads that have tiled blocks and are found in models.
const HEAD_DIMS: [usize; 5] = [64, 80, 96, 128, 160];

/// All that is ever compiled for a card.
fn builds(capability: (u32, u32)) -> Vec<Build> {
    let plain = THEMES[..PLAIN].iter().map(|theme| (*theme, Vec::new()));
    let by_type = THEMES[PLAIN..][..BY_KV_TYPE]
        .iter()
        .flat_map(|theme| KvType::ALL.map(|kv_type| (*theme, vec![kv::define(kv_type)])));
    let heads = HEAD_DIMS.map(|dim| TiledHead { dim, kv_type: KvType::Bf16 });
    let tiled = heads.into_iter().flat_map(|head| attention::builds(capability, head));
    plain.chain(by_type).chain(tiled).collect()
}

/// Compiles everything; all faults are told, warnings too.
#[track_caller]
fn assert_all_compile(capability: (u32, u32)) {
    let Some(version) = nvrtc() else { return };
    let compiler = Compiler::new(capability, version, None).unwrap();
    let mut faults = Vec::new();
    for (theme, defines) in builds(capability) {
        let what = format!("{} {defines:?} for {}", theme.name(), compiler.target.name());
        match nvrtc::compile(&source(theme), &compiler.options(&defines), &compiler.target) {
            Err(log) => faults.push(format!("{what}: {log}")),
            Ok(compiled) if !compiled.log.is_empty() => faults.push(format!("{what}: {}", compiled.log)),
            Ok(compiled) => assert_eq!(&compiled.image[1..4], b"ELF", "{what}"),
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn every_theme_is_compiled_for_some_card() {
    let compiled = [(8, 0), (8, 9), (9, 0)].into_iter().flat_map(builds).map(|(theme, _)| theme);
    let compiled: HashSet<Theme> = compiled.collect();
    let left_out = THEMES.into_iter().filter(|theme| !compiled.contains(theme));
    assert_eq!(left_out.collect::<Vec<_>>(), []);
}

#[test]
fn every_kernel_compiles_for_ampere() {
    assert_all_compile((8, 0));
}

#[test]
fn every_kernel_compiles_for_ada() {
    assert_all_compile((8, 9));
}

#[test]
fn every_kernel_compiles_for_hopper() {
    assert_all_compile((9, 0));
}

#[test]
fn the_target_is_the_cards_or_one_that_it_understands() {
    let known = [75, 80, 86, 89, 90, 100, 120];
    let target = |capability| Target::of(capability, &known).unwrap().name();
    assert_eq!(target((8, 0)), "sm_80");
    assert_eq!(target((8, 9)), "sm_89");
    assert_eq!(target((9, 0)), "sm_90a");
    assert_eq!(target((12, 1)), "sm_120");
    assert_eq!(target((13, 0)), "compute_120");
    assert_eq!(Target::of((9, 0), &known[..4]).unwrap().name(), "compute_89");
    assert!(Target::of((7, 0), &known).is_err());
}

#[test]
fn a_card_from_the_future_gets_text() {
    let Some(version) = nvrtc() else { return };
    let compiler = Compiler::new((99, 0), version, None).unwrap();
    let image = compiler.image(Theme::Probe, &[]).unwrap();
    assert!(String::from_utf8_lossy(&image).contains(".entry probe_read"));
}

#[test]
fn the_second_start_compiles_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let Some(first) = compiler(Some(folder.path())) else { return };
    let image = first.image(Theme::Probe, &[]).unwrap();
    assert_eq!((first.report().compiled, first.report().cached), (1, 0));
    assert!(first.report().time > Duration::ZERO);
    let second = compiler(Some(folder.path())).unwrap();
    assert_eq!(second.image(Theme::Probe, &[]).unwrap(), image);
    assert_eq!((second.report().compiled, second.report().cached), (0, 1));
    assert_eq!(second.report().not_kept, None);
    // Other definitions are other code.
    second.image(Theme::Probe, &[("OTHER", 1)]).unwrap();
    assert_eq!(second.report().compiled, 1);
}

#[test]
fn types_of_keys_and_values_are_numbered_as_in_the_kernels_and_have_code_of_their_own() {
    let source = source(Theme::Rope);
    for kv_type in KvType::ALL {
        let (macro_name, number) = kv::define(kv_type);
        let name = kv_type.name().to_uppercase();
        assert!(source.contains(&format!("#if {macro_name} == KV_{name}\n")), "{name}");
        assert!(source.contains(&format!("#define KV_{name} {number}\n")), "{name}");
    }
    let folder = tempfile::tempdir().unwrap();
    let Some(compiler) = compiler(Some(folder.path())) else { return };
    let images = KvType::ALL.map(|kv_type| compiler.image(Theme::Rope, &[kv::define(kv_type)]).unwrap());
    assert_ne!(images[0], images[1]);
    assert_eq!((compiler.report().compiled, compiler.report().cached), (2, 0));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
}

#[test]
fn kernels_that_multiply_blocks_as_they_rest_refuse_another_type() {
    if nvrtc().is_none() {
        return;
    }
    let head = TiledHead { dim: 128, kv_type: KvType::F32 };
    for capability in [(8, 0), (9, 0)] {
        let compiler = Compiler::new(capability, nvrtc().unwrap(), None).unwrap();
        for (theme, defines) in attention::builds(capability, head) {
            match compiler.image(theme, &defines) {
                Err(TensorError::Kernel { log, .. }) => {
                    assert!(log.contains("blocks are multiplied as they rest"), "{log}");
                }
                other => panic!("{}: {:?}", theme.name(), other.map(|image| image.len())),
            }
        }
    }
}

#[test]
fn another_version_or_card_compiles_anew() {
    let folder = tempfile::tempdir().unwrap();
    let Some(first) = compiler(Some(folder.path())) else { return };
    first.image(Theme::Probe, &[]).unwrap();
    for (capability, version) in [((8, 6), first.nvrtc), ((8, 0), (first.nvrtc.0, first.nvrtc.1 + 1))] {
        let other = Compiler::new(capability, version, Some(folder.path().to_owned())).unwrap();
        other.image(Theme::Probe, &[]).unwrap();
        assert_eq!((other.report().compiled, other.report().cached), (1, 0));
    }
}

#[test]
fn damaged_code_is_compiled_again_and_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let Some(first) = compiler(Some(folder.path())) else { return };
    let image = first.image(Theme::Probe, &[]).unwrap();
    let entry = fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
    let mut bytes = fs::read(&entry).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&entry, bytes).unwrap();
    for (compiled, cached) in [(1, 0), (0, 1)] {
        let next = compiler(Some(folder.path())).unwrap();
        assert_eq!(next.image(Theme::Probe, &[]).unwrap(), image);
        assert_eq!((next.report().compiled, next.report().cached), (compiled, cached));
    }
}

#[test]
fn a_cache_that_cannot_be_written_is_only_told() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let Some(compiler) = compiler(Some(&file.path().join("below"))) else { return };
    compiler.image(Theme::Probe, &[]).unwrap();
    let report = compiler.report();
    assert_eq!(report.compiled, 1);
    assert!(report.not_kept.unwrap().contains("below"));
}

#[test]
fn nothing_is_made_twice_in_one_start() {
    let Some(compiler) = compiler(None) else { return };
    let images = [(); 2].map(|()| compiler.image(Theme::Probe, &[]).unwrap());
    assert_eq!(images[0], images[1]);
    assert_eq!(compiler.report().compiled, 1);
}

#[test]
fn a_fault_is_told_in_the_compilers_words() {
    if nvrtc().is_none() {
        return;
    }
    let target = Target::Code(80);
    let options = [target.option()];
    let log = nvrtc::compile("#line 1 \"theme.cu\"\nmistake", &options, &target).err().unwrap();
    assert!(log.contains("theme.cu") && log.contains("mistake"), "{log}");
}
