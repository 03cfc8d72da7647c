//! The libraries that are opened at run time, and what is said where one is missing.
#![allow(unsafe_code, reason = "asks whether libraries can be opened")]

use cudarc::{cublaslt, driver, nvrtc};

use crate::TensorError;

/// Refuses a machine that lacks the driver, NVRTC or cuBLASLt.
pub fn check() -> Result<(), TensorError> {
    // SAFETY: these only try to open a library.
    let (driver, nvrtc, cublaslt) = unsafe {
        (
            driver::sys::is_culib_present(),
            nvrtc::sys::is_culib_present(),
            cublaslt::sys::is_culib_present(),
        )
    };
    let missing = |library, remedy| Err(TensorError::Library { library, remedy });
    if !driver {
        return missing("the NVIDIA driver (libcuda.so)", "install the driver of the card, 580 or later");
    }
    if !nvrtc {
        return missing("NVRTC (libnvrtc.so)", "install CUDA 13 or name its folder in LD_LIBRARY_PATH");
    }
    if !cublaslt {
        return missing("cuBLASLt (libcublasLt.so)", "install CUDA 13 or name its folder in LD_LIBRARY_PATH");
    }
    Ok(())
}
