//! The one path that every request takes, whichever door it came through: check, encode, submit.

mod turn;

use std::sync::Arc;

use asterism_proto::v1::generate_request::Prompt as WirePrompt;
use asterism_proto::v1::tokenize_request::Input;
use asterism_proto::{Failure, Reason, v1};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use uuid::Uuid;

use crate::caller::Caller;
use crate::driver::{AnswerStream, Driver, NewRequest, PipelineInfo, PipelineState, Stops, Writer};
use crate::metrics::{Metrics, RequestRecord};
use crate::sampler::Sampling;
use crate::scheduler::{Loads, TenantId};
use crate::tenants::Tenants;
use crate::text::{ChatMessage, Decoder, GenerationDefaults, ModelText, Prompt, StopStrings};

/// The longest id that a caller may give a request, in bytes.
const LONGEST_REQUEST_ID: usize = 256;
/// What a request's priority may be: high enough ones would let others wait for ever.
const PRIORITIES: std::ops::RangeInclusive<i32> = -100..=100;
/// The most end ids of a request.
const MOST_STOP_IDS: usize = 1024;

/// One model behind the doors.
#[derive(Debug)]
pub struct Engine {
    name: String,
    text: Arc<ModelText>,
    driver: Driver,
    tenants: Tenants,
}

/// Where an answer ends if its request does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenEnd {
    /// As the model's generation defaults have it: max_new_tokens, else max_length.
    Model,
    /// At the context's end.
    Context,
}

impl Engine {
    /// For a model under a name, shared by tenants.
    pub fn new(name: String, text: Arc<ModelText>, driver: Driver, tenants: Tenants) -> Self {
        Self { name, text, driver, tenants }
    }

    /// Whether requests are taken now.
    ///
    /// # Errors
    /// UNAVAILABLE, with the reason.
    pub fn readiness(&self) -> Result<(), Failure> {
        self.driver.pipeline().map(drop)
    }

    /// The model, and what is known of its pipeline.
    pub fn model(&self) -> v1::Model {
        let state = self.driver.state();
        let name = self.name.clone();
        match &*state.borrow() {
            PipelineState::Joined(info) => v1::Model {
                name,
                checkpoint_id: info.checkpoint_id.clone(),
                max_context: info.max_context,
                vocab_size: info.vocab_size,
                ready: true,
            },
            _ => v1::Model { name, ..v1::Model::default() },
        }
    }

    /// Begins an answer, below its caller's span.
    ///
    /// # Errors
    /// What is wrong with the request, or why it is not taken now.
    pub async fn generate(
        &self,
        request: v1::GenerateRequest,
        open_end: OpenEnd,
        caller: Caller,
    ) -> Result<AnswerStream, Failure> {
        let mut record = RequestRecord::arrived(self.driver.metrics(), &caller.trace);
        match self.check(request, open_end, &caller).await {
            Ok(request) => self.driver.submit(request, record).await,
            Err(failure) => {
                record.failed(&failure);
                Err(failure)
            }
        }
    }

    /// A request as the driver takes it.
    async fn check(
        &self,
        request: v1::GenerateRequest,
        open_end: OpenEnd,
        caller: &Caller,
    ) -> Result<NewRequest, Failure> {
        self.check_model(&request.model)?;
        let tenant = self.tenants.find(caller.tenant.as_deref())?;
        let priority = priority(request.priority)?;
        let deadline = caller.deadline(request.timeout)?;
        let id = request_id(request.request_id)?;
        let pipeline = self.driver.pipeline()?;
        let (sampling, output) = (request.sampling.unwrap_or_default(), request.output.unwrap_or_default());
        let defaults = &self.text.defaults;
        let sampling = Sampling::resolve(&sampling, &output, defaults, pipeline.vocab_size, fresh_seed())?;
        let prompt = request
            .prompt
            .ok_or_else(|| Failure::invalid("prompt", "none of text, token_ids and chat is set"))?;
        let field = match &prompt {
            WirePrompt::Text(_) => "text",
            WirePrompt::TokenIds(_) => "token_ids",
            WirePrompt::Chat(_) => "chat",
        };
        let (prompt, decoder) = self.encode(prompt).await?;
        if let Some(id) = prompt.iter().find(|id| **id >= pipeline.vocab_size) {
            let message = format!("token id {id} is beyond a vocabulary of {}", pipeline.vocab_size);
            return Err(Failure::invalid(field, message));
        }
        let stopping = request.stopping.unwrap_or_default();
        let length = Length { prompt: prompt.len(), field, asked: stopping.max_tokens, open_end };
        let max_tokens = length.max_tokens(defaults, pipeline.max_context)?;
        let stops = stops(stopping, max_tokens, defaults, &pipeline)?;
        let prompt_tokens = u32::try_from(prompt.len()).unwrap_or(u32::MAX);
        Ok(NewRequest {
            id,
            model: self.name.clone(),
            prompt: prompt.into(),
            given: Vec::new(),
            journal: None,
            sampling,
            writer: Writer::new(decoder, stops, prompt_tokens),
            max_tokens,
            tenant,
            priority,
            deadline,
            bypass_cache: request.bypass_cache,
            bypass_speculation: request.bypass_speculation,
        })
    }

    /// The model's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The model's text side.
    pub fn text(&self) -> &Arc<ModelText> {
        &self.text
    }

    /// What the joined pipeline offers.
    ///
    /// # Errors
    /// UNAVAILABLE: none is joined.
    pub fn pipeline(&self) -> Result<PipelineInfo, Failure> {
        self.driver.pipeline()
    }

    /// What the pipeline is doing, as it changes.
    pub fn state(&self) -> watch::Receiver<PipelineState> {
        self.driver.state()
    }

    /// The tenant of this name, or the default one.
    ///
    /// # Errors
    /// INVALID_ARGUMENT: there is none of this name.
    pub fn tenant(&self, name: Option<&str>) -> Result<TenantId, Failure> {
        self.tenants.find(name)
    }

    /// Whether this gateway serves a model of this name; an empty one means the only model.
    ///
    /// # Errors
    /// INVALID_ARGUMENT: it does not.
    pub fn check_model(&self, name: &str) -> Result<(), Failure> {
        if name.is_empty() || name == self.name {
            return Ok(());
        }
        Err(Failure::invalid("model", format!("unknown model {name:?}; this gateway serves {:?}", self.name)))
    }

    /// What is counted.
    pub fn metrics(&self) -> &Metrics {
        self.driver.metrics()
    }

    /// How much there is to do, and how much room is left.
    ///
    /// # Errors
    /// UNAVAILABLE: the gateway shuts down.
    pub async fn loads(&self) -> Result<Loads, Failure> {
        self.driver.loads().await
    }

    /// The ids of a text or of a rendered chat.
    ///
    /// # Errors
    /// What is wrong with the request.
    pub async fn tokenize(&self, request: v1::TokenizeRequest) -> Result<v1::TokenizeResponse, Failure> {
        self.check_model(&request.model)?;
        let text = Arc::clone(&self.text);
        let (text, ids) = match request.input {
            Some(Input::Text(input)) => blocking(move || Ok((input.clone(), text.encode(&input)?))).await?,
            Some(Input::Chat(chat)) => blocking(move || text.encode_chat(&messages(chat))).await?,
            None => return Err(Failure::invalid("input", "neither text nor chat is set")),
        };
        Ok(v1::TokenizeResponse { ids, text })
    }

    /// The text of ids.
    ///
    /// # Errors
    /// What is wrong with the request.
    pub async fn detokenize(
        &self,
        request: v1::DetokenizeRequest,
    ) -> Result<v1::DetokenizeResponse, Failure> {
        self.check_model(&request.model)?;
        let text = Arc::clone(&self.text);
        let decoded = blocking(move || match &text.tokenizer {
            Some(tokenizer) => Ok(tokenizer.decode(&request.ids)),
            None => Err(Failure::invalid("model", "this model has no tokenizer")),
        });
        Ok(v1::DetokenizeResponse { text: decoded.await? })
    }

    /// Ends a request by its id. False: there is none.
    ///
    /// # Errors
    /// No id, or the gateway shuts down.
    pub async fn abort(&self, request_id: String) -> Result<bool, Failure> {
        if request_id.is_empty() {
            return Err(Failure::invalid("request_id", "request_id is empty"));
        }
        self.driver.abort(request_id).await
    }

    /// The prompt's ids and a decoder that stands after them.
    async fn encode(&self, prompt: WirePrompt) -> Result<(Vec<u32>, Decoder), Failure> {
        let text = Arc::clone(&self.text);
        blocking(move || {
            let ids = match prompt {
                WirePrompt::Text(prompt) => text.prompt_ids(Prompt::Text(&prompt)),
                WirePrompt::TokenIds(prompt) => text.prompt_ids(Prompt::TokenIds(&prompt.ids)),
                WirePrompt::Chat(chat) => text.prompt_ids(Prompt::Chat(&messages(chat))),
            }?;
            let decoder = text.decoder(&ids);
            Ok((ids, decoder))
        })
        .await
    }
}

/// Tokenizing a long text takes too long for a thread that serves others.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let failed = |error| Failure::new(Reason::Internal, format!("encoding failed: {error}"));
    spawn_blocking(work).await.map_err(failed)?
}

fn messages(chat: v1::Chat) -> Vec<ChatMessage> {
    chat.messages.into_iter().map(|message| ChatMessage::new(message.role, message.content)).collect()
}

fn request_id(given: String) -> Result<String, Failure> {
    match given.len() {
        0 => Ok(Uuid::new_v4().simple().to_string()),
        1..=LONGEST_REQUEST_ID => Ok(given),
        bytes => {
            let message = format!("request_id has {bytes} bytes, more than {LONGEST_REQUEST_ID}");
            Err(Failure::invalid("request_id", message))
        }
    }
}

/// A request's priority, if it is one.
///
/// # Errors
/// INVALID_ARGUMENT: it is out of range.
pub fn priority(given: Option<i32>) -> Result<i32, Failure> {
    let priority = given.unwrap_or(0);
    if PRIORITIES.contains(&priority) {
        return Ok(priority);
    }
    let (least, most) = (PRIORITIES.start(), PRIORITIES.end());
    Err(Failure::invalid("priority", format!("priority {priority} is not from {least} to {most}")))
}

/// 64 random bits: those that are fixed in one half of a version 4 UUID are random in the other.
fn fresh_seed() -> u64 {
    let (high, low) = Uuid::new_v4().as_u64_pair();
    high.rotate_left(32) ^ low
}

/// What decides how long an answer may become.
struct Length {
    prompt: usize,
    /// The field that the prompt came in.
    field: &'static str,
    asked: Option<u32>,
    open_end: OpenEnd,
}

impl Length {
    /// max_tokens, else the open end; in any case up to the context's end.
    fn max_tokens(&self, defaults: &GenerationDefaults, context: u32) -> Result<u32, Failure> {
        let too_long = |what: &str, limit: u32| {
            let message = format!("the prompt has {} tokens, the {what} is {limit}", self.prompt);
            Err(Failure::invalid(self.field, message))
        };
        let prompt = u32::try_from(self.prompt).unwrap_or(u32::MAX);
        let Some(room @ 1..) = context.checked_sub(prompt) else { return too_long("context", context) };
        let wanted = match (self.asked, self.open_end, defaults.max_new_tokens) {
            (Some(0), _, _) => return Err(Failure::invalid("stopping.max_tokens", "max_tokens is 0")),
            (Some(asked), _, _) => asked,
            (None, OpenEnd::Context, _) => room,
            (None, OpenEnd::Model, Some(new_tokens)) => new_tokens,
            (None, OpenEnd::Model, None) => match defaults.max_length.checked_sub(prompt) {
                Some(rest @ 1..) => rest,
                _ => return too_long("model's max_length", defaults.max_length),
            },
        };
        Ok(wanted.min(room))
    }
}

fn stops(
    stopping: v1::Stopping,
    max_tokens: u32,
    defaults: &GenerationDefaults,
    pipeline: &PipelineInfo,
) -> Result<Stops, Failure> {
    let wrong = |message| Err(Failure::invalid("stopping.stop_token_ids", message));
    let mut ids = stopping.stop_token_ids;
    if ids.len() > MOST_STOP_IDS {
        return wrong(format!("{} stop token ids, more than {MOST_STOP_IDS}", ids.len()));
    }
    if let Some(id) = ids.iter().find(|id| **id >= pipeline.vocab_size) {
        return wrong(format!("token id {id} is beyond a vocabulary of {}", pipeline.vocab_size));
    }
    if !stopping.ignore_eos {
        ids.extend(&defaults.eos_token_ids);
    }
    Ok(Stops { ids, scanner: StopStrings::new(&stopping.stop)?, strings: stopping.stop, max_tokens })
}
