use std::mem::offset_of;

use super::pass::{Found, PassRoom, Places, RowJob, SearchJob, SumJob};
use super::*;

const VOCAB: usize = 1500;
const PLACES: Places =
    Places { logits: 1 << 40, slots: Some(2 << 40), processed: 3 << 40, upload: 4 << 40, results: 5 << 40 };

fn plain(row: usize, top_k: usize) -> EvidenceRequest<'static> {
    let slot = row + 10;
    EvidenceRequest { row, slot, processors: Processors::NONE, top_k, temperature: None, logprobs: None }
}

fn room(rows: usize, ids: usize) -> PassRoom {
    PassRoom::new(EvidenceRoom { rows, vocab: VOCAB, top_k: 64, ids })
}

fn jobs<T: bytemuck::AnyBitPattern>(upload: &[u8], at: usize, count: usize) -> Vec<T> {
    upload[at..].chunks_exact(size_of::<T>()).take(count).map(bytemuck::pod_read_unaligned).collect()
}

#[test]
fn structs_are_those_of_the_kernels() {
    assert_eq!([size_of::<RowJob>(), size_of::<SearchJob>(), size_of::<SumJob>()], [80, 32, 32]);
    assert_eq!([size_of::<Lists>(), size_of::<Found>()], [32, 12]);
    assert_eq!([offset_of!(RowJob, id_count), offset_of!(RowJob, repetition)], [48, 64]);
    assert_eq!([offset_of!(SearchJob, list), offset_of!(SumJob, temperature)], [24, 16]);
    assert_eq!(offset_of!(Lists, rows), 24);
}

#[test]
fn a_plain_row_is_searched_once_where_it_is() {
    let room = room(4, 0);
    let mut upload = vec![0; room.upload_bytes];
    let requests =
        [plain(3, 5), EvidenceRequest { logprobs: Some(9), temperature: Some(0.5), ..plain(2, 7) }];
    let pass = Pass::lay_out(&requests, &room, &PLACES, &mut upload).unwrap();
    assert_eq!((pass.rows, pass.searches, pass.sums), (2, 2, 2));
    let row = (VOCAB * 4) as u64;
    let rows: Vec<RowJob> = jobs(&upload, 0, 2);
    assert_eq!((rows[0].raw, rows[0].slot), (PLACES.logits + 3 * row, (2 << 40) + 13 * row));
    assert_eq!([rows[1].processed, rows[1].allowed, rows[1].search_raw.into()], [0, 0, 1]);
    assert_eq!([rows[1].id_count, rows[1].bias_count], [0, 0]);
    let searches: Vec<SearchJob> = jobs(&upload, pass.searches_at, 2);
    assert_eq!((searches[1].row, searches[1].list, searches[1].best), (rows[1].raw, 1, 9));
    let sums: Vec<SumJob> = jobs(&upload, pass.sums_at, 2);
    assert_eq!((sums[0].temperature, sums[0].list), (0.5, 1));
    assert_eq!((sums[1].temperature, sums[1].row), (1.0, rows[1].raw));
    assert_eq!(pass.result_bytes, 2 * 3 * 8 + 2 * 4 + (5 + 9) * 12);
    assert!(pass.result_bytes <= room.result_bytes && pass.upload_bytes <= room.upload_bytes);
}

#[test]
fn processors_travel_beside_the_jobs() {
    let room = room(2, 8);
    let mut upload = vec![0; room.upload_bytes];
    let (bias, ids, allowed) = ([(7, 0.5), (9, -1.0), (7, 2.0)], [4, 5, 6, 7, 8], [0xa5; VOCAB.div_ceil(8)]);
    let processors = Processors {
        bias: &bias,
        repetition: 1.5,
        presence: 0.25,
        frequency: -0.5,
        allowed: &allowed,
        ids: &ids,
        prompt_len: 9,
    };
    let unpenalized = Processors { bias: &bias, ids: &ids, ..Processors::NONE };
    let requests = [
        EvidenceRequest { processors, logprobs: Some(3), temperature: Some(1.0), ..plain(0, 5) },
        EvidenceRequest { processors: unpenalized, ..plain(1, 2000) },
    ];
    let pass = Pass::lay_out(&requests, &room, &PLACES, &mut upload).unwrap();
    let rows: Vec<RowJob> = jobs(&upload, 0, 2);
    assert_eq!((rows[0].id_count, rows[0].prompt_len, rows[0].bias_count), (5, 5, 3));
    assert_eq!((rows[0].repetition, rows[0].presence, rows[0].frequency), (1.5, 0.25, -0.5));
    assert_eq!((rows[0].processed, rows[0].search_raw), (PLACES.processed, 1));
    assert_eq!((rows[1].processed, rows[1].search_raw), (PLACES.processed + 4 * VOCAB as u64, 0));
    assert_eq!((rows[1].id_count, rows[1].bias_count, rows[1].allowed), (0, 3, 0));
    let at = |address: u64| (address - PLACES.upload) as usize;
    assert_eq!(jobs::<u32>(&upload, at(rows[0].ids), 5), ids);
    assert_eq!(
        jobs::<u32>(&upload, at(rows[0].bias), 6),
        [7, 0.5_f32.to_bits(), 9, (-1.0_f32).to_bits(), 7, 1 << 30]
    );
    assert_eq!(upload[at(rows[0].allowed)..][..allowed.len()], allowed);
    // Searches of the rows come first, in their order; a raw one follows.
    let searches: Vec<SearchJob> = jobs(&upload, pass.searches_at, pass.searches);
    assert_eq!(searches.iter().map(|job| job.list).collect::<Vec<_>>(), [2, 3, 0]);
    assert_eq!(searches.iter().map(|job| job.best).collect::<Vec<_>>(), [5, 2000, 3]);
    assert_eq!(searches[1].out + 12 * VOCAB as u64, PLACES.results + pass.result_bytes as u64);
    assert!(pass.upload_bytes <= room.upload_bytes);
}

#[test]
fn what_does_not_fit_waits_for_the_next_pass() {
    let many = [plain(0, 1); 5];
    let narrow = room(3, 0);
    let mut upload = vec![0; narrow.upload_bytes];
    assert_eq!(Pass::lay_out(&many, &narrow, &PLACES, &mut upload).unwrap().rows, 3);
    // Biases of every id: a row at a time.
    let bias: Vec<(u32, f32)> = (0..VOCAB as u32).map(|id| (id, 1.0)).collect();
    let processors = Processors { bias: &bias, ..Processors::NONE };
    let heavy = [EvidenceRequest { processors, ..plain(0, 1) }; 3];
    let wide = room(4, 1000);
    let mut upload = vec![0; wide.upload_bytes];
    let pass = Pass::lay_out(&heavy, &wide, &PLACES, &mut upload).unwrap();
    assert!((1..3).contains(&pass.rows) && pass.upload_bytes <= wide.upload_bytes, "{pass:?}");
    let ids = vec![0; 1001];
    let processors =
        Processors { ids: &ids, presence: 1.0, bias: &bias, allowed: &[0; 188], ..Processors::NONE };
    let too_long = EvidenceRequest { processors, ..plain(0, 1) };
    let one = room(1, 900);
    assert!(Pass::lay_out(&[too_long], &one, &PLACES, &mut vec![0; one.upload_bytes]).is_err());
}

#[test]
fn results_are_read_where_kernels_put_them() {
    let room = room(2, 0);
    let mut upload = vec![0; room.upload_bytes];
    let requests =
        [EvidenceRequest { temperature: Some(2.0), logprobs: Some(1), ..plain(0, 2) }, plain(1, 1)];
    let pass = Pass::lay_out(&requests, &room, &PLACES, &mut upload).unwrap();
    let mut results = vec![0; pass.result_bytes];
    let sums: Vec<SumJob> = jobs(&upload, pass.sums_at, pass.sums);
    for (sum, scale) in sums.iter().zip([1.0, 10.0]) {
        let at = (sum.out - PLACES.results) as usize;
        results[at..at + 24].copy_from_slice(bytemuck::cast_slice(&[3.0, scale, 0.5]));
    }
    results[pass.non_finite_at..][..8].copy_from_slice(bytemuck::cast_slice(&[u32::MAX, 17]));
    let searches: Vec<SearchJob> = jobs(&upload, pass.searches_at, pass.searches);
    for (search, id) in searches.iter().zip([100, 200]) {
        for i in 0..search.best {
            let at = (search.out - PLACES.results) as usize + 12 * i as usize;
            let found = Found { id: id + i, logit: 2.5 - i as f32, raw: 1.5 };
            results[at..at + 12].copy_from_slice(bytemuck::bytes_of(&found));
        }
    }
    let mut told = Vec::new();
    pass.read(&requests, &results, &mut told);
    let first = RowEvidence {
        non_finite: None,
        ids: vec![100, 101],
        processed: vec![2.5, 1.5],
        raw: vec![1.5, 1.5],
        processed_log_sum_exp: Some(1.5 + libm::log(1.5)),
        raw_log_sum_exp: Some(3.0 + libm::log(10.5)),
        raw_best_ids: vec![100],
        raw_best: vec![1.5],
    };
    let second = RowEvidence {
        non_finite: Some(17),
        ids: vec![200],
        processed: vec![2.5],
        raw: vec![1.5],
        ..RowEvidence::default()
    };
    assert_eq!(told, [first, second]);
}
