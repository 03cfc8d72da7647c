//! The chat template of TeleChat-52B, as the reference's `chat()` has it, and how that cuts the reply.
//!
//! For each past turn `<_user>` question `<_bot>` answer `<_end>`, then `<_user>` question `<_bot>`: no system role, no
//! end token after answers, nothing stripped. The markers are plain text and merge with their neighbours when encoded,
//! so the whole string is encoded at once.

use asterism_proto::Failure;

use super::ChatMessage;

const USER: &str = "<_user>";
const BOT: &str = "<_bot>";
const END: &str = "<_end>";
/// The text of the token that ends an answer.
const STOP: &str = "</s>";

/// Writes the messages: user and assistant by turns, the user first and last. No messages give an empty text.
pub(super) fn render(messages: &[ChatMessage]) -> Result<String, Failure> {
    let mut text = String::new();
    for (index, message) in messages.iter().enumerate() {
        let field = || format!("chat.messages[{index}].role");
        let expected = if index % 2 == 0 { "user" } else { "assistant" };
        match message.role.as_str() {
            "user" | "assistant" if message.role != expected => {
                let message =
                    format!("the role is {:?} where this model's template wants {expected:?}", message.role);
                return Err(Failure::invalid(field(), message));
            }
            "user" => text.extend([USER, &message.content, BOT]),
            "assistant" if index + 1 == messages.len() => {
                return Err(Failure::invalid(field(), "the last message is not the user's"));
            }
            "assistant" => text.extend([&message.content, END]),
            role => {
                let message =
                    format!("the role {role:?} is none that this model's template knows: user, assistant");
                return Err(Failure::invalid(field(), message));
            }
        }
    }
    Ok(text)
}

/// The reply within the decode of prompt and answer: what follows the last `<_bot>`, up to the first `</s>`.
///
/// So an answer that itself writes `<_bot>` loses what came before, and `<_end>` cuts nothing.
pub fn cut_response(whole: &str) -> &str {
    let after = whole.rfind(BOT).map_or(0, |at| at + BOT.len());
    let reply = &whole[after..];
    &reply[..reply.find(STOP).unwrap_or(reply.len())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reply_is_cut_as_in_the_reference() {
        for (whole, reply) in [
            ("<_user>q<_bot> a</s>", " a"),
            ("<_user>q<_bot>a<_bot>b</s>c</s>", "b"),
            ("<_user>q<_bot>a<_end>b", "a<_end>b"),
            ("<_user>q</s><_bot>", ""),
            ("no marker", "no marker"),
            ("", ""),
        ] {
            assert_eq!(cut_response(whole), reply, "{whole}");
        }
    }
}
