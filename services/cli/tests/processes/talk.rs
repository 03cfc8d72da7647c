//! Talking to a gateway as a gRPC client does.

use asterism_proto::v1::generate_request::Prompt;
use asterism_proto::v1::generate_response::Event;
use asterism_proto::v1::inference_client::InferenceClient;
use asterism_proto::v1::{GenerateRequest, Sampling, Stopping, TokenIds};
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::command::bounded;
use super::golden::{Answer, Golden};

pub type Client = InferenceClient<Channel>;

/// A client of the gateway at `address`.
pub async fn connect(address: &str) -> Client {
    InferenceClient::new(bounded(dial(address)).await)
}

async fn dial(address: &str) -> Channel {
    let endpoint = Channel::from_shared(format!("http://{address}")).expect("an address");
    endpoint.connect().await.expect("the gateway listens")
}

/// Returns once the gateway at `address` drives a whole pipeline.
pub async fn ready(address: &str) {
    let watched = async {
        let mut health = HealthClient::new(dial(address).await);
        let request = HealthCheckRequest { service: "asterism.v1.Inference".to_owned() };
        let mut changes = health.watch(request).await.expect("health can be watched").into_inner();
        while let Some(change) = changes.message().await.expect("health is told") {
            if change.status() == ServingStatus::Serving {
                return;
            }
        }
        panic!("the gateway ended before it was ready");
    };
    bounded(watched).await;
}

/// The answer's ids, greedy.
pub async fn generate(
    client: &mut Client,
    prompt: &[u32],
    penalty: f32,
    most: usize,
) -> Result<Vec<u32>, Status> {
    let request = GenerateRequest {
        prompt: Some(Prompt::TokenIds(TokenIds { ids: prompt.to_vec() })),
        sampling: Some(Sampling {
            do_sample: Some(false),
            repetition_penalty: Some(penalty),
            ..Sampling::default()
        }),
        stopping: Some(Stopping {
            max_tokens: Some(u32::try_from(most).expect("a short answer")),
            ..Stopping::default()
        }),
        ..GenerateRequest::default()
    };
    bounded(async {
        let mut stream = client.generate(request).await?.into_inner();
        let mut ids = Vec::new();
        while let Some(message) = stream.message().await? {
            if let Some(Event::Delta(delta)) = message.event {
                ids.extend(delta.token_ids);
            }
        }
        Ok(ids)
    })
    .await
}

/// Asks all of `golden` and compares the answers.
pub async fn compare(client: &mut Client, golden: &Golden) {
    for (index, Answer { prompt, ids }) in golden.answers.iter().enumerate() {
        let answer = generate(client, prompt, golden.repetition_penalty, ids.len()).await.expect("an answer");
        // An end id may be left out of the answer.
        let said = &ids[..answer.len().clamp(ids.len().saturating_sub(1), ids.len())];
        assert_eq!(answer, said, "answer {index} of {}", golden.model());
    }
}

/// Whether this is how a gateway without its pipeline answers.
pub fn is_unavailable(status: &Status) -> bool {
    status.code() == Code::Unavailable
}
