//! A model whose logits are a pure function of the ids before them, so that a test can tell every answer beforehand.

use std::collections::BTreeMap;

use asterism_proto::list::pack;
use asterism_proto::shard::v1::{Evidence, Setting, Span};

/// Ids that the toy model knows.
pub const VOCAB: u32 = 400;

/// The raw logits after `ids`: in [-4, 4), all different in practice.
pub fn raw(ids: &[u32]) -> Vec<f32> {
    let mut state = ids.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, id| {
        (hash ^ u64::from(*id)).wrapping_mul(0x0100_0000_01b3).rotate_left(23)
    });
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = state;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((bits ^ (bits >> 31)) >> 40) as f32 / (1 << 24) as f32
    };
    (0..VOCAB).map(|_| 8.0 * next() - 4.0).collect()
}

/// The row after the processors of `setting`, for the ids 0..=position of which the first `prompt_len` are the prompt.
pub fn processed(ids: &[u32], prompt_len: usize, setting: &Setting) -> Vec<f32> {
    let mut row = raw(ids);
    for bias in &setting.bias {
        row[bias.token_id as usize] += bias.bias;
    }
    let (mut all, mut output) = (BTreeMap::new(), BTreeMap::<u32, u32>::new());
    for (position, id) in ids.iter().enumerate() {
        all.insert(*id, ());
        if position >= prompt_len {
            *output.entry(*id).or_default() += 1;
        }
    }
    if setting.repetition_penalty != 1.0 {
        for id in all.keys() {
            let logit = &mut row[*id as usize];
            *logit = if *logit < 0.0 {
                *logit * setting.repetition_penalty
            } else {
                *logit / setting.repetition_penalty
            };
        }
    }
    for (id, count) in output {
        row[id as usize] -= setting.presence_penalty;
        row[id as usize] -= setting.frequency_penalty * count as f32;
    }
    row
}

/// Whether a row depends on which ids came before, beside its raw logits.
pub fn has_penalties(setting: &Setting) -> bool {
    setting.repetition_penalty != 1.0 || setting.presence_penalty != 0.0 || setting.frequency_penalty != 0.0
}

/// What the last stage reports of one row.
pub fn evidence(ids: &[u32], prompt_len: usize, setting: &Setting, span: &Span) -> Evidence {
    let (raw, row) = (raw(ids), processed(ids, prompt_len, setting));
    let best = best(&row, span.top_k as usize);
    let logprobs = setting.logprobs.map(|count| self::best(&raw, count as usize)).unwrap_or_default();
    let of = |row: &[f32], ids: &[u32]| pack(&ids.iter().map(|id| row[*id as usize]).collect::<Vec<_>>());
    Evidence {
        sequence: span.sequence,
        position: ids.len() as u32 - 1,
        error: None,
        processed: of(&row, &best),
        raw: of(&raw, &best),
        ids: pack(&best),
        processed_log_sum_exp: setting
            .temperature
            .map(|temperature| log_sum_exp(&row, f64::from(temperature))),
        raw_log_sum_exp: setting.logprobs.map(|_| log_sum_exp(&raw, 1.0)),
        raw_best: of(&raw, &logprobs),
        raw_best_ids: pack(&logprobs),
    }
}

fn best(row: &[f32], count: usize) -> Vec<u32> {
    let mut ids: Vec<u32> = (0..row.len() as u32).collect();
    ids.sort_by(|a, b| row[*b as usize].total_cmp(&row[*a as usize]).then(a.cmp(b)));
    ids.truncate(count);
    ids
}

/// ln Σ exp(x / temperature), the maximum taken out first.
pub fn log_sum_exp(row: &[f32], temperature: f64) -> f64 {
    let max = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = row.iter().map(|logit| ((f64::from(*logit) - max) / temperature).exp()).sum();
    max / temperature + sum.ln()
}

/// The greedy answer of `count` tokens to `prompt`, without processors.
pub fn greedy(prompt: &[u32], count: usize) -> Vec<u32> {
    let mut ids = prompt.to_vec();
    for _ in 0..count {
        ids.push(best(&raw(&ids), 1)[0]);
    }
    ids.split_off(prompt.len())
}
