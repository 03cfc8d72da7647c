//! A sequence's logit processors and what its evidence holds, checked.

use asterism_proto::shard::v1::Setting as WireSetting;
use asterism_tensor::Processors;
use bytes::Bytes;

/// The most best ids that a row's evidence holds.
pub const MOST_CANDIDATES: u32 = 1024;

/// A setting that was checked against the vocabulary.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    bias: Vec<(u32, f32)>,
    repetition: f32,
    presence: f32,
    frequency: f32,
    allowed: Bytes,
    /// Temperature of the processed row's log-sum-exp, where one is wanted.
    pub temperature: Option<f64>,
    /// How many best raw logits are wanted beside the raw row's log-sum-exp, where logprobs are.
    pub logprobs: Option<usize>,
}

/// What is wrong with a setting: the field, and its value.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{field} {problem}")]
pub struct SettingError {
    /// Of the message.
    pub field: &'static str,
    /// What it is and what was expected.
    pub problem: String,
}

impl Setting {
    /// Checks every field.
    ///
    /// # Errors
    /// The first that is wrong.
    pub fn check(wire: WireSetting, vocab: usize) -> Result<Self, SettingError> {
        let wrong = |field, problem: String| Err(SettingError { field, problem });
        if wire.bias.len() > vocab {
            return wrong("bias", format!("has {} entries for {vocab} ids", wire.bias.len()));
        }
        if let Some(bias) =
            wire.bias.iter().find(|bias| bias.token_id as usize >= vocab || !bias.bias.is_finite())
        {
            return wrong(
                "bias",
                format!(
                    "of {} for token id {}, expected a number for an id below {vocab}",
                    bias.bias, bias.token_id
                ),
            );
        }
        let repetition = wire.repetition_penalty;
        if !(repetition > 0.0 && repetition.is_finite()) {
            return wrong("repetition_penalty", format!("is {repetition}, expected above 0"));
        }
        for (field, value) in
            [("presence_penalty", wire.presence_penalty), ("frequency_penalty", wire.frequency_penalty)]
        {
            if !value.is_finite() {
                return wrong(field, format!("is {value}, expected a number"));
            }
        }
        if let Some(temperature) = wire.temperature.filter(|value| !(*value > 0.0 && value.is_finite())) {
            return wrong("temperature", format!("is {temperature}, expected above 0"));
        }
        if let Some(logprobs) = wire.logprobs.filter(|&count| count > MOST_CANDIDATES) {
            return wrong("logprobs", format!("is {logprobs}, expected at most {MOST_CANDIDATES}"));
        }
        if !wire.allowed.is_empty() && wire.allowed.len() != vocab.div_ceil(8) {
            return wrong(
                "allowed",
                format!("has {} bytes, expected {}", wire.allowed.len(), vocab.div_ceil(8)),
            );
        }
        Ok(Self {
            bias: wire.bias.iter().map(|bias| (bias.token_id, bias.bias)).collect(),
            repetition,
            presence: wire.presence_penalty,
            frequency: wire.frequency_penalty,
            allowed: wire.allowed,
            temperature: wire.temperature.map(f64::from),
            logprobs: wire.logprobs.map(|count| count as usize),
        })
    }

    /// Whether ids of earlier positions matter.
    pub fn has_penalties(&self) -> bool {
        self.processors(&[], 0).has_penalties()
    }

    /// The processors for a row whose context is `ids`, the first `prompt_len` of them the prompt.
    pub fn processors<'a>(&'a self, ids: &'a [u32], prompt_len: usize) -> Processors<'a> {
        Processors {
            bias: &self.bias,
            repetition: self.repetition,
            presence: self.presence,
            frequency: self.frequency,
            allowed: &self.allowed,
            ids,
            prompt_len,
        }
    }
}

#[cfg(test)]
mod tests {
    use asterism_proto::shard::v1::TokenBias;

    use super::*;

    #[test]
    fn wrong_fields_are_named() {
        let right = WireSetting { repetition_penalty: 1.0, ..WireSetting::default() };
        assert!(Setting::check(right.clone(), 20).is_ok_and(|setting| setting.processors(&[], 0).is_plain()));
        let bias = |token_id, bias| WireSetting { bias: vec![TokenBias { token_id, bias }], ..right.clone() };
        for (wrong, field) in [
            (bias(20, 0.0), "bias"),
            (bias(1, f32::NAN), "bias"),
            (WireSetting { bias: vec![TokenBias::default(); 21], ..right.clone() }, "bias"),
            (WireSetting { repetition_penalty: 0.0, ..right.clone() }, "repetition_penalty"),
            (WireSetting { repetition_penalty: f32::NAN, ..right.clone() }, "repetition_penalty"),
            (WireSetting { presence_penalty: f32::INFINITY, ..right.clone() }, "presence_penalty"),
            (WireSetting { frequency_penalty: f32::NAN, ..right.clone() }, "frequency_penalty"),
            (WireSetting { temperature: Some(0.0), ..right.clone() }, "temperature"),
            (WireSetting { temperature: Some(f32::NAN), ..right.clone() }, "temperature"),
            (WireSetting { logprobs: Some(1025), ..right.clone() }, "logprobs"),
            (WireSetting { allowed: vec![0; 2].into(), ..right.clone() }, "allowed"),
        ] {
            let error = Setting::check(wrong, 20).expect_err(field);
            assert_eq!(error.field, field, "{error}");
        }
    }
}
