//! The files of kernels, and the definitions that they are compiled with.

/// A file of kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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

/// A macro of a theme and its value.
pub type Define = (&'static str, u32);

/// What one compilation is of: a theme and its macros.
pub type Build = (Theme, Vec<Define>);

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

    pub(super) fn source(self) -> &'static str {
        match self {
            Theme::Elementwise => include_str!("../../../kernels/elementwise.cu"),
            Theme::Rope => include_str!("../../../kernels/rope.cu"),
            Theme::Gemm => include_str!("../../../kernels/gemm.cu"),
            Theme::Pack => include_str!("../../../kernels/pack.cu"),
            Theme::Attention => include_str!("../../../kernels/attention.cu"),
            Theme::AttentionDecode => include_str!("../../../kernels/attention_decode.cu"),
            Theme::AttentionPrefill => include_str!("../../../kernels/attention_prefill.cu"),
            Theme::AttentionPrefillMma => include_str!("../../../kernels/attention_prefill_mma.cu"),
            Theme::Evidence => include_str!("../../../kernels/evidence.cu"),
            Theme::Probe => include_str!("../../../kernels/probe.cu"),
        }
    }
}

/// What stands before every theme.
pub(super) const PRELUDE: &str = include_str!("../../../kernels/prelude.cu");
