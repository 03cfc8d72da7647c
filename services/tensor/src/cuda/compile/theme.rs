//! The files of kernels, and the definitions that they are compiled with.

/// A file's name and text.
pub type File = (&'static str, &'static str);

macro_rules! file {
    ($name:literal) => {
        ($name, include_str!(concat!("../../../kernels/", $name)))
    };
}

/// What stands before every theme.
const PRELUDE: File = file!("prelude.cu");

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
    /// Hashes of weights.
    Blake3,
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
            Theme::Blake3 => "blake3",
            Theme::Attention => "attention",
            Theme::AttentionDecode => "attention_decode",
            Theme::AttentionPrefill => "attention_prefill",
            Theme::AttentionPrefillMma => "attention_prefill_mma",
            Theme::Evidence => "evidence",
            Theme::Probe => "probe",
        }
    }

    /// What it is compiled out of, in this order: names and texts.
    pub(super) fn files(self) -> &'static [File] {
        match self {
            Theme::Elementwise => &[PRELUDE, file!("elementwise.cu")],
            Theme::Rope => &[PRELUDE, file!("rope.cu")],
            Theme::Gemm => &[PRELUDE, file!("gemm.cu")],
            Theme::Pack => &[PRELUDE, file!("pack.cu")],
            Theme::Blake3 => &[PRELUDE, file!("blake3.cu")],
            Theme::Attention => &[PRELUDE, file!("attention.cu")],
            Theme::AttentionDecode => &[PRELUDE, file!("attention_decode.cu")],
            Theme::AttentionPrefill => &[PRELUDE, file!("wgmma.cu"), file!("attention_prefill.cu")],
            Theme::AttentionPrefillMma => &[PRELUDE, file!("attention_prefill_mma.cu")],
            Theme::Evidence => &[PRELUDE, file!("evidence.cu")],
            Theme::Probe => &[PRELUDE, file!("probe.cu")],
        }
    }
}
