//! The part of SentencePiece's model format (protocol buffers, proto2) that a BPE model needs.
//!
//! Field numbers are those of `sentencepiece_model.proto`; a field that is absent has that file's default.

/// A `tokenizer.model` file.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Model {
    #[prost(message, repeated, tag = "1")]
    pub pieces: Vec<Piece>,
    #[prost(message, optional, tag = "2")]
    pub trainer: Option<Trainer>,
    #[prost(message, optional, tag = "3")]
    pub normalizer: Option<Normalizer>,
}

/// One entry of the vocabulary; its id is its place in the list.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Piece {
    #[prost(string, tag = "1")]
    pub text: String,
    #[prost(float, tag = "2")]
    pub score: f32,
    #[prost(enumeration = "PieceType", optional, tag = "3")]
    pub kind: Option<i32>,
}

/// What a piece is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub(super) enum PieceType {
    /// proto2 has no zero here; it stands for a value that is not known.
    Invalid = 0,
    Normal = 1,
    Unknown = 2,
    Control = 3,
    UserDefined = 4,
    Unused = 5,
    Byte = 6,
}

impl Piece {
    pub fn piece_type(&self) -> PieceType {
        match self.kind {
            None => PieceType::Normal,
            Some(value) => PieceType::try_from(value).unwrap_or(PieceType::Invalid),
        }
    }
}

/// How the model was trained, and some of how it behaves.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Trainer {
    #[prost(int32, optional, tag = "3")]
    pub model_type: Option<i32>,
    #[prost(bool, tag = "24")]
    pub treat_whitespace_as_suffix: bool,
    #[prost(bool, tag = "35")]
    pub byte_fallback: bool,
    #[prost(int32, optional, tag = "40")]
    pub unk_id: Option<i32>,
    #[prost(int32, optional, tag = "41")]
    pub bos_id: Option<i32>,
    #[prost(int32, optional, tag = "42")]
    pub eos_id: Option<i32>,
    #[prost(int32, optional, tag = "43")]
    pub pad_id: Option<i32>,
    #[prost(string, optional, tag = "44")]
    pub unk_surface: Option<String>,
}

/// The value of [`Trainer::model_type`] that means BPE.
pub(super) const BPE: i32 = 2;

/// What an unknown piece decodes to by default.
pub(super) const UNK_SURFACE: &str = " \u{2047} ";

/// How a text is changed before it is encoded.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Normalizer {
    #[prost(bytes = "vec", tag = "2")]
    pub precompiled_charsmap: Vec<u8>,
    #[prost(bool, optional, tag = "3")]
    pub add_dummy_prefix: Option<bool>,
    #[prost(bool, optional, tag = "4")]
    pub remove_extra_whitespaces: Option<bool>,
    #[prost(bool, optional, tag = "5")]
    pub escape_whitespaces: Option<bool>,
}
