//! Activations between a device and a link: the same bytes, in order, in buffers that come back.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

mod support;

use asterism_tensor::{Device, Dtype, EdgeBytes, EdgeRoom, Tensor, TensorError};
use support::{Rng, all, bits, gpus};

const ROWS: usize = 37;
const COLS: usize = 264;

fn room(dtype: Dtype) -> EdgeRoom {
    EdgeRoom { rows: ROWS, cols: COLS, dtype, outgoing: 3, incoming: 2, timed: false }
}

/// `rows` random rows in `dtype`.
fn step(rng: &mut Rng, dtype: Dtype, rows: usize) -> Vec<u8> {
    let values = rng.rows(rows, COLS).into_iter().flatten();
    match dtype {
        Dtype::F32 => values.flat_map(f32::to_le_bytes).collect(),
        _ => values.flat_map(|x| half::bf16::from_f32(x).to_le_bytes()).collect(),
    }
}

fn holding(device: &Device, dtype: Dtype, bytes: &[u8]) -> Tensor {
    let mut tensor = device.tensor(dtype, ROWS, COLS).unwrap();
    tensor.write_bytes(bytes).unwrap();
    tensor
}

#[test]
fn rows_go_out_and_come_in_as_they_are() {
    let mut rng = Rng(1);
    for device in all() {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let mut edge = device.edge(room(dtype)).unwrap();
            for rows in [1, 2, 36, 37] {
                let bytes = step(&mut rng, dtype, rows);
                let out = edge.read(&holding(&device, dtype, &bytes)).unwrap().wait().unwrap();
                assert!(out.as_ref() == bytes, "{device:?}: {rows} rows of {dtype} out");
                let staged = edge.stage(out.as_ref()).unwrap();
                assert_eq!(staged.bytes(), bytes.len());
                let mut tensor = holding(&device, dtype, &step(&mut rng, dtype, ROWS));
                staged.write_to(&mut tensor).unwrap();
                assert_eq!(tensor.rows(), rows);
                assert!(bits(&tensor) == bytes, "{device:?}: {rows} rows of {dtype} in");
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    for device in all() {
        let mut edge = device.edge(room(Dtype::F32)).unwrap();
        let row = COLS * 4;
        for bytes in [row - 1, (ROWS + 1) * row] {
            assert!(edge.stage(&vec![0; bytes]).is_err(), "{device:?}: {bytes} bytes");
        }
        for (dtype, rows, cols) in
            [(Dtype::Bf16, 1, COLS), (Dtype::F32, 1, COLS + 1), (Dtype::F32, ROWS + 1, COLS)]
        {
            let mut tensor = device.tensor(dtype, rows, cols).unwrap();
            tensor.set_rows(rows).unwrap();
            assert!(edge.read(&tensor).is_err(), "{device:?}: {rows} rows of {cols} in {dtype}");
        }
        let staged = edge.stage(&vec![0; ROWS * row]).unwrap();
        let mut narrow = device.tensor(Dtype::F32, ROWS - 1, COLS).unwrap();
        assert!(matches!(staged.write_to(&mut narrow), Err(TensorError::Capacity { .. })), "{device:?}");
    }
}

#[test]
fn buffers_are_bounded_and_come_back_from_any_thread() {
    let mut rng = Rng(2);
    for device in all() {
        let mut edge = device.edge(room(Dtype::F32)).unwrap();
        let tensor = holding(&device, Dtype::F32, &step(&mut rng, Dtype::F32, 2));
        let mut held: Vec<EdgeBytes> = (0..3).map(|_| edge.read(&tensor).unwrap().wait().unwrap()).collect();
        assert!(matches!(edge.read(&tensor), Err(TensorError::NoBuffer { buffers: 3 })), "{device:?}");
        let first = held.remove(0);
        std::thread::spawn(move || assert_eq!(first.as_ref().len(), 2 * COLS * 4)).join().unwrap();
        // Dropped before it is there: the next copy into the same buffer comes after.
        drop(edge.read(&tensor).unwrap());
        let again = edge.read(&tensor).unwrap().wait().unwrap();
        assert!(again.as_ref() == bits(&tensor), "{device:?}");

        let bytes = step(&mut rng, Dtype::F32, 1);
        let one = edge.stage(&bytes).unwrap();
        let two = edge.stage(&bytes).unwrap();
        assert!(matches!(edge.stage(&bytes), Err(TensorError::NoBuffer { buffers: 2 })), "{device:?}");
        drop(one);
        let other = step(&mut rng, Dtype::F32, 1);
        let three = edge.stage(&other).unwrap();
        let mut tensor = tensor;
        three.write_to(&mut tensor).unwrap();
        assert!(bits(&tensor) == other, "{device:?}");
        two.write_to(&mut tensor).unwrap();
        assert!(bits(&tensor) == bytes, "{device:?}");
    }
}

/// The way of a stage with steps in flight: the next step's rows are staged and its operations enqueued before the last step's
/// result is waited for. Buffers are reused many times, and hold other steps' rows by then.
#[test]
fn successive_steps_never_mix() {
    let mut rng = Rng(3);
    for device in all() {
        for timed in [false, true] {
            let mut edge = device.edge(EdgeRoom { timed, ..room(Dtype::Bf16) }).unwrap();
            let steps: Vec<Vec<u8>> = (0..40)
                .map(|_| {
                    let rows = 1 + rng.below(ROWS);
                    step(&mut rng, Dtype::Bf16, rows)
                })
                .collect();
            let doubled: Vec<Vec<u8>> = steps.iter().map(|bytes| added(&device, bytes)).collect();
            let mut tensor = device.tensor(Dtype::Bf16, ROWS, COLS).unwrap();
            let mut delta = device.tensor(Dtype::Bf16, ROWS, COLS).unwrap();
            let mut under_way = None;
            let mut staged = Some(edge.stage(&steps[0]).unwrap());
            for index in 0..steps.len() {
                let mut input = staged.take().unwrap();
                edge.begin(Some(&mut input)).unwrap();
                input.write_to(&mut tensor).unwrap();
                input.write_to(&mut delta).unwrap();
                drop(input);
                device.add(&mut tensor, &delta).unwrap();
                let output = edge.read(&tensor).unwrap();
                staged = steps.get(index + 1).map(|next| edge.stage(next).unwrap());
                if let Some((before, output)) = under_way.replace((index, output)) {
                    check(&device, output, (before, &doubled[before]), timed);
                }
            }
            let (last, output) = under_way.unwrap();
            check(&device, output, (last, &doubled[last]), timed);
        }
    }
}

/// Twice the rows, one step by itself.
fn added(device: &Device, bytes: &[u8]) -> Vec<u8> {
    let (mut tensor, delta) = (holding(device, Dtype::Bf16, bytes), holding(device, Dtype::Bf16, bytes));
    device.add(&mut tensor, &delta).unwrap();
    bits(&tensor)
}

fn check(device: &Device, output: asterism_tensor::EdgeBuffer, (step, want): (usize, &[u8]), timed: bool) {
    let bytes = output.wait().unwrap();
    assert!(bytes.as_ref() == want, "{device:?}: step {step}");
    let times = bytes.times().unwrap();
    assert_eq!(times.is_some(), timed && matches!(device, Device::Cuda(_)), "{device:?}");
    if let Some(times) = times {
        let (upload, download) = (times.upload.unwrap(), times.download.unwrap());
        for part in [&upload, &times.compute, &download] {
            assert!(part.start <= part.end, "step {step}: {part:?}");
        }
        assert!(times.compute.end <= download.end, "step {step}: its result went down before it was there");
    }
}

#[test]
fn a_mark_is_there_after_what_was_enqueued_before() {
    for device in all() {
        let mut edge = device.edge(EdgeRoom { outgoing: 0, ..room(Dtype::F32) }).unwrap();
        let tensor = device.tensor(Dtype::F32, ROWS, COLS).unwrap();
        if matches!(device, Device::Cuda(_)) {
            assert!(matches!(edge.read(&tensor), Err(TensorError::NoBuffer { .. })));
        }
        for _ in 0..9 {
            let mark = edge.mark().unwrap();
            assert!(mark.wait().unwrap().as_ref().is_empty());
        }
        let last = edge.mark().unwrap();
        device.synchronize().unwrap();
        assert!(last.is_done().unwrap(), "{device:?}");
    }
}

#[test]
fn steps_wait_for_one_event_and_for_no_stream() {
    for device in gpus() {
        let mut rng = Rng(4);
        let mut edge = device.edge(room(Dtype::Bf16)).unwrap();
        let mut tensor = device.tensor(Dtype::Bf16, ROWS, COLS).unwrap();
        let bytes = step(&mut rng, Dtype::Bf16, 16);
        let before = device.counters().unwrap();
        const STEPS: u64 = 50;
        for _ in 0..STEPS {
            edge.stage(&bytes).unwrap().write_to(&mut tensor).unwrap();
            let out = edge.read(&tensor).unwrap().wait().unwrap();
            assert!(out.as_ref() == bytes);
        }
        let after = device.counters().unwrap();
        assert_eq!(after.synchronisations, before.synchronisations, "no stream is waited for");
        assert_eq!(after.allocations, before.allocations, "nothing is allocated");
        assert_eq!(after.waits, before.waits + STEPS, "one event a step is waited for");
    }
}
