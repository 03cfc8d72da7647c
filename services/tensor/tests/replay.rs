//! Steps that are recorded once and replayed: the same bits as step by step, nothing allocated, nothing waited for.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails says where")]

mod support;

use asterism_tensor::{
    Attention, AttnSpan, BLOCK_ROWS, Columns, Compute, Device, Dtype, Embedding, Graphs, Indices, KvPool,
    KvSpec, KvType, Layout, Matrix, MatrixBuilder, RopeTables, Rows, RowsRoom, Tensor, TensorError, Vector,
};
use support::{Rng, best, bits, gpus, sequence};

const HIDDEN: usize = 256;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 64;
const FFN: usize = 320;
const VOCAB: usize = 192;
const QKV: usize = (HEADS + 2 * KV_HEADS) * HEAD_DIM;

/// Rows of a replayed step: three sequences, and a row of padding.
const ROWS: usize = 4;
const SEQUENCES: usize = ROWS - 1;
const POSITIONS: usize = 160;
const SEQUENCE_BLOCKS: usize = POSITIONS / BLOCK_ROWS;

/// A layer and a head, and all that a step of them works on.
struct Model {
    embedding: Embedding,
    norm: Vector,
    qkv: Matrix,
    o: Matrix,
    gate_up: Matrix,
    down: Matrix,
    head: Matrix,
    tables: RopeTables,
    kv: KvPool,
    rows: Rows,
    ids: Indices,
    last: Indices,
    work: Work,
}

/// Activations.
struct Work {
    x: Tensor,
    normed: Tensor,
    qkv: Tensor,
    attended: Tensor,
    delta: Tensor,
    gate_up: Tensor,
    hidden: Tensor,
    picked: Tensor,
    logits: Tensor,
}

impl Model {
    fn new(device: &Device, compute: Compute) -> Model {
        let mut rng = Rng(7);
        let dtype = compute.dtype();
        let matrix = |rng: &mut Rng, inputs: usize, outputs: usize| {
            let scale = 1.0 / (inputs as f32).sqrt();
            let values = (0..inputs * outputs).map(|_| rng.normal() * scale);
            let bytes: Vec<u8> = values.flat_map(f32::to_le_bytes).collect();
            let layout = Layout::OutputsFirst;
            let columns = Columns { bytes: &bytes, dtype: Dtype::F32, layout, outputs, select: None };
            device.matrix(MatrixBuilder::new(inputs, compute).columns(columns)).unwrap()
        };
        let bytes = |values: Vec<f32>| values.into_iter().flat_map(f32::to_le_bytes).collect::<Vec<u8>>();
        let embedded = bytes(rng.row(VOCAB * HIDDEN));
        let kv_type = KvType::of(compute);
        let spec = KvSpec { layers: 1, kv_heads: KV_HEADS, head_dim: HEAD_DIM, compute, kv_type };
        let room = RowsRoom { rows: 64, blocks: SEQUENCES * SEQUENCE_BLOCKS };
        let tensor = |dtype, cols| device.tensor(dtype, 64, cols).unwrap();
        Model {
            embedding: device.embedding(Dtype::F32, [VOCAB, HIDDEN], &embedded, compute).unwrap(),
            norm: device.vector(Dtype::F32, &bytes(vec![1.0; HIDDEN]), compute).unwrap(),
            qkv: matrix(&mut rng, HIDDEN, QKV),
            o: matrix(&mut rng, HEADS * HEAD_DIM, HIDDEN),
            gate_up: matrix(&mut rng, HIDDEN, 2 * FFN),
            down: matrix(&mut rng, FFN, HIDDEN),
            head: matrix(&mut rng, HIDDEN, VOCAB),
            tables: sequence::tables(device, HEAD_DIM / 2, POSITIONS),
            kv: device.kv_pool(spec, SEQUENCES * SEQUENCE_BLOCKS).unwrap(),
            rows: device.rows(room).unwrap(),
            ids: device.indices(64).unwrap(),
            last: device.indices(64).unwrap(),
            work: Work {
                x: tensor(dtype, HIDDEN),
                normed: tensor(dtype, HIDDEN),
                qkv: tensor(dtype, QKV),
                attended: tensor(dtype, HEADS * HEAD_DIM),
                delta: tensor(dtype, HIDDEN),
                gate_up: tensor(dtype, 2 * FFN),
                hidden: tensor(dtype, FFN),
                picked: tensor(dtype, HIDDEN),
                logits: tensor(Dtype::F32, VOCAB),
            },
        }
    }

    /// So that no plan has to be found in a step.
    fn prepare(&self, device: &Device, dtype: Dtype) {
        let matrices = [&self.qkv, &self.o, &self.gate_up, &self.down];
        device.prepare_matmul(&matrices, 64, dtype).unwrap();
        device.prepare_matmul(&[&self.head], 64, Dtype::F32).unwrap();
    }

    /// Says what the next step is of: each sequence's positions from `start` to `end`.
    fn place(&mut self, device: &Device, start: usize, end: usize) {
        let len = end - start;
        let blocks: Vec<Vec<u32>> = (0..SEQUENCES)
            // Blocks of the sequences lie between one another.
            .map(|sequence| (0..SEQUENCE_BLOCKS).map(|block| (block * SEQUENCES + sequence) as u32).collect())
            .collect();
        let (row_tables, block_tables) = (vec![0; len], vec![0; SEQUENCE_BLOCKS]);
        let spans: Vec<AttnSpan<'_>> = blocks
            .iter()
            .enumerate()
            .map(|(sequence, blocks)| AttnSpan {
                first_row: sequence * len,
                rows: len,
                first_position: start,
                prompt_rows: if len > 1 { len } else { 0 },
                blocks,
                row_tables: &row_tables,
                block_tables: &block_tables,
            })
            .collect();
        device.place(&spans, &self.kv, &self.tables, &mut self.rows).unwrap();
        let ids: Vec<u32> = (0..SEQUENCES * len)
            .map(|row| ((row / len * 31 + (start + row % len) * 17) % VOCAB) as u32)
            .collect();
        let rows = if len == 1 { ROWS } else { ids.len() };
        device.write_indices(&ids, rows, &mut self.ids).unwrap();
        let last: Vec<u32> = (0..SEQUENCES).map(|sequence| (sequence * len + len - 1) as u32).collect();
        let count = if len == 1 { ROWS } else { last.len() };
        device.write_indices(&last, count, &mut self.last).unwrap();
    }

    /// What the step computes.
    fn compute(&mut self, device: &Device) -> Result<(), TensorError> {
        let Work { x, normed, qkv, attended, delta, gate_up, hidden, picked, logits } = &mut self.work;
        device.embed(&self.ids, &self.embedding, 1.0, x)?;
        device.add_rms_norm(x, None, &self.norm, 1e-5, normed)?;
        device.matmul(normed, &self.qkv, qkv)?;
        device.rope_kv_write(qkv, &self.rows, &self.tables, &mut self.kv, 0)?;
        let (kv, rows, tables) = (&self.kv, &self.rows, &self.tables);
        let attention = Attention { kv, layer: 0, rows, tables, scale: 1.0 / (HEAD_DIM as f32).sqrt() };
        device.attention(qkv, &attention, attended)?;
        device.matmul(attended, &self.o, delta)?;
        device.add_rms_norm(x, Some(delta), &self.norm, 1e-5, normed)?;
        device.matmul(normed, &self.gate_up, gate_up)?;
        device.silu_mul(gate_up, hidden)?;
        device.matmul(hidden, &self.down, delta)?;
        device.add_rms_norm(x, Some(delta), &self.norm, 1e-5, normed)?;
        device.gather_rows(normed, &self.last, picked)?;
        device.head(picked, &self.head, 0.5, logits)
    }

    /// The logits of the step's sequences; what padding has is left out.
    fn logits(&self) -> Vec<u8> {
        let mut bytes = bits(&self.work.logits);
        bytes.truncate(SEQUENCES * self.work.logits.row_bytes());
        bytes
    }
}

/// The processor once, where replaying is doing, and the card.
fn devices() -> Vec<Device> {
    [best()].into_iter().chain(gpus()).collect()
}

#[test]
fn a_replayed_step_is_the_step() {
    for device in devices() {
        for compute in [Compute::F32, Compute::Bf16] {
            let [mut plain, mut replayed] = [(); 2].map(|()| Model::new(&device, compute));
            plain.prepare(&device, compute.dtype());
            let mut graphs = Graphs::default();
            for model in [&mut plain, &mut replayed] {
                model.place(&device, 0, 21);
                model.compute(&device).unwrap();
            }
            // Over the borders of blocks, and of units of attention.
            for position in 21..POSITIONS {
                plain.place(&device, position, position + 1);
                plain.compute(&device).unwrap();
                replayed.place(&device, position, position + 1);
                device.replay(&mut graphs, 1, &mut || replayed.compute(&device)).unwrap();
                assert!(plain.logits() == replayed.logits(), "{device:?} {compute:?}: position {position}");
                assert!(plain.logits().iter().any(|byte| *byte != 0));
            }
        }
    }
}

#[test]
fn replaying_takes_no_memory_and_waits_for_nothing() {
    for device in gpus() {
        let compute = Compute::Bf16;
        let mut model = Model::new(&device, compute);
        model.prepare(&device, compute.dtype());
        let mut graphs = Graphs::default();
        model.place(&device, 0, 20);
        model.compute(&device).unwrap();
        let mut step = |model: &mut Model, position: usize| {
            model.place(&device, position, position + 1);
            device.replay(&mut graphs, 1, &mut || model.compute(&device)).unwrap();
        };
        step(&mut model, 20);
        device.synchronize().unwrap();
        let before = device.counters().unwrap();
        for position in 21..POSITIONS {
            step(&mut model, position);
        }
        let after = device.counters().unwrap();
        let steps = (POSITIONS - 21) as u64;
        assert_eq!(after.allocations, before.allocations);
        assert_eq!(after.synchronisations, before.synchronisations);
        assert_eq!(after.captures, before.captures);
        assert_eq!(after.graph_launches - before.graph_launches, steps);
        // What the host tells: the places of rows, their ids, and which rows are wanted.
        assert!(
            after.launches - before.launches <= 3 * steps,
            "{} launches",
            after.launches - before.launches
        );
        device.synchronize().unwrap();
    }
}

#[test]
fn work_that_fails_leaves_nothing_recorded_and_the_device_usable() {
    for device in devices() {
        let mut graphs = Graphs::default();
        let mut model = Model::new(&device, Compute::Bf16);
        model.place(&device, 0, 3);
        model.compute(&device).unwrap();
        let expected = model.logits();
        let failed: Result<(), TensorError> = device.replay(&mut graphs, 1, &mut || {
            model.compute(&device)?;
            device.write_indices(&[0; 65], 65, &mut model.last)
        });
        assert!(matches!(failed, Err(TensorError::Capacity { rows: 65, .. })), "{failed:?}");
        assert!(graphs.is_empty());
        model.place(&device, 0, 3);
        device.replay(&mut graphs, 1, &mut || model.compute(&device)).unwrap();
        assert!(model.logits() == expected, "{device:?}");
    }
}

#[test]
fn what_cannot_be_recorded_is_refused() {
    for device in gpus() {
        let mut graphs = Graphs::default();
        let mut model = Model::new(&device, Compute::Bf16);
        model.place(&device, 0, 3);
        model.compute(&device).unwrap();
        let expected = model.logits();
        // Waiting while recording is forbidden; that the work hides it changes nothing.
        let hidden = device.replay(&mut graphs, 1, &mut || {
            model.compute(&device)?;
            let _ = device.synchronize();
            Ok::<(), TensorError>(())
        });
        assert!(matches!(hidden, Err(TensorError::Cuda { .. })), "{hidden:?}");
        assert!(graphs.is_empty());
        device.replay(&mut graphs, 1, &mut || model.compute(&device)).unwrap();
        assert!(model.logits() == expected);
        assert_eq!(graphs.len(), 1);
    }
}

#[test]
fn graphs_are_bounded() {
    for device in gpus() {
        let mut graphs = Graphs::default();
        let mut sum = support::tensor(&device, Dtype::F32, &[vec![0.0; 8]]);
        let one = support::tensor(&device, Dtype::F32, &[vec![1.0; 8]]);
        for key in 0..300 {
            device.replay(&mut graphs, key, &mut || device.add(&mut sum, &one)).unwrap();
        }
        assert_eq!(support::rows(&sum), [[300.0; 8]]);
        assert!(graphs.len() < 300);
    }
}
