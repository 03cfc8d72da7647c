//! Jinja chat templates, rendered as Hugging Face renders them.
//!
//! That is: `trim_blocks` and `lstrip_blocks`, Python's string methods, `raise_exception`, a plain `tojson`, loop
//! controls. What a template may spend is bounded by fuel (which pays for steps and for bytes alike) and by a recursion
//! limit, so that a hostile one fails instead of hanging.

use std::path::Path;

use asterism_proto::Failure;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, Error, ErrorKind, context};

use super::ChatMessage;
use crate::text::error::TextError;
use crate::text::tokenizer_config::{AddedToken, TokenizerConfig};

const NAME: &str = "chat";
/// Fuel of every rendering: about as many steps.
const FUEL: u64 = 1_000_000;
/// Further fuel for each message.
const FUEL_PER_MESSAGE: u64 = 1_000;
/// Deepest nesting of macros and blocks.
const RECURSION: usize = 100;

/// A compiled template and the special tokens that it may use.
#[derive(Debug)]
pub struct JinjaTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
    unk: String,
    pad: String,
}

impl JinjaTemplate {
    /// Compiles the template that stands in `path`.
    pub(in crate::text) fn new(
        path: &Path,
        source: String,
        config: &TokenizerConfig,
    ) -> Result<Self, TextError> {
        let mut environment = Environment::new();
        environment.set_syntax(
            SyntaxConfig::builder()
                .trim_blocks(true)
                .lstrip_blocks(true)
                .build()
                .map_err(|error| TextError::unsupported(path, describe(&error)))?,
        );
        environment.set_recursion_limit(RECURSION);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_filter("tojson", tojson);
        environment
            .add_template_owned(NAME, source)
            .map_err(|error| TextError::corrupt(path, format!("chat template: {}", describe(&error))))?;
        let text = |token: &Option<AddedToken>| {
            token.as_ref().map(|token| token.content.clone()).unwrap_or_default()
        };
        Ok(Self {
            environment,
            bos: text(&config.bos),
            eos: text(&config.eos),
            unk: text(&config.unk),
            pad: text(&config.pad),
        })
    }

    /// Renders the messages, asking for an answer.
    pub(super) fn render(&self, messages: &[ChatMessage]) -> Result<String, Failure> {
        let bytes: usize = messages.iter().map(|message| message.role.len() + message.content.len()).sum();
        let fuel = FUEL
            .saturating_add(
                FUEL_PER_MESSAGE.saturating_mul(u64::try_from(messages.len()).unwrap_or(u64::MAX)),
            )
            .saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX));
        let values: Vec<Value> = messages
            .iter()
            .map(|message| context! { role => message.role.as_str(), content => message.content.as_str() })
            .collect();
        let context = context! {
            messages => values,
            add_generation_prompt => true,
            bos_token => self.bos.as_str(),
            eos_token => self.eos.as_str(),
            unk_token => self.unk.as_str(),
            pad_token => self.pad.as_str(),
            tools => (),
            documents => (),
        };
        // A copy of the environment shares the compiled template and has this request's fuel.
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(fuel));
        let rendered = environment.get_template(NAME).and_then(|template| template.render(context));
        rendered.map_err(|error| {
            Failure::invalid("chat", format!("the chat template failed: {}", describe(&error)))
        })
    }
}

/// An error of the engine in one line, without the template's text.
fn describe(error: &Error) -> String {
    let what = match (error.kind(), error.detail()) {
        (ErrorKind::OutOfFuel, _) => "it took too many steps or too much memory".to_owned(),
        (_, Some(detail)) => detail.to_owned(),
        (kind, None) => kind.to_string(),
    };
    match error.line() {
        Some(line) => format!("{what} (line {line})"),
        None => what,
    }
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// Hugging Face's `tojson`: JSON with Python's separators; unlike the engine's own it escapes nothing for HTML.
fn tojson(value: &Value, indent: Option<Value>, options: Kwargs) -> Result<String, Error> {
    let json = minijinja::filters::tojson(value, indent, options)?;
    let json = json.as_str().unwrap_or_default();
    let mut plain = String::with_capacity(json.len());
    let mut rest = json;
    while let Some(at) = rest.find('\\') {
        plain.push_str(&rest[..at]);
        let escape = &rest[at..];
        let (length, character) = match escape {
            _ if escape.starts_with("\\u003c") => (6, "<"),
            _ if escape.starts_with("\\u003e") => (6, ">"),
            _ if escape.starts_with("\\u0026") => (6, "&"),
            _ if escape.starts_with("\\u0027") => (6, "'"),
            // Any other escape stays; its second character is ASCII, so that `\\` cannot begin another one.
            _ => (2, escape.get(..2).unwrap_or(escape)),
        };
        plain.push_str(character);
        rest = escape.get(length..).unwrap_or_default();
    }
    plain.push_str(rest);
    Ok(plain)
}
