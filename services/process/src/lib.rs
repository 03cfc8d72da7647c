//! A well-behaved process: configuration, telemetry, health, shutdown, channels.
//!
//! What every service needs and none should do in its own way. Knows nothing of models or of the services' contracts.

pub mod awake;
pub mod channel;
pub mod clock;
pub mod config;
pub mod dial;
pub mod health;
pub mod inproc;
pub mod listen;
pub mod metrics;
pub mod reactor;
pub mod shutdown;
pub mod telemetry;
pub mod trace;
