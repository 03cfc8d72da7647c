//! The only language that the services share: wire types, the error table, the strict codec.
//!
//! Services never import each other; what one knows of another stands here. Nothing here decides anything.

pub mod codec;
pub mod error;
pub mod list;

/// The public contract of a gateway.
#[allow(missing_docs, clippy::all, reason = "generated from the documented protos")]
pub mod v1 {
    tonic::include_proto!("asterism.v1");
}

/// The internal contract of the shards.
#[allow(missing_docs, clippy::all, reason = "generated from the documented protos")]
pub mod shard {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("asterism.shard.v1");
    }
}

/// Both contracts' descriptors, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Raised when the internal contract changes in a way that an older peer would misread.
pub const PROTOCOL_VERSION: u32 = 2;

pub use error::{Failure, Reason};
