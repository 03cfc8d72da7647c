//! Speed of attention on the first card, beside what the card can do at most, measured in the same run:
//! `cargo bench -p asterism-tensor --bench attention [-- PART_OF_A_NAME]`.
#![allow(clippy::unwrap_used, reason = "a bench that fails says where")]

use std::env;
use std::time::Instant;

use asterism_tensor::{
    Attention, AttnSpan, BLOCK_ROWS, Compute, CudaLimits, CudaOptions, Device, Dtype, Graphs, KvPool, KvSpec,
    KvType, RopeTable, RopeTables, Rows, RowsRoom, Tensor,
};

/// Layers that calls go through in turn, so that no cache holds what they read.
const LAYERS: usize = 4;

/// The longest context, and as many rows as are written at a time.
const POSITIONS: usize = 4096;

/// Decode rows and their context.
const DECODE: [[usize; 2]; 11] = [
    [1, 576],
    [8, 576],
    [16, 576],
    [24, 576],
    [64, 576],
    [1, 1024],
    [8, 1024],
    [64, 1024],
    [1, 4096],
    [8, 4096],
    [16, 4096],
];

/// Prompt rows and the rows before them.
const PREFILL: [[usize; 2]; 5] = [[128, 0], [512, 0], [2048, 0], [2048, 2048], [4096, 0]];

/// Calls that are timed together, so many that the host's way to the card and back does not count, and how often.
const CALLS: usize = 32 * LAYERS;
const REPEATS: usize = 9;

/// Heads of a model: of queries, of keys, and their size.
#[derive(Clone, Copy)]
struct Heads {
    queries: usize,
    keys: usize,
    dim: usize,
}

/// Those of TeleChat-52B first, then groups and sizes that take other kernels.
const HEADS: [Heads; 4] = [
    Heads { queries: 64, keys: 64, dim: 128 },
    Heads { queries: 32, keys: 8, dim: 128 },
    Heads { queries: 32, keys: 32, dim: 64 },
    Heads { queries: 32, keys: 32, dim: 160 },
];

/// A pool full of random keys and values, and rows to attend.
struct Bench<'a> {
    device: &'a Device,
    limits: CudaLimits,
    heads: Heads,
    kv: KvPool,
    tables: RopeTables,
    qkv: Tensor,
    out: Tensor,
    /// Only lines whose name contains this.
    only: String,
}

fn main() {
    let only = env::args().skip(1).find(|argument| !argument.starts_with("--")).unwrap_or_default();
    let cache = Some(env::temp_dir().join("asterism-bench-kernels"));
    let device = match Device::cuda(CudaOptions { ordinal: 0, deterministic: true, cache }) {
        Ok(device) => device,
        Err(error) => return eprintln!("not run, for want of a card: {error}"),
    };
    let limits = device.card_limits().unwrap();
    let (copy, read, gemm) = (limits.copy / 1e12, limits.read / 1e12, limits.gemm / 1e12);
    println!(
        "{}: copies {copy:.2} TB/s (read and written), reads {read:.2} TB/s, multiplies {gemm:.0} TFLOP/s",
        device.describe()
    );
    for heads in HEADS {
        let mut bench = Bench::new(&device, limits, heads, only.clone());
        for [rows, context] in DECODE {
            bench.decode(rows, context);
        }
        for [rows, history] in PREFILL {
            bench.prefill(rows, history);
        }
    }
}

impl<'a> Bench<'a> {
    fn new(device: &'a Device, limits: CudaLimits, heads: Heads, only: String) -> Bench<'a> {
        let most = DECODE.iter().map(|[rows, context]| rows * context).max().unwrap();
        let blocks = most.next_multiple_of(POSITIONS) / BLOCK_ROWS;
        let Heads { queries, keys, dim } = heads;
        let spec = KvSpec {
            layers: LAYERS,
            kv_heads: keys,
            head_dim: dim,
            compute: Compute::Bf16,
            kv_type: KvType::Bf16,
        };
        let half = dim / 2;
        let table = RopeTable::new(half, vec![1.0; POSITIONS * half], vec![0.0; POSITIONS * half]).unwrap();
        let cols = (queries + 2 * keys) * dim;
        let mut bench = Bench {
            device,
            limits,
            heads,
            kv: device.kv_pool(spec, blocks).unwrap(),
            tables: device.rope_tables(vec![table]).unwrap(),
            qkv: device.tensor(Dtype::Bf16, POSITIONS, cols).unwrap(),
            out: device.tensor(Dtype::Bf16, POSITIONS, queries * dim).unwrap(),
            only,
        };
        bench.qkv.write_bytes(&random(POSITIONS * cols)).unwrap();
        let all: Vec<u32> = (0..blocks as u32).collect();
        for blocks in all.chunks_exact(POSITIONS / BLOCK_ROWS) {
            let rows = bench.place(&[(POSITIONS, 0, blocks)]);
            for layer in 0..LAYERS {
                let (qkv, kv) = (&mut bench.qkv, &mut bench.kv);
                device.rope_kv_write(qkv, &rows, &bench.tables, kv, layer).unwrap();
            }
        }
        bench
    }

    /// Spans of so many rows after so many others, in these blocks.
    fn place(&self, spans: &[(usize, usize, &[u32])]) -> Rows {
        let zeros = vec![0; POSITIONS];
        let mut first_row = 0;
        let mut placed = Vec::new();
        for &(rows, first_position, blocks) in spans {
            placed.push(AttnSpan {
                first_row,
                rows,
                first_position,
                prompt_rows: if rows == 1 { 0 } else { rows },
                blocks,
                row_tables: &zeros[..rows],
                block_tables: &zeros[..blocks.len()],
            });
            first_row += rows;
        }
        let blocks = spans.iter().map(|(_, _, blocks)| blocks.len()).sum();
        let mut rows = self.device.rows(RowsRoom { rows: first_row, blocks }).unwrap();
        self.device.place(&placed, &self.kv, &self.tables, &mut rows).unwrap();
        rows
    }

    /// Every row is another sequence.
    fn decode(&mut self, rows: usize, context: usize) {
        let Heads { queries, keys, dim } = self.heads;
        let name = format!("decode {queries}/{keys}x{dim}: {rows} rows of {context}");
        if !name.contains(&self.only) {
            return;
        }
        let blocks = shuffled(self.kv.blocks());
        let own = context.div_ceil(BLOCK_ROWS);
        let spans: Vec<_> = blocks.chunks_exact(own).take(rows).map(|own| (1, context - 1, own)).collect();
        let placed = self.place(&spans);
        let seconds = self.time(rows, &placed, true);
        let rate = (rows * context * keys * dim * 2 * Dtype::Bf16.bytes()) as f64 / seconds;
        let share = 100.0 * rate / self.limits.copy;
        println!("{name:44} {:9.1} us {:7.2} TB/s {share:5.1} % of copying", seconds * 1e6, rate / 1e12);
    }

    /// Rows of one sequence.
    fn prefill(&mut self, rows: usize, history: usize) {
        let Heads { queries, keys, dim } = self.heads;
        let name = format!("prefill {queries}/{keys}x{dim}: {rows} rows after {history}");
        if !name.contains(&self.only) {
            return;
        }
        let blocks = shuffled(self.kv.blocks());
        let placed = self.place(&[(rows, history, &blocks[..(history + rows).div_ceil(BLOCK_ROWS)])]);
        let seconds = self.time(rows, &placed, false);
        // A row sees half of its own chunk on the average.
        let rate = 4.0 * (queries * dim * rows) as f64 * (history as f64 + rows as f64 / 2.0) / seconds;
        let share = 100.0 * rate / self.limits.gemm;
        println!("{name:44} {:9.1} us {:7.0} TFLOP/s {share:5.1} % of a GEMM", seconds * 1e6, rate / 1e12);
    }

    /// Seconds of a call, the median of many; `recorded`: as one graph, as decode steps are.
    fn time(&mut self, rows: usize, placed: &Rows, recorded: bool) -> f64 {
        let Bench { device, kv, tables, qkv, out, heads, .. } = self;
        qkv.set_rows(rows).unwrap();
        let scale = 1.0 / (heads.dim as f32).sqrt();
        let mut calls = || {
            (0..CALLS).try_for_each(|call| {
                let attention = Attention { kv, layer: call % LAYERS, rows: placed, tables, scale };
                device.attention(qkv, &attention, out)
            })
        };
        let mut graphs = Graphs::default();
        let mut times = Vec::new();
        // The first is not counted: it records, and warms the card.
        for _ in 0..=REPEATS {
            device.synchronize().unwrap();
            let start = Instant::now();
            if recorded { device.replay(&mut graphs, 0, &mut calls) } else { calls() }.unwrap();
            device.synchronize().unwrap();
            times.push(start.elapsed().as_secs_f64() / CALLS as f64);
        }
        times.remove(0);
        times.sort_by(f64::total_cmp);
        times[REPEATS / 2]
    }
}

/// bf16 values that look random, from −2 to 2.
fn random(count: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let value = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        half::bf16::from_f32((state >> 40) as f32 / (1_u64 << 22) as f32 - 2.0).to_le_bytes()
    };
    (0..count).flat_map(value).collect()
}

/// All blocks of a pool, as a cache that has been in use gives them.
fn shuffled(count: usize) -> Vec<u32> {
    let mut blocks: Vec<u32> = (0..count as u32).collect();
    let mut state = 7_u64;
    for end in (1..count).rev() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        blocks.swap(end, (state >> 33) as usize % (end + 1));
    }
    blocks
}
