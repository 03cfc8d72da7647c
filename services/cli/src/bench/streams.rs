//! Answers at once through the whole gateway.

use std::error::Error;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use asterism_model::DecoderSpec;
use asterism_process::channel::{self, Traffic};
use asterism_process::config::Bytes;
use asterism_proto::v1::generate_request::Prompt;
use asterism_proto::v1::generate_response::Event;
use asterism_proto::v1::inference_client::InferenceClient;
use asterism_proto::v1::{GenerateRequest, Sampling, Stopping, TokenIds};
use asterism_shard::{ComputeType, DeviceName, Weights};
use futures::future::try_join_all;
use tonic::transport::Channel;

use super::card::{Figures, roofline};
use super::{median, ms};
use crate::system::{Plan, System};

/// What to measure.
#[derive(Clone, Debug)]
pub struct StreamPlan {
    /// The model's folder.
    pub model: PathBuf,
    /// Where its weights come from.
    pub weights: Weights,
    /// What computes.
    pub device: DeviceName,
    /// The type of activations and KV.
    pub compute: Option<ComputeType>,
    /// Refuse what could make a row's numbers depend on other rows.
    pub deterministic: bool,
    /// Memory of each shard.
    pub memory: Option<Bytes>,
    /// The most rows of a step.
    pub max_rows: usize,
    /// Shards of the pipeline.
    pub shards: NonZeroUsize,
    /// How many answers at once, one measurement each.
    pub streams: Vec<usize>,
    /// Tokens of each prompt.
    pub prompt: usize,
    /// Tokens of each answer.
    pub new: usize,
}

/// One answer as its reader saw it.
struct Answer {
    /// From the request to the first token.
    first: Duration,
    /// When each token came; those that came together are spread over the time that they took together.
    arrived: Vec<Instant>,
}

/// What there is while all answers are under way, none read and none over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Steady {
    /// From token to token.
    between: Duration,
    /// Tokens of prompt and answer, the one that is fed included.
    context: usize,
}

/// Starts a system, measures and prints; beside `figures` of the same steps without a gateway.
pub async fn measure(plan: &StreamPlan, figures: Option<&Figures>) -> Result<(), Box<dyn Error>> {
    let vocab = DecoderSpec::read(&plan.model)?.vocab;
    let began = Instant::now();
    let system = System::start(&plan.system()).await?;
    if !system.ready().await {
        return Ok(system.until(std::future::ready(())).await?);
    }
    let ready = began.elapsed();
    let channel = channel::endpoint(&system.grpc().to_string(), Traffic::Public)?.connect().await?;
    let client = InferenceClient::new(channel);
    let first = answer(client.clone(), plan.request(vocab, 0)).await?.first;
    println!("\nstart-up through the gateway: ready after {:.2} s", ready.as_secs_f64());
    for (stage, times) in system.times().iter().enumerate() {
        let parts: Vec<String> =
            times.parts().map(|(part, took)| format!("{part} {:.2} s", took.as_secs_f64())).collect();
        println!("  shard {stage}: {}", parts.join(", "));
    }
    let weights = system.times().iter().map(|times| times.stage.weights).max().unwrap_or_default();
    let rest = (ready + first).saturating_sub(weights);
    println!(
        "  first token {:.0} ms after its request; start to first token less the weights' time {:.2} s\n",
        ms(first),
        rest.as_secs_f64(),
    );
    println!(
        "{} shard{}, prompts of {} tokens, {} new tokens each, sampling as the model's generation_config has it",
        plan.shards,
        if plan.shards.get() == 1 { "" } else { "s" },
        plan.prompt,
        plan.new,
    );
    println!(
        "streams    ms/token   context    tokens/s   first token  step in this process, of the roofline"
    );
    for (round, &streams) in plan.streams.iter().enumerate() {
        let began = Instant::now();
        let requests = (0..streams).map(|stream| plan.request(vocab, 1 + round * 1000 + stream));
        let answers = try_join_all(requests.map(|request| answer(client.clone(), request))).await?;
        let wall = began.elapsed();
        let first = median(answers.iter().map(|answer| answer.first).collect());
        let arrived: Vec<_> = answers.into_iter().map(|answer| answer.arrived).collect();
        let Some(steady) = Steady::of(&arrived, plan.prompt) else {
            println!("{streams:<9}  never all at once: ask for more new tokens");
            continue;
        };
        print!(
            "{streams:<9}  {:<9.3}  {:<9}  {:<9.1}  {:<11}  ",
            ms(steady.between),
            steady.context,
            (streams * plan.new) as f64 / wall.as_secs_f64(),
            format!("{:.0} ms", ms(first)),
        );
        println!("{}", plan.beside(figures, streams, steady));
    }
    drop(client);
    Ok(system.until(std::future::ready(())).await?)
}

impl StreamPlan {
    fn system(&self) -> Plan {
        Plan {
            weights: self.weights,
            devices: vec![self.device],
            memory: self.memory,
            compute: self.compute,
            deterministic: self.deterministic,
            max_rows: Some(self.max_rows),
            ..Plan::new(&self.model, self.shards)
        }
    }

    /// A prompt of tokens that no other request has, to be answered in full.
    fn request(&self, vocab: usize, index: usize) -> GenerateRequest {
        let mut state = index as u64 + 1;
        let mut id = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 33) % vocab as u64) as u32
        };
        let ids = (0..self.prompt).map(|_| id()).collect();
        let max_tokens = u32::try_from(self.new).ok();
        GenerateRequest {
            prompt: Some(Prompt::TokenIds(TokenIds { ids })),
            sampling: Some(Sampling {
                do_sample: Some(true),
                seed: Some(index as u64),
                ..Sampling::default()
            }),
            stopping: Some(Stopping { max_tokens, ignore_eos: true, ..Stopping::default() }),
            bypass_cache: true,
            // A step of as many rows as there are streams is what stands beside, without rows of proposals.
            bypass_speculation: true,
            ..GenerateRequest::default()
        }
    }

    /// The same step in this process, and how far the whole is from the roofline.
    fn beside(&self, figures: Option<&Figures>, streams: usize, steady: Steady) -> String {
        let Some(Figures { steps, limits, info }) = figures else { return String::new() };
        let Steady { between, context } = steady;
        let roofline = roofline(info, limits, streams, context);
        let share = 100.0 * roofline.as_secs_f64() / between.as_secs_f64();
        let step = steps.iter().find(|(rows, _)| *rows == streams);
        let step = step.map_or("not measured".to_owned(), |(_, step)| {
            format!("{:.3} ms ({:+.3} ms)", ms(*step), ms(between) - ms(*step))
        });
        format!("{step}, {share:.1} % of {:.3} ms", ms(roofline))
    }
}

/// Asks and listens to the end.
async fn answer(
    mut client: InferenceClient<Channel>,
    request: GenerateRequest,
) -> Result<Answer, Box<dyn Error>> {
    let began = Instant::now();
    let mut stream = client.generate(request).await?.into_inner();
    let mut arrived = Vec::new();
    while let Some(message) = stream.message().await? {
        let Some(Event::Delta(delta)) = message.event else { continue };
        let tokens = u32::try_from(delta.token_ids.len()).unwrap_or(u32::MAX);
        if tokens == 0 {
            continue;
        }
        let now = Instant::now();
        let last = arrived.last().copied().unwrap_or(now);
        arrived.extend((1..=tokens).map(|token| last + (now - last) * token / tokens));
    }
    let first = arrived.first().copied().ok_or("the answer is empty")? - began;
    Ok(Answer { first, arrived })
}

impl Steady {
    /// The middle of what lies between the last answer's first token and the first answer's last; `None`: nothing does.
    fn of(arrived: &[Vec<Instant>], prompt: usize) -> Option<Self> {
        let from = arrived.iter().filter_map(|tokens| tokens.first()).max()?;
        let to = arrived.iter().filter_map(|tokens| tokens.last()).min()?;
        let (mut between, mut contexts) = (Vec::new(), Vec::new());
        for tokens in arrived {
            for (pair, token) in tokens.windows(2).zip(1..) {
                if pair[0] >= *from && pair[1] <= *to {
                    between.push(pair[1] - pair[0]);
                    contexts.push(prompt + token);
                }
            }
        }
        contexts.sort_unstable();
        let context = *contexts.get(contexts.len() / 2)?;
        Some(Self { between: median(between), context })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_all_answers_are_under_way_for_counts() {
        let start = Instant::now();
        let at = |all: &[u64]| all.iter().map(|ms| start + Duration::from_millis(*ms)).collect::<Vec<_>>();
        // The second waits for its prompt until 40; the first is over at 75.
        let arrived = [at(&[0, 10, 30, 40, 51, 63, 75]), at(&[40, 51, 63, 75, 80, 84])];
        let between = Duration::from_millis(12);
        assert_eq!(Steady::of(&arrived, 100), Some(Steady { between, context: 104 }));
        assert_eq!(Steady::of(&[at(&[0, 10]), at(&[20, 30])], 100), None);
        assert_eq!(Steady::of(&[], 100), None);
    }
}
