//! One epoch: the loop that plans, sends, reads evidence and draws.
//!
//! It waits for shards, callers and the clock, never for a reader. Whatever breaks ends the epoch; nothing is resent.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use asterism_process::awake::{AwakeGuard, Wakefulness};
use asterism_proto::shard::v1::{DrainRequest, Evidence as WireEvidence, FetchLogitsRequest, StepReport};
use asterism_proto::{Failure, Reason};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::runtime::Handle;
use tokio::time::{MissedTickBehavior, Sleep, interval};

use super::beats::Beats;
use super::desk::Desk;
use super::end::EpochEnd;
use super::fetch::{Fetched, fetch};
use super::flight::Flights;
use super::join::{Joined, within};
use super::pace::PaceMeter;
use super::plan::plan;
use super::requests::Delivered;
use super::streams::StageEvent;
use super::timeline::Timeline;
use super::{PipelineState, SeenEvidence};
use crate::metrics::{StageClock, StepTraces};
use crate::sampler::{self, Draw, Evidence, Row, Token, widened_k};
use crate::scheduler::{Committed, RunId, SequenceId};
use crate::speculation::Wanted;

const DRAIN_DEADLINE: Duration = Duration::from_secs(5);
/// From the plan of a card's step until many readers get what the step before gave: while they are told, their tasks share
/// caches and cores with whoever makes that plan a launch, and the card waits for that.
const LAUNCH: Duration = Duration::from_micros(250);
/// Fewer readers disturb nobody.
const MANY_READERS: usize = 16;

/// A joined pipeline at work.
pub struct Epoch<'d> {
    desk: &'d mut Desk,
    joined: Joined,
    flights: Flights,
    /// Evidence of rows behind one that is being fetched, and its step.
    later: HashMap<RunId, Vec<(u64, WireEvidence)>>,
    fetches: FuturesUnordered<Pin<Box<dyn Future<Output = Fetched> + Send>>>,
    beats: Beats,
    pace: PaceMeter,
    /// One for each stage.
    clocks: Vec<Arc<StageClock>>,
    traces: StepTraces,
    timeline: Timeline,
    /// Stages that will leave.
    draining: Vec<usize>,
    /// Set once the gateway shuts down: when it waits no longer.
    leaving: Option<Pin<Box<Sleep>>>,
    /// Of a pipeline with cards.
    wakefulness: Option<Wakefulness>,
    /// While steps are under way there.
    awake: Option<AwakeGuard>,
    /// Until when readers wait so that a card need not.
    held: Option<Instant>,
}

impl<'d> Epoch<'d> {
    /// Begins with nothing under way.
    pub fn new(desk: &'d mut Desk, joined: Joined) -> Self {
        let stages = joined.pipeline.members.len();
        let beats = Beats::new(stages, desk.settings.beat_limit, Instant::now());
        let wakefulness = joined.pipeline.has_cards().then(|| Wakefulness::of(&Handle::current()));
        let metrics = &desk.settings.metrics;
        let (clocks, traces) = (metrics.stages.of(stages), StepTraces::new(metrics.tracer.clone()));
        Self {
            desk,
            joined,
            clocks,
            traces,
            timeline: Timeline::default(),
            flights: Flights::new(stages),
            later: HashMap::new(),
            fetches: FuturesUnordered::new(),
            beats,
            pace: PaceMeter::default(),
            draining: Vec::new(),
            leaving: None,
            wakefulness,
            awake: None,
            held: None,
        }
    }

    /// Runs until something ends it. Its streams close with it.
    pub async fn run(mut self) -> EpochEnd {
        let cancelled = self.desk.requests.cancelled().clone();
        let shutdown = self.desk.shutdown.clone();
        let mut checks = interval((self.desk.settings.beat_limit / 4).min(Duration::from_secs(1)));
        checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let sent = match self.send_plans() {
                Ok(sent) => sent,
                Err(end) => return end,
            };
            self.stay_awake();
            if sent {
                // A shard waits for its plan, so readers come after it: the plan's way to the socket is other tasks' work.
                tokio::task::yield_now().await;
                self.hold_readers();
            }
            if self.held.is_none_or(|until| until <= Instant::now()) {
                self.held = None;
                self.desk.flush();
                self.timeline.tell();
            }
            if let Some(end) = self.finished().await {
                return end;
            }
            let deadline = self.desk.deadline();
            let going_on = tokio::select! {
                (stage, event) = self.joined.streams.next() => self.on_event(stage, event),
                Some(fetched) = self.fetches.next() => self.on_row(fetched),
                Some(command) = self.desk.commands.recv() => {
                    self.desk.answer(command);
                    Ok(())
                }
                () = cancelled.wait() => {
                    self.desk.drop_cancelled();
                    Ok(())
                }
                () = deadline => {
                    self.desk.expire();
                    Ok(())
                }
                () = until(self.held), if self.held.is_some() => Ok(()),
                _ = checks.tick() => {
                    self.beats.check(self.flights.oldest(), Instant::now()).map_err(EpochEnd::from)
                }
                () = shutdown.cancelled(), if self.leaving.is_none() => {
                    self.leave();
                    Ok(())
                }
                () = wait(&mut self.leaving), if self.leaving.is_some() => Err(EpochEnd::Left),
            };
            if let Err(end) = going_on {
                return end;
            }
        }
    }

    /// Plans what can be planned; whether there was something.
    fn send_plans(&mut self) -> Result<bool, EpochEnd> {
        let mut sent = false;
        while let Some(step) = self.desk.scheduler.next_step() {
            let now = Instant::now();
            let Desk { requests, scheduler, .. } = &mut *self.desk;
            requests.planned(&step, now);
            let setting = |sequence| {
                let request = requests.get(sequence)?;
                Some(request.sampling.setting(sequence))
            };
            let mut plan = plan(self.joined.holder.epoch, step, setting);
            self.traces.send(&mut plan, |run| requests.get(scheduler.sequence(run)?)?.record.trace());
            self.flights.sent(&plan, now);
            if !plan.spans.is_empty() {
                self.pace.planned(now);
            }
            let step = plan.step;
            self.joined.streams.send(plan)?;
            self.timeline.sent(step);
            sent = true;
        }
        Ok(sent)
    }

    /// Lets many readers wait until a card has what it waits for.
    fn hold_readers(&mut self) {
        let many = self.desk.requests.unflushed() >= MANY_READERS;
        if many && self.held.is_none() && self.awake.is_some() {
            self.held = Instant::now().checked_add(LAUNCH);
        }
    }

    /// Sleeps only where no card is about to wait; where nothing is under way, time is nobody's.
    fn stay_awake(&mut self) {
        if self.flights.is_empty() {
            self.pace.idle();
            self.awake = None;
        } else if self.awake.is_none() {
            self.awake = self.wakefulness.as_ref().map(Wakefulness::guard);
        }
    }

    /// Whether there is nothing left to wait for, where the epoch shall end then.
    async fn finished(&mut self) -> Option<EpochEnd> {
        if !self.flights.is_empty() {
            return None;
        }
        if self.leaving.is_some() && self.desk.requests.is_empty() {
            return Some(EpochEnd::Left);
        }
        if self.draining.is_empty() {
            return None;
        }
        let loads = self.desk.scheduler.loads();
        if loads.prefilling + loads.decoding + loads.replaying > 0 {
            return None;
        }
        let mut address = String::new();
        for stage in &self.draining {
            let request = DrainRequest { holder: Some(self.joined.holder.clone()) };
            address.clone_from(&self.joined.pipeline.members.get(*stage)?.address);
            let client = self.joined.clients.get_mut(*stage)?;
            if let Err(status) = within(DRAIN_DEADLINE, client.drain(request)).await {
                tracing::warn!(%address, status = status.message(), "the shard did not take the drain");
            }
        }
        Some(EpochEnd::Drained { address })
    }

    fn leave(&mut self) {
        self.desk.state.send_replace(PipelineState::Leaving);
        self.leaving = Some(Box::pin(tokio::time::sleep(self.desk.settings.grace)));
    }

    fn on_event(&mut self, stage: usize, event: StageEvent) -> Result<(), EpochEnd> {
        let now = Instant::now();
        match event {
            StageEvent::Report(report) => {
                self.beats.report(stage, now);
                self.on_report(stage, report, now)
            }
            StageEvent::Beat(beat) => {
                self.beats.beat(stage, &beat, now);
                if beat.draining && !self.draining.contains(&stage) {
                    self.drain(stage);
                }
                Ok(())
            }
            StageEvent::Ended(status) => {
                Err(EpochEnd::Stage { address: self.address(stage), message: status.message().to_owned() })
            }
        }
    }

    fn address(&self, stage: usize) -> String {
        self.joined.pipeline.members.get(stage).map(|member| member.address.clone()).unwrap_or_default()
    }

    /// Admits nothing more, as a stage is about to leave.
    fn drain(&mut self, stage: usize) {
        self.draining.push(stage);
        self.desk.scheduler.pause_admission();
        if self.leaving.is_none() {
            self.desk.state.send_replace(PipelineState::Draining(self.address(stage)));
        }
    }

    fn on_report(&mut self, stage: usize, report: StepReport, now: Instant) -> Result<(), EpochEnd> {
        let is_last = stage + 1 == self.clocks.len();
        if is_last {
            self.timeline.read(report.step);
        }
        let epoch = self.joined.holder.epoch;
        let progress = self
            .flights
            .reported(epoch, stage, &report, now)
            .map_err(|wrong| EpochEnd::Report { stage, wrong })?;
        if !report.evidence.is_empty() {
            self.pace.evidence(now);
        }
        if let (Some(clock), Some(times)) = (self.clocks.get(stage), &report.times) {
            clock.add(times);
        }
        if stage == 0 {
            self.desk.scheduler.left_first_stage(report.step);
        }
        let rows = report.evidence.len();
        for evidence in report.evidence {
            self.on_evidence(report.step, evidence);
        }
        if is_last {
            self.timeline.drawn(report.step, rows);
        }
        if progress.done {
            self.desk.scheduler.step_done(report.step);
            self.traces.done(report.step);
            if let Some(way) = progress.way {
                self.desk.scheduler.observe(self.pace.done(way));
                if let Some(wait) = self.pace.wait(way) {
                    self.desk.scheduler.observe_decoding(way.rows, wait);
                }
            }
        }
        Ok(())
    }

    fn on_evidence(&mut self, step: u64, wire: WireEvidence) {
        let run = wire.sequence;
        match self.desk.scheduler.wanted(run, wire.position) {
            Wanted::Now => {}
            Wanted::Later => return self.later.entry(run).or_default().push((step, wire)),
            // Of a run that is over, or behind a proposal that did not hold.
            Wanted::Never => return,
        }
        let Some(sequence) = self.desk.scheduler.sequence(run) else { return };
        let Some(request) = self.desk.requests.get(sequence) else { return };
        let epoch = self.joined.holder.epoch;
        if let Some(sink) = &self.desk.settings.sink {
            sink.take(SeenEvidence { request_id: &request.id, epoch, step, evidence: &wire });
        }
        let vocab = self.joined.pipeline.model.vocab_size;
        let evidence = match Evidence::parse(wire, &request.sampling, vocab) {
            Ok(evidence) => evidence,
            Err(error) => return self.desk.fail(sequence, internal(&error)),
        };
        match sampler::draw(&request.sampling, &evidence, vocab) {
            Draw::Token(token) => self.deliver(run, sequence, token),
            Draw::NeedsRow => {
                let request = FetchLogitsRequest {
                    holder: Some(self.joined.holder.clone()),
                    step,
                    sequence: run,
                    position: evidence.position(),
                    raw_too: request.sampling.logprobs().is_some(),
                };
                if let Some(last) = self.joined.clients.last() {
                    self.fetches.push(Box::pin(fetch(last.clone(), request, evidence)));
                }
            }
        }
    }

    fn on_row(&mut self, fetched: Fetched) -> Result<(), EpochEnd> {
        let run = fetched.request.sequence;
        let later = self.later.remove(&run).unwrap_or_default();
        let Some(sequence) = self.desk.scheduler.sequence(run) else { return Ok(()) };
        let vocab = self.joined.pipeline.model.vocab_size;
        let Some(request) = self.desk.requests.get_mut(sequence) else { return Ok(()) };
        let row = match fetched.row {
            Ok(row) => Row::parse(&row, &request.sampling, vocab).map_err(|error| internal(&error)),
            Err(status) => {
                // The stage may have lost its epoch, which is not known here yet. The next makes the row anew, and a row that
                // cannot be had at all ends its own request in the end.
                let message = format!("a row of logits was lost: {}", status.message());
                let last = self.joined.clients.len().saturating_sub(1);
                return Err(EpochEnd::Stage { address: self.address(last), message });
            }
        };
        match row {
            Ok(row) => {
                let token = sampler::draw_from_row(&request.sampling, &fetched.evidence, &row);
                request.top_k = widened_k(request.top_k, vocab);
                self.desk.scheduler.set_top_k(sequence, request.top_k);
                self.deliver(run, sequence, token);
                for (step, evidence) in later {
                    self.on_evidence(step, evidence);
                }
            }
            Err(failure) => self.desk.fail(sequence, failure),
        }
        Ok(())
    }

    fn deliver(&mut self, run: RunId, sequence: SequenceId, token: Token) {
        let id = token.id;
        match self.desk.requests.deliver(sequence, token) {
            Delivered::Over => {
                self.desk.scheduler.end(sequence);
            }
            Delivered::Continues => {
                if self.desk.scheduler.token(run, id) != Committed::Continues {
                    let failure = Failure::new(Reason::Internal, "the planner did not expect this token");
                    self.desk.fail(sequence, failure);
                }
            }
        }
    }
}

async fn wait(deadline: &mut Option<Pin<Box<Sleep>>>) {
    match deadline {
        Some(deadline) => deadline.await,
        None => std::future::pending().await,
    }
}

/// Returns at that time, to the microsecond, as a timer of the runtime would not. It spins, which the runtime does anyway while
/// readers are held.
async fn until(time: Option<Instant>) {
    const PAUSES: usize = 32;
    while time.is_some_and(|time| Instant::now() < time) {
        for _ in 0..PAUSES {
            std::hint::spin_loop();
        }
        tokio::task::yield_now().await;
    }
}

fn internal(error: &dyn std::error::Error) -> Failure {
    Failure::new(Reason::Internal, error.to_string())
}
