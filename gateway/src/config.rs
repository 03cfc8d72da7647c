//! A gateway's configuration.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use asterism_process::channel::{self, Traffic};
use asterism_process::config::{Settings, duration};
use asterism_process::listen::loopback;

use crate::scheduler::Speculation;
use crate::sessions::Place;
use crate::tenants::{TenantWeight, Tenants};

/// Where the public gRPC service listens unless told otherwise.
pub const GRPC_PORT: u16 = 7050;
/// Where the OpenAI dialect listens unless told otherwise.
pub const HTTP_PORT: u16 = 8050;

/// All keys. Flags, `ASTERISM_*` in the environment, and TOML keys have the same names.
#[derive(Clone, Debug, PartialEq, clap::Args)]
pub struct GatewayConfig {
    /// Address of the public gRPC service.
    #[arg(long, env = "ASTERISM_LISTEN", default_value_t = loopback(GRPC_PORT), value_name = "ADDRESS")]
    pub listen: SocketAddr,
    /// Address of the OpenAI dialect over HTTP.
    #[arg(long, env = "ASTERISM_HTTP_LISTEN", default_value_t = loopback(HTTP_PORT), value_name = "ADDRESS")]
    pub http_listen: SocketAddr,
    /// The model's folder; the gateway reads its tokenizer, chat template and generation defaults, no weights.
    #[arg(long, env = "ASTERISM_MODEL", value_name = "DIR")]
    pub model: PathBuf,
    /// The model's name in requests; the folder's name unless given.
    #[arg(long, env = "ASTERISM_MODEL_NAME", value_name = "NAME")]
    pub model_name: Option<String>,
    /// The pipeline's shards as host:port, in any order, separated by commas.
    #[arg(long, env = "ASTERISM_SHARDS", value_delimiter = ',', required = true, value_name = "HOST:PORT,…")]
    pub shards: Vec<String>,
    /// A jinja chat template that takes the place of the model's own.
    #[arg(long, env = "ASTERISM_CHAT_TEMPLATE", value_name = "FILE")]
    pub chat_template: Option<PathBuf>,
    /// The longest prompt plus answer in tokens; as long as the shards allow unless given. The KV pool limits it too.
    #[arg(long, env = "ASTERISM_MAX_CONTEXT", value_name = "TOKENS")]
    pub max_context: Option<u32>,
    /// How many requests may wait for room.
    #[arg(long, env = "ASTERISM_QUEUE_REQUESTS", default_value_t = 1024, value_name = "COUNT")]
    pub queue_requests: u32,
    /// How many tokens, prompts and answers together, may wait for room.
    #[arg(long, env = "ASTERISM_QUEUE_TOKENS", default_value_t = 4 << 20, value_name = "TOKENS")]
    pub queue_tokens: u64,
    /// Who shares the gateway, as name=weight: of two tenants that both have requests waiting, one of twice the weight is
    /// served twice the tokens. Requests that name none are those of the tenant "default".
    #[arg(long, env = "ASTERISM_TENANTS", value_delimiter = ',', value_name = "NAME=WEIGHT,…")]
    pub tenants: Vec<TenantWeight>,
    /// Whether tokens that may follow in an answer are computed ahead: where that makes it faster, wherever there is room, or
    /// not at all. The answer is the same.
    #[arg(long, env = "ASTERISM_SPECULATION", value_enum, default_value_t, value_name = "MODE")]
    pub speculation: Speculation,
    /// Where sessions are kept: a folder; a PostgreSQL database, which several gateways may share, as
    /// postgres://USER@HOST/DATABASE; or `memory`, which ends with the process. The password is best given apart, as PGPASSWORD
    /// or in ~/.pgpass.
    #[arg(
        long,
        env = "ASTERISM_SESSIONS",
        hide_env_values = true,
        default_value = "memory",
        value_name = "FOLDER|postgres://…|memory"
    )]
    pub sessions: Place,
    /// How long a session is kept in which nothing happens; for ever unless given.
    #[arg(long, env = "ASTERISM_RETENTION", value_parser = duration, value_name = "DURATION")]
    pub retention: Option<Duration>,
    /// How many sessions a tenant may keep.
    #[arg(long, env = "ASTERISM_TENANT_SESSIONS", default_value_t = 100_000, value_name = "COUNT")]
    pub tenant_sessions: u64,
    /// How many bytes of turns a tenant may keep.
    #[arg(long, env = "ASTERISM_TENANT_BYTES", default_value_t = 16 << 30, value_name = "BYTES")]
    pub tenant_bytes: u64,
    /// Take the pipeline from another gateway that holds it.
    #[arg(long, env = "ASTERISM_TAKE_OVER")]
    pub take_over: bool,
    /// How long a shard may work without finishing a layer before it counts as stuck.
    #[arg(
        long,
        env = "ASTERISM_BEAT_LIMIT",
        value_parser = duration,
        default_value = "5s",
        value_name = "DURATION"
    )]
    pub beat_limit: Duration,
    /// How long running answers may take to end when the gateway shuts down.
    #[arg(
        long,
        env = "ASTERISM_GRACE",
        value_parser = duration,
        default_value = "30s",
        value_name = "DURATION"
    )]
    pub grace: Duration,
}

impl GatewayConfig {
    /// For a model folder and its shards, all else as by default.
    pub fn new(model: impl Into<PathBuf>, shards: impl IntoIterator<Item = String>) -> Self {
        Self {
            listen: loopback(GRPC_PORT),
            http_listen: loopback(HTTP_PORT),
            model: model.into(),
            model_name: None,
            shards: shards.into_iter().collect(),
            chat_template: None,
            max_context: None,
            queue_requests: 1024,
            queue_tokens: 4 << 20,
            tenants: Vec::new(),
            speculation: Speculation::Auto,
            sessions: Place::Memory,
            retention: None,
            tenant_sessions: 100_000,
            tenant_bytes: 16 << 30,
            take_over: false,
            beat_limit: Duration::from_secs(5),
            grace: Duration::from_secs(30),
        }
    }

    /// The name by which requests know the model.
    pub fn name(&self) -> String {
        let folder = || {
            let folder = self.model.canonicalize().unwrap_or_else(|_| self.model.clone());
            folder.file_name().map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned())
        };
        self.model_name.clone().unwrap_or_else(folder)
    }
}

impl Settings for GatewayConfig {
    fn check(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        for shard in &self.shards {
            if let Err(error) = channel::endpoint(shard, Traffic::Internal) {
                mistakes.push(format!("shards: {error}"));
            }
        }
        if !self.model.is_dir() {
            mistakes.push(format!("model: {} is no folder", self.model.display()));
        }
        if self.max_context == Some(0) {
            mistakes.push("max_context: 0 leaves room for nothing".to_owned());
        }
        if self.queue_requests == 0 {
            mistakes.push("queue_requests: 0 would refuse every request".to_owned());
        }
        mistakes.extend(Tenants::mistakes(&self.tenants));
        if self.beat_limit.is_zero() {
            mistakes.push("beat_limit: 0s would end every epoch".to_owned());
        }
        mistakes
    }
}

#[cfg(test)]
mod tests {
    use asterism_process::config::{Layered, keys};
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        gateway: Layered<GatewayConfig>,
    }

    #[test]
    fn defaults_of_the_flags_are_those_of_the_constructor() {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().to_str().unwrap();
        let flags = ["gateway", "--model", model, "--shards", "a:1,b:2"];
        let config = Command::parse_from(flags).gateway.load_over(|_| None).unwrap();
        assert_eq!(config, GatewayConfig::new(model, ["a:1".to_owned(), "b:2".to_owned()]));
        assert!(keys::<GatewayConfig>().len() <= 18);
    }

    #[test]
    fn all_mistakes_are_told_at_once() {
        let flags = ["gateway", "--model", "/no/such/folder", "--shards", "nowhere", "--max-context", "0"];
        let mistakes = Command::parse_from(flags).gateway.load_over(|_| None).unwrap_err().to_string();
        for key in ["model: ", "shards: ", "max_context: "] {
            assert!(mistakes.contains(key), "{mistakes}");
        }
    }
}
