//! What can be wrong between the shards of a pipeline.

use asterism_proto::PROTOCOL_VERSION;

/// Why shards do not make a pipeline.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// Another version of the internal contract.
    #[error("{address} speaks protocol version {theirs}, this gateway {PROTOCOL_VERSION}")]
    Protocol {
        /// Who.
        address: String,
        /// Its version.
        theirs: u32,
    },
    /// A property that all must share.
    #[error("{what} differs: {first} has {expected}, {second} has {found}")]
    Differs {
        /// The property.
        what: &'static str,
        /// The shard compared with.
        first: String,
        /// Its value.
        expected: String,
        /// The other shard.
        second: String,
        /// Its value.
        found: String,
    },
    /// No shard has this stage.
    #[error("no shard has stage {stage} of {stages}")]
    MissingStage {
        /// 0-based.
        stage: u32,
        /// In the whole pipeline.
        stages: u32,
    },
    /// Two shards have one stage.
    #[error("{first} and {second} both have stage {stage}")]
    DuplicateStage {
        /// 0-based.
        stage: u32,
        /// One of them.
        first: String,
        /// The other.
        second: String,
    },
    /// A stage beyond the number of stages.
    #[error("{address} has stage {stage} of only {stages}")]
    StageOutOfRange {
        /// Who.
        address: String,
        /// 0-based.
        stage: u32,
        /// In the whole pipeline.
        stages: u32,
    },
    /// A stage that does not begin where the one before it ends.
    #[error("layers {expected}..{found} are missing before stage {stage} at {address}")]
    MissingLayers {
        /// Who.
        address: String,
        /// 0-based.
        stage: u32,
        /// Where the stage should begin.
        expected: u32,
        /// Where it begins.
        found: u32,
    },
    /// A stage that begins before the one before it ends.
    #[error("layers {found}..{expected} of stage {stage} at {address} overlap those of the stage before")]
    OverlappingLayers {
        /// Who.
        address: String,
        /// 0-based.
        stage: u32,
        /// Where the stage should begin.
        expected: u32,
        /// Where it begins.
        found: u32,
    },
    /// The last stage ends elsewhere than the model.
    #[error("the last stage at {address} ends at layer {found}, the model has {layers}")]
    WrongEnd {
        /// Who.
        address: String,
        /// Its end.
        found: u32,
        /// Of the model.
        layers: u32,
    },
    /// A stage without layers, or without memory for the least work.
    #[error("{address} offers no {what}")]
    Nothing {
        /// Who.
        address: String,
        /// Of what it has none.
        what: &'static str,
    },
}
