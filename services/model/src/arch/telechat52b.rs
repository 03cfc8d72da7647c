//! TeleChat-52B: GPT-2's names and Conv1D matrices, RMS norms, gated SiLU, muP scales, dynamic NTK rope.

use serde_json::{Value, json};

use super::{Family, Fields, LayerSources, Layout, Projection, Source};
use crate::ModelError;
use crate::spec::{Biases, DecoderSpec, Head, Rope};

/// The field of the number of layers.
pub(super) const LAYERS: &str = "n_layer";

/// The reference's constant; not the config's n_positions.
const ROPE_BASE_LENGTH: usize = 4096;

/// Whether this is a config of the family. The later families share its model_type, but not GPT-2's names of sizes.
pub(super) fn describes(config: &Value) -> bool {
    config.get("model_type").and_then(Value::as_str) == Some("telechat") && config.get("n_embd").is_some()
}

pub(super) fn spec(config: &Value) -> Result<DecoderSpec, ModelError> {
    let fields = Fields(config);
    fields.only("activation_function", json!("silu"))?;
    fields.only("relative_encoding", json!("rotary"))?;
    fields.only("rotary_use_xpos", json!(false))?;
    fields.only("use_RMSNorm", json!(true))?;
    let hidden = fields.size("n_embd")?;
    let heads = fields.size("n_head")?;
    if hidden % heads != 0 || (hidden / heads) % 2 != 0 {
        return Err(ModelError::config(
            "n_head",
            format!("{hidden} values cannot be {heads} heads of even width"),
        ));
    }
    let inner = match config.get("n_inner") {
        None | Some(Value::Null) => 4 * hidden,
        Some(_) => fields.size("n_inner")?,
    };
    let (embedding_scale, logit_scale) = if fields.flag("use_mup", false)? {
        let logit_scale = fields.number("output_mult")? / fields.number("mup_scale_factor")?;
        (fields.number("input_mult")? as f32, logit_scale as f32)
    } else {
        (1.0, 1.0)
    };
    let bias = fields.flag("add_bias_linear", false)?;
    Ok(DecoderSpec {
        family: Family::TeleChat52b,
        layers: fields.size(LAYERS)?,
        hidden,
        heads,
        kv_heads: heads,
        head_dim: hidden / heads,
        inner,
        vocab: fields.size("vocab_size")?,
        max_positions: fields.size("n_positions")?,
        norm_epsilon: fields.number("layer_norm_epsilon")? as f32,
        rope: Rope { theta: fields.number("rotary_theta")?, base_length: ROPE_BASE_LENGTH },
        embedding_scale,
        logit_scale,
        // transformers' default for a config that does not say.
        head: if fields.flag("tie_word_embeddings", true)? { Head::Tied } else { Head::Own },
        biases: Biases { qkv: bias, attention_out: bias, gate_up: bias, down: bias },
    })
}

pub(super) fn embedding(spec: &DecoderSpec) -> Source {
    Source::new("transformer.wte.weight", &[spec.vocab, spec.hidden])
}

pub(super) fn final_norm(spec: &DecoderSpec) -> Source {
    Source::new("transformer.ln_f.weight", &[spec.hidden])
}

pub(super) fn head(spec: &DecoderSpec) -> Source {
    match spec.head {
        Head::Own => Source::new("lm_head.weight", &[spec.vocab, spec.hidden]),
        Head::Tied => embedding(spec),
    }
}

pub(super) fn layer(spec: &DecoderSpec, layer: usize) -> LayerSources {
    let name = |module: &str, kind: &str| format!("transformer.h.{layer}.{module}.{kind}");
    let norm = |module: &str| Source::new(name(module, "weight"), &[spec.hidden]);
    let conv = |module: &str, inputs: usize, outputs: usize, bias: bool| Projection {
        parts: vec![Source::new(name(module, "weight"), &[inputs, outputs])],
        layout: Layout::InOut,
        bias: bias.then(|| Source::new(name(module, "bias"), &[outputs])),
    };
    let (hidden, q, biases) = (spec.hidden, spec.q_width(), spec.biases);
    LayerSources {
        attention_norm: norm("ln_1"),
        qkv: conv("attn.c_attn", hidden, q + 2 * spec.kv_width(), biases.qkv),
        attention_out: conv("attn.c_proj", q, hidden, biases.attention_out),
        mlp_norm: norm("ln_2"),
        gate_up: conv("mlp.c_fc", hidden, 2 * spec.inner, biases.gate_up),
        down: conv("mlp.c_proj", spec.inner, hidden, biases.down),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn official() -> Value {
        json!({
            "model_type": "telechat", "activation_function": "silu", "add_bias_linear": false, "n_layer": 64,
            "n_embd": 8192, "n_head": 64, "n_inner": 21824, "vocab_size": 80896, "n_positions": 4096,
            "relative_encoding": "rotary", "rotary_theta": 10000, "rotary_use_xpos": false, "layer_norm_epsilon": 1e-5,
            "use_RMSNorm": true, "use_mup": true, "input_mult": 1.0, "output_mult": 1.0, "mup_scale_factor": 32.0,
            "tie_word_embeddings": false
        })
    }

    fn with(field: &str, value: Value) -> Result<DecoderSpec, ModelError> {
        let mut config = official();
        config[field] = value;
        DecoderSpec::from_config(&config)
    }

    #[test]
    fn the_official_config_is_understood() {
        let spec = DecoderSpec::from_config(&official()).unwrap();
        assert_eq!((spec.layers, spec.heads, spec.kv_heads, spec.head_dim), (64, 64, 64, 128));
        assert_eq!((spec.embedding_scale, spec.logit_scale), (1.0, 1.0 / 32.0));
        assert_eq!(spec.head, Head::Own);
        // 451 tensors of the official index, less a masked_bias a layer.
        assert_eq!(spec.sources().len(), 451 - 64);
    }

    #[test]
    fn variants_of_the_config_are_understood() {
        assert_eq!(with("n_inner", Value::Null).unwrap().inner, 4 * 8192);
        assert_eq!(with("use_mup", json!(false)).unwrap().logit_scale, 1.0);
        let tied = with("tie_word_embeddings", json!(true)).unwrap();
        assert_eq!(tied.family.head(&tied), tied.family.embedding(&tied));
        let biased = with("add_bias_linear", json!(true)).unwrap();
        let bias = biased.family.layer(&biased, 3).gate_up.bias.unwrap();
        assert_eq!(bias, Source::new("transformer.h.3.mlp.c_fc.bias", &[2 * 21824]));
    }

    #[test]
    fn what_is_not_the_family_is_refused_by_field() {
        for (field, value) in [
            ("activation_function", json!("gelu")),
            ("rotary_use_xpos", json!(true)),
            ("use_RMSNorm", json!(false)),
            ("n_layer", json!(0)),
            ("n_layer", json!(-1)),
            ("n_embd", json!(1u64 << 40)),
            ("n_head", json!(63)),
            ("n_head", json!("64")),
            ("rotary_theta", Value::Null),
            ("mup_scale_factor", json!(0)),
            ("add_bias_linear", json!("yes")),
        ] {
            match with(field, value) {
                Err(ModelError::Config { field: named, .. }) => assert_eq!(named, field),
                other => panic!("{field}: {other:?}"),
            }
        }
    }

    #[test]
    fn other_architectures_are_unknown() {
        for config in [
            json!({ "model_type": "llama", "architectures": ["LlamaForCausalLM"], "n_embd": 8 }),
            json!({ "model_type": "telechat", "architectures": ["TelechatForCausalLM"], "hidden_size": 64 }),
            json!({}),
            json!([]),
        ] {
            assert!(matches!(DecoderSpec::from_config(&config), Err(ModelError::UnknownArchitecture { .. })));
        }
        let error = DecoderSpec::from_config(&json!({ "model_type": "llama" })).unwrap_err().to_string();
        assert!(error.contains("model_type \"llama\""), "{error}");
    }
}
