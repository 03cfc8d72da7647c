//! The card as a whole: what is said where there is none, and what it can do at most where there is one.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails says where")]

mod support;

use asterism_tensor::{CudaOptions, Device, TensorError};
use support::{best, gpus};

fn options(ordinal: usize) -> CudaOptions {
    CudaOptions { ordinal, deterministic: true, cache: None }
}

#[test]
fn a_machine_without_a_card_says_what_is_missing() {
    match Device::cuda(options(0)) {
        Ok(device) => eprintln!("skipped: this machine has {device:?}"),
        Err(TensorError::Library { library, remedy }) => {
            assert!(library.contains(".so"), "the file is named: {library}");
            assert!(remedy.starts_with("install"), "{remedy}");
        }
        Err(
            error @ (TensorError::OldLibrary { .. }
            | TensorError::NoCard { .. }
            | TensorError::OldCard { .. }),
        ) => {
            assert!(
                error.to_string().contains(|c: char| c.is_ascii_digit()),
                "the versions are named: {error}"
            );
        }
        // A driver that finds the machine in disorder says so itself.
        Err(error) => assert!(matches!(error, TensorError::Cuda { what: "cuInit", .. }), "{error}"),
    }
}

#[test]
fn a_card_that_does_not_exist_is_named() {
    if gpus().is_empty() {
        return;
    }
    let error = Device::cuda(options(1000)).unwrap_err();
    assert!(matches!(error, TensorError::NoCard { ordinal: 1000, count: 1.. }), "{error}");
}

#[test]
fn limits_are_those_of_a_card() {
    assert!(matches!(best().card_limits(), Err(TensorError::OtherDevice)));
    for device in gpus() {
        let limits = device.card_limits().unwrap();
        let all = [limits.copy, limits.read, limits.gemm, limits.upload, limits.download];
        assert!(all.iter().all(|limit| limit.is_finite() && *limit > 0.0), "{limits:?}");
        assert!(limits.bytes >= 64 << 20);
    }
}

#[test]
fn a_second_start_compiles_nothing() {
    if gpus().is_empty() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let start = || {
        let options = CudaOptions { cache: Some(folder.path().to_owned()), ..options(0) };
        Device::cuda(options).unwrap().kernel_report().unwrap()
    };
    let (first, second) = (start(), start());
    assert!(first.compiled > 0 && first.cached == 0, "{first:?}");
    assert_eq!((second.compiled, second.cached), (0, first.compiled), "{second:?}");
    assert_eq!((first.not_kept, second.not_kept), (None, None));
}
