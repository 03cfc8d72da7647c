//! A llama GGUF file as a checkpoint of TeleChat-52B's architecture.
//!
//! The two differ in form only: q and k rows are permuted back from interleaved to half-split rope, k and v are repeated for
//! each query head that shares them, projections are joined and transposed to `[in, out]`, and a tied head is written out.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};

use super::super::dtype::{StoredDtype, TensorInfo, encode};
use super::super::map::Mapped;
use super::super::stored::{Place, Stored};
use super::file::{GgufFile, GgufTensor, Metadata};
use super::kind::Kind;
use crate::ModelError;

/// Above this length TeleChat-52B's rope changes, so the re-expressed model is the same one only up to here.
const MOST_POSITIONS: u64 = 4096;

/// The numbers of a llama file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Llama {
    pub layers: usize,
    pub hidden: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub inner: usize,
    pub vocab: usize,
    pub positions: u64,
    pub theta: f64,
    pub epsilon: f64,
}

/// How rows of a file's tensor become columns of a checkpoint's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rows {
    AsStored,
    /// Interleaved rope's order within each head, each head repeated.
    Rope {
        head_dim: usize,
        repeat: usize,
    },
    /// Each head repeated.
    Repeat {
        head_dim: usize,
        repeat: usize,
    },
}

/// A tensor computed from one or several of the file's, joined along their rows.
#[derive(Debug)]
pub(crate) struct LlamaTensor {
    map: Mapped,
    parts: Vec<(GgufTensor, Rows)>,
    transposed: bool,
}

impl Llama {
    pub fn read(path: &Path, file: &GgufFile) -> Result<Self, ModelError> {
        let refuse = |what: String| ModelError::malformed(path, what);
        let architecture = file.text("general.architecture").unwrap_or_default();
        if architecture != "llama" {
            return Err(ModelError::UnknownArchitecture {
                found: format!("GGUF general.architecture `{architecture}`"),
                known: "llama",
            });
        }
        let number = |key: &str| {
            file.number(key)
                .filter(|&value| value > 0)
                .ok_or_else(|| refuse(format!("metadata `{key}` is no size")))
        };
        let size = |key: &str| Ok::<_, ModelError>(usize::try_from(number(key)?).unwrap_or(usize::MAX));
        let hidden = size("llama.embedding_length")?;
        let heads = size("llama.attention.head_count")?;
        let kv_heads = if file.metadata.contains_key("llama.attention.head_count_kv") {
            size("llama.attention.head_count_kv")?
        } else {
            heads
        };
        if hidden % heads != 0 || heads % kv_heads != 0 || (hidden / heads) % 2 != 0 {
            return Err(refuse(format!("{hidden} values cannot be {heads} heads sharing {kv_heads} keys")));
        }
        let head_dim = hidden / heads;
        for key in
            ["llama.rope.dimension_count", "llama.attention.key_length", "llama.attention.value_length"]
        {
            if file.metadata.contains_key(key) && size(key)? != head_dim {
                return Err(refuse(format!(
                    "metadata `{key}` is not the head size {head_dim}: not expressible"
                )));
            }
        }
        if let Some(scaling) = file.text("llama.rope.scaling.type").filter(|kind| *kind != "none") {
            return Err(refuse(format!("rope scaling `{scaling}` is not expressible")));
        }
        let embedding = file.tensors.get("token_embd.weight");
        Ok(Self {
            layers: size("llama.block_count")?,
            hidden,
            heads,
            kv_heads,
            head_dim,
            inner: size("llama.feed_forward_length")?,
            vocab: embedding.ok_or_else(|| refuse("tensor `token_embd.weight` is missing".into()))?.rows,
            positions: number("llama.context_length")?.min(MOST_POSITIONS),
            theta: file.float("llama.rope.freq_base").unwrap_or(10_000.0),
            epsilon: file.float("llama.attention.layer_norm_rms_epsilon").unwrap_or(1e-5),
        })
    }

    /// `config.json` of the checkpoint.
    pub fn config(&self, file: &GgufFile) -> Value {
        let token =
            |name: &str, or: u64| file.number(&format!("tokenizer.ggml.{name}_token_id")).unwrap_or(or);
        let theta = if self.theta.fract() == 0.0 && self.theta < 1e15 {
            json!(self.theta as u64)
        } else {
            json!(self.theta)
        };
        json!({
            "architectures": ["TELECHAT"],
            "model_type": "telechat",
            "activation_function": "silu",
            "add_bias_linear": false,
            "attn_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "resid_pdrop": 0.0,
            "bos_token_id": token("bos", 1),
            "eos_token_id": token("eos", 2),
            "pad_token_id": token("padding", token("eos", 2)),
            "unk_token_id": token("unknown", 0),
            "enable_flash_attn": false,
            "initializer_range": 0.02,
            "input_mult": 1.0,
            "output_mult": 1.0,
            "layer_norm_epsilon": self.epsilon,
            "mup_base_width": 256,
            "mup_scale_factor": 1.0,
            "use_mup": false,
            "n_embd": self.hidden,
            "n_head": self.heads,
            "n_inner": self.inner,
            "n_layer": self.layers,
            "n_positions": self.positions,
            "relative_encoding": "rotary",
            "rotary_theta": theta,
            "rotary_use_xpos": false,
            "rotary_xpos_scale_base": 512,
            "reorder_and_upcast_attn": true,
            "scale_attn_by_inverse_layer_idx": true,
            "scale_attn_weights": true,
            "tie_word_embeddings": false,
            "tokenizer_class": "PreTrainedTokenizerFast",
            "torch_dtype": "float32",
            "use_RMSNorm": true,
            "use_cache": true,
            "vocab_size": self.vocab
        })
    }

    /// The tensors of the checkpoint. Every tensor of the file must have its place.
    pub fn tensors(&self, path: &Path, file: &GgufFile) -> Result<Vec<Stored>, ModelError> {
        let Self { layers, hidden, heads, kv_heads, head_dim, inner, vocab, .. } = *self;
        let repeat = heads / kv_heads;
        let kv = kv_heads * head_dim;
        let mut made = Making { path, file, used: BTreeSet::new(), tensors: Vec::new() };

        let embedding = ("token_embd.weight".to_owned(), vec![vocab, hidden], Rows::AsStored);
        let head =
            if file.tensors.contains_key("output.weight") { "output.weight" } else { "token_embd.weight" };
        made.rows("transformer.wte.weight", embedding)?;
        made.rows("lm_head.weight", (head.to_owned(), vec![vocab, hidden], Rows::AsStored))?;
        made.vector("transformer.ln_f.weight", "output_norm.weight".into(), hidden)?;
        for layer in 0..layers {
            let source = |name: &str| format!("blk.{layer}.{name}.weight");
            let target = |name: &str| format!("transformer.h.{layer}.{name}.weight");
            let matrix = |name: &str, rows, columns, order| (source(name), vec![rows, columns], order);
            made.vector(&target("ln_1"), source("attn_norm"), hidden)?;
            made.vector(&target("ln_2"), source("ffn_norm"), hidden)?;
            let qkv = vec![
                matrix("attn_q", hidden, hidden, Rows::Rope { head_dim, repeat: 1 }),
                matrix("attn_k", kv, hidden, Rows::Rope { head_dim, repeat }),
                matrix("attn_v", kv, hidden, Rows::Repeat { head_dim, repeat }),
            ];
            made.columns(&target("attn.c_attn"), qkv)?;
            made.columns(
                &target("attn.c_proj"),
                vec![matrix("attn_output", hidden, hidden, Rows::AsStored)],
            )?;
            let gate_up = vec![
                matrix("ffn_gate", inner, hidden, Rows::AsStored),
                matrix("ffn_up", inner, hidden, Rows::AsStored),
            ];
            made.columns(&target("mlp.c_fc"), gate_up)?;
            made.columns(&target("mlp.c_proj"), vec![matrix("ffn_down", hidden, inner, Rows::AsStored)])?;
        }
        if let Some(name) = file.tensors.keys().find(|name| !made.used.contains(*name)) {
            return Err(ModelError::malformed(path, format!("tensor `{name}` is not expressible")));
        }
        Ok(made.tensors)
    }
}

/// Name, `[rows, columns]` and order of one of the file's tensors.
type Part = (String, Vec<usize>, Rows);

struct Making<'a> {
    path: &'a Path,
    file: &'a GgufFile,
    used: BTreeSet<String>,
    tensors: Vec<Stored>,
}

impl Making<'_> {
    /// A vector.
    fn vector(&mut self, name: &str, source: String, len: usize) -> Result<(), ModelError> {
        self.push(name, vec![len], vec![(source, vec![1, len], Rows::AsStored)], false)
    }

    /// `[rows, columns]`, as the file has it.
    fn rows(&mut self, name: &str, part: Part) -> Result<(), ModelError> {
        self.push(name, part.1.clone(), vec![part], false)
    }

    /// `[columns, rows of all parts]`.
    fn columns(&mut self, name: &str, parts: Vec<Part>) -> Result<(), ModelError> {
        let columns = parts[0].1[1];
        let rows = parts.iter().map(|(_, shape, order)| shape[0] * order.repeat()).sum();
        self.push(name, vec![columns, rows], parts, true)
    }

    fn push(
        &mut self,
        name: &str,
        shape: Vec<usize>,
        parts: Vec<Part>,
        transposed: bool,
    ) -> Result<(), ModelError> {
        let mut found = Vec::with_capacity(parts.len());
        for (source, expected, order) in parts {
            let Some(tensor) = self.file.tensors.get(&source) else {
                return Err(ModelError::MissingTensor { name: source, expected });
            };
            if [tensor.rows, tensor.columns] != expected[..] {
                let found = vec![tensor.rows, tensor.columns];
                return Err(ModelError::WrongShape { name: source, expected, found });
            }
            self.used.insert(source);
            found.push((tensor.clone(), order));
        }
        let dtype = presented(&found);
        let tensor = LlamaTensor { map: self.file.map.clone(), parts: found, transposed };
        let info = TensorInfo { name: name.to_owned(), dtype, shape };
        if info.byte_len().is_none() {
            return Err(ModelError::malformed(self.path, format!("tensor `{name}` is too large")));
        }
        self.tensors.push(Stored { info, place: Place::Llama(Arc::new(tensor)) });
        Ok(())
    }
}

/// Half types stay as they are where all parts share one; all else becomes f32.
fn presented(parts: &[(GgufTensor, Rows)]) -> StoredDtype {
    if parts.iter().all(|(tensor, _)| tensor.kind == Kind::Bf16) {
        StoredDtype::Bf16
    } else if parts.iter().all(|(tensor, _)| tensor.kind == Kind::F16) {
        StoredDtype::F16
    } else {
        StoredDtype::F32
    }
}

impl Rows {
    fn repeat(self) -> usize {
        match self {
            Self::AsStored => 1,
            Self::Rope { repeat, .. } | Self::Repeat { repeat, .. } => repeat,
        }
    }

    /// The stored row that becomes row `row`.
    fn source(self, row: usize) -> usize {
        match self {
            Self::AsStored => row,
            Self::Repeat { head_dim, repeat } => row / (head_dim * repeat) * head_dim + row % head_dim,
            Self::Rope { head_dim, repeat } => {
                // Stored within a head: 0, d/2, 1, d/2 + 1, …
                let (pair, within) = (row % head_dim % (head_dim / 2), row % head_dim / (head_dim / 2));
                row / (head_dim * repeat) * head_dim + 2 * pair + within
            }
        }
    }
}

impl LlamaTensor {
    /// All elements, little-endian in `info`'s type and shape.
    pub fn bytes(&self, info: &TensorInfo) -> Vec<u8> {
        let rows: Vec<Vec<f32>> =
            self.parts.iter().flat_map(|(tensor, order)| self.rows(tensor, *order)).collect();
        if self.transposed {
            let columns = 0..rows.first().map_or(0, Vec::len);
            encode(columns.flat_map(|column| rows.iter().map(move |row| row[column])), info.dtype)
        } else {
            encode(rows.iter().flatten().copied(), info.dtype)
        }
    }

    fn rows(&self, tensor: &GgufTensor, order: Rows) -> impl Iterator<Item = Vec<f32>> {
        let len = tensor.kind.bytes(tensor.columns).unwrap_or_default();
        (0..tensor.rows * order.repeat()).map(move |row| {
            let offset = tensor.offset + order.source(row) * len;
            tensor.kind.row(self.map.slice(offset, len).unwrap_or_default())
        })
    }
}

impl GgufFile {
    pub(super) fn text(&self, key: &str) -> Option<&str> {
        if let Some(Metadata::Text(text)) = self.metadata.get(key) { Some(text) } else { None }
    }

    pub(super) fn number(&self, key: &str) -> Option<u64> {
        match self.metadata.get(key) {
            Some(Metadata::Unsigned(value)) => Some(*value),
            Some(Metadata::Signed(value)) => u64::try_from(*value).ok(),
            _ => None,
        }
    }

    pub(super) fn float(&self, key: &str) -> Option<f64> {
        match self.metadata.get(key) {
            Some(Metadata::Float(value)) if value.is_finite() => Some(*value),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rope_rows_are_put_back_into_halves() {
        // Two stored heads of 4 rows (0, 2, 1, 3), each read by two query heads.
        let order = Rows::Rope { head_dim: 4, repeat: 2 };
        let rows: Vec<usize> = (0..16).map(|row| order.source(row)).collect();
        assert_eq!(rows, [0, 2, 1, 3, 0, 2, 1, 3, 4, 6, 5, 7, 4, 6, 5, 7]);
    }

    #[test]
    fn repeated_rows_keep_their_order() {
        let order = Rows::Repeat { head_dim: 2, repeat: 3 };
        let rows: Vec<usize> = (0..12).map(|row| order.source(row)).collect();
        assert_eq!(rows, [0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3]);
    }
}
