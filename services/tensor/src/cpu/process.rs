//! Logit processors: bias, repetition, presence and frequency penalty, mask, in this order, each a separate
//! IEEE f32 operation.

use std::sync::PoisonError;

use super::Cpu;
use crate::Processors;

/// out ← the processors' answer to the raw row; ids are checked.
pub fn process(cpu: &Cpu, raw: &[f32], processors: &Processors<'_>, out: &mut [f32]) {
    out.copy_from_slice(raw);
    for &(id, bias) in processors.bias {
        out[id as usize] += bias;
    }
    if processors.has_penalties() {
        let mut counts = cpu.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.len() < out.len() {
            counts.resize(out.len(), 0);
        }
        penalize(processors, &mut counts, out);
    }
    if !processors.allowed.is_empty() {
        for (id, logit) in out.iter_mut().enumerate() {
            if processors.allowed[id / 8] >> (id % 8) & 1 == 0 {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
}

/// `counts` is all zero before and after.
fn penalize(processors: &Processors<'_>, counts: &mut [u32], out: &mut [f32]) {
    let &Processors { repetition, presence, frequency, ids, prompt_len, .. } = processors;
    let output = &ids[prompt_len.min(ids.len())..];
    if repetition != 1.0 {
        for &id in ids {
            let (seen, logit) = (&mut counts[id as usize], &mut out[id as usize]);
            if std::mem::replace(seen, 1) == 0 {
                *logit = if *logit < 0.0 { *logit * repetition } else { *logit / repetition };
            }
        }
        for &id in ids {
            counts[id as usize] = 0;
        }
    }
    if presence != 0.0 || frequency != 0.0 {
        for &id in output {
            counts[id as usize] += 1;
        }
        for &id in output {
            let count = std::mem::take(&mut counts[id as usize]);
            if count > 0 {
                let logit = &mut out[id as usize];
                *logit -= presence;
                *logit -= frequency * count as f32;
            }
        }
    }
}
