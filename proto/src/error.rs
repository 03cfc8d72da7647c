//! The one table of errors: what a caller can be told, as gRPC status and as HTTP status.

use std::collections::HashMap;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// The domain in the `ErrorInfo` of every status.
pub const DOMAIN: &str = "asterism";

/// Why a call failed. One row of the table each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// A field of the request is wrong; [`Failure::field`] names it.
    InvalidArgument,
    /// The named model, request or route does not exist.
    NotFound,
    /// A queue or pool is full; try again after [`Failure::retry_after`].
    Exhausted,
    /// No pipeline is joined now, or a peer is gone.
    Unavailable,
    /// Another driver holds the pipeline, or the caller's epoch is over.
    FailedPrecondition,
    /// An id is taken, or a conflicting change came first.
    Conflict,
    /// The caller went away or asked to stop.
    Cancelled,
    /// The caller's deadline passed.
    DeadlineExceeded,
    /// The server's fault.
    Internal,
}

/// (reason, name in `ErrorInfo`, gRPC, HTTP, type in the OpenAI dialect)
const TABLE: [(Reason, &str, Code, u16, &str); 9] = [
    (Reason::InvalidArgument, "INVALID_ARGUMENT", Code::InvalidArgument, 400, "invalid_request_error"),
    (Reason::NotFound, "NOT_FOUND", Code::NotFound, 404, "not_found_error"),
    (Reason::Exhausted, "EXHAUSTED", Code::ResourceExhausted, 429, "rate_limit_error"),
    (Reason::Unavailable, "UNAVAILABLE", Code::Unavailable, 503, "unavailable_error"),
    (Reason::FailedPrecondition, "FAILED_PRECONDITION", Code::FailedPrecondition, 412, "precondition_error"),
    (Reason::Conflict, "CONFLICT", Code::Aborted, 409, "conflict_error"),
    (Reason::Cancelled, "CANCELLED", Code::Cancelled, 499, "cancelled_error"),
    (Reason::DeadlineExceeded, "DEADLINE_EXCEEDED", Code::DeadlineExceeded, 504, "timeout_error"),
    (Reason::Internal, "INTERNAL", Code::Internal, 500, "server_error"),
];

impl Reason {
    fn row(self) -> &'static (Reason, &'static str, Code, u16, &'static str) {
        // The last row stands in for a reason without one; the test below shows that there is none.
        TABLE.iter().find(|row| row.0 == self).unwrap_or(&TABLE[TABLE.len() - 1])
    }

    /// Upper-case name, as in `ErrorInfo.reason`.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// The gRPC code.
    pub fn code(self) -> Code {
        self.row().2
    }

    /// The HTTP status.
    pub fn http_status(self) -> u16 {
        self.row().3
    }

    /// The `type` of an error body in the OpenAI dialect.
    pub fn openai_type(self) -> &'static str {
        self.row().4
    }

    /// The row of a gRPC code; a code without one is [`Reason::Internal`].
    pub fn from_code(code: Code) -> Self {
        TABLE.iter().find(|row| row.2 == code).map_or(Reason::Internal, |row| row.0)
    }
}

/// A typed failure, before it becomes a gRPC or an HTTP answer.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The row of the table.
    pub reason: Reason,
    /// What was wrong, with the value; lower case, no full stop.
    pub message: String,
    /// The field at fault, as a path in the request (`sampling.top_p`).
    pub field: Option<String>,
    /// When to try again.
    pub retry_after: Option<Duration>,
    /// Of what was to be changed, as it is now.
    pub etag: Option<String>,
}

/// The key of an etag among an `ErrorInfo`'s metadata.
const ETAG: &str = "etag";

impl Failure {
    /// A failure with neither field nor delay.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), field: None, retry_after: None, etag: None }
    }

    /// A wrong field of a request.
    pub fn invalid(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: Some(field.into()), ..Self::new(Reason::InvalidArgument, message) }
    }

    /// Something is full.
    pub fn exhausted(message: impl Into<String>, retry_after: Duration) -> Self {
        Self { retry_after: Some(retry_after), ..Self::new(Reason::Exhausted, message) }
    }
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        let mut details = ErrorDetails::new();
        let metadata: HashMap<_, _> = failure.etag.into_iter().map(|etag| (ETAG.to_owned(), etag)).collect();
        details.set_error_info(failure.reason.name(), DOMAIN, metadata);
        if let Some(field) = &failure.field {
            details.add_bad_request_violation(field, &failure.message);
        }
        if let Some(delay) = failure.retry_after {
            details.set_retry_info(Some(delay));
        }
        Status::with_error_details(failure.reason.code(), failure.message, details)
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        let details = status.get_error_details();
        let field = details
            .bad_request()
            .and_then(|bad| bad.field_violations.first())
            .map(|violation| violation.field.clone());
        let retry_after = details.retry_info().and_then(|info| info.retry_delay);
        let etag = details.error_info().and_then(|info| info.metadata.get(ETAG).cloned());
        Self {
            reason: Reason::from_code(status.code()),
            message: status.message().to_owned(),
            field,
            retry_after,
            etag,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_row() {
        for row in &TABLE {
            assert_eq!(row.0.row(), row, "found by its reason");
            assert_eq!(Reason::from_code(row.2), row.0, "found by its code");
        }
    }

    #[test]
    fn a_failure_survives_the_wire() {
        let failure = Failure {
            retry_after: Some(Duration::from_secs(2)),
            etag: Some("7".to_owned()),
            ..Failure::invalid("sampling.top_p", "top_p is 3, not in (0, 1]")
        };
        assert_eq!(Failure::from(Status::from(failure.clone())), failure);
    }
}
