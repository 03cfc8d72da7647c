//! The objects of a streamed answer, in the dialects that servers speak.

use serde_json::Value;

use super::{Failed, FailureKind, Usage};

/// What one object says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chunk {
    /// Text that belongs to the conversation.
    pub text: String,
    /// Whether the model has written something: text, reasoning or a call of a tool. A role alone is nothing.
    pub spoken: bool,
    /// The ids of its tokens, where they are told.
    pub ids: Vec<u32>,
    /// Whether it is the answer's last.
    pub finished: bool,
    /// The counts, where they are told.
    pub usage: Option<Usage>,
}

/// How servers name what a model writes besides its text.
const UNSPOKEN: [&str; 4] = ["reasoning_content", "reasoning", "refusal", "tool_calls"];

/// Reads an object of the stream.
///
/// # Errors
/// The object tells an error, or is none.
pub fn read(data: &str) -> Result<Chunk, Failed> {
    let object: Value =
        serde_json::from_str(data).map_err(|error| not_understood(&error.to_string(), data))?;
    if !object.is_object() {
        return Err(not_understood("not an object", data));
    }
    if let Some(message) = error_message(&object) {
        return Err(Failed::new(kind_of(&object), message));
    }
    let mut chunk = Chunk { usage: usage(&object), ..Chunk::default() };
    // One answer is asked for; the object that tells the usage has none.
    let Some(choice) = object.get("choices").and_then(Value::as_array).and_then(|choices| choices.first())
    else {
        return Ok(chunk);
    };
    let said = choice.get("delta").or_else(|| choice.get("message")).unwrap_or(choice);
    let text = said.get("content").or_else(|| choice.get("text")).and_then(Value::as_str);
    chunk.text = text.unwrap_or_default().to_owned();
    chunk.ids = ids(choice);
    let more = UNSPOKEN.iter().filter_map(|name| said.get(*name)).any(is_something);
    chunk.spoken = !chunk.text.is_empty() || !chunk.ids.is_empty() || more;
    chunk.finished = choice.get("finish_reason").is_some_and(|reason| !reason.is_null());
    Ok(chunk)
}

/// The message of an error, in an object or in the body of a refusal.
pub fn error_message(object: &Value) -> Option<String> {
    let as_text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    match object.get("error") {
        None | Some(Value::Null) => {}
        Some(error) => return Some(as_text(error.get("message").unwrap_or(error))),
    }
    // Older vLLM servers, and whatever FastAPI says by itself.
    if object.get("object").is_some_and(|kind| kind == "error") {
        return object.get("message").map(as_text);
    }
    object.get("detail").filter(|_| object.get("choices").is_none()).map(as_text)
}

/// An error within a stream tells its status, if at all, as a code.
fn kind_of(object: &Value) -> FailureKind {
    let code = object.get("error").and_then(|error| error.get("code")).or_else(|| object.get("code"));
    match code.and_then(Value::as_u64).and_then(|code| u16::try_from(code).ok()) {
        Some(status) => kind_of_status(status),
        None => FailureKind::Server,
    }
}

/// What kind of failure an HTTP status tells.
pub fn kind_of_status(status: u16) -> FailureKind {
    match status {
        429 => FailureKind::Exhausted,
        503 => FailureKind::Unavailable,
        408 | 504 => FailureKind::TimedOut,
        400..500 => FailureKind::Refused,
        _ => FailureKind::Server,
    }
}

fn usage(object: &Value) -> Option<Usage> {
    let usage = object.get("usage").filter(|usage| usage.is_object())?;
    let count =
        |value: Option<&Value>| value.and_then(Value::as_u64).and_then(|count| u32::try_from(count).ok());
    let details = usage.get("prompt_tokens_details");
    Some(Usage {
        prompt_tokens: count(usage.get("prompt_tokens"))?,
        completion_tokens: count(usage.get("completion_tokens")).unwrap_or(0),
        cached_tokens: count(details.and_then(|details| details.get("cached_tokens"))).unwrap_or(0),
    })
}

fn ids(choice: &Value) -> Vec<u32> {
    let ids = choice.get("token_ids").and_then(Value::as_array);
    ids.into_iter().flatten().filter_map(|id| u32::try_from(id.as_u64()?).ok()).collect()
}

fn is_something(value: &Value) -> bool {
    match value {
        Value::String(text) => !text.is_empty(),
        Value::Array(values) => !values.is_empty(),
        _ => false,
    }
}

fn not_understood(why: &str, data: &str) -> Failed {
    Failed::new(FailureKind::NotUnderstood, format!("{why}: {data}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spoken(data: &str) -> (String, bool) {
        let chunk = read(data).unwrap_or_else(|failed| panic!("{failed}"));
        (chunk.text, chunk.spoken)
    }

    #[test]
    fn a_role_is_not_a_token() {
        for role in [
            r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}],"usage":null}"#,
            r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":null},"finish_reason":null}]}"#,
            r#"{"choices":[{"index":0,"delta":{"role":"assistant"}}]}"#,
            r#"{"choices":[{"index":0,"delta":{"content":"","reasoning_content":null,"tool_calls":[]}}]}"#,
            r#"{"choices":[]}"#,
        ] {
            assert_eq!(spoken(role), (String::new(), false), "{role}");
        }
    }

    #[test]
    fn text_stands_where_each_dialect_has_it() {
        for text in [
            r#"{"choices":[{"delta":{"content":"hi"}}]}"#,
            r#"{"choices":[{"text":"hi","finish_reason":null}]}"#,
            r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":"hi"},"logprobs":null}]}"#,
        ] {
            assert_eq!(spoken(text), ("hi".to_owned(), true), "{text}");
        }
    }

    #[test]
    fn reasoning_and_calls_are_tokens_but_no_text() {
        for unspoken in [
            r#"{"choices":[{"delta":{"reasoning_content":"hm"}}]}"#,
            r#"{"choices":[{"delta":{"content":null,"reasoning":"hm"}}]}"#,
            r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{"}}]}}]}"#,
        ] {
            assert_eq!(spoken(unspoken), (String::new(), true), "{unspoken}");
        }
    }

    #[test]
    fn usage_and_ends_are_read() {
        let chunk = read(
            r#"{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":5}}}"#,
        );
        let usage = Usage { prompt_tokens: 9, completion_tokens: 4, cached_tokens: 5 };
        assert_eq!(chunk.unwrap().usage, Some(usage));
        let last = r#"{"choices":[{"delta":{},"finish_reason":"length"}],"usage":{"prompt_tokens":9,"prompt_tokens_details":null}}"#;
        let last = read(last).unwrap();
        assert!(last.finished && !last.spoken);
        assert_eq!(last.usage.map(|usage| (usage.prompt_tokens, usage.completion_tokens)), Some((9, 0)));
        let ids = read(r#"{"choices":[{"text":"","token_ids":[5,6]}]}"#).unwrap();
        assert_eq!((ids.ids, ids.spoken), (vec![5, 6], true));
    }

    #[test]
    fn errors_are_told_in_many_ways() {
        for (object, kind, message) in [
            (r#"{"error":{"message":"too long","code":400}}"#, FailureKind::Refused, "too long"),
            (r#"{"error":{"message":"full","code":"exhausted"}}"#, FailureKind::Server, "full"),
            (r#"{"error":"overloaded"}"#, FailureKind::Server, "overloaded"),
            (r#"{"object":"error","message":"gone","code":503}"#, FailureKind::Unavailable, "gone"),
            (r#"{"detail":"Not Found"}"#, FailureKind::Server, "Not Found"),
        ] {
            assert_eq!(read(object), Err(Failed::new(kind, message)), "{object}");
        }
        for nonsense in ["", "hello", "[1]", "{\"choices\""] {
            assert_eq!(read(nonsense).map_err(|failed| failed.kind), Err(FailureKind::NotUnderstood));
        }
    }
}
