//! The sampler against the reference's golden distributions.
//!
//! The data lies in `ASTERISM_GOLDEN`, else `../shared/golden` beside the workspace, else `tests/golden`.

#![expect(clippy::unwrap_used, clippy::panic, reason = "the helpers of tests fail as tests do")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use asterism_gateway::sampler::{Draw, Evidence, Row, Sampling, draw_at, draw_from_row_at};
use asterism_gateway::text::GenerationDefaults;
use asterism_proto::list::pack;
use asterism_proto::{shard, v1};
use safetensors::SafeTensors;
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    case: String,
    context_ids: Vec<u32>,
    params: Params,
    has_ties: bool,
    /// The first 60 (id, probability), descending, ties by lower id.
    probs: Vec<(u32, f64)>,
    n_nonzero: usize,
    greedy_after_penalty: u32,
}

#[derive(Deserialize)]
struct Params {
    temperature: f32,
    top_k: u32,
    top_p: f32,
    repetition_penalty: f32,
}

/// How far a boundary between two candidates may lie from the reference's, which computes in f32.
const TOLERANCE: f64 = 1e-5;

fn root() -> PathBuf {
    if let Some(named) = std::env::var_os("ASTERISM_GOLDEN") {
        return PathBuf::from(named);
    }
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let shared = workspace.join("../shared/golden");
    if shared.is_dir() { shared } else { workspace.join("tests/golden") }
}

#[test]
fn golden_sampling() {
    let folder = root().join("sampling");
    if !folder.is_dir() {
        println!("golden sampling: SKIPPED (no such folder in {})", root().display());
        return;
    }
    let cases: Vec<Case> =
        serde_json::from_slice(&std::fs::read(folder.join("cases.json")).unwrap()).unwrap();
    let file = std::fs::read(folder.join("logits.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&file).unwrap();
    assert!(!cases.is_empty());
    for case in &cases {
        let raw = numbers(tensors.tensor(&case.case).unwrap().data());
        let rows = Rows { processed: penalised(&raw, case), raw };
        greedy(case, &rows);
        drawn(case, &rows);
    }
    println!("golden sampling: {} cases pass", cases.len());
}

/// A row before and after the processors.
struct Rows {
    raw: Vec<f32>,
    processed: Vec<f32>,
}

fn numbers(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|&logit| f32::from_le_bytes(logit)).collect()
}

/// The repetition penalty as the reference applies it, in f32.
fn penalised(raw: &[f32], case: &Case) -> Vec<f32> {
    let penalty = case.params.repetition_penalty;
    let mut row = raw.to_vec();
    for id in case.context_ids.iter().collect::<BTreeSet<_>>() {
        let logit = &mut row[*id as usize];
        *logit = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
    }
    row
}

/// Greedy decoding and the draw with the case's parameters; vocabulary of the row.
fn sampling(case: &Case, vocab: u32, do_sample: bool) -> Sampling {
    let request = v1::Sampling {
        do_sample: Some(do_sample),
        temperature: Some(case.params.temperature),
        top_k: Some(case.params.top_k),
        top_p: Some(case.params.top_p),
        repetition_penalty: Some(case.params.repetition_penalty),
        ..Default::default()
    };
    let defaults = GenerationDefaults::default();
    Sampling::resolve(&request, &v1::Output::default(), &defaults, vocab, 0).unwrap()
}

/// What a last stage reports, with the `k` best.
fn evidence(rows: &Rows, sampling: &Sampling, k: usize) -> Evidence {
    let row = &rows.processed;
    let mut ids: Vec<u32> = (0..row.len() as u32).collect();
    ids.sort_by(|&a, &b| row[b as usize].total_cmp(&row[a as usize]).then(a.cmp(&b)));
    ids.truncate(k);
    let log_sum_exp = |temperature: f64| {
        let max = f64::from(row[ids[0] as usize]);
        max / temperature + row.iter().map(|&x| ((f64::from(x) - max) / temperature).exp()).sum::<f64>().ln()
    };
    let of = |row: &[f32]| pack(&ids.iter().map(|&id| row[id as usize]).collect::<Vec<_>>());
    let wire = shard::v1::Evidence {
        processed: of(row),
        raw: of(&rows.raw),
        processed_log_sum_exp: sampling
            .setting(1)
            .temperature
            .map(|temperature| log_sum_exp(temperature.into())),
        ids: pack(&ids),
        ..Default::default()
    };
    Evidence::parse(wire, sampling, row.len() as u32).unwrap()
}

fn greedy(case: &Case, rows: &Rows) {
    let vocab = rows.raw.len() as u32;
    let sampling = sampling(case, vocab, false);
    let evidence = evidence(rows, &sampling, sampling.evidence_k(vocab) as usize);
    match draw_at(&sampling, &evidence, vocab, 0.0) {
        Draw::Token(token) => assert_eq!(token.id, case.greedy_after_penalty, "{}", case.case),
        Draw::NeedsRow => panic!("{}: greedy needs no row", case.case),
    }
}

fn drawn(case: &Case, rows: &Rows) {
    let vocab = rows.raw.len() as u32;
    let sampling = sampling(case, vocab, true);
    let bytes: Vec<u8> = rows.processed.iter().flat_map(|logit| logit.to_le_bytes()).collect();
    let wire = shard::v1::FetchLogitsResponse { processed: bytes.into(), raw: Default::default() };
    let row = Row::parse(&wire, &sampling, vocab).unwrap();
    let evidence_of_k: Vec<Evidence> = [1, 4, sampling.evidence_k(vocab) as usize]
        .map(|k| evidence(rows, &sampling, k.min(vocab as usize)))
        .into();
    let id_at = |uniform: f64| {
        let id = draw_from_row_at(&sampling, &evidence_of_k[0], &row, uniform).id;
        for evidence in &evidence_of_k {
            if let Draw::Token(token) = draw_at(&sampling, evidence, vocab, uniform) {
                assert_eq!(token.id, id, "{} at {uniform}: evidence and row differ", case.case);
            }
        }
        id
    };
    // Among equals the reference's choice hangs on its sort: there the logits are compared.
    let same = |a: u32, b: u32| {
        a == b || (case.has_ties && rows.processed[a as usize] == rows.processed[b as usize])
    };
    let mut below = 0.0;
    for &(id, probability) in &case.probs {
        let above = below + probability;
        if probability > 2.5 * TOLERANCE {
            for uniform in [below + TOLERANCE, (below + above) / 2.0, above - TOLERANCE] {
                let found = id_at(uniform);
                assert!(same(found, id), "{} at {uniform}: {found}, not {id}", case.case);
            }
        }
        below = above;
    }
    if case.probs.len() == case.n_nonzero {
        let &(last, probability) = case.probs.last().unwrap();
        let found = id_at(1.0 - f64::EPSILON / 2.0);
        let (logit, least) = (rows.processed[found as usize], rows.processed[last as usize]);
        assert!(logit >= least, "{}: {found} should have been cut off", case.case);
        assert!(probability < TOLERANCE || same(found, last), "{}: {found}, not {last}", case.case);
    }
}
