//! The machine's clock, for marks that are compared between processes.

use std::time::{SystemTime, UNIX_EPOCH};

/// Microseconds since 1970 by the machine's clock, which may be set meanwhile: for the eyes only.
pub fn micros() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
