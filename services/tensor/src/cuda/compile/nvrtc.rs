//! NVRTC: what it compiles for, and one compilation.
#![allow(unsafe_code, reason = "calls NVRTC")]

use std::ffi::CString;

use cudarc::nvrtc::{result, sys};

use crate::TensorError;

/// What is compiled for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Machine code of this architecture, with its own instructions on Hopper.
    Code(u32),
    /// Text for a later architecture, which the driver compiles.
    Text(u32),
}

/// A compiled program.
pub struct Compiled {
    /// A cubin, or PTX.
    pub image: Vec<u8>,
    /// Warnings.
    #[cfg_attr(not(test), expect(dead_code, reason = "tests refuse warnings"))]
    pub log: String,
}

impl Target {
    /// The target for a compute capability, where NVRTC knows `architectures` (10 · major + minor, ascending): machine
    /// code of that one or of an earlier one of its major version, else text of the newest before it.
    pub fn of((major, minor): (u32, u32), architectures: &[u32]) -> Result<Target, TensorError> {
        let wanted = 10 * major + minor;
        let known = architectures.iter().copied().filter(|&architecture| architecture <= wanted).max();
        match known {
            Some(known) if known / 10 == major => Ok(Target::Code(known)),
            Some(known) => Ok(Target::Text(known)),
            None => Err(TensorError::Cuda {
                what: "NVRTC",
                message: format!("it compiles for no architecture up to compute capability {major}.{minor}"),
            }),
        }
    }

    /// As in NVRTC's options and in the cache.
    pub fn name(&self) -> String {
        match self {
            Target::Code(90) => "sm_90a".to_owned(),
            Target::Code(architecture) => format!("sm_{architecture}"),
            Target::Text(architecture) => format!("compute_{architecture}"),
        }
    }

    /// NVRTC's option for it.
    pub fn option(&self) -> String {
        format!("--gpu-architecture={}", self.name())
    }
}

/// The architectures that this NVRTC compiles for, ascending.
pub fn architectures() -> Result<Vec<u32>, TensorError> {
    let wrong =
        |error: result::NvrtcError| TensorError::Cuda { what: "NVRTC", message: format!("{error:?}") };
    let mut count = 0;
    // SAFETY: NVRTC writes one number.
    unsafe { sys::nvrtcGetNumSupportedArchs(&mut count) }.result().map_err(wrong)?;
    let mut known = vec![0; usize::try_from(count).unwrap_or(0)];
    // SAFETY: room for as many as it has just told.
    unsafe { sys::nvrtcGetSupportedArchs(known.as_mut_ptr()) }.result().map_err(wrong)?;
    let mut known: Vec<u32> = known.into_iter().filter_map(|known| u32::try_from(known).ok()).collect();
    known.sort_unstable();
    Ok(known)
}

/// Compiles; an error is the compiler's log.
pub fn compile(source: &str, options: &[String], target: &Target) -> Result<Compiled, String> {
    let wrong = |error: result::NvrtcError| format!("NVRTC: {error:?}");
    let source = CString::new(source).map_err(|error| error.to_string())?;
    let program = Program(result::create_program(&source, None).map_err(wrong)?);
    // SAFETY: the program lives until the end of this function.
    let compiled = unsafe { result::compile_program(program.0, options) };
    let log = program.log();
    match compiled {
        Ok(()) => Ok(Compiled { image: program.image(target).map_err(wrong)?, log }),
        Err(error) if log.is_empty() => Err(wrong(error)),
        Err(_) => Err(log),
    }
}

struct Program(sys::nvrtcProgram);

impl Program {
    fn log(&self) -> String {
        // SAFETY: the program lives.
        let log = unsafe { result::get_program_log(self.0) }.unwrap_or_default();
        let log: Vec<u8> = log.into_iter().map(|byte| byte as u8).take_while(|byte| *byte != 0).collect();
        String::from_utf8_lossy(&log).trim().to_owned()
    }

    fn image(&self, target: &Target) -> Result<Vec<u8>, result::NvrtcError> {
        let mut bytes = 0;
        // SAFETY: the program lives and was compiled; the buffer has the size that NVRTC told.
        unsafe {
            match target {
                Target::Code(_) => {
                    sys::nvrtcGetCUBINSize(self.0, &mut bytes).result()?;
                    let mut image = vec![0_u8; bytes];
                    sys::nvrtcGetCUBIN(self.0, image.as_mut_ptr().cast()).result()?;
                    Ok(image)
                }
                Target::Text(_) => Ok(result::get_ptx(self.0)?.into_iter().map(|byte| byte as u8).collect()),
            }
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: created once, destroyed once. A failure leaves nothing to do.
        let _ = unsafe { result::destroy_program(self.0) };
    }
}
