//! The families of models: each a small file that maps config.json to a [`DecoderSpec`] and names a layer's tensors.

mod telechat52b;

use serde_json::Value;

use crate::ModelError;
use crate::spec::DecoderSpec;
use crate::weights::Checkpoint;

/// A family of models.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// TeleChat-52B.
    TeleChat52b,
}

const KNOWN: &str = "TeleChat-52B (model_type \"telechat\" with n_embd)";

/// Where the weights of one layer are.
#[derive(Clone, Debug)]
pub struct LayerSources {
    /// Norm before attention, `[hidden]`.
    pub attention_norm: Source,
    /// q, k, v side by side.
    pub qkv: Projection,
    /// The projection after attention.
    pub attention_out: Projection,
    /// Norm before the MLP, `[hidden]`.
    pub mlp_norm: Source,
    /// Gate and up side by side.
    pub gate_up: Projection,
    /// The projection down.
    pub down: Projection,
}

/// A matrix as tensors of the checkpoint whose output columns are joined.
#[derive(Clone, Debug)]
pub struct Projection {
    /// The tensors, in the order of their columns.
    pub parts: Vec<Source>,
    /// How each is stored.
    pub layout: Layout,
    /// The bias over all columns.
    pub bias: Option<Source>,
}

/// The order of a matrix in the checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `[in, out]`, as Conv1D stores it.
    InOut,
    /// `[out, in]`, as Linear stores it.
    OutIn,
}

/// A tensor by name, and the shape it must have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The tensor's name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
}

impl Family {
    /// The name of the family, as servers tell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::TeleChat52b => "telechat-52b",
        }
    }

    /// The family whose config this is.
    pub fn detect(config: &Value) -> Result<Self, ModelError> {
        if telechat52b::describes(config) {
            return Ok(Self::TeleChat52b);
        }
        let field = |name: &str| config.get(name).map_or_else(|| "none".to_owned(), Value::to_string);
        let found = format!("model_type {}, architectures {}", field("model_type"), field("architectures"));
        Err(ModelError::UnknownArchitecture { found, known: KNOWN })
    }

    /// The embedding, `[vocab, hidden]`.
    pub fn embedding(self, spec: &DecoderSpec) -> Source {
        match self {
            Self::TeleChat52b => telechat52b::embedding(spec),
        }
    }

    /// The norm before the head, `[hidden]`.
    pub fn final_norm(self, spec: &DecoderSpec) -> Source {
        match self {
            Self::TeleChat52b => telechat52b::final_norm(spec),
        }
    }

    /// The head, `[vocab, hidden]`: the embedding where they are tied.
    pub fn head(self, spec: &DecoderSpec) -> Source {
        match self {
            Self::TeleChat52b => telechat52b::head(spec),
        }
    }

    /// The weights of layer `layer`.
    pub fn layer(self, spec: &DecoderSpec, layer: usize) -> LayerSources {
        match self {
            Self::TeleChat52b => telechat52b::layer(spec, layer),
        }
    }
}

/// The same config with another number of layers.
pub fn with_layers(mut config: Value, layers: usize) -> Result<Value, ModelError> {
    let field = match Family::detect(&config)? {
        Family::TeleChat52b => telechat52b::LAYERS,
    };
    config[field] = layers.into();
    Ok(config)
}

impl DecoderSpec {
    /// The spec that `config` describes.
    pub fn from_config(config: &Value) -> Result<Self, ModelError> {
        match Family::detect(config)? {
            Family::TeleChat52b => telechat52b::spec(config),
        }
    }

    /// Every tensor of the model, each once.
    pub fn sources(&self) -> Vec<Source> {
        let family = self.family;
        let mut sources = vec![family.embedding(self), family.final_norm(self)];
        let head = family.head(self);
        if head != sources[0] {
            sources.push(head);
        }
        for layer in 0..self.layers {
            sources.extend(family.layer(self, layer).into_sources());
        }
        sources
    }
}

impl Projection {
    /// Its input size: the same for all parts.
    pub fn inputs(&self) -> usize {
        self.parts.first().map_or(0, |part| self.size(part, self.layout == Layout::OutIn))
    }

    /// The output columns of one of its parts.
    pub fn outputs_of(&self, part: &Source) -> usize {
        self.size(part, self.layout == Layout::InOut)
    }

    fn size(&self, part: &Source, is_second: bool) -> usize {
        part.shape.get(usize::from(is_second)).copied().unwrap_or_default()
    }
}

impl LayerSources {
    /// Every tensor of the layer.
    pub fn into_sources(self) -> impl Iterator<Item = Source> {
        let projections = [self.qkv, self.attention_out, self.gate_up, self.down];
        let parts = projections
            .into_iter()
            .flat_map(|projection| projection.parts.into_iter().chain(projection.bias));
        [self.attention_norm, self.mlp_norm].into_iter().chain(parts)
    }
}

impl Source {
    /// A tensor and its shape.
    pub fn new(name: impl Into<String>, shape: &[usize]) -> Self {
        Self { name: name.into(), shape: shape.to_vec() }
    }

    /// Checks that the checkpoint has this tensor in this shape, in a type that weights have.
    pub fn check(&self, checkpoint: &Checkpoint) -> Result<(), ModelError> {
        let Some(info) = checkpoint.tensor(&self.name) else {
            return Err(ModelError::MissingTensor { name: self.name.clone(), expected: self.shape.clone() });
        };
        if info.shape != self.shape {
            let (expected, found) = (self.shape.clone(), info.shape.clone());
            return Err(ModelError::WrongShape { name: self.name.clone(), expected, found });
        }
        if !info.dtype.is_weight() {
            return Err(ModelError::WrongDtype { name: self.name.clone(), found: info.dtype.name() });
        }
        Ok(())
    }
}

/// Fields of a config, each an error that names it where it is missing or of another kind.
struct Fields<'a>(&'a Value);

impl Fields<'_> {
    fn size(&self, name: &str) -> Result<usize, ModelError> {
        /// Bounds products of three sizes; TeleChat2-115B's largest is 131,072.
        const MOST: u64 = 1 << 20;
        match self.0.get(name).and_then(Value::as_u64) {
            Some(value @ 1..=MOST) => Ok(value as usize),
            _ => Err(self.refuse(name, "expected a whole number from 1 to 1048576")),
        }
    }

    fn number(&self, name: &str) -> Result<f64, ModelError> {
        let value =
            self.0.get(name).and_then(Value::as_f64).filter(|value| value.is_finite() && *value > 0.0);
        value.ok_or_else(|| self.refuse(name, "expected a number above 0"))
    }

    /// `default` where the field is absent or null.
    fn flag(&self, name: &str, default: bool) -> Result<bool, ModelError> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(default),
            Some(Value::Bool(value)) => Ok(*value),
            Some(_) => Err(self.refuse(name, "expected true or false")),
        }
    }

    /// Refuses every value but `expected`; an absent field stands for it.
    fn only(&self, name: &str, expected: Value) -> Result<(), ModelError> {
        match self.0.get(name) {
            None => Ok(()),
            Some(value) if *value == expected => Ok(()),
            Some(_) => Err(self.refuse(name, &format!("only {expected} is supported"))),
        }
    }

    fn refuse(&self, name: &str, problem: &str) -> ModelError {
        let found = self.0.get(name).map_or_else(|| "missing".to_owned(), |value| format!("found {value}"));
        ModelError::config(name, format!("{problem}, {found}"))
    }
}
