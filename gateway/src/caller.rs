//! What headers say of a request, the same for both doors: whose it is, how long it is wanted, and what traces it.

use std::time::{Duration, Instant};

use asterism_process::trace::TraceContext;
use asterism_proto::Failure;
use axum::http::HeaderMap;

use crate::tenants::TENANT_HEADER;

/// Units of `grpc-timeout`, in nanoseconds.
const UNITS: [(&str, u64); 6] = [
    ("H", 3_600_000_000_000),
    ("M", 60_000_000_000),
    ("S", 1_000_000_000),
    ("m", 1_000_000),
    ("u", 1_000),
    ("n", 1),
];

/// A request's caller.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The span above.
    pub trace: TraceContext,
    /// The tenant's name, if one is given.
    pub tenant: Option<String>,
    /// How long the caller waits, as gRPC tells it.
    pub timeout: Option<Duration>,
    /// When its request came.
    pub arrived: Instant,
}

impl Caller {
    /// Of HTTP headers or gRPC metadata that have just come.
    pub fn of_headers(headers: &HeaderMap) -> Self {
        let header = |name: &str| headers.get(name)?.to_str().ok();
        // A name that is no text is that of no tenant.
        let tenant =
            headers.get(TENANT_HEADER).map(|name| String::from_utf8_lossy(name.as_bytes()).into_owned());
        Self {
            trace: TraceContext::of_headers(header("traceparent"), header("tracestate")),
            tenant,
            timeout: header("grpc-timeout").and_then(grpc_timeout),
            arrived: Instant::now(),
        }
    }

    /// When the answer is not wanted any more: after the request's own timeout or the caller's, whichever is less.
    ///
    /// # Errors
    /// INVALID_ARGUMENT: the request's timeout is not a time to come.
    pub fn deadline(&self, timeout: Option<prost_types::Duration>) -> Result<Option<Instant>, Failure> {
        let to_come = |given: prost_types::Duration| {
            let parts = (u64::try_from(given.seconds).ok(), u32::try_from(given.nanos).ok());
            let timeout = parts.0.zip(parts.1).map(|(seconds, nanos)| Duration::new(seconds, nanos));
            timeout.filter(|timeout| !timeout.is_zero()).ok_or_else(|| {
                Failure::invalid("timeout", "timeout is not above 0s: the deadline has passed")
            })
        };
        let timeout = timeout.map(to_come).transpose()?;
        let least = timeout.into_iter().chain(self.timeout).min();
        // What cannot be told is never.
        Ok(least.and_then(|least| self.arrived.checked_add(least)))
    }
}

/// At most eight digits and a unit; what is neither is as if it were not there.
fn grpc_timeout(text: &str) -> Option<Duration> {
    let (unit, nanos) = UNITS.iter().find(|(unit, _)| text.ends_with(unit))?;
    let digits = text.strip_suffix(unit)?;
    let is_number = (1..=8).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    let count: u64 = digits.parse().ok().filter(|_| is_number)?;
    Some(Duration::from_nanos(count.saturating_mul(*nanos)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(headers: &[(&'static str, &'static str)]) -> Caller {
        let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        Caller::of_headers(&headers.collect())
    }

    fn seconds(seconds: i64) -> Option<prost_types::Duration> {
        Some(prost_types::Duration { seconds, nanos: 0 })
    }

    #[test]
    fn the_earlier_deadline_counts() {
        let deadline = |grpc, timeout| {
            let caller = caller(&[("grpc-timeout", grpc)]);
            caller.deadline(timeout).unwrap().map(|deadline| deadline - caller.arrived)
        };
        let some = |millis| Some(Duration::from_millis(millis));
        assert_eq!(deadline("1500m", None), some(1500));
        assert_eq!(deadline("1500m", seconds(1)), some(1000));
        assert_eq!(deadline("1500m", seconds(2)), some(1500));
        assert_eq!(deadline("2M", seconds(3600)), some(120_000));
        for none in ["", "5", "S", "-1S", "+1S", "123456789S", "1x", "1 S"] {
            assert_eq!((deadline(none, None), deadline(none, seconds(3))), (None, some(3000)), "{none}");
        }
        assert_eq!(deadline("99999999H", seconds(i64::MAX)), Some(Duration::from_nanos(u64::MAX)));
    }

    #[test]
    fn a_deadline_that_has_passed_names_its_field() {
        let negative = Some(prost_types::Duration { seconds: 0, nanos: -1 });
        for timeout in [seconds(0), seconds(-1), negative, seconds(i64::MIN)] {
            let failure = caller(&[]).deadline(timeout).unwrap_err();
            assert_eq!(failure.field.as_deref(), Some("timeout"), "{timeout:?}");
        }
    }

    #[test]
    fn the_tenant_is_named_by_a_header() {
        assert_eq!(caller(&[]).tenant, None);
        assert_eq!(caller(&[(TENANT_HEADER, "gold")]).tenant.as_deref(), Some("gold"));
    }
}
