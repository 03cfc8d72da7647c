//! A service's configuration in layers: defaults, below a TOML file, below the environment, below flags.
//!
//! A service states its keys once, as a `clap::Args` struct whose fields carry `long` and `env`; the TOML key is the field's
//! name. Each key has one parser, whichever layer its value comes from, and all mistakes are reported at once.
//!
//! ```
//! use asterism_process::config::{Bytes, Layered, Settings};
//!
//! #[derive(clap::Args)]
//! struct Pond {
//!     /// How much water.
//!     #[arg(long, env = "POND_WATER", default_value = "4GiB")]
//!     water: Bytes,
//! }
//! impl Settings for Pond {}
//!
//! #[derive(clap::Parser)]
//! struct Command {
//!     #[command(flatten)]
//!     pond: Layered<Pond>,
//! }
//!
//! let command = <Command as clap::Parser>::parse_from(["pond", "--water", "1MiB"]);
//! assert_eq!(command.pond.load()?.water, Bytes(1 << 20));
//! # Ok::<(), asterism_process::config::Mistakes>(())
//! ```

mod layered;
mod units;

pub use layered::{Key, Layered, Mistakes, Settings, keys};
pub use units::{Bytes, UnitError, duration};
