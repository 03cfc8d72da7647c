//! The libraries that are opened at run time, and what is said where one is missing or too old.
//!
//! Nothing of them is called before it is known that they can be opened: a call into a missing library panics.
#![allow(unsafe_code, reason = "asks libraries for their versions")]

use std::fmt;

use cudarc::{cublaslt, driver, nvrtc};

use crate::TensorError;

/// The oldest driver whose functions are called (570), as the CUDA version that it supports.
const OLDEST_DRIVER: (u32, u32) = (12, 8);

/// The oldest NVRTC and cuBLASLt.
const OLDEST_LIBRARY: (u32, u32) = (12, 0);

const DRIVER: &str = "the NVIDIA driver (libcuda.so.1)";
const NVRTC: &str = "NVRTC (libnvrtc.so)";
const CUBLASLT: &str = "cuBLASLt (libcublasLt.so)";

/// What helps where the driver is missing or too old.
const INSTALL_DRIVER: &str = "install the card's driver, 580 or later";

/// What helps where a library is missing or too old.
const INSTALL_LIBRARY: &str = "install the CUDA 13.0 toolkit, or its wheels from PyPI, and name the library's folder in LD_LIBRARY_PATH";

/// Versions of what was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Libraries {
    /// The CUDA version that the driver supports: major and minor.
    pub driver: (u32, u32),
    /// NVRTC's major and minor version.
    pub nvrtc: (u32, u32),
    /// cuBLASLt's version, as it tells it itself: 130001 is 13.0.1.
    pub cublaslt: usize,
}

impl Libraries {
    /// Opens the driver, NVRTC and cuBLASLt; refuses a machine that lacks one or has one that is too old for the others.
    pub fn open() -> Result<Libraries, TensorError> {
        let libraries = Libraries { driver: driver()?, nvrtc: nvrtc()?, cublaslt: cublaslt()? };
        libraries.check()?;
        Ok(libraries)
    }

    /// Refuses versions that do not fit each other: code of a later major version than the driver's does not load.
    fn check(self) -> Result<(), TensorError> {
        let cublaslt = cublaslt_version(self.cublaslt);
        at_least(NVRTC, self.nvrtc, OLDEST_LIBRARY, INSTALL_LIBRARY)?;
        at_least(CUBLASLT, cublaslt, OLDEST_LIBRARY, INSTALL_LIBRARY)?;
        let latest = (self.nvrtc.0.max(cublaslt.0), 0);
        at_least(DRIVER, self.driver, OLDEST_DRIVER.max(latest), INSTALL_DRIVER)
    }
}

impl fmt::Display for Libraries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Libraries { driver, nvrtc, cublaslt } = self;
        write!(f, "driver {}.{}, nvrtc {}.{}, cublaslt {cublaslt}", driver.0, driver.1, nvrtc.0, nvrtc.1)
    }
}

/// NVRTC's version. It needs no driver.
pub fn nvrtc() -> Result<(u32, u32), TensorError> {
    // SAFETY: it only tries to open a library.
    present(NVRTC, unsafe { nvrtc::sys::is_culib_present() }, INSTALL_LIBRARY)?;
    let (mut major, mut minor) = (0, 0);
    // SAFETY: the library is there, and writes two numbers.
    let answer = unsafe { nvrtc::sys::nvrtcVersion(&mut major, &mut minor) }.result();
    answer.map_err(|error| TensorError::Cuda { what: "nvrtcVersion", message: format!("{error:?}") })?;
    Ok((major.unsigned_abs(), minor.unsigned_abs()))
}

fn driver() -> Result<(u32, u32), TensorError> {
    // SAFETY: it only tries to open a library.
    present(DRIVER, unsafe { driver::sys::is_culib_present() }, INSTALL_DRIVER)?;
    let mut version = 0;
    // SAFETY: the library is there, and writes one number; it may be asked before `cuInit`.
    let answer = unsafe { driver::sys::cuDriverGetVersion(&mut version) }.result();
    super::card::check("cuDriverGetVersion", answer)?;
    let version = version.unsigned_abs();
    Ok((version / 1000, version % 1000 / 10))
}

fn cublaslt() -> Result<usize, TensorError> {
    // SAFETY: it only tries to open a library.
    present(CUBLASLT, unsafe { cublaslt::sys::is_culib_present() }, INSTALL_LIBRARY)?;
    // SAFETY: the library is there.
    Ok(unsafe { cublaslt::sys::cublasLtGetVersion() })
}

/// Major and minor version out of cuBLASLt's number.
fn cublaslt_version(version: usize) -> (u32, u32) {
    let part = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    (part(version / 10_000), part(version % 10_000 / 100))
}

fn present(library: &'static str, present: bool, remedy: &'static str) -> Result<(), TensorError> {
    if present { Ok(()) } else { Err(TensorError::Library { library, remedy }) }
}

fn at_least(
    library: &'static str,
    found: (u32, u32),
    needed: (u32, u32),
    remedy: &'static str,
) -> Result<(), TensorError> {
    if found >= needed { Ok(()) } else { Err(TensorError::OldLibrary { library, found, needed, remedy }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: Libraries = Libraries { driver: (13, 0), nvrtc: (13, 0), cublaslt: 130_001 };

    fn refusal(libraries: Libraries) -> String {
        libraries.check().unwrap_err().to_string()
    }

    #[test]
    fn versions_that_fit_each_other_are_taken() {
        for driver in [(13, 0), (13, 2), (14, 0)] {
            assert!(Libraries { driver, ..GOOD }.check().is_ok());
        }
        // A driver of the major version before serves libraries of that version.
        let older = Libraries { driver: (12, 8), nvrtc: (12, 9), cublaslt: 120_805 };
        assert!(older.check().is_ok());
    }

    #[test]
    fn what_is_too_old_is_named_with_both_versions() {
        let old_driver = refusal(Libraries { driver: (12, 9), ..GOOD });
        assert!(old_driver.starts_with("the NVIDIA driver") && old_driver.contains("12.9"), "{old_driver}");
        assert!(old_driver.contains("13.0 or later"), "{old_driver}");
        let older_driver = Libraries { driver: (12, 4), nvrtc: (12, 4), cublaslt: 120_400 };
        assert!(refusal(older_driver).contains("12.8 or later"));
        assert!(refusal(Libraries { nvrtc: (11, 8), ..GOOD }).starts_with("NVRTC"));
        assert!(refusal(Libraries { cublaslt: 11_503, ..GOOD }).starts_with("cuBLASLt"));
    }
}
