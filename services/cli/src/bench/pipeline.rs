//! The same model through a gateway and shards on loopback sockets.

use std::error::Error;
use std::num::NonZeroUsize;
use std::path::Path;
use std::time::{Duration, Instant};

use asterism_process::channel::{self, Traffic};
use asterism_proto::v1::generate_request::Prompt;
use asterism_proto::v1::generate_response::Event;
use asterism_proto::v1::inference_client::InferenceClient;
use asterism_proto::v1::{GenerateRequest, Sampling, Stopping, TokenIds};
use asterism_shard::ComputeType;
use tonic::transport::Channel;

use super::{ROUNDS, median};
use crate::system::{Plan, System};

/// Tokens of one answer.
const ANSWER: u32 = 128;

/// The time of one decoded token with the model split over `shards` shards of one thread each.
pub async fn measure(
    model: &Path,
    compute: ComputeType,
    shards: NonZeroUsize,
) -> Result<Duration, Box<dyn Error>> {
    let plan = Plan { compute, threads: Some(NonZeroUsize::MIN), ..Plan::new(model, shards) };
    let system = System::start(&plan).await?;
    system.ready().await;
    let channel = channel::endpoint(&system.grpc().to_string(), Traffic::Public)?.connect().await?;
    let mut client = InferenceClient::new(channel);
    answer(&mut client).await?;
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        times.push(answer(&mut client).await?);
    }
    drop(client);
    system.until(std::future::ready(())).await?;
    Ok(median(times))
}

/// The time of a token within one greedy answer, the first excepted.
async fn answer(client: &mut InferenceClient<Channel>) -> Result<Duration, Box<dyn Error>> {
    let request = GenerateRequest {
        prompt: Some(Prompt::TokenIds(TokenIds { ids: (100..164).collect() })),
        sampling: Some(Sampling { do_sample: Some(false), ..Sampling::default() }),
        stopping: Some(Stopping { max_tokens: Some(ANSWER), ignore_eos: true, ..Stopping::default() }),
        ..GenerateRequest::default()
    };
    let mut stream = client.generate(request).await?.into_inner();
    let mut tokens = 0;
    let mut first = None;
    let mut last = Instant::now();
    while let Some(message) = stream.message().await? {
        if let Some(Event::Delta(delta)) = message.event {
            last = Instant::now();
            tokens += delta.token_ids.len();
            first.get_or_insert((last, tokens));
        }
    }
    let (began, before) = first.ok_or("the answer is empty")?;
    Ok((last - began) / u32::try_from(tokens - before).unwrap_or(1).max(1))
}
