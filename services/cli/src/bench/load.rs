//! `asterism bench load`: how a running server does under load, ours or any that speaks the OpenAI dialect.
//!
//! A load is a pure function of its seed: when conversations begin ([`pace`]), how long prompts and answers are ([`length`]),
//! what is asked ([`dialogue`]). It is made by [`drive`], against a [`target`], and what comes back is kept by [`recorder`] in
//! bounded memory. Nothing here knows how a server works inside.

mod dialogue;
mod drive;
mod latency;
mod length;
mod objective;
mod pace;
mod progress;
mod random;
mod recorder;
mod report;
mod target;
mod terms;
mod timeline;

use std::num::{NonZeroU32, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use asterism_process::channel::AddressError;
use asterism_process::config::duration;
use asterism_process::shutdown;
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use self::dialogue::{Form, Workload};
use self::drive::LoadPlan;
use self::length::Length;
use self::objective::Objective;
use self::pace::{Extent, Pace, Spacing};
use self::report::{Circumstances, Report};
use self::target::{Failed, Target, TargetPlan};
use self::terms::Terms;

/// Put a running server under load.
///
/// Conversations begin at a rate, whatever the server does (`--rate`, an open loop), or as others end (`--concurrency`, a
/// closed loop). In an open loop latencies count from when a request was due, not from when it was sent. Works against a
/// gateway over gRPC, and over HTTP against every server that streams OpenAI completions or chat completions, so that
/// different servers can be measured by the same client. Over HTTP, text lengths are in the server's own tokens, which it is
/// asked to count first. Ctrl-C ends a load early and reports what was measured.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  asterism bench load --concurrency 16 --requests 200
  asterism bench load --rate 4 --duration 60s --warm-up 10s --slo ttft=500ms,tpot=50ms --html load.html
  asterism bench load --target http://127.0.0.1:8000 --form chat --prompt lognormal:300,0.8,4000 --answer uniform:50,300
  asterism bench load --system 1000 --turns 8 --think 2s --prompt 60 --answer 120      shared prefix, follow-up turns
  asterism bench load --form session --turns 8 --prompt 60 --answer 120                conversations that the gateway keeps

Lengths are in tokens: 128, uniform:64,256 or lognormal:MEDIAN,SIGMA[,MOST].")]
pub struct Arguments {
    /// The server: a gateway as grpc://HOST:PORT, or any other as http://HOST:PORT.
    #[arg(long, value_name = "URL", default_value = "grpc://127.0.0.1:7050")]
    target: String,
    /// How prompts are handed over (default: ids over gRPC, chat over HTTP).
    #[arg(long, value_enum, value_name = "FORM")]
    form: Option<Form>,
    /// The model's name at the server (default: its first).
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Token ids that prompts are made of are below this. Over HTTP, --form ids needs it.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    vocab: Option<u32>,
    /// Sent as a bearer token, over HTTP.
    #[arg(long, value_name = "KEY", env = "ASTERISM_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// Fields for the body of every HTTP request, as a JSON object; null takes one out.
    #[arg(long, value_name = "JSON", value_parser = object)]
    extra: Option<Map<String, Value>>,

    /// Conversations that begin each second: an open loop.
    #[arg(long, value_name = "PER_SECOND", value_parser = rate, conflicts_with = "concurrency")]
    rate: Option<f64>,
    /// How the conversations of an open loop are spaced.
    #[arg(long, value_enum, value_name = "SPACING", default_value = "poisson")]
    arrivals: Spacing,
    /// The most unfinished conversations of an open loop; what comes then waits here, and its waiting counts.
    #[arg(long, value_name = "N", default_value = "4096")]
    limit: NonZeroUsize,
    /// Conversations at any time: a closed loop (default: 8, if there is no --rate).
    #[arg(long, value_name = "N")]
    concurrency: Option<NonZeroUsize>,
    /// Measure this many requests, rounded up to whole conversations.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), conflicts_with = "duration")]
    requests: Option<u64>,
    /// Measure for this long (default: 60s, if there is no --requests).
    #[arg(long, value_name = "TIME", value_parser = duration)]
    duration: Option<Duration>,
    /// Requests, or a time, before measuring.
    #[arg(long, value_name = "N|TIME", default_value = "0")]
    warm_up: Extent,

    /// New tokens of each turn.
    #[arg(long, value_name = "LENGTH", default_value = "512")]
    prompt: Length,
    /// Tokens of each answer.
    #[arg(long, value_name = "LENGTH", default_value = "128")]
    answer: Length,
    /// Tokens of a system prompt that all conversations share.
    #[arg(long, value_name = "TOKENS", default_value = "0", value_parser = clap::value_parser!(u32).range(..=1 << 20))]
    system: u32,
    /// Requests of a conversation, each with all that was said before.
    #[arg(long, value_name = "N", default_value = "1")]
    turns: NonZeroU32,
    /// From an answer's end to the next turn.
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = duration)]
    think: Duration,
    /// Decides arrivals, lengths and words (default: another each time). A server's prefix cache may still have the prompts
    /// of a seed that it has seen.
    #[arg(long)]
    seed: Option<u64>,
    /// Sample at this temperature; 0 always takes the best token (default: the server's).
    #[arg(long, value_name = "T", value_parser = temperature)]
    temperature: Option<f32>,
    /// Let answers end where the model ends them, instead of at their full lengths.
    #[arg(long)]
    stop_at_eos: bool,
    #[command(flatten)]
    terms: Terms,

    /// The most time for a request.
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration)]
    timeout: Duration,
    /// What goodput counts by: ttft, tpot (mean inter-token time of a request), e2e.
    #[arg(long, value_name = "ttft=500ms,…", value_delimiter = ',')]
    slo: Vec<Objective>,
    /// Write everything to this file, for machines.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a page with plots to this file.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// Why there is no report, or not a good one.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// An argument that does not go with the others.
    #[error("{0}: {1}")]
    Field(&'static str, String),
    /// The target's address is none.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// Nobody answers there.
    #[error("no server answers at {url}: {reason}")]
    Unreachable {
        /// Where.
        url: String,
        /// In the words of the transport or the server.
        reason: String,
    },
    /// The server has no such model, or none.
    #[error("the server at {url} serves no model{}", model.as_ref().map_or(String::new(), |name| format!(" {name:?}")))]
    NoModel {
        /// Where.
        url: String,
        /// As asked for.
        model: Option<String>,
    },
    /// Not even one request, before the load.
    #[error("the first request failed: {0}")]
    FirstRequest(Failed),
    /// Nobody could stop it.
    #[error("cannot listen to signals: {0}")]
    Signals(std::io::Error),
    /// A report cannot be written.
    #[error("cannot write {0}: {1}")]
    Write(PathBuf, std::io::Error),
    /// The report stands, but says nothing.
    #[error("no request was answered")]
    NothingAnswered,
}

/// Makes the load and reports.
pub async fn run(arguments: Arguments) -> Result<(), LoadError> {
    // A report that cannot be written is better known before.
    for path in [&arguments.json, &arguments.html].into_iter().flatten() {
        write(path, "")?;
    }
    let report = measure(&arguments, shutdown::on_signal().map_err(LoadError::Signals)?).await?;
    print!("{report}");
    if let Some(path) = &arguments.json {
        let json = serde_json::to_string_pretty(&report);
        write(path, &json.map_err(|error| LoadError::Write(path.clone(), error.into()))?)?;
    }
    if let Some(path) = &arguments.html {
        write(path, &report.page())?;
    }
    if report.requests.answered == 0 { Err(LoadError::NothingAnswered) } else { Ok(()) }
}

/// Makes the load, until its end or `stop`.
async fn measure(arguments: &Arguments, stop: CancellationToken) -> Result<Report, LoadError> {
    let (plan, target_plan) = (arguments.plan()?, arguments.target_plan()?);
    let target = Target::open(&target_plan).await?;
    let (material, note) = target.material(&target_plan).await?;
    let model = target.model().to_owned();
    let began = SystemTime::now();
    let recorder = drive::drive(plan.clone(), target, material, stop.clone()).await;
    let circumstances = Circumstances {
        target: &target_plan,
        model,
        plan: &plan,
        began,
        interrupted: stop.is_cancelled(),
        notes: note.into_iter().collect(),
    };
    Ok(Report::new(&recorder, circumstances))
}

fn write(path: &Path, text: &str) -> Result<(), LoadError> {
    std::fs::write(path, text).map_err(|error| LoadError::Write(path.to_owned(), error))
}

impl Arguments {
    fn plan(&self) -> Result<LoadPlan, LoadError> {
        let pace = match self.rate {
            Some(rate) => Pace::Open { rate, spacing: self.arrivals, limit: self.limit },
            None => Pace::Closed { concurrency: self.concurrency.unwrap_or(DEFAULT_CONCURRENCY) },
        };
        let extent = match self.requests {
            Some(requests) => Extent::Requests(requests),
            None => Extent::Time(self.duration.unwrap_or(DEFAULT_DURATION)),
        };
        for (name, time) in [("--duration", self.duration), ("--timeout", Some(self.timeout))] {
            if time.is_some_and(|time| time.is_zero()) {
                return Err(LoadError::Field(name, "no time at all".to_owned()));
            }
        }
        let workload = Workload {
            seed: self.seed.unwrap_or_else(fresh_seed),
            system: self.system,
            turns: self.turns,
            prompt: self.prompt,
            answer: self.answer,
            think: self.think,
        };
        let objectives = self.slo.clone();
        Ok(LoadPlan { pace, warm_up: self.warm_up, extent, workload, timeout: self.timeout, objectives })
    }

    fn target_plan(&self) -> Result<TargetPlan, LoadError> {
        let over_http = self.target.starts_with("http://");
        let form = self.form.unwrap_or(if over_http { Form::Chat } else { Form::Ids });
        if over_http && form == Form::Session {
            let why = "only a gateway has sessions: its target is grpc://HOST:PORT";
            return Err(LoadError::Field("--form", why.to_owned()));
        }
        if over_http && form == Form::Ids && self.turns.get() > 1 {
            let why =
                "over HTTP the ids of answers stay unknown, so that a next turn needs --form text or chat";
            return Err(LoadError::Field("--turns", why.to_owned()));
        }
        Ok(TargetPlan {
            url: self.target.clone(),
            model: self.model.clone(),
            form,
            api_key: self.api_key.clone(),
            vocab: self.vocab,
            extra: self.extra.clone().unwrap_or_default(),
            temperature: self.temperature,
            stop_at_eos: self.stop_at_eos,
            terms: self.terms.checked()?,
            most_at_once: self
                .rate
                .map_or(self.concurrency.unwrap_or(DEFAULT_CONCURRENCY), |_| self.limit)
                .get(),
        })
    }
}

const DEFAULT_CONCURRENCY: NonZeroUsize = NonZeroUsize::MIN.saturating_add(7);
const DEFAULT_DURATION: Duration = Duration::from_secs(60);

/// Another each time, short enough to be typed.
fn fresh_seed() -> u64 {
    let nanos =
        SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.subsec_nanos() ^ since.as_secs() as u32);
    u64::from(nanos) % 1_000_000
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if (1e-3..=1e6).contains(&rate) => Ok(rate),
        _ => Err(format!("{text:?} is no rate from 0.001 to 1000000 a second")),
    }
}

fn temperature(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(temperature) if (0.0..=100.0).contains(&temperature) => Ok(temperature),
        _ => Err(format!("{text:?} is no temperature from 0 to 100")),
    }
}

fn object(text: &str) -> Result<Map<String, Value>, String> {
    serde_json::from_str(text).map_err(|error| format!("{text:?} is no JSON object: {error}"))
}

#[cfg(test)]
mod tests;
