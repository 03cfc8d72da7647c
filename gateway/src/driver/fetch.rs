//! Fetching the whole row of logits where evidence was not enough.

use std::time::Duration;

use asterism_proto::shard::v1::shard_client::ShardClient;
use asterism_proto::shard::v1::{FetchLogitsRequest, FetchLogitsResponse};
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::backoff::Backoff;
use super::join::within;
use crate::sampler::Evidence;

const ATTEMPTS: u32 = 4;
const DEADLINE: Duration = Duration::from_secs(5);

/// A row that was asked for.
#[derive(Debug)]
pub struct Fetched {
    /// For whose, where and in which step.
    pub request: FetchLogitsRequest,
    /// The row's evidence; a draw from the row needs it too.
    pub evidence: Evidence,
    /// The row.
    pub row: Result<FetchLogitsResponse, Status>,
}

/// Fetches one row from the last stage, trying again where that may help.
pub async fn fetch(
    mut client: ShardClient<Channel>,
    request: FetchLogitsRequest,
    evidence: Evidence,
) -> Fetched {
    let mut backoff = Backoff::new(request.sequence);
    let mut attempt = 1;
    loop {
        let row = within(DEADLINE, client.fetch_logits(request.clone())).await;
        match row {
            Err(status) if attempt < ATTEMPTS && is_passing(&status) => {
                attempt += 1;
                tokio::time::sleep(backoff.next_delay()).await;
            }
            row => return Fetched { request, evidence, row: row.map(tonic::Response::into_inner) },
        }
    }
}

fn is_passing(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::ResourceExhausted)
}
