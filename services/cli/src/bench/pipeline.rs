//! The same model through a gateway and shards.

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

use super::{ROUNDS, TWO, median};
use crate::system::{Plan, System, Transport};

/// Tokens of one answer.
const ANSWER: u32 = 128;

/// The time of one decoded token with the model on one shard, and split over two that speak through memory, and over two with
/// sockets between them; each shard has one thread.
pub struct Times {
    pub one: Duration,
    pub memory: Duration,
    pub sockets: Duration,
}

/// Measures these times. All systems are there at once and answer in turns, so that whatever else the machine does falls on all.
pub async fn measure(model: &Path, compute: ComputeType) -> Result<Times, Box<dyn Error>> {
    let start = async |shards, transport| Measured::start(model, compute, (shards, transport)).await;
    let mut one = start(NonZeroUsize::MIN, Transport::Memory).await?;
    let mut memory = start(TWO, Transport::Memory).await?;
    let mut sockets = start(TWO, Transport::Sockets).await?;
    for _ in 0..ROUNDS {
        for system in [&mut one, &mut memory, &mut sockets] {
            system.times.push(answer(&mut system.client).await?);
        }
    }
    Ok(Times { one: one.finish().await?, memory: memory.finish().await?, sockets: sockets.finish().await? })
}

struct Measured {
    system: System,
    client: InferenceClient<Channel>,
    times: Vec<Duration>,
}

impl Measured {
    async fn start(
        model: &Path,
        compute: ComputeType,
        (shards, transport): (NonZeroUsize, Transport),
    ) -> Result<Self, Box<dyn Error>> {
        let threads = Some(NonZeroUsize::MIN);
        let plan = Plan { compute: Some(compute), threads, transport, ..Plan::new(model, shards) };
        let system = System::start(&plan).await?;
        system.ready().await;
        let channel = channel::endpoint(&system.grpc().to_string(), Traffic::Public)?.connect().await?;
        let mut client = InferenceClient::new(channel);
        // Once without a clock: pages are touched, the planner has seen how long a step takes.
        answer(&mut client).await?;
        Ok(Self { system, client, times: Vec::new() })
    }

    async fn finish(self) -> Result<Duration, Box<dyn Error>> {
        drop(self.client);
        self.system.until(std::future::ready(())).await?;
        Ok(median(self.times))
    }
}

/// The time of a token within one greedy answer, the first excepted.
async fn answer(client: &mut InferenceClient<Channel>) -> Result<Duration, Box<dyn Error>> {
    let request = GenerateRequest {
        prompt: Some(Prompt::TokenIds(TokenIds { ids: (100..164).collect() })),
        sampling: Some(Sampling { do_sample: Some(false), ..Sampling::default() }),
        stopping: Some(Stopping { max_tokens: Some(ANSWER), ignore_eos: true, ..Stopping::default() }),
        bypass_cache: true,
        // A token a step.
        bypass_speculation: true,
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
