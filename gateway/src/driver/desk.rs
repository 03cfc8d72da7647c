//! What outlives an epoch: the requests, the planner with its queue, and what callers are told meanwhile.

use std::time::Instant;

use asterism_proto::{Failure, Reason};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::answer::AnswerStream;
use super::drain::DrainMeter;
use super::requests::{NewRequest, Requests};
use super::{DriverSettings, PipelineState};
use crate::metrics::RequestRecord;
use crate::scheduler::{Limits, Loads, NewSequence, Refusal, Scheduler, SequenceId, Speculation};

/// What callers ask of the driver.
pub enum Command {
    /// An answer.
    Submit(Box<(NewRequest, RequestRecord)>, oneshot::Sender<Result<AnswerStream, Failure>>),
    /// An end; told whether there was such a request.
    Abort(String, oneshot::Sender<bool>),
    /// How much there is to do.
    Loads(oneshot::Sender<Loads>),
}

/// See the module.
pub struct Desk {
    /// As configured.
    pub settings: DriverSettings,
    /// Those that wait or run.
    pub requests: Requests,
    /// Plans the steps; its queue survives epochs.
    pub scheduler: Scheduler,
    /// How fast that empties.
    pub drain: DrainMeter,
    /// When time began, for both.
    pub began: Instant,
    /// What the pipeline is doing.
    pub state: watch::Sender<PipelineState>,
    /// From callers.
    pub commands: mpsc::Receiver<Command>,
    /// Cancelled when the gateway shall stop.
    pub shutdown: CancellationToken,
}

impl Desk {
    /// Does what a caller asks.
    pub fn answer(&mut self, command: Command) {
        // A caller that does not wait for the reply has dropped its request with it.
        match command {
            Command::Submit(request, reply) => {
                let (request, record) = *request;
                drop(reply.send(self.submit(request, record)));
            }
            Command::Abort(id, reply) => drop(reply.send(self.abort(&id))),
            Command::Loads(reply) => drop(reply.send(self.scheduler.loads())),
        }
    }

    fn submit(&mut self, request: NewRequest, mut record: RequestRecord) -> Result<AnswerStream, Failure> {
        match self.queue(&request) {
            Ok((sequence, top_k)) => Ok(self.requests.insert(sequence, (request, record), top_k)),
            Err(failure) => {
                record.failed(&failure);
                Err(failure)
            }
        }
    }

    /// Queues a request: under which name, and how many candidates its evidence holds.
    fn queue(&mut self, request: &NewRequest) -> Result<(SequenceId, u32), Failure> {
        let vocab = self.state.borrow().joined()?.vocab_size;
        if self.requests.sequence(&request.id).is_some() {
            let message = format!("request_id {:?} is that of a request that is not over", request.id);
            return Err(Failure {
                field: Some("request_id".to_owned()),
                ..Failure::new(Reason::Conflict, message)
            });
        }
        let sequence = self.requests.next_sequence();
        let top_k = request.sampling.evidence_k(vocab);
        let submitted = self.scheduler.submit(NewSequence {
            id: sequence,
            prompt: request.prompt.clone(),
            given: request.given.clone(),
            max_tokens: request.max_tokens,
            tenant: request.tenant,
            priority: request.priority,
            arrived: self.began.elapsed(),
            deadline: request.deadline.map(|deadline| deadline.saturating_duration_since(self.began)),
            bypass_cache: request.bypass_cache,
            speculation: if request.bypass_speculation {
                Speculation::Off
            } else {
                self.settings.speculation
            },
            evidence: crate::scheduler::EvidenceSpec { setting_id: sequence, top_k },
        });
        submitted.map_err(|refusal| self.refused(refusal))?;
        Ok((sequence, top_k))
    }

    fn refused(&mut self, refusal: Refusal) -> Failure {
        self.observe_queue();
        let retry_after = self.drain.retry_after(&refusal);
        let failure = Failure::from(refusal);
        Failure { retry_after: retry_after.or(failure.retry_after), ..failure }
    }

    fn observe_queue(&mut self) {
        self.drain.observe(self.began.elapsed(), self.scheduler.flow());
    }

    /// Returns once the first deadline of all has come; never if there is none.
    pub fn deadline(&self) -> impl Future<Output = ()> + use<> {
        let deadline = self.scheduler.next_deadline().and_then(|deadline| self.began.checked_add(deadline));
        async move {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                None => std::future::pending().await,
            }
        }
    }

    /// Fails those whose deadline has come.
    pub fn expire(&mut self) {
        for sequence in self.scheduler.expire(self.began.elapsed()) {
            let failure =
                Failure::new(Reason::DeadlineExceeded, "the deadline passed before the answer's end");
            self.requests.fail(sequence, failure);
        }
    }

    fn abort(&mut self, id: &str) -> bool {
        let Some(sequence) = self.requests.sequence(id) else { return false };
        self.scheduler.end(sequence);
        self.requests.abort(sequence);
        true
    }

    /// Ends what nobody reads any more.
    pub fn drop_cancelled(&mut self) {
        let cancelled = self.requests.cancelled().take();
        self.drop_unread(cancelled);
    }

    /// Hands readers what was written for them.
    pub fn flush(&mut self) {
        self.observe_queue();
        let unread = self.requests.flush();
        self.drop_unread(unread);
    }

    fn drop_unread(&mut self, unread: impl IntoIterator<Item = SequenceId>) {
        for sequence in unread {
            self.scheduler.end(sequence);
            self.requests.drop_unread(sequence);
        }
    }

    /// Ends one request with a failure.
    pub fn fail(&mut self, sequence: SequenceId, failure: Failure) {
        self.scheduler.end(sequence);
        self.requests.fail(sequence, failure);
    }

    /// Begins an epoch within new limits; what can never fit them is refused.
    pub fn begin(&mut self, limits: Limits) {
        for (sequence, refusal) in self.scheduler.begin_epoch(limits) {
            self.requests.fail(sequence, refusal.into());
        }
    }

    /// Ends an epoch: what ran is replayed in the next, except where it is what ends them.
    pub fn end(&mut self, why: &str) {
        self.flush();
        for sequence in self.scheduler.end_epoch() {
            let message =
                format!("the pipeline broke whenever it worked on this request, at last with: {why}");
            self.requests.fail(sequence, Failure::new(Reason::Internal, message));
        }
    }

    /// Ends all that waits or runs, as no pipeline will go on with it.
    pub fn give_up(&mut self, why: &str) {
        for sequence in self.requests.fail_all(Reason::Unavailable, why) {
            self.scheduler.end(sequence);
        }
    }
}
