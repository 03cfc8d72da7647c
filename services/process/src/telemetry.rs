//! Where log lines and spans go and what they look like.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::trace::{self, Export, ExportError};

/// How the process logs, and where its spans go. Lines go to stderr, so that stdout stays a command's own output.
#[derive(Clone, Debug, clap::Args)]
pub struct Telemetry {
    /// What is logged: a level, or directives such as `info,asterism_shard=debug`.
    #[arg(long = "log", env = "ASTERISM_LOG", default_value = "info", global = true, value_name = "FILTER")]
    pub log: String,
    /// What a log line looks like.
    #[arg(
        long = "log-format",
        env = "ASTERISM_LOG_FORMAT",
        default_value = "text",
        global = true,
        value_name = "FORMAT"
    )]
    pub log_format: LogFormat,
    /// An OTLP receiver over gRPC, as http://host:4317, for spans of requests and steps. They hold no text.
    #[arg(long = "otlp", env = "OTEL_EXPORTER_OTLP_ENDPOINT", global = true, value_name = "URL")]
    pub otlp: Option<String>,
}

impl Default for Telemetry {
    fn default() -> Self {
        Self { log: "info".to_owned(), log_format: LogFormat::Text, otlp: None }
    }
}

/// The shape of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter does not parse.
    #[error("log filter {filter:?} does not parse: {source}")]
    Filter {
        /// As given.
        filter: String,
        /// What the parser said.
        source: tracing_subscriber::filter::ParseError,
    },
    /// The process logs already.
    #[error("logging is set up already: {0}")]
    Twice(#[from] tracing_subscriber::util::TryInitError),
}

/// Sets up logging for the whole process.
///
/// # Errors
/// The filter does not parse, or logging has been set up before.
pub fn init(telemetry: &Telemetry) -> Result<(), TelemetryError> {
    let filter = EnvFilter::builder()
        .parse(&telemetry.log)
        .map_err(|source| TelemetryError::Filter { filter: telemetry.log.clone(), source })?;
    let registry = tracing_subscriber::registry().with(filter);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    match telemetry.log_format {
        LogFormat::Text => registry.with(lines.with_ansi(std::io::stderr().is_terminal())).try_init()?,
        LogFormat::Json => registry.with(lines.json().flatten_event(true)).try_init()?,
    }
    Ok(())
}

/// Exports spans if there is a receiver for them. Must be called within a runtime that outlives what is returned.
///
/// # Errors
/// The receiver's address is none.
pub fn export(telemetry: &Telemetry) -> Result<Option<Export>, ExportError> {
    telemetry.otlp.as_deref().map(trace::export).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_filter_is_named() {
        let telemetry = Telemetry { log: "asterism=loud".to_owned(), ..Telemetry::default() };
        let error = init(&telemetry).expect_err("no such level").to_string();
        assert!(error.contains("asterism=loud"), "{error}");
    }
}
