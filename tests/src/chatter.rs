//! Requests whose answers repeat themselves and their prompts: a tiny random model that may say a few words only.

use asterism_proto::v1::{GenerateRequest, LogitBias, Output, Sampling};

use crate::answer::request;

/// What it mostly says.
pub const OFTEN: [u32; 2] = [40, 41];
/// What it says now and then.
pub const SELDOM: [u32; 2] = [42, 300];

/// A prompt of `len` of these words; the n-th is always the same, and differs from others in its first block.
pub fn prompt(n: u32, len: u32) -> Vec<u32> {
    let word = |position: u32| {
        let mixed = (u64::from(n) << 32 | u64::from(position)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        match (mixed >> 40) % 24 {
            0 => SELDOM[0],
            1 => SELDOM[1],
            other => OFTEN[other as usize % 2],
        }
    };
    [50 + n].into_iter().chain((1..len).map(word)).collect()
}

/// A request of one of three kinds: greedy, under penalties, drawn; each with logprobs.
pub fn chatter(kind: u32, id: &str, prompt: &[u32], tokens: u32) -> GenerateRequest {
    let bias = |bias| move |token_id| LogitBias { token_id, bias };
    let sampling = Sampling {
        // The first message tells the seed; one that the gateway drew would differ.
        seed: Some(u64::from(kind)),
        do_sample: Some(false),
        repetition_penalty: Some(1.0),
        logit_bias: OFTEN.map(bias(60.0)).into_iter().chain(SELDOM.map(bias(59.0))).collect(),
        ..Sampling::default()
    };
    let sampling = match kind % 3 {
        0 => sampling,
        1 => Sampling {
            repetition_penalty: Some(1.01),
            frequency_penalty: Some(0.02),
            presence_penalty: Some(-0.1),
            ..sampling
        },
        _ => Sampling { do_sample: Some(true), temperature: Some(1.0), ..sampling },
    };
    let output = Some(Output { logprobs: Some(2) });
    GenerateRequest { output, ..request(id, prompt, tokens, sampling) }
}

/// The same without what is computed ahead, and without the cache.
pub fn alone(request: &GenerateRequest) -> GenerateRequest {
    GenerateRequest { bypass_speculation: true, bypass_cache: true, ..request.clone() }
}
