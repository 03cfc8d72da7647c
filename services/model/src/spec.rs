//! What a decoder is: one struct of enums and numbers that config.json becomes. Layers read it and nothing else.

use crate::arch::Family;

/// A decoder-only transformer.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderSpec {
    /// The family whose config this was.
    pub family: Family,
    /// Transformer layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; query head h reads head h / (heads / kv_heads).
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width of the MLP between its projections.
    pub inner: usize,
    /// Rows of the embedding and of the head.
    pub vocab: usize,
    /// Positions that the config names; the default limit of a sequence.
    pub max_positions: usize,
    /// ε of the RMS norms.
    pub norm_epsilon: f32,
    /// How q and k are rotated.
    pub rope: Rope,
    /// Factor on the embedding.
    pub embedding_scale: f32,
    /// Factor on the logits.
    pub logit_scale: f32,
    /// Where the head's weights are.
    pub head: Head,
    /// Which projections add a bias.
    pub biases: Biases,
}

/// Rotary embedding in half-rotation form over the whole head, with TeleChat-52B's dynamic NTK.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// θ below the base length.
    pub theta: f64,
    /// The α of a sequence changes where its length passes a power-of-two multiple of this.
    pub base_length: usize,
}

/// Where the head's weights are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// In a tensor of its own.
    Own,
    /// They are the embedding's.
    Tied,
}

/// Which projections add a bias.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Biases {
    /// q, k and v.
    pub qkv: bool,
    /// The projection after attention.
    pub attention_out: bool,
    /// Gate and up.
    pub gate_up: bool,
    /// The projection down.
    pub down: bool,
}

impl DecoderSpec {
    /// Columns of all query heads.
    pub fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Columns of all key heads, or of all value heads.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Factor on attention scores.
    pub fn attention_scale(&self) -> f32 {
        (1.0 / (self.head_dim as f64).sqrt()) as f32
    }

    /// Weights of one layer, norms and biases included.
    pub fn layer_weights(&self) -> u64 {
        let [hidden, q, kv, inner] =
            [self.hidden, self.q_width(), self.kv_width(), self.inner].map(|n| n as u64);
        let matrices = hidden * (q + 2 * kv) + q * hidden + hidden * 2 * inner + inner * hidden;
        let biases = [
            (self.biases.qkv, q + 2 * kv),
            (self.biases.attention_out, hidden),
            (self.biases.gate_up, 2 * inner),
            (self.biases.down, hidden),
        ];
        matrices + 2 * hidden + biases.iter().filter(|(present, _)| *present).map(|(_, len)| len).sum::<u64>()
    }

    /// Weights of the embedding, or of the head.
    pub fn embedding_weights(&self) -> u64 {
        self.vocab as u64 * self.hidden as u64
    }
}
