//! Time of the operations beside the multiplications, best of many: `cargo bench -p asterism-tensor`.
#![allow(clippy::unwrap_used, reason = "a bench that fails says where")]

use std::hint::black_box;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use asterism_tensor::{
    Attention, AttnSpan, BLOCK_ROWS, Compute, CpuOptions, Device, Dtype, EvidenceRequest, EvidenceRoom, Isa,
    KvSpec, KvType, Processors, RopeTable, RowsRoom, Tensor,
};

/// How long each operation is repeated.
const PATIENCE: Duration = Duration::from_millis(300);

/// Memory that decode rows read their keys and values from in turn: more than caches hold.
const COLD: usize = 600 << 20;

/// What is measured, and for which line of output.
struct Bench {
    device: Device,
    /// Only operations whose name contains this.
    only: String,
}

/// `[isa] [part of an operation's name]`
fn main() {
    let mut arguments = std::env::args().skip(1).filter(|argument| !argument.starts_with("--"));
    let (isa, only) = (arguments.next().unwrap_or_default(), arguments.next().unwrap_or_default());
    for isa in Isa::ALL.into_iter().filter(|known| known.is_available() && known.name().contains(&isa)) {
        for threads in [1, 2] {
            let threads = NonZeroUsize::new(threads).unwrap();
            let device = Device::cpu(CpuOptions { threads, isa: Some(isa) }).unwrap();
            let limits = device.limits(COLD).unwrap();
            let (read, fma) = (limits.read / 1e9, limits.fma / 1e9);
            println!("\n{}: reads {read:.1} GB/s, {fma:.0} GFLOP/s", device.describe());
            let bench = Bench { device, only: only.clone() };
            for compute in [Compute::F32, Compute::Bf16] {
                bench.rows(compute);
                for (heads, head_dim, context) in [(9, 64, 512), (64, 128, 512), (64, 128, 4096)] {
                    bench.attention(compute, [heads, head_dim], [1, context]);
                }
                bench.attention(compute, [9, 64], [512, 512]);
                bench.attention(compute, [8, 128], [512, 2048]);
            }
            bench.evidence();
        }
    }
}

impl Bench {
    fn rows(&self, compute: Compute) {
        let (device, dtype) = (&self.device, compute.dtype());
        for cols in [576, 8192] {
            let mut x = filled(device, dtype, 1, cols);
            let delta = filled(device, dtype, 1, cols);
            let weight = device.vector(Dtype::F32, &vec![0; 4 * cols], compute).unwrap();
            let mut out = filled(device, dtype, 1, cols);
            self.report(&format!("{compute} add_rms_norm {cols}"), [0.0; 2], || {
                device.add_rms_norm(&mut x, Some(&delta), &weight, 1e-5, &mut out).unwrap();
            });
        }
        for inner in [1536, 21824] {
            let gate_up = filled(device, dtype, 1, 2 * inner);
            let mut out = filled(device, dtype, 1, inner);
            self.report(&format!("{compute} silu_mul {inner}"), [0.0; 2], || {
                device.silu_mul(&gate_up, &mut out).unwrap();
            });
        }
    }

    /// Rows at the end of a context.
    fn attention(&self, compute: Compute, [heads, head_dim]: [usize; 2], [rows, context]: [usize; 2]) {
        let name = format!("{compute} attention {heads}x{head_dim}, {rows} rows of {context}");
        let write = format!("{compute} rope_kv_write {heads}x{head_dim}, {rows} rows");
        if !name.contains(&self.only) && !write.contains(&self.only) {
            return;
        }
        let device = &self.device;
        let bytes = context * heads * 2 * head_dim * compute.dtype().bytes();
        let layers = if rows == 1 { COLD.div_ceil(bytes) } else { 1 };
        let spec = KvSpec { layers, kv_heads: heads, head_dim, compute, kv_type: KvType::of(compute) };
        let blocks: Vec<u32> = (0..context.div_ceil(BLOCK_ROWS) as u32).collect();
        let mut kv = device.kv_pool(spec, blocks.len()).unwrap();
        let half = head_dim / 2;
        let table = RopeTable::new(half, vec![1.0; context * half], vec![0.0; context * half]).unwrap();
        let tables = device.rope_tables(vec![table]).unwrap();
        let mut qkv = filled(device, compute.dtype(), context, 3 * heads * head_dim);
        let zeros = vec![0; context];
        let all = AttnSpan {
            first_row: 0,
            rows: context,
            first_position: 0,
            prompt_rows: context,
            blocks: &blocks,
            row_tables: &zeros,
            block_tables: &zeros,
        };
        let mut placed = device.rows(RowsRoom { rows: context, blocks: blocks.len() }).unwrap();
        device.place(&[all], &kv, &tables, &mut placed).unwrap();
        for layer in 0..layers {
            device.rope_kv_write(&mut qkv, &placed, &tables, &mut kv, layer).unwrap();
        }
        let (first_position, prompt_rows) = (context - rows, if rows == 1 { 0 } else { rows });
        let span = AttnSpan { rows, first_position, prompt_rows, row_tables: &zeros[..rows], ..all };
        device.place(&[span], &kv, &tables, &mut placed).unwrap();
        qkv.set_rows(rows).unwrap();
        let mut out = device.tensor(compute.dtype(), rows, heads * head_dim).unwrap();
        let keys: usize = (context - rows + 1..=context).sum();
        let mut layer = 0;
        let read = if rows == 1 { bytes as f64 } else { 0.0 };
        self.report(&name, [(4 * keys * heads * head_dim) as f64, read], || {
            layer = (layer + 1) % layers;
            let attention = Attention { kv: &kv, layer, rows: &placed, tables: &tables, scale: 0.125 };
            device.attention(&qkv, &attention, &mut out).unwrap();
        });
        self.report(&write, [0.0; 2], || {
            device.rope_kv_write(&mut qkv, &placed, &tables, &mut kv, 0).unwrap();
        });
    }

    fn evidence(&self) {
        let device = &self.device;
        for vocab in [49_152, 80_896] {
            let logits = filled(device, Dtype::F32, 1, vocab);
            let mut slots = filled(device, Dtype::F32, 1, vocab);
            let room = EvidenceRoom { rows: 1, vocab, top_k: 1024, ids: 0 };
            let mut memory = device.evidence_memory(room).unwrap();
            for (top_k, temperature) in [(1, None), (64, None), (64, Some(0.7)), (1024, Some(0.7))] {
                let processors = Processors::NONE;
                let request =
                    EvidenceRequest { row: 0, slot: 0, processors, top_k, temperature, logprobs: None };
                let sum = if temperature.is_some() { " and log-sum-exp" } else { "" };
                self.report(&format!("evidence: {top_k} best{sum} of {vocab}"), [0.0; 2], || {
                    black_box(device.evidence(&logits, &mut slots, &[request], &mut memory).unwrap());
                });
            }
        }
    }

    /// Prints the best time, and what it makes of these operations and bytes.
    fn report(&self, name: &str, [operations, bytes]: [f64; 2], mut call: impl FnMut()) {
        if !name.contains(&self.only) {
            return;
        }
        let start = Instant::now();
        let mut best = Duration::MAX;
        while start.elapsed() < PATIENCE {
            let call_start = Instant::now();
            call();
            best = best.min(call_start.elapsed());
        }
        let seconds = best.as_secs_f64();
        print!("{name:48} {:9.2} us", seconds * 1e6);
        if operations > 0.0 {
            print!(" {:7.1} GFLOP/s", operations / seconds / 1e9);
        }
        if bytes > 0.0 {
            print!(" {:6.1} GB/s", bytes / seconds / 1e9);
        }
        println!();
    }
}

/// Values that spread like logits and activations do.
fn filled(device: &Device, dtype: Dtype, rows: usize, cols: usize) -> Tensor {
    let mut tensor = device.tensor(dtype, rows, cols).unwrap();
    tensor.set_rows(rows).unwrap();
    let mut state = 1_u32;
    for row in 0..rows {
        let values = (0..cols).map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 22) as f32 - 2.0
        });
        tensor.write_row(row, &values.collect::<Vec<_>>()).unwrap();
    }
    tensor
}
