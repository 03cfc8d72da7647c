//! The door and the brain: text, sampling, scheduling, driving pipelines.
//!
//! A request comes in through [`api`] (gRPC or the OpenAI dialect over HTTP), takes the one path of [`engine`], becomes
//! token ids in [`text`], is planned by the pure [`scheduler`], carried to the shards by the [`driver`], and its tokens are
//! drawn from evidence by the [`sampler`]. Shards hold no policy; whatever is decided is decided here.

pub mod api;
pub mod caller;
pub mod config;
pub mod driver;
pub mod engine;
pub mod metrics;
pub mod sampler;
pub mod scheduler;
pub mod service;
pub mod sessions;
pub mod speculation;
pub mod tenants;
pub mod text;

pub use config::GatewayConfig;
pub use service::{Gateway, GatewayError, Listeners, RunningGateway, Surroundings, run};
