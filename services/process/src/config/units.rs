//! Sizes and durations as people write them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A number of bytes; written `4GiB`, `1.5GB`, `512MiB` or as a plain number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(pub u64);

/// A size or duration that does not parse.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no {what} (write {example})")]
pub struct UnitError {
    text: String,
    what: &'static str,
    example: &'static str,
}

const SIZES: [(&str, u64); 10] = [
    ("B", 1),
    ("", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
];

const DURATIONS: [(&str, f64); 4] = [("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];

/// The number at the head of `text` and the unit behind it.
fn number_and_unit(text: &str) -> Option<(f64, &str)> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    Some((number.parse().ok()?, unit.trim_start()))
}

impl FromStr for Bytes {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let wrong = || UnitError {
            text: text.to_owned(),
            what: "size",
            example: "4GiB, 512MiB or a number of bytes",
        };
        // A plain number keeps all its digits; a float would round it above 2^53.
        if let Ok(bytes) = text.trim().parse() {
            return Ok(Self(bytes));
        }
        let (number, unit) = number_and_unit(text).ok_or_else(wrong)?;
        let scale = SIZES.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).ok_or_else(wrong)?.1;
        let bytes = number * scale as f64;
        if bytes < u64::MAX as f64 { Ok(Self(bytes as u64)) } else { Err(wrong()) }
    }
}

impl fmt::Display for Bytes {
    /// The largest binary unit, with two decimals unless it is a whole number of them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, shift) in [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)] {
            if self.0 >= 1 << shift {
                let whole = self.0.trailing_zeros() >= shift;
                let value = self.0 as f64 / (1u64 << shift) as f64;
                return write!(f, "{value:.*}{unit}", if whole { 0 } else { 2 });
            }
        }
        write!(f, "{}B", self.0)
    }
}

/// Reads a duration: `250ms`, `5s`, `1.5m`, `2h`. For `#[arg(value_parser = config::duration)]`.
///
/// # Errors
/// The text is no duration.
pub fn duration(text: &str) -> Result<Duration, UnitError> {
    let wrong = || UnitError { text: text.to_owned(), what: "duration", example: "250ms, 5s, 1m or 2h" };
    let (number, unit) = number_and_unit(text).ok_or_else(wrong)?;
    let scale = DURATIONS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?.1;
    Duration::try_from_secs_f64(number * scale).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_parse_and_print() {
        for (text, bytes, printed) in [
            ("4GiB", 4 << 30, "4GiB"),
            (" 512 mib ", 512 << 20, "512MiB"),
            ("1.5GiB", 3 << 29, "1.50GiB"),
            ("2GB", 2_000_000_000, "1.86GiB"),
            ("18446744073709551615", u64::MAX, "16777216.00TiB"),
            ("0", 0, "0B"),
            ("1000B", 1000, "1000B"),
        ] {
            let parsed: Bytes = text.parse().unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(parsed, Bytes(bytes), "{text}");
            assert_eq!(parsed.to_string(), printed, "{text}");
        }
    }

    #[test]
    fn durations_parse() {
        for (text, millis) in [("250ms", 250), ("5s", 5_000), ("1.5m", 90_000), ("2h", 7_200_000)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn what_is_neither_is_refused() {
        for text in ["", "GiB", "-1GiB", "4 giraffes", "1.2.3MiB", "1e30", "99999999999TiB", "nan", "inf"] {
            assert!(text.parse::<Bytes>().is_err(), "{text:?}");
        }
        for text in ["", "5", "s", "-5s", "5 weeks", "1e400s"] {
            assert!(duration(text).is_err(), "{text:?}");
        }
    }
}
