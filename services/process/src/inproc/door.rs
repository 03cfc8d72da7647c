//! A shard's `Run`, for a driver in the same process: plans and reports are handed over as they are.
//!
//! A step is a plan and its reports, and a card has nothing to do until they have come. Over a connection, also one through
//! memory, each is encoded, framed and decoded, and the thread for the shard's calls has to run in between, which takes longer
//! than all that the driver does. Through this door a plan goes straight to the thread that owns the device, and the driver's
//! own task takes up what that thread reports. All else is as over a connection, by the same code: who is obeyed, what is
//! refused and with which status, and that either side's end ends the epoch.

use std::fmt;
use std::sync::Arc;

use asterism_proto::shard::v1::{Holder, RunResponse, StepPlan};
use futures::stream::BoxStream;
use tonic::Status;

use super::{Listener, Registry, SCHEME};

/// A shard's `Run` without a connection.
pub trait RunDoor: fmt::Debug + Send + Sync {
    /// Opens the call, as its opening message does. What the answers wait for, time too, is waited for in the caller's runtime.
    ///
    /// # Errors
    /// The shard's refusal, as over a connection.
    fn open(&self, holder: &Holder) -> Result<RunCall, Status>;
}

/// An open call. Dropping either half ends the epoch.
pub struct RunCall {
    /// To the shard.
    pub plans: PlanIntake,
    /// From the shard: that it is open, reports and beats; at last why the epoch ended.
    pub responses: BoxStream<'static, Result<RunResponse, Status>>,
}

/// Takes plans. One that is refused, also because it is one too many, ends the epoch, which the responses tell.
pub type PlanIntake = Box<dyn Fn(StepPlan) + Send>;

impl Registry {
    /// The door at this address, if somebody listens there who has one.
    pub fn run_door(&self, address: &str) -> Option<Arc<dyn RunDoor>> {
        let name = address.strip_prefix(SCHEME)?;
        self.servers().get(name)?.run_door.clone()
    }
}

impl Listener {
    /// Lets drivers of the registry in by this door too, as long as the listener lives.
    pub fn set_run_door(&self, door: Arc<dyn RunDoor>) {
        if let Some(server) = self.registry.servers().get_mut(&self.name) {
            server.run_door = Some(door);
        }
    }
}

impl fmt::Debug for RunCall {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("RunCall")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lets nobody in.
    #[derive(Debug)]
    struct Shut;

    impl RunDoor for Shut {
        fn open(&self, holder: &Holder) -> Result<RunCall, Status> {
            Err(Status::failed_precondition(format!("not {}", holder.driver_id)))
        }
    }

    #[test]
    fn a_door_is_its_listeners_and_goes_with_it() {
        let registry = Registry::default();
        let listener = registry.listen("a").unwrap();
        assert!(registry.run_door("inproc:a").is_none(), "it has none");
        listener.set_run_door(Arc::new(Shut));
        let holder = Holder { epoch: 1, driver_id: "b".to_owned() };
        let refused = registry.run_door("inproc:a").unwrap().open(&holder).unwrap_err();
        assert_eq!(refused.message(), "not b");
        for elsewhere in ["a", "inproc:b", "127.0.0.1:1"] {
            assert!(registry.run_door(elsewhere).is_none(), "{elsewhere}");
        }
        drop(listener);
        let _next = registry.listen("a").unwrap();
        assert!(registry.run_door("inproc:a").is_none(), "the next one's door is its own");
    }
}
