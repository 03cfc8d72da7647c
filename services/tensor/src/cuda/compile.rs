//! From embedded source to machine code for the card.
#![allow(unsafe_code, reason = "calls NVRTC")]

use std::ffi::CString;
use std::path::PathBuf;

use cudarc::nvrtc::{result, sys};

use crate::TensorError;

/// A file of kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Theme {
    /// Sums, norms, products, rows.
    Elementwise,
    /// Rotation and the KV write.
    Rope,
    /// Multiplication by our own kernels.
    Gemm,
    /// Weights into their layout.
    Pack,
    /// Attention of any kind.
    Attention,
    /// Attention of single rows over tiled blocks.
    AttentionDecode,
    /// Attention of prompts over tiled blocks, by Hopper's instructions.
    AttentionPrefill,
    /// The same by those of all cards.
    AttentionPrefillMma,
    /// Processors, best candidates, log-sum-exp.
    Evidence,
    /// What the card can do at most.
    Probe,
}

impl Theme {
    /// Its name in errors and in the cache.
    pub fn name(self) -> &'static str {
        match self {
            Theme::Elementwise => "elementwise",
            Theme::Rope => "rope",
            Theme::Gemm => "gemm",
            Theme::Pack => "pack",
            Theme::Attention => "attention",
            Theme::AttentionDecode => "attention_decode",
            Theme::AttentionPrefill => "attention_prefill",
            Theme::AttentionPrefillMma => "attention_prefill_mma",
            Theme::Evidence => "evidence",
            Theme::Probe => "probe",
        }
    }

    fn source(self) -> &'static str {
        match self {
            Theme::Elementwise => include_str!("../../kernels/elementwise.cu"),
            Theme::Rope => include_str!("../../kernels/rope.cu"),
            Theme::Gemm => include_str!("../../kernels/gemm.cu"),
            Theme::Pack => include_str!("../../kernels/pack.cu"),
            Theme::Attention => include_str!("../../kernels/attention.cu"),
            Theme::AttentionDecode => include_str!("../../kernels/attention_decode.cu"),
            Theme::AttentionPrefill => include_str!("../../kernels/attention_prefill.cu"),
            Theme::AttentionPrefillMma => include_str!("../../kernels/attention_prefill_mma.cu"),
            Theme::Evidence => include_str!("../../kernels/evidence.cu"),
            Theme::Probe => include_str!("../../kernels/probe.cu"),
        }
    }
}

const PRELUDE: &str = include_str!("../../kernels/prelude.cu");

/// Compiles for one kind of card.
#[derive(Debug)]
pub struct Compiler {
    target: String,
    cache: Option<PathBuf>,
}

impl Compiler {
    /// For cards of this compute capability.
    pub fn new((major, minor): (u32, u32), cache: Option<PathBuf>) -> Result<Compiler, TensorError> {
        let suffix = if (major, minor) == (9, 0) { "a" } else { "" };
        Ok(Compiler { target: format!("sm_{major}{minor}{suffix}"), cache })
    }

    /// Machine code of a theme.
    pub fn cubin(&self, theme: Theme, defines: &[(&str, u32)]) -> Result<Vec<u8>, TensorError> {
        let _ = &self.cache;
        let failed = |log: String| TensorError::Kernel { theme: theme.name(), log };
        let source = format!("{PRELUDE}\n#line 1 \"{}.cu\"\n{}", theme.name(), theme.source());
        let source = CString::new(source).map_err(|error| failed(error.to_string()))?;
        let mut options = vec![format!("--gpu-architecture={}", self.target), "-std=c++17".to_owned()];
        options.extend(defines.iter().map(|(name, value)| format!("-D{name}={value}")));
        let wrong = |error: result::NvrtcError| failed(format!("{error:?}"));
        let program = result::create_program(&source, None).map_err(wrong)?;
        // SAFETY: the program lives until it is destroyed below; the buffer has the size that NVRTC told.
        unsafe {
            let compiled = result::compile_program(program, &options);
            let image = match compiled {
                Err(_) => {
                    let log = result::get_program_log(program).map_err(wrong)?;
                    let log = log.iter().map(|byte| *byte as u8).take_while(|byte| *byte != 0).collect::<Vec<_>>();
                    Err(failed(String::from_utf8_lossy(&log).into_owned()))
                }
                Ok(()) => {
                    let mut bytes = 0;
                    sys::nvrtcGetCUBINSize(program, &mut bytes).result().map_err(wrong)?;
                    let mut image = vec![0_u8; bytes];
                    sys::nvrtcGetCUBIN(program, image.as_mut_ptr().cast()).result().map_err(wrong)?;
                    Ok(image)
                }
            };
            result::destroy_program(program).map_err(wrong)?;
            image
        }
    }
}
