//! Whole rows of logits, and rows that cannot be used.

use std::path::Path;

use asterism_proto::list::{pack, unpack};
use asterism_proto::shard::v1::{Evidence, FetchLogitsRequest, FetchLogitsResponse};
use asterism_shard::ShardConfig;
use tonic::{Code, Status};

use crate::driver::{Driver, Pipeline, holder, soon, tiny};
use crate::plans::{Talk, all_on, off};

async fn fetch(
    driver: &mut Driver,
    stage: usize,
    of: (u64, u64, u32),
) -> Result<FetchLogitsResponse, Status> {
    let (step, sequence, position) = of;
    let holder = Some(driver.holder.clone());
    let request = FetchLogitsRequest { holder, step, sequence, position, raw_too: true };
    soon(driver.clients[stage].fetch_logits(request)).await.map(tonic::Response::into_inner)
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    unpack(bytes).expect("whole numbers")
}

#[track_caller]
fn assert_same_row(row: &FetchLogitsResponse, evidence: &Evidence) {
    let (processed, raw) = (floats(&row.processed), floats(&row.raw));
    assert_eq!((processed.len(), raw.len()), (512, 512));
    let mut ids: Vec<u32> = (0..512).collect();
    ids.sort_by(|a, b| processed[*b as usize].total_cmp(&processed[*a as usize]).then(a.cmp(b)));
    assert_eq!(pack(&ids[..8]), evidence.ids);
    let best = |row: &[f32]| pack(&ids[..8].iter().map(|id| row[*id as usize]).collect::<Vec<_>>());
    assert_eq!((best(&processed), best(&raw)), (evidence.processed.clone(), evidence.raw.clone()));
}

#[tokio::test]
async fn a_row_can_be_fetched_until_its_sequence_goes_on() {
    let pipeline = Pipeline::plain(2).await;
    let mut driver = Driver::join(&pipeline, holder(1, "a")).await.expect("nobody holds it");
    let (mut one, mut two) = (Talk::new(1, 9, all_on(1)), Talk::new(2, 12, all_on(2)));
    let evidence = driver.step(vec![one.prompt(), two.prompt()]).await;
    let row = fetch(&mut driver, 1, (1, 1, 8)).await.expect("kept");
    assert_same_row(&row, &evidence[0]);
    one.say(100);
    driver.step(vec![one.span(1)]).await;
    // The other sequence did not go on; asked twice, its row is the same.
    for _ in 0..2 {
        let row = fetch(&mut driver, 1, (1, 2, 11)).await.expect("kept");
        assert_same_row(&row, &evidence[1]);
    }
    for gone in [(1, 1, 8), (1, 1, 9), (2, 2, 11), (1, 3, 0)] {
        let status = fetch(&mut driver, 1, gone).await.expect_err("no such row");
        assert_eq!(status.code(), Code::NotFound, "{status}");
    }
    let status = fetch(&mut driver, 0, (1, 2, 11)).await.expect_err("not on the first stage");
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    let end = asterism_proto::shard::v1::StepPlan { ended: vec![1, 2], ..driver.plan(vec![]) };
    assert_eq!(driver.run(end).await.expect("ends only"), []);
    let status = fetch(&mut driver, 1, (1, 2, 11)).await.expect_err("ended");
    assert_eq!(status.code(), Code::NotFound, "{status}");
}

/// The tiny checkpoint with NaN where token id 7 is looked up.
fn poisoned(folder: &Path) {
    for file in ["config.json", "generation_config.json"] {
        std::fs::copy(tiny().join(file), folder.join(file)).expect("copied");
    }
    let mut bytes = std::fs::read(tiny().join("model.safetensors")).expect("read");
    let header_len = u64::from_le_bytes(bytes[..8].try_into().expect("eight")) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header_len]).expect("JSON");
    let (_, embedding) = header
        .as_object()
        .and_then(|header| header.iter().find(|(name, _)| name.ends_with("wte.weight")))
        .expect("an embedding");
    let start = 8 + header_len + embedding["data_offsets"][0].as_u64().expect("an offset") as usize;
    let end = 8 + header_len + embedding["data_offsets"][1].as_u64().expect("an offset") as usize;
    let row = (end - start) / 512;
    // All ones are a NaN in every float type.
    bytes[start + 7 * row..start + 8 * row].fill(0xff);
    std::fs::write(folder.join("model.safetensors"), bytes).expect("written");
}

#[tokio::test]
async fn a_sequence_that_makes_nan_harms_itself_only() {
    let folder = tempfile::tempdir().expect("a folder");
    poisoned(folder.path());
    let pipeline =
        Pipeline::start(2, |config| ShardConfig { model: folder.path().to_owned(), ..config }).await;
    let mut driver = Driver::join(&pipeline, holder(1, "a")).await.expect("nobody holds it");
    let (mut sick, mut well) = (Talk::new(1, 9, off(1)), Talk::new(2, 9, off(2)));
    sick.ids[4] = 7;
    assert!(!well.ids.contains(&7));
    let together = driver.step(vec![sick.prompt(), well.prompt()]).await;
    assert!(
        together[0].error.as_deref().is_some_and(|error| error.contains("not finite")),
        "{:?}",
        together[0]
    );
    let ids: Vec<u32> = unpack(&together[1].ids).expect("whole numbers");
    assert_eq!((together[1].error.as_ref(), ids.len()), (None, 8));
    // The blocks that hold NaN serve another sequence at once.
    let mut heir = Talk { blocks: sick.blocks.clone(), ..Talk::new(3, 9, off(3)) };
    heir.ids.clone_from(&well.ids);
    let end = asterism_proto::shard::v1::StepPlan { ended: vec![1], ..driver.plan(vec![heir.prompt()]) };
    let alone = driver.run(end).await.expect("a good plan");
    assert_eq!(alone, [Evidence { sequence: 3, ..together[1].clone() }]);
}
