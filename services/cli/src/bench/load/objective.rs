//! What a service promises of each request: the objectives that goodput counts by.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use asterism_process::config::duration;
use serde::Serialize;

/// What of a request is promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Quantity {
    /// To the first token.
    Ttft,
    /// From token to token, in the mean of the request.
    Tpot,
    /// To the answer's end.
    E2e,
}

/// One promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Objective {
    /// Of what.
    pub quantity: Quantity,
    /// Not longer than this.
    pub most: Duration,
}

/// How long one answered request took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// To the first token.
    pub ttft: Duration,
    /// From token to token in the mean; none for an answer of one token.
    pub tpot: Option<Duration>,
    /// To the answer's end.
    pub e2e: Duration,
}

impl Objective {
    /// Whether a request kept it. What has no time from token to token keeps that.
    pub fn is_met(self, times: &Times) -> bool {
        let time = match self.quantity {
            Quantity::Ttft => Some(times.ttft),
            Quantity::Tpot => times.tpot,
            Quantity::E2e => Some(times.e2e),
        };
        time.is_none_or(|time| time <= self.most)
    }
}

impl FromStr for Objective {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: String| format!("{why} (write ttft=500ms, tpot=50ms or e2e=10s)");
        let Some((name, most)) = text.split_once('=') else {
            return Err(wrong(format!("{text:?} is no objective")));
        };
        let quantity =
            [Quantity::Ttft, Quantity::Tpot, Quantity::E2e].into_iter().find(|q| q.name() == name.trim());
        let quantity = quantity.ok_or_else(|| wrong(format!("{name:?} is none of ttft, tpot and e2e")))?;
        let most = duration(most).map_err(|error| wrong(error.to_string()))?;
        Ok(Self { quantity, most })
    }
}

impl Quantity {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ttft => "ttft",
            Self::Tpot => "tpot",
            Self::E2e => "e2e",
        }
    }
}

impl fmt::Display for Objective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ≤ {} ms", self.quantity.name(), self.most.as_secs_f64() * 1e3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objectives_are_read_and_judged() {
        let times = Times {
            ttft: Duration::from_millis(500),
            tpot: Some(Duration::from_millis(51)),
            e2e: Duration::from_secs(2),
        };
        let met = |text: &str| text.parse::<Objective>().unwrap().is_met(&times);
        assert!(met("ttft=500ms") && !met("ttft=499ms"));
        assert!(!met("tpot=50ms") && met("e2e=2s"));
        let one = Times { tpot: None, ..times };
        assert!("tpot=1ms".parse::<Objective>().unwrap().is_met(&one));
    }

    #[test]
    fn nonsense_is_named() {
        for (text, named) in [("ttft", "\"ttft\""), ("itl=5ms", "\"itl\""), ("tpot=soon", "\"soon\"")] {
            let error = text.parse::<Objective>().expect_err(text);
            assert!(error.contains(named), "{error}");
        }
    }
}
