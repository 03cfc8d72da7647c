//! A chat completion request of the OpenAI dialect as the gateway's own request: translation only.

use std::collections::BTreeMap;
use std::time::Duration;

use asterism_proto::{Failure, v1};
use serde_json::Value;

use super::fields::{Fields, kind};

/// The most alternatives that `top_logprobs` may ask for, as in the dialect's own reference.
const MOST_LOGPROBS: u32 = 20;

/// How the answer is to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// One JSON object at the end.
    Whole,
    /// Server-sent events.
    Events {
        /// Whether a last event tells the usage.
        usage: bool,
    },
}

/// A request and how to answer it.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatRequest {
    /// For the path that all requests take.
    pub generate: v1::GenerateRequest,
    /// For the way back.
    pub form: Form,
}

/// (name, whether a value of it changes nothing)
type Neutral = (&'static str, fn(&Value) -> bool);

/// Fields that would change the answer's meaning and are not served.
const NOT_SERVED: [Neutral; 16] = [
    ("tools", is_empty),
    ("tool_choice", |value| value == "none" || value == "auto"),
    ("functions", is_empty),
    ("function_call", |value| value == "none" || value == "auto"),
    ("response_format", |value| value.get("type").is_some_and(|kind| kind == "text")),
    ("structured_outputs", is_empty),
    ("guided_json", is_empty),
    ("guided_regex", is_empty),
    ("guided_choice", is_empty),
    ("guided_grammar", is_empty),
    ("modalities", |value| value.as_array().is_some_and(|kinds| kinds.iter().all(|kind| kind == "text"))),
    ("audio", is_empty),
    ("n", |value| value.as_u64() == Some(1)),
    ("best_of", |value| value.as_u64() == Some(1)),
    ("echo", |value| value == false),
    ("continue_final_message", |value| value == false),
];

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Array(values) => values.is_empty(),
        Value::Object(values) => values.is_empty(),
        _ => false,
    }
}

impl ChatRequest {
    /// Reads a body. Fields that it does not know are ignored.
    ///
    /// # Errors
    /// The field that is wrong or not served.
    pub fn parse(body: &[u8]) -> Result<Self, Failure> {
        let mut fields = Fields::of_body(body)?;
        for (name, changes_nothing) in NOT_SERVED {
            if let Some(value) = fields.peek(name).filter(|value| !changes_nothing(value)) {
                let value = shortened(&value.to_string());
                return Err(Failure::invalid(name, format!("{name} is {value}, which is not served")));
            }
        }
        let form = form(&mut fields)?;
        let generate = v1::GenerateRequest {
            model: fields.take("model")?.unwrap_or_default(),
            request_id: String::new(),
            prompt: Some(v1::generate_request::Prompt::Chat(v1::Chat { messages: messages(&mut fields)? })),
            sampling: Some(sampling(&mut fields)?),
            stopping: Some(stopping(&mut fields)?),
            output: Some(v1::Output { logprobs: logprobs(&mut fields)? }),
            priority: fields.take("priority")?,
            timeout: timeout(&mut fields)?,
            bypass_cache: fields.take("bypass_cache")?.unwrap_or(false),
            bypass_speculation: fields.take("bypass_speculation")?.unwrap_or(false),
        };
        Ok(Self { generate, form })
    }
}

fn shortened(text: &str) -> String {
    const MOST: usize = 80;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

fn form(fields: &mut Fields) -> Result<Form, Failure> {
    let usage = match fields.take::<Value>("stream_options")? {
        None => false,
        Some(options) => Fields::of_value(options, "stream_options")?.take("include_usage")?.unwrap_or(false),
    };
    Ok(if fields.take("stream")?.unwrap_or(false) { Form::Events { usage } } else { Form::Whole })
}

fn messages(fields: &mut Fields) -> Result<Vec<v1::Message>, Failure> {
    let Some(values) = fields.take::<Vec<Value>>("messages")? else {
        return Err(Failure::invalid("messages", "messages is missing"));
    };
    values
        .into_iter()
        .enumerate()
        .map(|(index, value)| message(value, &format!("messages[{index}]")))
        .collect()
}

fn message(value: Value, path: &str) -> Result<v1::Message, Failure> {
    let mut fields = Fields::of_value(value, path)?;
    let Some(role) = fields.take("role")? else {
        return Err(Failure::invalid(fields.path_of("role"), "role is missing"));
    };
    for name in ["tool_calls", "function_call", "audio"] {
        if fields.peek(name).is_some_and(|value| !is_empty(value)) {
            return Err(Failure::invalid(fields.path_of(name), format!("{name} is not served")));
        }
    }
    let path = fields.path_of("content");
    let content = match fields.take::<Value>("content")? {
        None => return Err(Failure::invalid(path, "content is missing")),
        Some(Value::String(text)) => text,
        Some(Value::Array(parts)) => parts
            .into_iter()
            .enumerate()
            .map(|(index, part)| text_part(part, &format!("{path}[{index}]")))
            .collect::<Result<_, _>>()?,
        Some(other) => {
            let message =
                format!("content is {} instead of a string or an array of text parts", kind(&other));
            return Err(Failure::invalid(path, message));
        }
    };
    Ok(v1::Message { role, content })
}

fn text_part(value: Value, path: &str) -> Result<String, Failure> {
    let mut fields = Fields::of_value(value, path)?;
    match fields.take::<String>("type")?.as_deref() {
        Some("text") => {}
        Some(other) => {
            let message = format!("a part of type {} is not served", shortened(other));
            return Err(Failure::invalid(fields.path_of("type"), message));
        }
        None => return Err(Failure::invalid(fields.path_of("type"), "type is missing")),
    }
    let text = fields.take("text")?;
    text.ok_or_else(|| Failure::invalid(fields.path_of("text"), "text is missing"))
}

/// In seconds.
fn timeout(fields: &mut Fields) -> Result<Option<prost_types::Duration>, Failure> {
    let Some(seconds) = fields.take::<f64>("timeout")? else { return Ok(None) };
    let timeout = Duration::try_from_secs_f64(seconds)
        .ok()
        .and_then(|timeout| prost_types::Duration::try_from(timeout).ok())
        .ok_or_else(|| {
            Failure::invalid("timeout", format!("timeout is {seconds}, not a number of seconds"))
        })?;
    Ok(Some(timeout))
}

fn sampling(fields: &mut Fields) -> Result<v1::Sampling, Failure> {
    Ok(v1::Sampling {
        do_sample: None,
        temperature: fields.take("temperature")?,
        top_k: top_k(fields)?,
        top_p: fields.take("top_p")?,
        min_p: fields.take("min_p")?,
        repetition_penalty: fields.take("repetition_penalty")?,
        presence_penalty: fields.take("presence_penalty")?,
        frequency_penalty: fields.take("frequency_penalty")?,
        logit_bias: logit_bias(fields)?,
        seed: seed(fields)?,
    })
}

/// −1 is another way to say "off".
fn top_k(fields: &mut Fields) -> Result<Option<u32>, Failure> {
    if fields.peek("top_k").and_then(Value::as_i64) == Some(-1) {
        return Ok(Some(0));
    }
    fields.take("top_k")
}

/// Negative seeds are seeds too: their two's complement.
fn seed(fields: &mut Fields) -> Result<Option<u64>, Failure> {
    match fields.peek("seed").and_then(Value::as_i64) {
        Some(seed) => Ok(Some(seed.cast_unsigned())),
        None => fields.take("seed"),
    }
}

fn logit_bias(fields: &mut Fields) -> Result<Vec<v1::LogitBias>, Failure> {
    let biases = fields.take::<BTreeMap<String, f32>>("logit_bias")?.unwrap_or_default();
    let bias = |(id, bias): (String, f32)| match id.parse() {
        Ok(token_id) => Ok(v1::LogitBias { token_id, bias }),
        Err(_) => Err(Failure::invalid("logit_bias", format!("\"{}\" is not a token id", shortened(&id)))),
    };
    biases.into_iter().map(bias).collect()
}

fn stopping(fields: &mut Fields) -> Result<v1::Stopping, Failure> {
    let newer = fields.take("max_completion_tokens")?;
    let older = fields.take("max_tokens")?;
    let stop = match fields.take::<Value>("stop")? {
        None => Vec::new(),
        Some(Value::String(stop)) => vec![stop],
        Some(list) => serde_json::from_value(list).map_err(|error| {
            Failure::invalid("stop", format!("neither a string nor a list of them: {error}"))
        })?,
    };
    // As vLLM and SGLang have it; it makes answers of a known length, for measuring.
    let ignore_eos = fields.take("ignore_eos")?.unwrap_or(false);
    Ok(v1::Stopping { max_tokens: newer.or(older), stop, stop_token_ids: Vec::new(), ignore_eos })
}

fn logprobs(fields: &mut Fields) -> Result<Option<u32>, Failure> {
    let wanted = fields.take("logprobs")?.unwrap_or(false);
    let best = fields.take::<u32>("top_logprobs")?;
    match (wanted, best) {
        (false, Some(1..)) => Err(Failure::invalid("top_logprobs", "top_logprobs without logprobs")),
        (true, Some(best)) if best > MOST_LOGPROBS => Err(Failure::invalid(
            "top_logprobs",
            format!("top_logprobs is {best}, more than {MOST_LOGPROBS}"),
        )),
        (true, best) => Ok(Some(best.unwrap_or(0))),
        (false, _) => Ok(None),
    }
}
