//! Taking a pipeline: describing its shards, and joining them from the last stage to the first.

use std::time::Duration;

use asterism_process::channel::{AddressError, CONTROL_MESSAGE_LIMIT, Traffic};
use asterism_process::dial::Dial;
use asterism_process::inproc::Registry;
use asterism_proto::shard::v1::shard_client::ShardClient;
use asterism_proto::shard::v1::{DescribeRequest, Holder, JoinRequest, LinkKind};
use futures::future::join_all;
use tonic::Status;
use tonic::transport::Channel;

use super::membership::{Member, Pipeline};
use super::streams::Streams;

const DESCRIBE_DEADLINE: Duration = Duration::from_secs(3);
/// A stage answers once its edge to the next is open, which has its own deadline on the shard.
const JOIN_DEADLINE: Duration = Duration::from_secs(15);
const OPEN_DEADLINE: Duration = Duration::from_secs(5);

/// The configured shards; their channels connect when used and again after a break.
#[derive(Clone)]
pub struct Shards {
    clients: Vec<(String, ShardClient<Channel>)>,
    registry: Registry,
}

/// A pipeline that this driver holds.
pub struct Joined {
    /// This driver's claim.
    pub holder: Holder,
    /// Who was joined.
    pub pipeline: Pipeline,
    /// Open to every stage.
    pub streams: Streams,
    /// One for each stage.
    pub clients: Vec<ShardClient<Channel>>,
}

/// A shard that did not do as asked.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{address}: {what}: {message}", message = status.message())]
pub struct ShardRefusal {
    /// Who.
    pub address: String,
    /// What was asked of it.
    pub what: &'static str,
    /// Its answer.
    pub status: Status,
}

impl Shards {
    /// Makes a channel for each address (as [`Dial`] takes it); nothing is dialled yet.
    ///
    /// # Errors
    /// An address that is none.
    pub fn new(addresses: &[String], registry: &Registry) -> Result<Self, AddressError> {
        let client = |address: &String| {
            let channel = Dial::new(address, Traffic::Internal, registry)?.lazy();
            Ok((address.clone(), ShardClient::new(channel).max_decoding_message_size(CONTROL_MESSAGE_LIMIT)))
        };
        let clients = addresses.iter().map(client).collect::<Result<_, _>>()?;
        Ok(Self { clients, registry: registry.clone() })
    }

    /// Asks all shards at once what they are.
    ///
    /// # Errors
    /// The first, in the order of configuration, that does not answer.
    pub async fn describe(&self) -> Result<Vec<Member>, ShardRefusal> {
        let asked = self.clients.iter().map(|(address, client)| async {
            let mut client = client.clone();
            let answer = within(DESCRIBE_DEADLINE, client.describe(DescribeRequest {})).await;
            match answer {
                Ok(response) => Ok(Member { address: address.clone(), description: response.into_inner() }),
                Err(status) => Err(ShardRefusal { address: address.clone(), what: "describe", status }),
            }
        });
        join_all(asked).await.into_iter().collect()
    }

    /// Joins every stage, last first, and opens its stream at once, so that the claim on it lives.
    ///
    /// # Errors
    /// The first refusal; the streams opened so far close, which gives the stages up again.
    pub async fn join(
        &self,
        pipeline: Pipeline,
        holder: Holder,
        take_over: bool,
    ) -> Result<Joined, ShardRefusal> {
        let stages = pipeline.members.len();
        let steps_in_flight = pipeline.capacity().steps_in_flight;
        let mut streams = Streams::new(stages, steps_in_flight);
        let mut clients = Vec::with_capacity(stages);
        let mut downstream_address = String::new();
        for member in pipeline.members.iter().rev() {
            let refused = |what| move |status| ShardRefusal { address: member.address.clone(), what, status };
            let client = self.clients.iter().find(|(address, _)| *address == member.address);
            let Some((_, client)) = client else {
                return Err(refused("join")(Status::internal("not one of the configured shards")));
            };
            let mut client = client.clone();
            let request = JoinRequest {
                holder: Some(holder.clone()),
                take_over,
                link: LinkKind::Grpc.into(),
                downstream_address,
                steps_in_flight,
            };
            within(JOIN_DEADLINE, client.join(request)).await.map_err(refused("join"))?;
            let door = self.registry.run_door(&member.address);
            let opened = within(OPEN_DEADLINE, streams.open(&mut client, door, &holder)).await;
            opened.map_err(refused("run"))?;
            clients.insert(0, client);
            downstream_address = match member.description.advertised_address.as_str() {
                "" => member.address.clone(),
                advertised => advertised.to_owned(),
            };
        }
        Ok(Joined { holder, pipeline, streams, clients })
    }
}

/// A call with a deadline of its own.
pub async fn within<T>(
    deadline: Duration,
    call: impl Future<Output = Result<T, Status>>,
) -> Result<T, Status> {
    match tokio::time::timeout(deadline, call).await {
        Ok(answer) => answer,
        Err(_) => Err(Status::deadline_exceeded(format!("no answer within {deadline:?}"))),
    }
}
