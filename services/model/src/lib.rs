//! A checkpoint becomes a stage: spec, weights, layers, KV blocks.
//!
//! A model is data: config.json becomes one [`DecoderSpec`], and one layer implementation reads it. A [`Stage`] is a range of
//! layers on a device; it knows nothing of networks, sequences beyond their blocks, or sampling.

pub mod arch;
mod content;
pub mod convert;
mod error;
mod layer;
pub mod manifest;
pub mod rope;
pub mod spec;
pub mod split;
pub mod stage;
pub mod weights;

pub use self::error::{BatchError, ModelError, bytes};
pub use self::manifest::Manifest;
pub use self::spec::DecoderSpec;
pub use self::stage::Stage;
pub use self::weights::{Checkpoint, Synthetic, WeightSource};
