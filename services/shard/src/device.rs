//! The thread that owns the device.
//!
//! It alone touches the stage. Commands come over a bounded channel, plans over that of the present epoch; between two steps
//! commands go first. It waits on channels, and every such wait ends with the epoch or with the process. While a card is at work
//! it looks in turn whether the step is done, whether a command has come and whether the next step can begin behind it; that
//! keeps a core busy, as the driver's own wait would, and costs no latency. A card that has failed ends the thread, and the
//! process with it: nothing else brings a failed card back.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use asterism_link::{Edge, LinkKind, Peer};
use asterism_proto::shard::v1::StepPlan;
use asterism_proto::{Failure, Reason};
use asterism_tensor::TensorError;
use tokio::sync::{mpsc, oneshot};

use crate::epoch::{DeviceEnd, Epoch};
use crate::evidence::{Context, WholeRow};
use crate::report::{Doing, StageClock};
use crate::sequences::{Room, Sequences};
use crate::step::{Machine, Reign, StepError, is_ahead};

/// How long the edge to the next stage may take to open.
const EDGE_DEADLINE: Duration = Duration::from_secs(10);
/// Turns of idling between two looks at a card: a microsecond or a few.
const IDLE_TURNS: u32 = 64;
/// How long a card's thread looks for the next plan before it sleeps: longer than a plan takes through a gateway.
const SOON: Duration = Duration::from_millis(3);

/// What the service asks of the device thread.
#[derive(Debug)]
pub enum Command {
    /// Begin an epoch; the one before is over.
    Join(Join),
    /// Give out a kept row.
    Fetch(Fetch),
    /// Do what is queued, then end the epoch.
    Drain(oneshot::Sender<()>),
}

/// See [`Command::Join`].
#[derive(Debug)]
pub struct Join {
    /// The epoch.
    pub epoch: Arc<Epoch>,
    /// Its ends of the channels.
    pub ends: DeviceEnd,
    /// Where the next stage listens; `None` on the last stage.
    pub downstream: Option<String>,
    /// How edges carry their bytes.
    pub link: LinkKind,
    /// Bytes of the largest step.
    pub largest: u64,
    /// Answered once the outgoing edge is open.
    pub done: oneshot::Sender<Result<(), Failure>>,
}

/// See [`Command::Fetch`].
#[derive(Debug)]
pub struct Fetch {
    /// The epoch that the row belongs to.
    pub epoch: u64,
    /// The step that computed it.
    pub step: u64,
    /// Its sequence.
    pub sequence: u64,
    /// Its position.
    pub position: usize,
    /// Whether the raw row is wanted too.
    pub raw_too: bool,
    /// The row.
    pub done: oneshot::Sender<Result<WholeRow, Failure>>,
}

/// The device thread's own.
#[derive(Debug)]
pub struct DeviceThread {
    /// The device.
    pub machine: Machine,
    /// What it has room for.
    pub room: Room,
    /// From the service; the thread ends when they end.
    pub commands: mpsc::Receiver<Command>,
}

enum Next {
    Command(Command),
    Plan(StepPlan),
    /// The oldest step under way is done.
    Finish,
    /// A step could not be begun.
    Broken(StepError),
    EpochOver,
    End,
}

impl DeviceThread {
    /// Works until the commands end.
    ///
    /// # Errors
    /// The device has failed.
    pub fn run(mut self) -> Result<(), TensorError> {
        let mut reign: Option<Reign> = None;
        let mut drained: Option<oneshot::Sender<()>> = None;
        loop {
            if drained.is_some() && reign.as_ref().is_none_or(Reign::is_idle) {
                if let Some(reign) = reign.take() {
                    reign.epoch.end(Failure::new(Reason::Unavailable, "the shard was drained"));
                }
                // Nobody may wait for the answer any more.
                let _ = drained.take().map(|done| done.send(()));
            }
            match self.next(reign.as_mut()) {
                Next::Command(Command::Join(join)) => {
                    // What belongs to the epoch before is freed before the new one begins.
                    drop(reign.take());
                    reign = self.join(join);
                }
                Next::Command(Command::Fetch(fetch)) => {
                    let answer = self.fetch(reign.as_ref(), &fetch);
                    let _ = fetch.done.send(answer);
                }
                Next::Command(Command::Drain(done)) => drained = Some(done),
                Next::Plan(plan) => settle(&mut reign, |reign| reign.begin(&mut self.machine, plan))?,
                Next::Finish => settle(&mut reign, |reign| reign.finish(&self.machine))?,
                Next::Broken(error) => settle(&mut reign, |_| Err(error))?,
                Next::EpochOver => reign = None,
                Next::End => return Ok(()),
            }
        }
    }

    /// Waits for what is next.
    fn next(&mut self, reign: Option<&mut Reign>) -> Next {
        let Self { machine, commands, .. } = self;
        let command = |command: Option<Command>| command.map_or(Next::End, Next::Command);
        let Some(reign) = reign else {
            return command(machine.runtime.block_on(commands.recv()));
        };
        let start = Instant::now();
        if reign.is_busy() {
            let next = beside(machine, commands, reign);
            reign.clock.add(Doing::Computing, start.elapsed());
            return next;
        }
        if is_ahead(&machine.stage)
            && let Some(next) = soon(commands, reign)
        {
            reign.clock.add(Doing::WaitingForPlan, start.elapsed());
            return next;
        }
        reign.awake = None;
        let Reign { epoch, plans, clock, .. } = reign;
        let next = machine.runtime.block_on(async {
            tokio::select! {
                biased;
                given = commands.recv() => command(given),
                _ = epoch.over() => Next::EpochOver,
                plan = plans.recv() => plan.map_or(Next::EpochOver, Next::Plan),
            }
        });
        clock.add(Doing::WaitingForPlan, start.elapsed());
        next
    }

    /// Opens the edge to the next stage and begins the epoch.
    fn join(&self, join: Join) -> Option<Reign> {
        let Join { epoch, ends, downstream, link, largest, done } = join;
        let DeviceEnd { plans, reports, receiver } = ends;
        let runtime = &self.machine.runtime;
        let opened = downstream.map(|address| {
            let peer = Peer { address, registry: self.machine.registry.clone() };
            let edge = Edge {
                holder: epoch.holder.clone(),
                credits: epoch.steps_in_flight,
                largest,
                cancel: epoch.ended(),
            };
            // On the runtime's own threads: opening spawns tasks and uses timers.
            let opening = runtime.spawn(async move { link.open(&peer, edge, EDGE_DEADLINE).await });
            runtime
                .block_on(opening)
                .map_err(|error| Failure::new(Reason::Internal, error.to_string()))?
                .map_err(|error| Failure::new(Reason::Unavailable, error.to_string()))
        });
        let sender = match opened.transpose() {
            Ok(sender) => sender,
            Err(why) => {
                epoch.end(why.clone());
                let _ = done.send(Err(why));
                return None;
            }
        };
        for end in [sender.as_ref().map(|edge| edge.end()), receiver.as_ref().map(|edge| edge.end())] {
            let Some(end) = end.cloned() else { continue };
            let epoch = Arc::clone(&epoch);
            runtime.spawn(async move { epoch.end(Epoch::edge_failure(&end.wait().await)) });
        }
        let sequences = Sequences::new(epoch.holder.epoch, self.room);
        // A driver that gave up waiting is noticed by its `Run`, or that it opens none.
        let _ = done.send(Ok(()));
        Some(Reign {
            epoch,
            plans,
            reports,
            receiver,
            sender,
            sequences,
            clock: StageClock::default(),
            staged: None,
            under_way: VecDeque::new(),
            awake: None,
        })
    }

    fn fetch(&mut self, reign: Option<&Reign>, fetch: &Fetch) -> Result<WholeRow, Failure> {
        let refused = |reason, message: String| Err(Failure::new(reason, message));
        let Some(rows) = &mut self.machine.logits else {
            return refused(Reason::FailedPrecondition, "only the last stage has logits".to_owned());
        };
        let Some(reign) = reign.filter(|reign| reign.epoch.holder.epoch == fetch.epoch) else {
            return refused(Reason::FailedPrecondition, format!("epoch {} is over", fetch.epoch));
        };
        let Fetch { step, sequence, position, .. } = *fetch;
        let known = reign.sequences.get(sequence).zip(reign.sequences.kept(step, sequence, position));
        let Some((owner, kept)) = known else {
            let row = format!("position {position} of sequence {sequence} in step {step}");
            return refused(Reason::NotFound, format!("no row is kept of {row}"));
        };
        let ids = owner.context(position).unwrap_or_default();
        let context = Context { setting: &kept.setting, ids, prompt_len: owner.prompt_len };
        let device = self.machine.stage.device();
        let mut row = |context| {
            let row = rows.fetch(device, kept.slot, context);
            row.map_err(|error| Failure::new(Reason::Internal, error.to_string()))
        };
        let processed = row(Some(context))?;
        let raw = if fetch.raw_too { row(None)? } else { bytes::Bytes::new() };
        Ok(WholeRow { processed, raw })
    }
}

/// What the service asks by now.
fn asked(commands: &mut mpsc::Receiver<Command>) -> Option<Next> {
    match commands.try_recv() {
        Ok(command) => Some(Next::Command(command)),
        Err(mpsc::error::TryRecvError::Disconnected) => Some(Next::End),
        Err(mpsc::error::TryRecvError::Empty) => None,
    }
}

/// What is next while a step is under way.
fn beside(machine: &mut Machine, commands: &mut mpsc::Receiver<Command>, reign: &mut Reign) -> Next {
    loop {
        if reign.epoch.is_over() {
            return Next::EpochOver;
        }
        if reign.is_done() {
            return Next::Finish;
        }
        if let Some(asked) = asked(commands) {
            return asked;
        }
        match reign.ready(machine) {
            Ok(Some(plan)) => return Next::Plan(plan),
            Ok(None) => {}
            Err(error) => return Next::Broken(error),
        }
        for _ in 0..IDLE_TURNS {
            std::hint::spin_loop();
        }
        std::thread::yield_now();
    }
}

/// What is next, if it comes within [`SOON`]: a card that has nothing to do should not also wait for a thread to wake.
fn soon(commands: &mut mpsc::Receiver<Command>, reign: &mut Reign) -> Option<Next> {
    let start = Instant::now();
    while start.elapsed() < SOON {
        if reign.epoch.is_over() {
            return Some(Next::EpochOver);
        }
        if let Some(asked) = asked(commands) {
            return Some(asked);
        }
        match reign.plans.try_recv() {
            Ok(plan) => return Some(Next::Plan(plan)),
            Err(mpsc::error::TryRecvError::Disconnected) => return Some(Next::EpochOver),
            Err(mpsc::error::TryRecvError::Empty) => {}
        }
        for _ in 0..IDLE_TURNS {
            std::hint::spin_loop();
        }
        // Where cores are few, whoever makes the plan may need this one.
        std::thread::yield_now();
    }
    None
}

/// Does a part of a step. What goes wrong ends the epoch; a failure of the device is given on.
fn settle(
    reign: &mut Option<Reign>,
    part: impl FnOnce(&mut Reign) -> Result<(), StepError>,
) -> Result<(), TensorError> {
    let Some(reign) = reign else { return Ok(()) };
    match part(reign) {
        Ok(()) => Ok(()),
        Err(StepError::Epoch(why)) => {
            reign.epoch.end(why);
            Ok(())
        }
        Err(StepError::Device(error)) => {
            reign.epoch.end(Failure::new(Reason::Unavailable, format!("the device has failed: {error}")));
            Err(error)
        }
    }
}
