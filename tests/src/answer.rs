//! Requests as tests write them, and whole answers.

use std::path::Path;

use asterism_proto::v1::generate_response::Event;
use asterism_proto::v1::inference_client::InferenceClient;
use asterism_proto::v1::{
    Chat, Finished, GenerateRequest, GenerateResponse, Message, Sampling, Started, Stopping, TokenIds,
    TokenLogprob, generate_request::Prompt,
};
use tonic::transport::Channel;
use tonic::{Status, Streaming};

/// A client of a gateway.
pub type Client = InferenceClient<Channel>;

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The first message.
    pub started: Started,
    /// All generated ids.
    pub ids: Vec<u32>,
    /// The joined deltas.
    pub text: String,
    /// Of each id, where they were asked for.
    pub logprobs: Vec<TokenLogprob>,
    /// The last message, without the count of cached tokens.
    pub finished: Finished,
    /// Tokens of the prompt that were not computed.
    pub cached_tokens: u32,
}

/// Whatever was cached.
impl PartialEq for Answer {
    fn eq(&self, other: &Self) -> bool {
        let told = |it: &Self| (it.started.clone(), it.ids.clone(), it.text.clone(), it.finished.clone());
        told(self) == told(other) && self.logprobs == other.logprobs
    }
}

/// A greedy request over token ids that no end id stops.
pub fn greedy(id: &str, prompt: &[u32], max_tokens: u32) -> GenerateRequest {
    let sampling = Sampling { do_sample: Some(false), repetition_penalty: Some(1.0), ..Sampling::default() };
    request(id, prompt, max_tokens, sampling)
}

/// A request over token ids that no end id stops.
pub fn request(id: &str, prompt: &[u32], max_tokens: u32, sampling: Sampling) -> GenerateRequest {
    GenerateRequest {
        request_id: id.to_owned(),
        prompt: Some(Prompt::TokenIds(TokenIds { ids: prompt.to_vec() })),
        sampling: Some(sampling),
        stopping: Some(Stopping { max_tokens: Some(max_tokens), ignore_eos: true, ..Stopping::default() }),
        ..GenerateRequest::default()
    }
}

/// A chat of (role, content) with the model's own defaults.
pub fn chat(messages: &[(&str, &str)], max_tokens: u32) -> GenerateRequest {
    let message =
        |(role, content): &(&str, &str)| Message { role: (*role).into(), content: (*content).into() };
    GenerateRequest {
        prompt: Some(Prompt::Chat(Chat { messages: messages.iter().map(message).collect() })),
        stopping: Some(Stopping { max_tokens: Some(max_tokens), ..Stopping::default() }),
        ..GenerateRequest::default()
    }
}

/// Sends a request and reads its whole answer.
///
/// # Errors
/// What the gateway answered instead.
pub async fn generate(mut client: Client, request: GenerateRequest) -> Result<Answer, Status> {
    read(client.generate(request).await?.into_inner()).await
}

/// Reads an answer to its end.
///
/// # Errors
/// It broke off.
pub async fn read(stream: Streaming<GenerateResponse>) -> Result<Answer, Status> {
    read_on(Vec::new(), stream).await
}

/// The same after some messages were read.
///
/// # Errors
/// It broke off.
pub async fn read_on(
    begun: Vec<GenerateResponse>,
    mut stream: Streaming<GenerateResponse>,
) -> Result<Answer, Status> {
    let mut begun = begun.into_iter();
    let mut next = async || -> Result<Option<Event>, Status> {
        let message = match begun.next() {
            Some(message) => Some(message),
            None => stream.message().await?,
        };
        Ok(message.and_then(|message| message.event))
    };
    let Some(Event::Started(started)) = next().await? else {
        return Err(Status::internal("an answer begins with `started`"));
    };
    let (mut ids, mut text, mut logprobs) = (Vec::new(), String::new(), Vec::new());
    loop {
        match next().await? {
            Some(Event::Delta(delta)) => {
                ids.extend(delta.token_ids);
                text.push_str(&delta.text);
                logprobs.extend(delta.logprobs);
            }
            Some(Event::Finished(mut finished)) => {
                let cached_tokens =
                    finished.usage.as_mut().map_or(0, |it| std::mem::take(&mut it.cached_tokens));
                if next().await?.is_some() {
                    return Err(Status::internal("something came after the end"));
                }
                return Ok(Answer { started, ids, text, logprobs, finished, cached_tokens });
            }
            other => return Err(Status::internal(format!("an answer goes on with deltas, not {other:?}"))),
        }
    }
}

/// A checkpoint's layers.
pub fn layers(checkpoint: &Path) -> usize {
    asterism_model::DecoderSpec::read(checkpoint).expect("a config").layers
}
