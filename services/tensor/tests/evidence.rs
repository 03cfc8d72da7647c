//! Logit processors, the best ids, log-sum-exp and the finite check: every device against plain Rust, by `==`.
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

mod support;

use asterism_tensor::{
    Device, Dtype, EvidenceMemory, EvidenceRequest, EvidenceRoom, Processors, RowEvidence, Tensor,
};
use support::{Rng, all, assert_near, best, tensor};

const VOCABS: [usize; 8] = [1, 5, 151, 1024, 1025, 49_152, 80_896, 160_256];

/// No context is longer.
const IDS: usize = 5000;

fn room(rows: usize, vocab: usize) -> EvidenceRoom {
    EvidenceRoom { rows, vocab, top_k: 1024, ids: IDS }
}

/// Row `row`, kept in the slot of the same number.
fn wanted(row: usize, top_k: usize) -> EvidenceRequest<'static> {
    EvidenceRequest { row, slot: row, processors: Processors::NONE, top_k, temperature: None, logprobs: None }
}

/// Rows of logits on a device, slots for them, and memory.
struct Bench<'a> {
    device: &'a Device,
    logits: Tensor,
    slots: Tensor,
    memory: EvidenceMemory,
}

impl<'a> Bench<'a> {
    fn new(device: &'a Device, rows: &[Vec<f32>]) -> Bench<'a> {
        Bench::with(device, rows, room(rows.len(), rows[0].len()))
    }

    fn with(device: &'a Device, rows: &[Vec<f32>], room: EvidenceRoom) -> Bench<'a> {
        let logits = tensor(device, Dtype::F32, rows);
        let slots = tensor(device, Dtype::F32, &vec![vec![0.5; room.vocab]; rows.len()]);
        Bench { device, logits, slots, memory: device.evidence_memory(room).unwrap() }
    }

    fn evidence(&mut self, requests: &[EvidenceRequest<'_>]) -> Vec<RowEvidence> {
        self.device.evidence(&self.logits, &mut self.slots, requests, &mut self.memory).unwrap()
    }

    fn process(&mut self, row: usize, processors: &Processors<'_>) -> Vec<f32> {
        let bytes = self.device.process_row(&self.logits, row, processors, &mut self.memory).unwrap();
        bytes.chunks_exact(4).map(|x| f32::from_le_bytes(x.try_into().unwrap())).collect()
    }
}

/// The processors in plain Rust.
fn processed(raw: &[f32], processors: &Processors<'_>) -> Vec<f32> {
    let &Processors { bias, repetition, presence, frequency, allowed, ids, prompt_len } = processors;
    let mut row = raw.to_vec();
    for &(id, bias) in bias {
        row[id as usize] += bias;
    }
    let (mut seen, mut counts) = (vec![false; row.len()], vec![0_u32; row.len()]);
    for (position, &id) in ids.iter().enumerate() {
        seen[id as usize] = true;
        counts[id as usize] += u32::from(position >= prompt_len);
    }
    for (id, logit) in row.iter_mut().enumerate() {
        if seen[id] && repetition != 1.0 {
            *logit = if *logit < 0.0 { *logit * repetition } else { *logit / repetition };
        }
        if counts[id] > 0 && (presence != 0.0 || frequency != 0.0) {
            *logit -= presence;
            *logit -= frequency * counts[id] as f32;
        }
        if !allowed.is_empty() && allowed[id / 8] >> (id % 8) & 1 == 0 {
            *logit = f32::NEG_INFINITY;
        }
    }
    row
}

/// All ids, best first.
fn sorted(row: &[f32]) -> Vec<u32> {
    let mut ids: Vec<u32> = (0..row.len() as u32).collect();
    let order = |id: u32| {
        let logit = row[id as usize];
        (logit.is_nan(), if logit.is_nan() { 0.0 } else { -logit })
    };
    ids.sort_by(|&a, &b| order(a).partial_cmp(&order(b)).unwrap().then(a.cmp(&b)));
    ids
}

fn bits(row: &[f32]) -> Vec<u32> {
    row.iter().map(|x| x.to_bits()).collect()
}

/// Asserts that the best of a processed row are right.
fn assert_best(got: &RowEvidence, raw: &[f32], processed: &[f32], ids: &[u32], what: &str) {
    let of = |row: &[f32]| ids.iter().map(|&id| row[id as usize].to_bits()).collect::<Vec<_>>();
    assert!(got.ids == ids, "{what}: {:?} for {ids:?}", got.ids);
    assert!(bits(&got.processed) == of(processed), "{what}: processed");
    assert!(bits(&got.raw) == of(raw), "{what}: raw");
}

/// The same, all bits of all fields.
fn assert_same(got: &RowEvidence, want: &RowEvidence, what: &str) {
    let floats = |row: &RowEvidence| [bits(&row.processed), bits(&row.raw), bits(&row.raw_best)];
    let sums =
        |row: &RowEvidence| [row.processed_log_sum_exp, row.raw_log_sum_exp].map(|sum| sum.map(f64::to_bits));
    assert_eq!(got.non_finite, want.non_finite, "{what}");
    assert!(got.ids == want.ids && got.raw_best_ids == want.raw_best_ids, "{what}: ids");
    assert!(floats(got) == floats(want), "{what}: logits");
    assert_eq!(sums(got), sums(want), "{what}: {got:?}, {want:?}");
}

/// Rows of every kind that is hard for a search.
fn kinds(rng: &mut Rng, vocab: usize) -> Vec<Vec<f32>> {
    let smooth = rng.row(vocab);
    let halves = smooth.iter().map(|x| (x * 2.0).round() / 2.0).collect();
    let spiked =
        smooth.iter().enumerate().map(|(id, x)| if id % 7 == 3 { f32::NEG_INFINITY } else { *x }).collect();
    let broken =
        (0..vocab).map(|id| [f32::NAN, 1.0, f32::INFINITY, -1.0][rng.below(4) * usize::from(id % 3 == 0)]);
    let broken = broken.collect();
    let negative = smooth.iter().map(|x| -x.abs() - 1e-3).collect();
    let rising = (0..vocab).map(|id| id as f32).collect();
    let falling = (0..vocab).map(|id| -(id as f32)).collect();
    let zeros = (0..vocab).map(|id| if id % 2 == 0 { -0.0 } else { 0.0 }).collect();
    let equal = vec![-3.25; vocab];
    let huge = smooth.iter().map(|x| x * 1e38).collect();
    let tiny = smooth.iter().map(|x| x * 1e-39).collect();
    vec![smooth, halves, spiked, broken, negative, rising, falling, zeros, equal, huge, tiny]
}

#[test]
fn the_best_are_exact_with_ties_by_lower_id_and_nan_last() {
    let devices = all();
    let mut rng = Rng(1);
    for vocab in VOCABS {
        let rows = kinds(&mut rng, vocab);
        let orders: Vec<Vec<u32>> = rows.iter().map(|row| sorted(row)).collect();
        for device in &devices {
            let mut bench = Bench::new(device, &rows);
            for k in [0, 1, 7, 64, 1000, 1024] {
                let requests: Vec<_> = (0..rows.len()).map(|row| wanted(row, k)).collect();
                let told = bench.evidence(&requests);
                for (row, (got, order)) in told.iter().zip(&orders).enumerate() {
                    let what = format!("{}: row {row} of {vocab}, {k} best", device.describe());
                    assert_best(got, &rows[row], &rows[row], &order[..k.min(vocab)], &what);
                }
            }
        }
    }
}

#[test]
fn masked_and_biased_rows_are_searched_too() {
    let mut rng = Rng(2);
    let vocab = 2500;
    let raw = rng.row(vocab);
    let mut allowed: Vec<u8> = (0..vocab.div_ceil(8)).map(|_| rng.next() as u8).collect();
    allowed[100..].fill(0);
    let bias =
        [(5, f32::INFINITY), (5, f32::NEG_INFINITY), (6, f32::INFINITY), (7, f32::NEG_INFINITY), (9, -0.0)];
    let masked = Processors { allowed: &allowed, ..Processors::NONE };
    let biased = Processors { bias: &bias, ..Processors::NONE };
    let nothing = Processors { allowed: &vec![0; vocab.div_ceil(8)], ..Processors::NONE };
    for device in &all() {
        let mut bench = Bench::new(device, std::slice::from_ref(&raw));
        for processors in [masked, biased, nothing] {
            let want = processed(&raw, &processors);
            let request = EvidenceRequest { processors, temperature: Some(1.0), ..wanted(0, 1024) };
            let got = &bench.evidence(&[request])[0];
            assert_best(got, &raw, &want, &sorted(&want)[..1024], &device.describe());
            let sum = got.processed_log_sum_exp.unwrap();
            assert_eq!(sum.is_nan(), processors == biased);
            assert_eq!(sum == f64::NEG_INFINITY, processors == nothing);
        }
    }
}

#[test]
fn log_sum_exp_is_exact_and_the_same_everywhere() {
    let devices = all();
    let mut rng = Rng(3);
    for vocab in VOCABS {
        for (spread, temperature) in [(1.0, 1.0), (30.0, 1.0), (5.0, 0.3), (3.0, 7.5), (200.0, 0.01)] {
            let mut values: Vec<f32> = rng.row(vocab).iter().map(|x| x * spread).collect();
            if vocab > 4 {
                values[3] = f32::NEG_INFINITY;
            }
            let oracle = |temperature: f64| {
                let max = values.iter().fold(f64::NEG_INFINITY, |max, x| max.max(f64::from(*x)));
                let sum: f64 = values.iter().map(|x| ((f64::from(*x) - max) / temperature).exp()).sum();
                max / temperature + sum.ln()
            };
            let request =
                EvidenceRequest { temperature: Some(temperature), logprobs: Some(0), ..wanted(0, 1) };
            let mut first: Option<RowEvidence> = None;
            for device in &devices {
                let got = Bench::new(device, &[values.clone()]).evidence(&[request]).remove(0);
                assert_near(got.processed_log_sum_exp.unwrap(), oracle(temperature), 1e-13, "processed");
                assert_near(got.raw_log_sum_exp.unwrap(), oracle(1.0), 1e-13, "raw");
                let what = format!("{} of {vocab}", device.describe());
                assert_same(&got, first.get_or_insert_with(|| got.clone()), &what);
            }
        }
    }
}

#[test]
fn log_sum_exp_says_what_it_cannot_sum() {
    for device in &all() {
        let sum = |values: &[f32]| {
            let request = EvidenceRequest { temperature: Some(0.5), ..wanted(0, 1) };
            Bench::new(device, &[values.to_vec()]).evidence(&[request])[0].processed_log_sum_exp.unwrap()
        };
        assert_eq!(sum(&[f32::NEG_INFINITY; 40]), f64::NEG_INFINITY);
        assert!(sum(&[0.0, f32::NAN, 1.0]).is_nan());
        assert!(sum(&[f32::NAN; 20]).is_nan());
        assert!(sum(&[f32::NEG_INFINITY, f32::NAN]).is_nan());
        assert!(sum(&[0.0, f32::INFINITY]).is_nan());
        assert_eq!(sum(&[-0.0]), 0.0);
    }
}

#[test]
fn the_first_value_that_is_not_finite_is_found() {
    let devices = all();
    let mut rng = Rng(4);
    for vocab in [1, 15, 16, 17, 1000, 5000] {
        let mut good = rng.row(vocab);
        good[0] = f32::MAX;
        let mut rows = vec![good.clone()];
        let mut want = vec![None];
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::from_bits(0x7f80_0001)] {
            for id in [0, vocab / 2, vocab - 1] {
                let mut row = good.clone();
                row[id] = bad;
                row[vocab - 1] = bad;
                rows.push(row);
                want.push(Some(id as u32));
            }
        }
        let requests: Vec<_> = (0..rows.len()).map(|row| wanted(row, row % 2)).collect();
        for device in &devices {
            let told = Bench::new(device, &rows).evidence(&requests);
            let got: Vec<_> = told.iter().map(|row| row.non_finite).collect();
            assert_eq!(got, want, "{} of {vocab}", device.describe());
        }
    }
}

#[test]
fn processors_are_single_f32_operations_in_order() {
    let devices = all();
    let mut rng = Rng(5);
    for vocab in [151, 1000, 80_896, 160_256] {
        let raw: Vec<f32> = rng.row(vocab).iter().map(|x| x * 7.0).collect();
        let ids: Vec<u32> =
            (0..IDS).map(|i| rng.below(if i % 2 == 0 { vocab } else { 100 }) as u32).collect();
        let allowed: Vec<u8> = (0..vocab.div_ceil(8)).map(|_| rng.next() as u8 | 1).collect();
        // Many of one id, so that their order matters, and more than a block of threads takes at once.
        let bias: Vec<(u32, f32)> = (0..vocab.min(900))
            .map(|i| (if i % 3 == 0 { 3 } else { rng.below(vocab) as u32 }, rng.normal() * 1.7))
            .collect();
        let full = Processors {
            bias: &bias,
            repetition: 1.02,
            presence: 0.3,
            frequency: 0.07,
            allowed: &allowed,
            ids: &ids,
            prompt_len: 1200,
        };
        let cases = [
            full,
            Processors { bias: &bias, ..Processors::NONE },
            Processors { repetition: 1.3, ids: &ids, prompt_len: IDS, ..Processors::NONE },
            Processors { repetition: 0.9, ids: &ids, prompt_len: IDS + 9, ..full },
            Processors { presence: -0.5, ids: &ids, ..Processors::NONE },
            Processors { frequency: 0.11, ids: &ids[..77], prompt_len: 7, ..Processors::NONE },
            Processors { allowed: &allowed, ids: &ids, ..Processors::NONE },
            Processors { repetition: 2.0, ..Processors::NONE },
            Processors::NONE,
        ];
        for device in &devices {
            let mut bench = Bench::new(device, &[raw.clone(), rng.row(vocab)]);
            for (case, processors) in cases.iter().enumerate() {
                let want = processed(&raw, processors);
                let got = bench.process(0, processors);
                assert!(bits(&got) == bits(&want), "{}: case {case} of {vocab}", device.describe());
            }
        }
    }
}

#[test]
fn rows_of_a_batch_are_what_they_are_alone_and_are_kept() {
    let devices = all();
    let mut rng = Rng(6);
    for (vocab, count) in [(151, 300), (5003, 24)] {
        let rows = rng.rows(count, vocab);
        let ids: Vec<u32> = (0..400).map(|_| rng.below(vocab) as u32).collect();
        let allowed: Vec<u8> = (0..vocab.div_ceil(8)).map(|_| rng.next() as u8 | 1).collect();
        let bias: Vec<(u32, f32)> = (0..40).map(|_| (rng.below(vocab) as u32, rng.normal())).collect();
        let penalties =
            Processors { repetition: 1.1, frequency: 0.2, ids: &ids, prompt_len: 99, ..Processors::NONE };
        let kinds = [
            Processors::NONE,
            penalties,
            Processors { allowed: &allowed, ..penalties },
            Processors { bias: &bias, ..Processors::NONE },
        ];
        let requests: Vec<EvidenceRequest<'_>> = (0..count)
            .map(|i| EvidenceRequest {
                row: (i * 7 + 1) % count,
                slot: count - 1 - i,
                processors: kinds[i % 4],
                top_k: [1, 64, 8, 1024][i / 4 % 4],
                temperature: [None, Some(0.6)][i % 2],
                logprobs: [None, Some(5), Some(0), Some(100)][i / 2 % 4],
            })
            .collect();
        let mut first: Vec<RowEvidence> = Vec::new();
        for device in &devices {
            let what = device.describe();
            let mut bench = Bench::new(device, &rows);
            let told = bench.evidence(&requests);
            assert_eq!(told.len(), count);
            for (request, got) in requests.iter().zip(&told) {
                let raw = &rows[request.row];
                let want = processed(raw, &request.processors);
                assert_best(got, raw, &want, &sorted(&want)[..request.top_k.min(vocab)], &what);
                let logprobs = request.logprobs.unwrap_or(0).min(vocab);
                assert_eq!(got.raw_best_ids, sorted(raw)[..logprobs], "{what}");
                assert_eq!(got.raw_log_sum_exp.is_some(), request.logprobs.is_some());
                assert_eq!(got.processed_log_sum_exp.is_some(), request.temperature.is_some());
                assert_eq!(bits(&bench.slots.read_row(request.slot).unwrap()), bits(raw), "{what}");
            }
            // Alone, and a few at a time.
            let mut narrow = Bench::with(device, &rows, room(3, vocab));
            let narrow = narrow.evidence(&requests);
            for (i, request) in requests.iter().enumerate() {
                if i % 5 == 0 {
                    assert_same(&bench.evidence(&[*request])[0], &told[i], &what);
                }
                assert_same(&narrow[i], &told[i], &what);
                assert_same(first.get(i).unwrap_or(&told[i]), &told[i], &what);
            }
            first = told;
        }
    }
}

#[test]
fn what_is_out_of_range_is_refused() {
    for device in [best()].into_iter().chain(support::gpus()) {
        let mut bench =
            Bench::with(&device, &[vec![0.0; 10]], EvidenceRoom { top_k: 8, ids: 3, ..room(1, 10) });
        let mut refused = |request: EvidenceRequest<'_>| {
            let Bench { device, logits, slots, memory } = &mut bench;
            device.evidence(logits, slots, &[request], memory).unwrap_err().to_string()
        };
        let with = |processors| EvidenceRequest { processors, ..wanted(0, 1) };
        let none = Processors::NONE;
        assert_eq!(
            refused(with(Processors { bias: &[(10, 1.0)], ..none })),
            "evidence: biased id 10 is not below 10"
        );
        assert_eq!(
            refused(with(Processors { presence: 1.0, ids: &[4, 11], ..none })),
            "evidence: token id 11 is not below 10"
        );
        assert_eq!(
            refused(with(Processors { presence: 1.0, ids: &[4; 4], ..none })),
            "evidence: the context's length 4 is not below 4"
        );
        assert_eq!(
            refused(with(Processors { allowed: &[255], ..none })),
            "evidence: the mask's bytes is 1, must be 2"
        );
        assert_eq!(refused(wanted(1, 1)), "evidence: row 1 is not below 1");
        assert_eq!(refused(EvidenceRequest { slot: 1, ..wanted(0, 1) }), "evidence: slot 1 is not below 1");
        assert_eq!(refused(wanted(0, 9)), "evidence: the best ids' number 9 is not below 9");
        for temperature in [0.0, -1.0, f64::NAN, f64::INFINITY].map(Some) {
            let request = EvidenceRequest { temperature, ..wanted(0, 1) };
            assert_eq!(refused(request), "evidence: temperature must be finite and above 0");
        }
        assert!(device.evidence_memory(EvidenceRoom { top_k: 1025, ..room(1, 10) }).is_err());
    }
}
