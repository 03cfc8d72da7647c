//! Why a shard did not start, or stopped.

use std::io;

use asterism_model::ModelError;
use asterism_process::listen::ListenError;
use asterism_tensor::TensorError;

/// Why a shard did not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum ShardError {
    /// The configuration contradicts itself.
    #[error(transparent)]
    Config(#[from] asterism_process::config::Mistakes),
    /// The address cannot be listened on.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The system refused a thread or a socket.
    #[error("{what}: {source}")]
    Io {
        /// What was wanted.
        what: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// The device cannot be used.
    #[error(transparent)]
    Device(#[from] TensorError),
    /// The stage cannot be loaded.
    #[error("{model}: {source}")]
    Load {
        /// The model's path.
        model: String,
        /// Why.
        source: ModelError,
    },
    /// The configured layers are not where this stage's place in the pipeline wants them.
    #[error("stage {stage} of {stages} cannot have layers {start}..{end} of {layers}: {reason}")]
    Layers {
        /// 0-based.
        stage: u32,
        /// Of the pipeline.
        stages: u32,
        /// First layer.
        start: usize,
        /// One past the last layer.
        end: usize,
        /// Of the model.
        layers: usize,
        /// What is wrong.
        reason: &'static str,
    },
    /// Asked to stop before the stage was loaded.
    #[error("stopped while loading")]
    Stopped,
    /// The server failed.
    #[error("the server failed: {0}")]
    Serve(#[from] tonic::transport::Error),
    /// The device has failed while it was at work; nothing but a new process brings it back.
    #[error("the device has failed: {0}")]
    DeviceFailed(TensorError),
    /// The thread that owns the device has ended without being told to.
    #[error("the device thread has died")]
    DeviceThread,
}
