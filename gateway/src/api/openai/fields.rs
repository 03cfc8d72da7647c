//! Reading a JSON body field by field, so that whatever is wrong is named.

use asterism_proto::Failure;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// The fields of a JSON object that nobody has taken yet. `null` counts as absent.
#[derive(Clone, Debug)]
pub struct Fields {
    values: Map<String, Value>,
    /// Path of the object in the body, with a trailing dot; empty for the body itself.
    path: String,
}

impl Fields {
    /// Of a request's body.
    ///
    /// # Errors
    /// The body is not a JSON object.
    pub fn of_body(body: &[u8]) -> Result<Self, Failure> {
        let value = serde_json::from_slice(body)
            .map_err(|error| Failure::invalid("body", format!("the body is not JSON: {error}")))?;
        Self::of_value(value, "")
    }

    /// Of an object within the body, at `path`.
    ///
    /// # Errors
    /// The value is not an object.
    pub fn of_value(value: Value, path: &str) -> Result<Self, Failure> {
        match value {
            Value::Object(values) => {
                let path = if path.is_empty() { String::new() } else { format!("{path}.") };
                Ok(Self { values, path })
            }
            other => {
                let field = if path.is_empty() { "body" } else { path };
                Err(Failure::invalid(field, format!("{} instead of an object", kind(&other))))
            }
        }
    }

    /// Removes a field and reads it as `T`.
    ///
    /// # Errors
    /// The field, if it is of another type or beyond it.
    pub fn take<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, Failure> {
        match self.values.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => serde_json::from_value(value)
                .map(Some)
                .map_err(|error| Failure::invalid(self.path_of(name), error.to_string())),
        }
    }

    /// A field's path in the body.
    pub fn path_of(&self, name: &str) -> String {
        format!("{}{name}", self.path)
    }

    /// A field that stays where it is.
    pub fn peek(&self, name: &str) -> Option<&Value> {
        self.values.get(name).filter(|value| !value.is_null())
    }
}

/// What a value is, in words.
pub fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
