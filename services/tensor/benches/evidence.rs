//! Time of the evidence of a step, from the call to its answer, on the first card, or on the CPU where there is none:
//! `cargo bench -p asterism-tensor --bench evidence`.
#![allow(clippy::unwrap_used, reason = "a bench that fails says where")]

use std::num::NonZeroUsize;
use std::thread::available_parallelism;
use std::time::Instant;

use asterism_tensor::{
    CpuOptions, CudaOptions, Device, Dtype, EvidenceRequest, EvidenceRoom, Processors, Tensor,
};

const VOCABS: [usize; 2] = [80_896, 160_256];
const ROWS: [usize; 5] = [1, 8, 24, 64, 128];

/// Ids of a context, half of them the prompt.
const CONTEXT: usize = 640;

/// Calls that are timed one by one.
const CALLS: usize = 200;

fn main() {
    let card = Device::cuda(CudaOptions { ordinal: 0, deterministic: true, cache: None });
    let device = card.unwrap_or_else(|error| {
        println!("no card: {error}");
        let threads = available_parallelism().unwrap_or(NonZeroUsize::MIN);
        Device::cpu(CpuOptions::new(threads)).unwrap()
    });
    println!("{}: us from call to answer, median and best of {CALLS}", device.describe());
    for vocab in VOCABS {
        for rows in ROWS {
            measure(&device, vocab, rows);
        }
    }
}

fn measure(device: &Device, vocab: usize, rows: usize) {
    let mut random = 1_u32;
    let mut next = move || {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        random >> 8
    };
    let mut filled = |rows: usize| -> Tensor {
        let mut tensor = device.tensor(Dtype::F32, rows, vocab).unwrap();
        // Sums of four, so that the best are few, as among logits.
        let value = |_| ((0..4).map(|_| next() as f32).sum::<f32>() / (1 << 24) as f32 - 2.0) * 4.0;
        let bytes: Vec<u8> = (0..rows * vocab).map(value).flat_map(f32::to_le_bytes).collect();
        tensor.write_bytes(&bytes).unwrap();
        tensor
    };
    let (logits, mut slots) = (filled(rows), filled(rows));
    let mut memory = device.evidence_memory(EvidenceRoom { rows, vocab, top_k: 1024, ids: CONTEXT }).unwrap();
    let ids: Vec<u32> = (0..CONTEXT).map(|i| (i * i * 7919 % vocab) as u32).collect();
    let allowed = vec![0x77; vocab.div_ceil(8)];
    let plain = Processors::NONE;
    let penalty = Processors { repetition: 1.01, ids: &ids, prompt_len: CONTEXT / 2, ..plain };
    let masked = Processors { presence: 0.1, frequency: 0.1, allowed: &allowed, ..penalty };
    for (name, processors, top_k, temperature, logprobs) in [
        ("greedy", plain, 1, None, None),
        ("64 best and log-sum-exp", plain, 64, Some(1.0), None),
        ("the same with a repetition penalty", penalty, 64, Some(0.3), None),
        ("all processors and logprobs", masked, 64, Some(0.3), Some(20)),
        ("1,024 best and log-sum-exp", plain, 1024, Some(1.0), None),
    ] {
        let request = |row| EvidenceRequest { row, slot: row, processors, top_k, temperature, logprobs };
        let requests: Vec<EvidenceRequest<'_>> = (0..rows).map(request).collect();
        let mut call = || {
            let start = Instant::now();
            device.evidence(&logits, &mut slots, &requests, &mut memory).unwrap();
            start.elapsed().as_secs_f64() * 1e6
        };
        call();
        let mut times: Vec<f64> = (0..CALLS).map(|_| call()).collect();
        times.sort_by(f64::total_cmp);
        println!("vocab {vocab:6}, {rows:3} rows, {name:36} {:9.1} {:9.1}", times[CALLS / 2], times[0]);
    }
}
