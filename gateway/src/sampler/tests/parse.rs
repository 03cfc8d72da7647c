//! What a shard may not send.

use asterism_proto::list::{NotWhole, Number, unpack};
use bytes::Bytes;

use super::*;
use crate::sampler::{EvidenceError, RowError};

const ROW: [f32; 6] = [1.0, 4.0, 2.0, 4.0, -1.0, 0.5];

fn sampling() -> Sampling {
    resolved(&asking(&OFF), &v1::Output { logprobs: Some(2) }, ROW.len())
}

#[track_caller]
fn refused(change: impl FnOnce(&mut shard::v1::Evidence)) -> EvidenceError {
    let mut wire = wire(&ROW, 4, &sampling());
    change(&mut wire);
    Evidence::parse(wire, &sampling(), ROW.len() as u32).unwrap_err()
}

/// Changes a list.
fn change<N: Number>(bytes: &mut Bytes, change: impl FnOnce(&mut Vec<N>)) {
    let mut list = unpack(bytes).unwrap();
    change(&mut list);
    *bytes = pack(&list);
}

fn ids(bytes: &mut Bytes, with: impl FnOnce(&mut Vec<u32>)) {
    change(bytes, with);
}

fn logits(bytes: &mut Bytes, with: impl FnOnce(&mut Vec<f32>)) {
    change(bytes, with);
}

#[test]
fn good_evidence_is_taken() {
    let evidence = evidence(&ROW, 4, &sampling());
    assert_eq!((evidence.position(), &evidence.ids), (9, &vec![1, 3, 2, 0]));
    assert_eq!(evidence.raw_best, [(1, 4.0), (3, 4.0)]);
}

#[test]
fn the_shard_s_own_error_passes() {
    let message = "a logit is NaN".to_owned();
    let error =
        refused(|wire| *wire = shard::v1::Evidence { error: Some(message.clone()), ..Default::default() });
    assert_eq!(error, EvidenceError::Unusable { position: 0, message });
}

#[test]
fn lists_must_agree() {
    use EvidenceError::{Count, Lengths};
    assert_eq!(
        refused(|wire| ids(&mut wire.ids, |ids| _ = ids.pop())),
        Lengths { ids: 3, list: "processed", logits: 4 }
    );
    assert_eq!(refused(|wire| wire.raw.clear()), Lengths { ids: 4, list: "raw", logits: 0 });
    assert_eq!(refused(|wire| wire.raw_best.clear()), Lengths { ids: 2, list: "best raw", logits: 0 });
    let empty = |wire: &mut shard::v1::Evidence| {
        (wire.ids, wire.processed, wire.raw) = Default::default();
    };
    assert!(matches!(refused(empty), Count { list: "processed", found: 0, .. }));
    let too_few = |wire: &mut shard::v1::Evidence| {
        wire.raw_best.truncate(4);
        wire.raw_best_ids.truncate(4);
    };
    assert!(matches!(refused(too_few), Count { list: "raw", found: 1, .. }));
    let torn = |wire: &mut shard::v1::Evidence| wire.raw.truncate(15);
    assert_eq!(refused(torn), EvidenceError::List { list: "raw", why: NotWhole(15) });
}

#[test]
fn ids_must_be_of_the_vocabulary_and_different() {
    assert_eq!(
        refused(|wire| ids(&mut wire.ids, |ids| ids[3] = 6)),
        EvidenceError::IdOutOfRange { id: 6, vocab: 6 }
    );
    assert_eq!(
        refused(|wire| ids(&mut wire.raw_best_ids, |ids| ids[1] = u32::MAX)),
        EvidenceError::IdOutOfRange { id: u32::MAX, vocab: 6 }
    );
    assert_eq!(refused(|wire| ids(&mut wire.ids, |ids| ids[3] = 1)), EvidenceError::Twice { id: 1 });
}

#[test]
fn logits_must_be_numbers() {
    for value in [f32::NAN, f32::INFINITY] {
        let error = refused(|wire| logits(&mut wire.processed, |logits| logits[1] = value));
        assert!(matches!(error, EvidenceError::NotFinite { .. }));
    }
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let error = refused(|wire| logits(&mut wire.processed, |logits| logits[0] = value));
        assert!(matches!(error, EvidenceError::NotFinite { .. }));
        let error = refused(|wire| logits(&mut wire.raw, |logits| logits[1] = value));
        assert!(matches!(error, EvidenceError::NotFinite { .. }));
        let error = refused(|wire| logits(&mut wire.raw_best, |logits| logits[1] = value));
        assert!(matches!(error, EvidenceError::NotFinite { .. }));
        let value = f64::from(value);
        assert!(matches!(
            refused(|wire| wire.processed_log_sum_exp = Some(value)),
            EvidenceError::NotFinite { .. }
        ));
        assert!(matches!(
            refused(|wire| wire.raw_log_sum_exp = Some(value)),
            EvidenceError::NotFinite { .. }
        ));
    }
    // A mask's −∞ is none of these.
    let mut wire = wire(&ROW, 4, &sampling());
    logits(&mut wire.processed, |logits| logits[3] = f32::NEG_INFINITY);
    assert!(Evidence::parse(wire, &sampling(), 6).is_ok());
}

#[test]
fn candidates_must_be_in_order() {
    use EvidenceError::OutOfOrder;
    let swap = |wire: &mut shard::v1::Evidence| ids(&mut wire.ids, |ids| ids.swap(0, 1));
    assert_eq!(refused(swap), OutOfOrder { list: "processed", rank: 1 }, "equals by lower id");
    assert_eq!(
        refused(|wire| logits(&mut wire.processed, |logits| logits[3] = 3.0)),
        OutOfOrder { list: "processed", rank: 3 }
    );
    assert_eq!(
        refused(|wire| ids(&mut wire.raw_best_ids, |ids| ids.swap(0, 1))),
        OutOfOrder { list: "raw", rank: 1 }
    );
}

#[test]
fn what_the_draw_needs_must_be_there() {
    let error = refused(|wire| wire.processed_log_sum_exp = None);
    assert_eq!(error, EvidenceError::Missing { what: "the processed log-sum-exp" });
    let error = refused(|wire| wire.raw_log_sum_exp = None);
    assert_eq!(error, EvidenceError::Missing { what: "the raw log-sum-exp" });
    // With top-k there is no need.
    let sampling = resolved(&asking(&Shape { top_k: k(2), ..OFF }), &v1::Output::default(), ROW.len());
    assert_eq!(wire(&ROW, 4, &sampling).processed_log_sum_exp, None);
    assert!(Evidence::parse(wire(&ROW, 4, &sampling), &sampling, 6).is_ok());
}

#[test]
fn rows_are_checked_too() {
    let bytes = |row: &[f32]| row.iter().flat_map(|logit| logit.to_le_bytes()).collect::<Vec<u8>>();
    let parse = |processed: Vec<u8>, raw: Vec<u8>| {
        let wire = shard::v1::FetchLogitsResponse { processed: processed.into(), raw: raw.into() };
        Row::parse(&wire, &sampling(), ROW.len() as u32)
    };
    let fine = bytes(&ROW);
    assert!(parse(fine.clone(), fine.clone()).is_ok());
    let length = |row, bytes| Err(RowError::Length { row, bytes, vocab: 6 });
    assert_eq!(parse(fine[..20].to_vec(), fine.clone()), length("processed", 20));
    assert_eq!(parse(fine[..23].to_vec(), fine.clone()), length("processed", 23));
    assert_eq!(parse([fine.clone(), vec![0]].concat(), fine.clone()), length("processed", 25));
    assert_eq!(parse(fine.clone(), Vec::new()), length("raw", 0));
    let mut row = ROW;
    row[2] = f32::NEG_INFINITY;
    assert!(parse(bytes(&row), fine.clone()).is_ok(), "masked");
    assert_eq!(
        parse(fine.clone(), bytes(&row)),
        Err(RowError::NotFinite { row: "raw", id: 2, logit: f32::NEG_INFINITY })
    );
    row[2] = f32::INFINITY;
    assert!(matches!(
        parse(bytes(&row), fine.clone()),
        Err(RowError::NotFinite { row: "processed", id: 2, .. })
    ));
    assert_eq!(parse(bytes(&[f32::NEG_INFINITY; 6]), fine), Err(RowError::NothingAllowed));
}
