//! Requests of many kinds, each always the same.

use asterism_proto::v1::{GenerateRequest, Sampling};

use crate::answer::{greedy, request};

/// A cheap fixed sequence of numbers.
fn scramble(seed: u64) -> u64 {
    let mut x = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xD1B5_4A32_D192_ED03;
    x ^= x >> 29;
    x = x.wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x ^ (x >> 32)
}

/// Requests of many lengths and settings; the n-th is always the same.
pub fn nth_request(n: u64) -> GenerateRequest {
    let length = 1 + scramble(n) % 90;
    let prompt: Vec<u32> = (0..length).map(|i| (scramble(n * 1000 + i) % 512) as u32).collect();
    let tokens = 1 + (scramble(n + 77) % 24) as u32;
    let id = format!("r{n}");
    let mut request = of_kind(n % 4, &id, &prompt, tokens);
    // The first message tells the seed; one that the gateway drew would differ.
    request.sampling.get_or_insert_default().seed = Some(n);
    request
}

/// The same with an answer of so many tokens.
pub fn nth_request_of(n: u64, tokens: u32) -> GenerateRequest {
    let mut request = nth_request(n);
    request.stopping.get_or_insert_default().max_tokens = Some(tokens);
    request
}

fn of_kind(kind: u64, id: &str, prompt: &[u32], tokens: u32) -> GenerateRequest {
    match kind {
        0 => greedy(id, prompt, tokens),
        1 => {
            let penalties = Sampling {
                do_sample: Some(false),
                repetition_penalty: Some(1.1),
                presence_penalty: Some(0.5),
                frequency_penalty: Some(0.25),
                ..Sampling::default()
            };
            request(id, prompt, tokens, penalties)
        }
        2 => {
            let nucleus =
                Sampling { temperature: Some(0.8), top_k: Some(20), top_p: Some(0.9), ..Sampling::default() };
            request(id, prompt, tokens, nucleus)
        }
        // No certificate without truncation: such rows are sometimes fetched whole.
        _ => {
            let plain = Sampling {
                do_sample: Some(true),
                temperature: Some(2.0),
                top_k: Some(0),
                top_p: Some(1.0),
                ..Sampling::default()
            };
            request(id, prompt, tokens, plain)
        }
    }
}
