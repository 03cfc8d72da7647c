//! A gateway before a pipeline of fake shards, over real sockets.

use asterism_gateway::{Gateway, GatewayConfig, Listeners, RunningGateway, Surroundings};
use asterism_proto::shard::v1::DescribeResponse;
use asterism_proto::v1::generate_request::Prompt;
use asterism_proto::v1::generate_response::Event;
use asterism_proto::v1::inference_client::InferenceClient;
use asterism_proto::v1::{self, GenerateRequest};
use tempfile::TempDir;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use crate::model;
use crate::shard::{FakeShard, describe};

pub struct Sandbox {
    pub gateway: RunningGateway,
    pub shards: Vec<FakeShard>,
    pub client: InferenceClient<Channel>,
    _folder: TempDir,
}

/// What a test may change before the start.
pub struct Setup {
    pub config: GatewayConfig,
    pub surroundings: Surroundings,
    folder: TempDir,
}

pub async fn shards(stages: u32, change: impl Fn(&mut DescribeResponse)) -> Vec<FakeShard> {
    let mut shards = Vec::new();
    for stage in 0..stages {
        let mut description = describe(stage, stages);
        change(&mut description);
        shards.push(FakeShard::start(description).await);
    }
    shards
}

pub fn addresses(shards: &[FakeShard]) -> Vec<String> {
    shards.iter().map(|shard| shard.address.to_string()).collect()
}

impl Setup {
    pub fn new(addresses: Vec<String>) -> Self {
        let folder = model::folder();
        let mut config = GatewayConfig::new(folder.path(), addresses);
        config.model_name = Some("toy".to_owned());
        config.listen = "127.0.0.1:0".parse().unwrap();
        config.http_listen = "127.0.0.1:0".parse().unwrap();
        Self { config, surroundings: Surroundings::default(), folder }
    }

    pub async fn start(self) -> (RunningGateway, InferenceClient<Channel>, TempDir) {
        let listeners = Listeners::bind(&self.config).await.unwrap();
        let gateway = Gateway::start_in(self.surroundings, self.config, listeners).await.unwrap();
        let client = InferenceClient::connect(format!("http://{}", gateway.grpc_address)).await.unwrap();
        (gateway, client, self.folder)
    }
}

impl Sandbox {
    /// A joined pipeline of `stages`.
    pub async fn new(stages: u32) -> Self {
        Self::with(shards(stages, |_| {}).await, |_| {}).await
    }

    pub async fn with(shards: Vec<FakeShard>, change: impl FnOnce(&mut GatewayConfig)) -> Self {
        Self::set_up(shards, |setup| change(&mut setup.config)).await
    }

    pub async fn set_up(shards: Vec<FakeShard>, change: impl FnOnce(&mut Setup)) -> Self {
        let mut setup = Setup::new(addresses(&shards));
        change(&mut setup);
        let (gateway, client, folder) = setup.start().await;
        assert!(gateway.ready().await);
        Self { gateway, shards, client, _folder: folder }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.gateway.http_address)
    }

    pub async fn generate(
        &self,
        request: GenerateRequest,
    ) -> Result<Streaming<v1::GenerateResponse>, Status> {
        Ok(self.client.clone().generate(request).await?.into_inner())
    }

    pub async fn answer(&self, request: GenerateRequest) -> Result<Answer, Status> {
        Answer::read(self.generate(request).await?).await
    }

    /// Waits until no shard knows any sequence, and asserts that none was told something wrong.
    pub async fn assert_clean(&self) {
        for shard in &self.shards {
            let seen = shard.until(|seen| seen.live.is_empty()).await;
            assert_eq!(seen.violations, Vec::<String>::new());
        }
    }
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Answer {
    pub started: v1::Started,
    pub ids: Vec<u32>,
    pub text: String,
    pub deltas: Vec<v1::Delta>,
    pub finished: v1::Finished,
}

impl Answer {
    pub async fn read(mut stream: Streaming<v1::GenerateResponse>) -> Result<Self, Status> {
        let Some(Event::Started(started)) = event(&mut stream).await? else { panic!("not started") };
        let (mut ids, mut text, mut deltas) = (Vec::new(), String::new(), Vec::new());
        loop {
            match event(&mut stream).await? {
                Some(Event::Delta(delta)) => {
                    ids.extend(&delta.token_ids);
                    text.push_str(&delta.text);
                    deltas.push(delta);
                }
                Some(Event::Finished(finished)) => {
                    assert!(stream.message().await?.is_none(), "something after the end");
                    return Ok(Self { started, ids, text, deltas, finished });
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

pub async fn event(stream: &mut Streaming<v1::GenerateResponse>) -> Result<Option<Event>, Status> {
    Ok(stream.message().await?.and_then(|response| response.event))
}

/// A greedy request for ids.
pub fn ids(ids: impl Into<Vec<u32>>, max_tokens: u32) -> GenerateRequest {
    GenerateRequest {
        prompt: Some(Prompt::TokenIds(v1::TokenIds { ids: ids.into() })),
        stopping: Some(v1::Stopping { max_tokens: Some(max_tokens), ignore_eos: true, ..Default::default() }),
        ..Default::default()
    }
}
