//! What outlives an epoch: the requests, the planner with its queue, and what callers are told meanwhile.

use std::time::Duration;

use asterism_proto::{Failure, Reason};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::answer::AnswerStream;
use super::requests::{NewRequest, Requests};
use super::{DriverSettings, PipelineState};
use crate::metrics::RequestRecord;
use crate::scheduler::{Limits, Loads, NewSequence, Scheduler, SequenceId, TenantId};

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
        self.scheduler.submit(NewSequence {
            id: sequence,
            prompt: request.prompt.clone(),
            max_tokens: request.stops.max_tokens,
            tenant: TenantId::default(),
            priority: request.priority,
            arrived: Duration::ZERO,
            deadline: None,
            bypass_cache: request.bypass_cache,
            evidence: crate::scheduler::EvidenceSpec { setting_id: sequence, top_k },
        })?;
        Ok((sequence, top_k))
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
        let unread = self.requests.flush();
        self.drop_unread(unread);
    }

    fn drop_unread(&mut self, unread: impl IntoIterator<Item = SequenceId>) {
        for sequence in unread {
            self.scheduler.end(sequence);
            self.requests.remove(sequence);
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
