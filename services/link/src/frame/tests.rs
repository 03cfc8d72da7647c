use proptest::prelude::*;

use super::*;

const BOUNDS: Bounds = Bounds { epoch: 7, largest: 64 };

fn frame(step: u64, total: u64, offset: u64, payload: &[u8]) -> Frame {
    Frame { epoch: 7, step, total_bytes: total, offset, payload: Bytes::copy_from_slice(payload) }
}

#[test]
fn a_step_of_many_frames_comes_back_whole() {
    let bytes: Bytes = (0..2 * FRAME_PAYLOAD_LIMIT + 5).map(|i| (i % 251) as u8).collect();
    let step = StepBytes { step: 3, bytes };
    let mut assembler = Assembler::new(Bounds { epoch: 1, largest: step.bytes.len() as u64 });
    let frames: Vec<Frame> = cut(1, step.clone()).collect();
    assert_eq!(frames.iter().map(|frame| frame.payload.len()).collect::<Vec<_>>(), [8 << 20, 8 << 20, 5]);
    let whole: Vec<StepBytes> =
        frames.into_iter().filter_map(|frame| assembler.push(frame).expect("in order")).collect();
    assert!(whole == [step], "the same bytes, once");
}

#[test]
fn each_broken_rule_has_its_own_error_and_changes_nothing() {
    let mut assembler = Assembler::new(BOUNDS);
    let check = |assembler: &mut Assembler, frame, error| assert_eq!(assembler.push(frame), Err(error));
    check(
        &mut assembler,
        Frame { epoch: 6, ..frame(1, 4, 0, b"abcd") },
        FrameError::Epoch { found: 6, epoch: 7 },
    );
    check(&mut assembler, frame(0, 4, 0, b"abcd"), FrameError::Order { found: 0, expected: 1 });
    check(&mut assembler, frame(2, 65, 0, b"a"), FrameError::Total { step: 2, total: 65, largest: 64 });
    check(&mut assembler, frame(2, 0, 0, b""), FrameError::Total { step: 2, total: 0, largest: 64 });
    check(&mut assembler, frame(2, 4, 1, b"bcd"), FrameError::Offset { step: 2, found: 1, expected: 0 });
    check(
        &mut assembler,
        frame(2, 4, 0, b""),
        FrameError::Payload { step: 2, offset: 0, found: 0, total: 4 },
    );
    check(
        &mut assembler,
        frame(2, 4, 0, b"abcde"),
        FrameError::Payload { step: 2, offset: 0, found: 5, total: 4 },
    );

    assert_eq!(assembler.push(frame(2, 4, 0, b"ab")), Ok(None));
    check(&mut assembler, frame(3, 4, 2, b"cd"), FrameError::Order { found: 3, expected: 2 });
    check(&mut assembler, frame(2, 5, 2, b"cd"), FrameError::TotalChanged { step: 2, found: 5, total: 4 });
    check(&mut assembler, frame(2, 4, 0, b"ab"), FrameError::Offset { step: 2, found: 0, expected: 2 });
    check(
        &mut assembler,
        frame(2, 4, 2, b"cde"),
        FrameError::Payload { step: 2, offset: 2, found: 3, total: 4 },
    );
    let whole = StepBytes { step: 2, bytes: Bytes::from_static(b"abcd") };
    assert_eq!(assembler.push(frame(2, 4, 2, b"cd")), Ok(Some(whole)));
    check(&mut assembler, frame(2, 4, 0, b"abcd"), FrameError::Order { found: 2, expected: 3 });
}

/// A frame that is often nearly right.
fn hostile_frame() -> impl Strategy<Value = Frame> {
    let small = prop_oneof![8 => 0..6u64, 1 => any::<u64>()];
    let size = prop_oneof![8 => 0..70u64, 1 => any::<u64>()];
    let epoch = prop_oneof![9 => Just(7u64), 1 => any::<u64>()];
    (epoch, small, size.clone(), size, prop::collection::vec(any::<u8>(), 0..40)).prop_map(
        |(epoch, step, total_bytes, offset, payload)| Frame {
            epoch,
            step,
            total_bytes,
            offset,
            payload: payload.into(),
        },
    )
}

proptest! {
    #[test]
    fn hostile_frames_neither_panic_nor_take_memory(frames in prop::collection::vec(hostile_frame(), 0..60)) {
        let mut assembler = Assembler::new(BOUNDS);
        let mut latest = 0;
        for frame in frames {
            if let Ok(Some(whole)) = assembler.push(frame) {
                prop_assert!(whole.step > latest, "steps come in order");
                prop_assert!(!whole.bytes.is_empty() && whole.bytes.len() as u64 <= BOUNDS.largest);
                latest = whole.step;
            }
            prop_assert!(assembler.held() as u64 <= BOUNDS.largest, "{} bytes held", assembler.held());
        }
    }

    #[test]
    fn any_cut_of_steps_comes_back_the_same(
        steps in prop::collection::vec((1..5u64, prop::collection::vec(any::<u8>(), 1..64), 1..64usize), 0..10)
    ) {
        let mut assembler = Assembler::new(BOUNDS);
        let mut step = 0;
        for (gap, bytes, piece) in steps {
            step += gap;
            let total = bytes.len() as u64;
            let mut got = None;
            for (index, payload) in bytes.chunks(piece).enumerate() {
                prop_assert!(got.is_none(), "whole before the last frame");
                let next = frame(step, total, (index * piece) as u64, payload);
                prop_assert_eq!(assembler.begins_with(&next), index == 0);
                got = assembler.push(next).map_err(|error| TestCaseError::fail(error.to_string()))?;
            }
            prop_assert_eq!(got, Some(StepBytes { step, bytes: bytes.into() }));
        }
    }
}
