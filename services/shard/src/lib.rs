//! The service that holds one stage on one device and executes plans.
//!
//! A shard decides nothing. It obeys one driver at a time, told apart by an epoch (`fence`), checks every plan against what
//! it knows of the sequences (`plan`, `sequences`), and runs it on the one thread that owns the device (`device`). What it takes
//! from its peers is bounded, and every wait ends with the epoch: a broken stream, a refused plan or a greater epoch.

mod config;
mod describe;
mod device;
mod edges;
mod epoch;
mod error;
mod evidence;
mod fence;
mod load;
mod metrics;
mod open;
mod plan;
mod report;
mod run;
mod sequences;
mod service;
mod setting;
mod start;
mod step;
mod timeline;

pub use self::config::{ComputeType, DeviceName, LayerRange, ShardConfig, Weights};
pub use self::error::ShardError;
pub use self::load::StartTimes;
pub use self::open::{DeviceOptions, OpenedWeights};
pub use self::start::{RunningShard, Shard, run};
