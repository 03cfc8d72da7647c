//! One epoch as it runs: its end, which everything waits for, and the ends of its channels.

use std::sync::{Mutex, OnceLock, PoisonError};

use asterism_link::{Acceptor, Edge, LinkError, LinkKind, Receiver};
use asterism_proto::shard::v1::{Holder, StepPlan, StepReport};
use asterism_proto::{Failure, Reason};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// An epoch, as the calls that belong to it share it with the device thread.
#[derive(Debug)]
pub struct Epoch {
    /// Whose it is.
    pub holder: Holder,
    /// F.
    pub steps_in_flight: u32,
    ended: CancellationToken,
    why: OnceLock<Failure>,
    run: Mutex<Option<RunEnd>>,
    acceptor: Mutex<Option<Acceptor>>,
}

/// What a `Run` call holds.
#[derive(Debug)]
pub struct RunEnd {
    /// F + 1 plans can be queued.
    pub plans: mpsc::Sender<StepPlan>,
    /// Reports of all steps.
    pub reports: mpsc::Receiver<StepReport>,
}

/// What the device thread holds.
#[derive(Debug)]
pub struct DeviceEnd {
    /// Plans as they came.
    pub plans: mpsc::Receiver<StepPlan>,
    /// Reports of all steps.
    pub reports: mpsc::Sender<StepReport>,
    /// From the stage before; `None` on the first stage.
    pub receiver: Option<Receiver>,
}

/// What an epoch is made of.
#[derive(Clone, Debug)]
pub struct EpochSpec {
    /// Whose it is.
    pub holder: Holder,
    /// F.
    pub steps_in_flight: u32,
    /// Bytes of the largest step on an edge.
    pub largest: u64,
    /// Whether there is a stage before this one.
    pub has_upstream: bool,
    /// How edges carry their bytes.
    pub link: LinkKind,
}

impl Epoch {
    /// An epoch that begins.
    pub fn begin(spec: EpochSpec) -> (Self, DeviceEnd) {
        let EpochSpec { holder, steps_in_flight, largest, has_upstream, link } = spec;
        let room = steps_in_flight as usize + 1;
        let (plans, queued) = mpsc::channel(room);
        let (reported, reports) = mpsc::channel(room);
        let ended = CancellationToken::new();
        let edge = Edge { holder: holder.clone(), credits: steps_in_flight, largest, cancel: ended.clone() };
        let (acceptor, receiver) = if has_upstream { Some(link.accept(edge)) } else { None }.unzip();
        let epoch = Self {
            holder,
            steps_in_flight,
            ended,
            why: OnceLock::new(),
            run: Mutex::new(Some(RunEnd { plans, reports })),
            acceptor: Mutex::new(acceptor),
        };
        (epoch, DeviceEnd { plans: queued, reports: reported, receiver })
    }

    /// The epoch ends now; the first reason counts.
    pub fn end(&self, why: Failure) {
        if self.why.set(why).is_ok() {
            let Holder { epoch, driver_id } = &self.holder;
            let why = self.why.get().map(|why| why.message.as_str()).unwrap_or_default();
            tracing::info!(epoch, driver_id, why, "epoch over");
        }
        self.ended.cancel();
    }

    /// Whether it has ended.
    pub fn is_over(&self) -> bool {
        self.ended.is_cancelled()
    }

    /// Returns once the epoch has ended: why.
    pub async fn over(&self) -> Failure {
        self.ended.cancelled().await;
        self.why.get().cloned().unwrap_or_else(|| Failure::new(Reason::Internal, "the epoch is over"))
    }

    /// Cancelled when the epoch ends.
    pub fn ended(&self) -> CancellationToken {
        self.ended.clone()
    }

    /// The channels of the one `Run` call.
    pub fn take_run(&self) -> Option<RunEnd> {
        self.run.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// What the one `Activations` call goes to.
    pub fn take_acceptor(&self) -> Option<Acceptor> {
        self.acceptor.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The failure that an edge's end means for its epoch.
    pub fn edge_failure(error: &LinkError) -> Failure {
        let reason = match error {
            LinkError::Frame(_) => Reason::InvalidArgument,
            LinkError::StepSize { .. } => Reason::Internal,
            _ => Reason::Unavailable,
        };
        Failure::new(reason, error.to_string())
    }
}
