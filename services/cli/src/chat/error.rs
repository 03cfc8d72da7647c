//! What ends a conversation, or one of its turns.

use asterism_process::channel;
use asterism_proto::Failure;
use tonic::{Code, Status};

use super::command::CommandError;

/// What ends a conversation, or one of its turns.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    /// The address is none.
    #[error(transparent)]
    Address(#[from] channel::AddressError),
    /// No header can carry it.
    #[error("{0:?} cannot be a tenant's name")]
    Tenant(String),
    /// Nobody answers there.
    #[error("no gateway answers at {0} ({1}); `asterism up` starts one on this machine")]
    Unreachable(String, String),
    /// The gateway has no model.
    #[error("the gateway at {0} serves no model")]
    NoModel(String),
    /// The gateway refused or could not go on.
    #[error("{}", refusal(.0))]
    Refused(Failure),
    /// The turn ended in its middle, and the gateway says why.
    #[error("the answer was interrupted: {0}")]
    Interrupted(String),
    /// No conversation is meant.
    #[error("no conversation is {0}: {1} are listed")]
    NoSuch(String, usize),
    /// More than one is meant.
    #[error("several conversations begin with {0}")]
    Several(String),
    /// Nothing was said yet.
    #[error("nothing was said yet")]
    NothingSaid,
    /// The gateway exports what is no history.
    #[error("the gateway's history cannot be read: {0}")]
    History(#[from] serde_json::Error),
    /// A line is no command.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// Standard input cannot be read.
    #[error("cannot read the input: {0}")]
    Input(std::io::Error),
    /// Standard output cannot be written.
    #[error("cannot write the answer: {0}")]
    Output(#[from] std::io::Error),
}

impl From<Status> for ChatError {
    fn from(status: Status) -> Self {
        if status.code() == Code::Unknown {
            return Self::Refused(Failure::new(asterism_proto::Reason::Unavailable, innermost(&status)));
        }
        Self::Refused(Failure::from(status))
    }
}

fn refusal(failure: &Failure) -> String {
    let mut text = failure.message.clone();
    if let Some(field) = failure.field.as_ref().filter(|field| !text.contains(field.as_str())) {
        text = format!("{field}: {text}");
    }
    if let Some(delay) = failure.retry_after {
        text = format!("{text}; try again in {:.0} s", delay.as_secs_f64().ceil());
    }
    text
}

/// The cause that a person can act on: transport errors wrap it several times.
pub fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_refusal_names_the_field_and_the_delay() {
        let failure = Failure {
            retry_after: Some(Duration::from_millis(1500)),
            ..Failure::invalid("sampling.top_p", "3 is not in (0, 1]")
        };
        assert_eq!(refusal(&failure), "sampling.top_p: 3 is not in (0, 1]; try again in 2 s");
        assert_eq!(refusal(&Failure::invalid("prompt", "prompt is empty")), "prompt is empty");
    }
}
