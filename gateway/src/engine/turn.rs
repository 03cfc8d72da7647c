//! Turns of sessions: the same path as that of any request, but every choice is made before, so that it can be gone again from
//! any token on.

use asterism_proto::{Failure, v1};
use uuid::Uuid;

use super::{Engine, Length, OpenEnd, fresh_seed, stops};
use crate::driver::{AnswerStream, NewRequest, Stops, Writer};
use crate::metrics::RequestRecord;
use crate::sampler::Sampling;
use crate::sessions::{NewTurn, TurnId};
use crate::text::StopStrings;
use asterism_process::trace::TraceContext;

/// What a turn's tokens so far make of its answer.
#[derive(Debug)]
pub struct Replayed {
    /// As they were told, one a token.
    pub deltas: Vec<v1::Delta>,
    /// Set where they are the whole answer.
    pub finished: Option<v1::Finished>,
    /// Goes on from there.
    writer: Writer,
}

impl Replayed {
    /// All deltas; where the tokens are not the whole answer, with the text that was held back.
    pub fn into_deltas(mut self) -> Vec<v1::Delta> {
        let mut deltas = std::mem::take(&mut self.deltas);
        if self.finished.is_none() {
            deltas.extend(Some(self.end().0).filter(|delta| !delta.text.is_empty()));
        }
        deltas
    }

    /// Ends the answer there: the text that was held back, and the end.
    pub fn end(mut self) -> (v1::Delta, v1::Finished) {
        let written = self.writer.abort();
        (written.delta, written.finished.unwrap_or_default())
    }
}

impl Engine {
    /// How a turn's tokens are drawn and where its answer ends, every field set: what its prompt, its fields and the model's
    /// defaults say now.
    ///
    /// # Errors
    /// What is wrong with a field, or UNAVAILABLE.
    pub fn resolve_turn(
        &self,
        sampling: &v1::Sampling,
        stopping: v1::Stopping,
        prompt: &[u32],
    ) -> Result<(v1::Sampling, v1::Stopping), Failure> {
        let pipeline = self.driver.pipeline()?;
        let defaults = &self.text.defaults;
        let output = v1::Output::default();
        let sampling = Sampling::resolve(sampling, &output, defaults, pipeline.vocab_size, fresh_seed())?;
        let length = Length {
            prompt: prompt.len(),
            field: "messages",
            asked: stopping.max_tokens,
            open_end: OpenEnd::Context,
        };
        let max_tokens = length.max_tokens(defaults, pipeline.max_context)?;
        let Stops { ids, strings, .. } = stops(stopping, max_tokens, defaults, &pipeline)?;
        let stopping = v1::Stopping {
            max_tokens: Some(max_tokens),
            stop: strings,
            stop_token_ids: ids,
            ignore_eos: true,
        };
        Ok((sampling.to_request(), stopping))
    }

    /// Begins a turn's answer, or goes on with it after the tokens that were replayed, which are not told again.
    ///
    /// # Errors
    /// Why it is not taken now.
    pub async fn run_turn(
        &self,
        turn: TurnId,
        accepted: &NewTurn,
        tenant: &str,
        replayed: Replayed,
    ) -> Result<AnswerStream, Failure> {
        let mut record = RequestRecord::arrived(self.driver.metrics(), &TraceContext::default());
        match self.turn_request(turn, accepted, tenant, replayed) {
            Ok(request) => self.driver.submit(request, record).await,
            Err(failure) => {
                record.failed(&failure);
                Err(failure)
            }
        }
    }

    /// What tokens of a turn's answer make of it.
    ///
    /// # Errors
    /// What was stored of the turn cannot be used.
    pub fn replay(&self, accepted: &NewTurn, token_ids: &[u32]) -> Result<Replayed, Failure> {
        let prompt_tokens = u32::try_from(accepted.prompt_ids.len()).unwrap_or(u32::MAX);
        let decoder = self.text.decoder(&accepted.prompt_ids);
        let mut writer = Writer::new(decoder, turn_stops(accepted)?, prompt_tokens);
        let mut deltas = Vec::with_capacity(token_ids.len());
        let mut finished = None;
        for (index, id) in token_ids.iter().enumerate() {
            let written = writer.token(*id, None);
            deltas.push(written.delta);
            if let Some(mut end) = written.finished {
                end.response = self.text.response(&accepted.prompt_ids, &token_ids[..=index]);
                finished = Some(end);
                break;
            }
        }
        Ok(Replayed { deltas, finished, writer })
    }

    fn turn_request(
        &self,
        turn: TurnId,
        accepted: &NewTurn,
        tenant: &str,
        replayed: Replayed,
    ) -> Result<NewRequest, Failure> {
        let tenant = self.tenants.find(Some(tenant))?;
        let pipeline = self.driver.pipeline()?;
        let wanted = accepted.sampling.clone().unwrap_or_default();
        let output = v1::Output::default();
        let seed = wanted.seed.unwrap_or_default();
        let sampling = Sampling::resolve(&wanted, &output, &self.text.defaults, pipeline.vocab_size, seed)?;
        let Replayed { deltas, writer, .. } = replayed;
        Ok(NewRequest {
            // Not the turn's own: its request before may still be on its way out.
            id: Uuid::new_v4().simple().to_string(),
            model: self.name.clone(),
            prompt: accepted.prompt_ids.clone().into(),
            given: deltas.into_iter().flat_map(|delta| delta.token_ids).collect(),
            journal: Some(turn),
            sampling,
            writer,
            max_tokens: accepted
                .stopping
                .as_ref()
                .and_then(|stopping| stopping.max_tokens)
                .unwrap_or_default(),
            tenant,
            priority: accepted.priority,
            deadline: None,
            bypass_cache: false,
            bypass_speculation: false,
        })
    }
}

fn turn_stops(accepted: &NewTurn) -> Result<Stops, Failure> {
    let stopping = accepted.stopping.clone().unwrap_or_default();
    Ok(Stops {
        ids: stopping.stop_token_ids,
        scanner: StopStrings::new(&stopping.stop)?,
        strings: stopping.stop,
        max_tokens: stopping.max_tokens.unwrap_or_default(),
    })
}
