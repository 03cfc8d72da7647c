use std::num::NonZeroUsize;

use asterism_proto::list::pack;
use asterism_proto::shard::v1::{Setting as WireSetting, TokenBias};
use asterism_tensor::CpuOptions;

use super::*;

const VOCAB: usize = 40;

struct Bench {
    device: Device,
    raw: Tensor,
    rows: LogitsRows,
}

impl Bench {
    /// One raw row.
    fn new(row: &[f32]) -> Self {
        let device = Device::cpu(CpuOptions::new(NonZeroUsize::MIN)).expect("a CPU");
        let mut raw = device.tensor(Dtype::F32, 1, VOCAB).expect("memory");
        raw.set_rows(1).expect("a row");
        raw.write_row(0, row).expect("a row");
        let room = EvidenceRoom { rows: 1, vocab: VOCAB, top_k: 4, ids: 8 };
        let rows = LogitsRows::new(&device, room, 2).expect("memory");
        Self { device, raw, rows }
    }

    fn evidence(&mut self, setting: &WireSetting, top_k: usize, ids: &[u32], prompt_len: usize) -> Evidence {
        let setting = Setting::check(setting.clone(), VOCAB).expect("a setting");
        let context = Context { setting: &setting, ids, prompt_len };
        let wanted = Wanted { sequence: 3, position: ids.len() - 1, row: 0, slot: 1, top_k, context };
        let made = self.rows.evidence(&self.device, &self.raw, &[wanted]).expect("the shapes are right");
        made.into_iter().next().expect("one row")
    }
}

/// Logits 0, 1, 2, … by id.
fn ramp() -> Vec<f32> {
    (0..VOCAB).map(|id| id as f32).collect()
}

fn off() -> WireSetting {
    WireSetting { repetition_penalty: 1.0, ..WireSetting::default() }
}

fn log_sum_exp(row: impl Iterator<Item = f64>) -> f64 {
    row.map(f64::exp).sum::<f64>().ln()
}

#[test]
fn a_plain_row_has_its_best_and_nothing_else() {
    let evidence = Bench::new(&ramp()).evidence(&off(), 3, &[1], 1);
    let expected = Evidence {
        sequence: 3,
        position: 0,
        ids: pack(&[39_u32, 38, 37]),
        processed: pack(&[39.0_f32, 38.0, 37.0]),
        raw: pack(&[39.0_f32, 38.0, 37.0]),
        ..Evidence::default()
    };
    assert_eq!(evidence, expected);
}

#[test]
fn processors_change_the_order_and_raw_logits_stay() {
    let setting = WireSetting {
        bias: vec![TokenBias { token_id: 2, bias: 50.0 }],
        repetition_penalty: 2.0,
        presence_penalty: 1.0,
        frequency_penalty: 0.5,
        temperature: Some(2.0),
        logprobs: Some(2),
        ..off()
    };
    // 39 stands in the prompt, 38 twice in the output.
    let evidence = Bench::new(&ramp()).evidence(&setting, 4, &[39, 38, 38], 1);
    let mut processed = ramp();
    processed[2] += 50.0;
    processed[39] /= 2.0;
    processed[38] = 38.0 / 2.0 - 1.0 - 0.5 * 2.0;
    assert_eq!(evidence.ids, pack(&[2_u32, 37, 36, 35]));
    assert_eq!(evidence.processed, pack(&[52.0_f32, 37.0, 36.0, 35.0]));
    assert_eq!(evidence.raw, pack(&[2.0_f32, 37.0, 36.0, 35.0]));
    assert_eq!((evidence.raw_best_ids, evidence.raw_best), (pack(&[39_u32, 38]), pack(&[39.0_f32, 38.0])));
    let sum = log_sum_exp(processed.iter().map(|x| f64::from(*x) / 2.0));
    assert!((evidence.processed_log_sum_exp.expect("wanted") - sum).abs() < 1e-9);
    let sum = log_sum_exp(ramp().into_iter().map(f64::from));
    assert!((evidence.raw_log_sum_exp.expect("wanted") - sum).abs() < 1e-9);
}

#[test]
fn unusable_rows_are_errors_in_their_own_evidence() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut row = ramp();
        row[7] = bad;
        let evidence = Bench::new(&row).evidence(&off(), 3, &[1], 1);
        assert_eq!(evidence.error.as_deref(), Some("the logit of token id 7 is not finite"));
        assert!(evidence.ids.is_empty() && evidence.processed.is_empty());
    }
    let nothing = WireSetting { allowed: vec![0; VOCAB / 8].into(), ..off() };
    let evidence = Bench::new(&ramp()).evidence(&nothing, 3, &[1], 1);
    assert_eq!(evidence.error.as_deref(), Some("no token id is allowed"));
    let bias = vec![TokenBias { token_id: 39, bias: f32::MAX }, TokenBias { token_id: 39, bias: f32::MAX }];
    let evidence = Bench::new(&ramp()).evidence(&WireSetting { bias, ..off() }, 3, &[1], 1);
    assert_eq!(evidence.error.as_deref(), Some("the processors' result is not finite"));
}

#[test]
fn a_mask_that_leaves_some_is_no_error() {
    let mut allowed = vec![0; VOCAB / 8];
    allowed[0] = 0b110;
    let setting = WireSetting { allowed: allowed.into(), temperature: Some(1.0), ..off() };
    let evidence = Bench::new(&ramp()).evidence(&setting, 3, &[1], 1);
    assert_eq!((evidence.error, &evidence.ids[..8]), (None, &pack(&[2_u32, 1])[..]));
    assert_eq!(evidence.processed[8..], pack(&[f32::NEG_INFINITY])[..]);
    let sum = log_sum_exp([1.0, 2.0].into_iter());
    assert!((evidence.processed_log_sum_exp.expect("wanted") - sum).abs() < 1e-12);
}

#[test]
fn a_kept_row_is_fetched_as_it_was_and_processed_anew() {
    let mut bench = Bench::new(&ramp());
    bench.evidence(&off(), 1, &[5], 1);
    bench.raw.write_row(0, &[0.0; VOCAB]).expect("a row");
    let setting = WireSetting { presence_penalty: 1.5, ..off() };
    let setting = Setting::check(setting, VOCAB).expect("a setting");
    let context = Context { setting: &setting, ids: &[5, 6], prompt_len: 1 };
    let bytes = |row: &[f32]| row.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let mut processed = ramp();
    processed[6] -= 1.5;
    assert_eq!(bench.rows.fetch(&bench.device, 1, Some(context)).expect("kept"), bytes(&processed));
    assert_eq!(bench.rows.fetch(&bench.device, 1, None).expect("kept"), bytes(&ramp()));
    assert!(bench.rows.fetch(&bench.device, 2, None).is_err(), "there are two slots");
}
