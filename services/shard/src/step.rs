//! One epoch on the device thread: its sequences, its edges, and the execution of its steps.
//!
//! A step is begun, then finished. Begun: its plan is applied, its input taken in, its layers and the copy of its output given
//! to the device. Finished: its output is there, is sent on and reported. The CPU is done with a step's work when it is begun. A
//! card goes on by itself, and one more step may be begun behind the one at work, so that it never waits for the host; steps
//! are finished in their order all the same.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use asterism_link::{Receiver, Sender, StepBytes};
use asterism_model::stage::{Batch, Input, Output, Span};
use asterism_model::{ModelError, Stage};
use asterism_process::awake::{AwakeGuard, Wakefulness};
use asterism_process::inproc::Registry;
use asterism_proto::shard::v1::{Evidence, StepPlan, StepReport};
use asterism_proto::{Failure, Reason};
use asterism_tensor::{Device, EdgeBuffer, TensorError};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::edges::{Edges, MOST_UNDER_WAY, Place, StagedStep};
use crate::epoch::Epoch;
use crate::evidence::{Context, LogitsRows, Wanted};
use crate::metrics::{StageMetrics, StepRecord};
use crate::plan::{PlanRefusal, Step, StepSpan};
use crate::report::{Doing, Heart, StageClock, Work};
use crate::sequences::Sequences;
use crate::timeline::{self, Timeline};

/// Longer than the stages before usually take.
const INPUT_SOON: Duration = Duration::from_millis(50);

/// The device, and what is used with it in every epoch.
#[derive(Debug)]
pub struct Machine {
    /// The layers.
    pub stage: Stage,
    /// Buffers of its edges.
    pub edges: Edges,
    /// Of the last stage.
    pub logits: Option<LogitsRows>,
    /// Signs of life.
    pub heart: Arc<Heart>,
    /// What is counted and traced.
    pub metrics: StageMetrics,
    /// For waits on channels.
    pub runtime: Handle,
    /// Where neighbours within this process are known.
    pub registry: Registry,
    /// Of the runtime, where a card would wait for it: not where all that comes is handed over within this process.
    pub wakefulness: Option<Wakefulness>,
}

/// An epoch, as the device thread has it. Dropping it frees all that belongs to it.
#[derive(Debug)]
pub struct Reign {
    /// What it shares with the calls.
    pub epoch: Arc<Epoch>,
    /// Plans that wait.
    pub plans: mpsc::Receiver<StepPlan>,
    /// What was done.
    pub reports: mpsc::Sender<StepReport>,
    /// From the stage before.
    pub receiver: Option<Receiver>,
    /// To the stage after.
    pub sender: Option<Sender>,
    /// What is known of its sequences.
    pub sequences: Sequences,
    /// Where the time goes.
    pub clock: StageClock,
    /// The next step's input, if it was staged before its turn.
    pub staged: Option<StagedStep>,
    /// Steps that were begun and are not finished, the oldest first.
    pub under_way: VecDeque<UnderWay>,
    /// From a card's step on until no plan follows.
    pub awake: Option<AwakeGuard>,
}

/// A step between its beginning and its end.
#[derive(Debug)]
pub struct UnderWay {
    step: u64,
    /// Nothing, if it has no rows.
    work: Option<WorkUnderWay>,
    evidence: Vec<Evidence>,
    record: StepRecord,
    timeline: Timeline,
}

/// What the device was given for a step.
#[derive(Debug)]
struct WorkUnderWay {
    /// There once all of it is done.
    output: EdgeBuffer,
    /// Where the output goes; `None` on the last stage.
    place: Option<Place>,
    alive: Work,
}

/// Why a step was not done.
#[derive(Debug)]
pub enum StepError {
    /// The epoch ends with it.
    Epoch(Failure),
    /// The device has failed; the process ends with it.
    Device(TensorError),
}

impl From<Failure> for StepError {
    fn from(why: Failure) -> Self {
        Self::Epoch(why)
    }
}

impl From<TensorError> for StepError {
    fn from(error: TensorError) -> Self {
        if error.is_device_failure() {
            return Self::Device(error);
        }
        Self::Epoch(Failure::new(Reason::Internal, error.to_string()))
    }
}

impl Reign {
    /// Begins the step of a plan.
    ///
    /// # Errors
    /// The plan is refused, the epoch is over, or the device has failed.
    pub fn begin(&mut self, machine: &mut Machine, plan: StepPlan) -> Result<(), StepError> {
        let mut timeline = Timeline::planned();
        let record = machine.metrics.begin(&plan);
        let step = self.sequences.apply(plan).map_err(Failure::from)?;
        timeline.applied();
        if self.awake.is_none() {
            self.awake = machine.wakefulness.as_ref().map(Wakefulness::guard);
        }
        let (work, evidence) = match step.spans.is_empty() {
            true => (None, Vec::new()),
            false => {
                let (work, evidence) = self.compute(machine, &step, &mut timeline)?;
                (Some(work), evidence)
            }
        };
        self.under_way.push_back(UnderWay { step: step.id, work, evidence, record, timeline });
        Ok(())
    }

    /// Whether nothing is planned or under way.
    pub fn is_idle(&self) -> bool {
        self.plans.is_empty() && !self.is_busy()
    }

    /// Whether a step is under way.
    pub fn is_busy(&self) -> bool {
        !self.under_way.is_empty()
    }

    /// Whether [`Reign::finish`] would not wait for the device. A device that has failed is told by that.
    pub fn is_done(&self) -> bool {
        let work = self.under_way.front().and_then(|oldest| oldest.work.as_ref());
        work.is_none_or(|work| work.output.is_done().unwrap_or(true))
    }

    /// The plan of the next step, if the step can begin behind those under way without waiting for anything.
    ///
    /// # Errors
    /// Its input is wrong, or the device has failed.
    pub fn ready(&mut self, machine: &mut Machine) -> Result<Option<StepPlan>, StepError> {
        self.stage_ahead(machine)?;
        let has_input = self.receiver.is_none() || self.staged.is_some();
        if self.under_way.len() < MOST_UNDER_WAY && has_input && machine.edges.has_place() {
            return Ok(self.plans.try_recv().ok());
        }
        Ok(None)
    }

    /// Finishes the oldest step under way: waits for the device, sends the output on and reports.
    ///
    /// # Errors
    /// The epoch is over, or the device has failed.
    pub fn finish(&mut self, machine: &Machine) -> Result<(), StepError> {
        let Some(UnderWay { step, work, evidence, record, mut timeline }) = self.under_way.pop_front() else {
            return Ok(());
        };
        if let Some(WorkUnderWay { output, place, alive }) = work {
            let bytes = self.clock.time(Doing::Computing, || output.wait())?;
            timeline.done();
            if is_ahead(&machine.stage) {
                machine.heart.layers_done(machine.stage.info().layers.len());
            }
            // Whoever waits for the next stage is not at work.
            drop(alive);
            if let Some(times) = bytes.times()? {
                timeline::tell_card(&machine.stage.info().layers, step, &times);
            }
            if let Some(place) = place {
                self.send(machine, StepBytes { step, bytes: place.hold(bytes) })?;
            }
        }
        let epoch = self.epoch.holder.epoch;
        let times = self.clock.take();
        machine.metrics.done(record, &times);
        let report = StepReport { epoch, step, evidence, times: Some(times) };
        let Self { epoch, reports, clock, .. } = self;
        let report = match reports.try_send(report) {
            Ok(()) => {
                timeline.reported(&machine.stage.info().layers, step);
                return Ok(());
            }
            Err(mpsc::error::TrySendError::Full(report) | mpsc::error::TrySendError::Closed(report)) => {
                report
            }
        };
        let sent = async {
            tokio::select! {
                why = epoch.over() => Err(why),
                sent = reports.send(report) => sent.map_err(|_| Failure::new(Reason::Cancelled, "the driver is gone")),
            }
        };
        clock.time(Doing::WaitingForOutput, || machine.runtime.block_on(sent))?;
        timeline.reported(&machine.stage.info().layers, step);
        Ok(())
    }

    /// Gives a step with rows to the device, and makes its evidence.
    fn compute(
        &mut self,
        machine: &mut Machine,
        step: &Step,
        timeline: &mut Timeline,
    ) -> Result<(WorkUnderWay, Vec<Evidence>), StepError> {
        let place = self.place(machine)?;
        let mut input = self.input(machine, step)?;
        let Self { epoch, sequences, clock, .. } = self;
        let alive = machine.heart.work();
        let (output, is_logits) = clock.time(Doing::Computing, || -> Result<_, StepError> {
            machine.edges.begin(input.as_mut())?;
            let output = forward(machine, epoch, sequences, (step, input.as_ref()))?;
            let is_logits = matches!(output, Output::Logits { rows } if rows > 0);
            Ok((machine.edges.read(&machine.stage, place.as_ref())?, is_logits))
        })?;
        timeline.launched();
        drop(input);
        if let Some(receiver) = &mut self.receiver {
            receiver.consumed();
        }
        let mut made = Vec::new();
        if is_logits {
            if is_ahead(&machine.stage) {
                self.stage_ahead(machine)?;
            }
            let Self { sequences, clock, .. } = self;
            made = clock.time(Doing::Computing, || evidence(machine, sequences, &step.spans))?;
        }
        Ok((WorkUnderWay { output, place, alive }, made))
    }

    /// Waits for a place for the step's output, unless this is the last stage.
    fn place(&mut self, machine: &Machine) -> Result<Option<Place>, StepError> {
        let Self { epoch, clock, .. } = self;
        let place = async {
            tokio::select! {
                biased;
                place = machine.edges.place() => Ok(place),
                why = epoch.over() => Err(why.into()),
            }
        };
        clock.time(Doing::WaitingForOutput, || machine.runtime.block_on(place))
    }

    /// Waits for the step's activations and lets them come up to the device, unless this is the first stage or they were staged
    /// before.
    fn input(&mut self, machine: &mut Machine, step: &Step) -> Result<Option<StagedStep>, StepError> {
        let Some(receiver) = &mut self.receiver else { return Ok(None) };
        let staged = match self.staged.take() {
            Some(staged) => staged,
            None => {
                let received = self.clock.time(Doing::WaitingForInput, || {
                    let soon = if is_ahead(&machine.stage) { soon(receiver) } else { None };
                    soon.map_or_else(|| machine.runtime.block_on(receiver.receive()), Ok)
                });
                let received = received.map_err(|error| Epoch::edge_failure(&error))?;
                self.clock.time(Doing::Computing, || machine.edges.stage(&received))?
            }
        };
        if staged.step != step.id {
            let message = format!("activations of step {} came where step {} was due", staged.step, step.id);
            return Err(Failure::new(Reason::InvalidArgument, message).into());
        }
        Ok(Some(staged))
    }

    /// Lets the next step's input come up to the device before its turn, if it has come.
    fn stage_ahead(&mut self, machine: &mut Machine) -> Result<(), StepError> {
        if self.staged.is_none()
            && let Some(received) = self.receiver.as_mut().and_then(Receiver::try_receive)
        {
            self.staged = Some(machine.edges.stage(&received)?);
        }
        Ok(())
    }

    /// Hands the step's residual stream to the next stage.
    fn send(&mut self, machine: &Machine, step: StepBytes) -> Result<(), Failure> {
        let Some(sender) = &mut self.sender else {
            return Err(Failure::new(Reason::Internal, "there is no edge to the next stage"));
        };
        let sending = sender.send(step);
        let sent = self.clock.time(Doing::WaitingForOutput, || machine.runtime.block_on(sending));
        sent.map_err(|error| Epoch::edge_failure(&error))
    }
}

/// A step's activations, if they come within [`INPUT_SOON`]: a card's thread looks for them in place of sleeping.
fn soon(receiver: &mut Receiver) -> Option<StepBytes> {
    let start = Instant::now();
    loop {
        match receiver.try_receive() {
            Some(received) => return Some(received),
            None if start.elapsed() > INPUT_SOON => return None,
            None => std::thread::yield_now(),
        }
    }
}

/// Whether the device goes on by itself with what it was given.
pub fn is_ahead(stage: &Stage) -> bool {
    matches!(stage.device(), Device::Cuda(_))
}

/// Runs the layers; stops between two of them if the epoch ends.
fn forward(
    machine: &mut Machine,
    epoch: &Epoch,
    sequences: &Sequences,
    (step, input): (&Step, Option<&StagedStep>),
) -> Result<Output, StepError> {
    let spans: Vec<Span<'_>> = step.spans.iter().map(|span| batch_span(span, sequences)).collect();
    let input = input.map_or(Input::Tokens, |input| Input::Staged(&input.rows));
    let Machine { stage, heart, .. } = machine;
    // What a card was given is not done: its layers are heard of when the step is.
    let beats = !is_ahead(stage);
    let output = stage.forward(&Batch { spans: &spans }, input, &mut |beat| {
        if beat.layers_done > 0 && beats {
            heart.layer_done();
        }
        if epoch.is_over() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    output.map_err(|error| match error {
        ModelError::Batch(why) => Failure::from(PlanRefusal::Batch { step: step.id, why }).into(),
        ModelError::Stopped { .. } => Failure::new(Reason::Cancelled, "the epoch is over").into(),
        ModelError::Tensor(error) => error.into(),
        other => Failure::new(Reason::Internal, other.to_string()).into(),
    })
}

fn batch_span<'a>(span: &'a StepSpan, sequences: &'a Sequences) -> Span<'a> {
    // Every span's sequence lives while its step runs; were it gone, the stage would refuse the empty table.
    let sequence = sequences.get(span.sequence);
    Span {
        first_position: span.first_position,
        token_ids: &span.token_ids,
        blocks: sequence.map_or(&[], |sequence| &sequence.blocks),
        prompt_len: sequence.map_or(1, |sequence| sequence.prompt_len),
        evidence: &span.evidence,
    }
}

/// Keeps the raw rows of a step and makes their evidence, in the order of spans and positions.
fn evidence(
    machine: &mut Machine,
    sequences: &Sequences,
    spans: &[StepSpan],
) -> Result<Vec<Evidence>, StepError> {
    let (Some(rows), Some(logits)) = (&mut machine.logits, machine.stage.logits()) else {
        return Err(Failure::new(Reason::Internal, "there are no logits on this stage").into());
    };
    let mut wanted = Vec::new();
    for span in spans {
        let (Some(sequence), Some(setting)) = (sequences.get(span.sequence), &span.setting) else { continue };
        for (&position, &slot) in span.evidence.iter().zip(&span.slots) {
            let ids = sequence.context(position).unwrap_or_default();
            let context = Context { setting, ids, prompt_len: sequence.prompt_len };
            let (row, top_k) = (wanted.len(), span.top_k);
            wanted.push(Wanted { sequence: span.sequence, position, row, slot, top_k, context });
        }
    }
    Ok(rows.evidence(machine.stage.device(), logits, &wanted)?)
}

#[cfg(test)]
mod tests;
