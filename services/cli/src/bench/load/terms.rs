//! On what terms requests are sent: fields that an Asterism gateway knows beside those of every server.

use std::time::Duration;

use asterism_gateway::tenants::check_name;
use asterism_process::config::duration;
use serde_json::{Map, Value, json};

use super::LoadError;

/// Those that are not given are not sent: other servers may refuse what they do not know.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Terms {
    /// Whose requests they are, to an Asterism gateway (default: the default tenant's).
    #[arg(long, value_name = "NAME", value_parser = tenant)]
    pub tenant: Option<String>,
    /// Their priority, from -100 to 100; higher goes first among one tenant's.
    #[arg(
        long,
        value_name = "N",
        allow_negative_numbers = true,
        value_parser = clap::value_parser!(i32).range(-100..=100)
    )]
    pub priority: Option<i32>,
    /// When an answer is not wanted any more: the server ends it then, whether it waits or runs.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub deadline: Option<Duration>,
    /// Have an Asterism gateway compute whole prompts, also where its prefix cache has them.
    #[arg(long)]
    pub bypass_cache: bool,
}

impl Terms {
    /// The same if they make sense.
    ///
    /// # Errors
    /// The deadline has passed when it begins.
    pub fn checked(&self) -> Result<Self, LoadError> {
        if self.deadline.is_some_and(|deadline| deadline.is_zero()) {
            return Err(LoadError::Field("--deadline", "no time at all".to_owned()));
        }
        Ok(self.clone())
    }

    /// What of them the body of a request over HTTP holds.
    pub fn body(&self) -> Map<String, Value> {
        let fields = [
            ("priority", self.priority.map(|priority| json!(priority))),
            ("timeout", self.deadline.map(|deadline| json!(deadline.as_secs_f64()))),
            ("bypass_cache", self.bypass_cache.then(|| json!(true))),
        ];
        fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
    }

    /// The deadline as gRPC has it.
    pub fn timeout(&self) -> Option<prost_types::Duration> {
        // What is too long for a message is never.
        self.deadline.and_then(|deadline| prost_types::Duration::try_from(deadline).ok())
    }
}

fn tenant(text: &str) -> Result<String, String> {
    check_name(text).map(|()| text.to_owned()).map_err(|error| error.to_string())
}
