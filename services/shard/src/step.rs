//! One epoch on the device thread: its sequences, its edges, and the execution of its steps.

use std::ops::ControlFlow;
use std::sync::Arc;

use asterism_link::{Receiver, Sender, StepBytes};
use asterism_model::stage::{Batch, Input, Output, Span};
use asterism_model::{ModelError, Stage};
use asterism_proto::shard::v1::{Evidence, StepPlan, StepReport};
use asterism_proto::{Failure, Reason};
use asterism_tensor::Row;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::epoch::Epoch;
use crate::evidence::{Context, LogitsRows, Wanted};
use crate::plan::{PlanRefusal, Step, StepSpan};
use crate::report::{Doing, Heart, StageClock};
use crate::sequences::Sequences;

/// The device, and what is used with it in every epoch.
#[derive(Debug)]
pub struct Machine {
    /// The layers.
    pub stage: Stage,
    /// Of the last stage.
    pub logits: Option<LogitsRows>,
    /// Signs of life.
    pub heart: Arc<Heart>,
    /// For waits on channels.
    pub runtime: Handle,
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
}

impl Reign {
    /// Executes one plan and reports it.
    ///
    /// # Errors
    /// What the epoch ends with.
    pub fn execute(&mut self, machine: &mut Machine, plan: StepPlan) -> Result<(), Failure> {
        let step = self.sequences.apply(plan)?;
        let evidence = if step.spans.is_empty() { Vec::new() } else { self.compute(machine, &step)? };
        let report = StepReport {
            epoch: self.epoch.holder.epoch,
            step: step.id,
            evidence,
            times: Some(self.clock.take()),
        };
        let Self { epoch, reports, clock, .. } = self;
        let sent = async {
            tokio::select! {
                why = epoch.over() => Err(why),
                sent = reports.send(report) => sent.map_err(|_| Failure::new(Reason::Cancelled, "the driver is gone")),
            }
        };
        clock.time(Doing::WaitingForOutput, || machine.runtime.block_on(sent))
    }

    /// Runs the layers over a step with rows, and sends on what comes out.
    fn compute(&mut self, machine: &mut Machine, step: &Step) -> Result<Vec<Evidence>, Failure> {
        let hidden = self.input(machine, step)?;
        let Self { epoch, sequences, clock, .. } = self;
        let output =
            clock.time(Doing::Computing, || forward(machine, epoch, sequences, (step, hidden.as_ref())))?;
        drop(hidden);
        if let Some(receiver) = &mut self.receiver {
            receiver.consumed();
        }
        match output {
            Output::Hidden { .. } => self.send(machine, step).map(|()| Vec::new()),
            Output::Logits { .. } => {
                let Self { sequences, clock, .. } = self;
                clock.time(Doing::Computing, || evidence(machine, sequences, &step.spans))
            }
        }
    }

    /// Waits for the step's activations, unless this is the first stage.
    fn input(&mut self, machine: &Machine, step: &Step) -> Result<Option<StepBytes>, Failure> {
        let Some(receiver) = &mut self.receiver else { return Ok(None) };
        let received =
            self.clock.time(Doing::WaitingForInput, || machine.runtime.block_on(receiver.receive()));
        let received = received.map_err(|error| Epoch::edge_failure(&error))?;
        if received.step != step.id {
            let message =
                format!("activations of step {} came where step {} was due", received.step, step.id);
            return Err(Failure::new(Reason::InvalidArgument, message));
        }
        Ok(Some(received))
    }

    /// Hands the step's residual stream to the next stage.
    fn send(&mut self, machine: &Machine, step: &Step) -> Result<(), Failure> {
        let Some(sender) = &mut self.sender else {
            return Err(Failure::new(Reason::Internal, "there is no edge to the next stage"));
        };
        let mut bytes = Vec::with_capacity(step.rows() * machine.stage.info().row_bytes());
        let read = self.clock.time(Doing::Computing, || machine.stage.read_hidden(&mut bytes));
        read.map_err(|error| Failure::new(Reason::Internal, error.to_string()))?;
        let sending = sender.send(StepBytes { step: step.id, bytes: bytes.into() });
        let sent = self.clock.time(Doing::WaitingForOutput, || machine.runtime.block_on(sending));
        sent.map_err(|error| Epoch::edge_failure(&error))
    }
}

/// Runs the layers; stops between two of them if the epoch ends.
fn forward(
    machine: &mut Machine,
    epoch: &Epoch,
    sequences: &Sequences,
    (step, hidden): (&Step, Option<&StepBytes>),
) -> Result<Output, Failure> {
    let spans: Vec<Span<'_>> = step.spans.iter().map(|span| batch_span(span, sequences)).collect();
    let input = hidden.map_or(Input::Tokens, |hidden| Input::Hidden(&hidden.bytes));
    let Machine { stage, heart, .. } = machine;
    let _work = heart.work();
    let output = stage.forward(&Batch { spans: &spans }, input, &mut |beat| {
        if beat.layers_done > 0 {
            heart.layer_done();
        }
        if epoch.is_over() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    output.map_err(|error| match error {
        ModelError::Batch(why) => PlanRefusal::Batch { step: step.id, why }.into(),
        ModelError::Stopped { .. } => Failure::new(Reason::Cancelled, "the epoch is over"),
        other => Failure::new(Reason::Internal, other.to_string()),
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
) -> Result<Vec<Evidence>, Failure> {
    let internal = |what: String| Failure::new(Reason::Internal, what);
    let (Some(rows), Some(logits)) = (&mut machine.logits, machine.stage.logits()) else {
        return Err(internal("there are no logits on this stage".to_owned()));
    };
    let _work = machine.heart.work();
    let device = machine.stage.device();
    let mut all = Vec::new();
    for span in spans {
        let (Some(sequence), Some(setting)) = (sequences.get(span.sequence), &span.setting) else { continue };
        for (&position, &slot) in span.evidence.iter().zip(&span.slots) {
            let raw = Row { tensor: logits, index: all.len() };
            let ids = sequence.context(position).unwrap_or_default();
            let context = Context { setting, ids, prompt_len: sequence.prompt_len };
            let wanted = Wanted { sequence: span.sequence, position, top_k: span.top_k, context };
            let made = rows.keep(device, raw, slot).and_then(|()| rows.evidence(device, raw, &wanted));
            all.push(made.map_err(|error| internal(error.to_string()))?);
        }
    }
    Ok(all)
}
