//! Who may drive this shard: epochs as fencing numbers. Pure: the time is an argument.
//!
//! Only a greater epoch is ever accepted. While a holder lives, another driver gets in only by taking over; a driver's own
//! greater epoch always does. Whoever is not the present holder is refused, also the holder of an epoch that is over.

use std::time::{Duration, Instant};

use asterism_proto::shard::v1::Holder;
use asterism_proto::{Failure, Reason};

/// How long a holder that has joined lives without opening its `Run`.
pub const JOIN_GRACE: Duration = Duration::from_secs(5);

/// The present holder, if there ever was one.
#[derive(Debug, Default)]
pub struct Fence {
    held: Option<Held>,
}

#[derive(Debug)]
struct Held {
    holder: Holder,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// No `Run` yet.
    Joined {
        /// When it joined.
        at: Instant,
    },
    /// Its `Run` is open.
    Running,
    /// Its epoch has ended.
    Over,
}

/// A driver that wants the shard.
#[derive(Clone, Debug)]
pub struct Claim {
    /// Its epoch and id.
    pub holder: Holder,
    /// Whether it takes the shard from another driver that lives.
    pub take_over: bool,
}

/// Why a driver is not obeyed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// No driver names itself so.
    #[error("epoch {epoch} of driver {driver_id:?} names nobody")]
    Nobody {
        /// As sent.
        epoch: u64,
        /// As sent.
        driver_id: String,
    },
    /// Not greater than the present epoch.
    #[error("epoch {found} is not above epoch {epoch}")]
    Stale {
        /// As claimed.
        found: u64,
        /// The present one.
        epoch: u64,
    },
    /// Another driver's, which lives.
    #[error("held by driver {driver_id} in epoch {epoch}")]
    Held {
        /// Of the holder.
        driver_id: String,
        /// Its epoch.
        epoch: u64,
    },
    /// Not the present holder.
    #[error("epoch {found} of driver {driver_id} is not the present one ({})", present(*epoch))]
    Foreign {
        /// As sent.
        found: u64,
        /// As sent.
        driver_id: String,
        /// The present epoch, if there is one.
        epoch: Option<u64>,
    },
    /// The present holder's epoch has ended.
    #[error("epoch {epoch} is over")]
    Over {
        /// The epoch.
        epoch: u64,
    },
    /// A second `Run` of an epoch.
    #[error("epoch {epoch} has its Run already")]
    RunsAlready {
        /// The epoch.
        epoch: u64,
    },
}

fn present(epoch: Option<u64>) -> String {
    epoch.map_or_else(|| "there is none".to_owned(), |epoch| format!("that is {epoch}"))
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        let reason = match refused {
            Refused::Nobody { .. } => return Failure::invalid("holder", refused.to_string()),
            _ => Reason::FailedPrecondition,
        };
        Failure::new(reason, refused.to_string())
    }
}

impl Fence {
    /// Makes `claim` the present holder, or leaves all as it is.
    ///
    /// # Errors
    /// The claim is too old, or another holder lives.
    pub fn claim(&mut self, claim: &Claim, now: Instant) -> Result<(), Refused> {
        let Holder { epoch: found, ref driver_id } = claim.holder;
        if found == 0 || driver_id.is_empty() {
            return Err(Refused::Nobody { epoch: found, driver_id: driver_id.clone() });
        }
        if let Some(held) = &self.held {
            let Holder { epoch, driver_id: ref present } = held.holder;
            // Told first: a driver that lost the shard wants to know who has it.
            if present != driver_id && held.lives(now) && !claim.take_over {
                return Err(Refused::Held { driver_id: present.clone(), epoch });
            }
            if found <= epoch {
                return Err(Refused::Stale { found, epoch });
            }
        }
        self.held = Some(Held { holder: claim.holder.clone(), phase: Phase::Joined { at: now } });
        Ok(())
    }

    /// The present holder opens its one `Run`.
    ///
    /// # Errors
    /// It is not the present holder, or has opened it before.
    pub fn open_run(&mut self, holder: &Holder) -> Result<(), Refused> {
        self.check(holder)?;
        match &mut self.held {
            Some(Held { phase: Phase::Running, .. }) => Err(Refused::RunsAlready { epoch: holder.epoch }),
            Some(held) => {
                held.phase = Phase::Running;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Whether `holder` is the present one and its epoch goes on.
    ///
    /// # Errors
    /// It is not.
    pub fn check(&self, holder: &Holder) -> Result<(), Refused> {
        match &self.held {
            Some(held) if held.holder == *holder => match held.phase {
                Phase::Over => Err(Refused::Over { epoch: holder.epoch }),
                Phase::Joined { .. } | Phase::Running => Ok(()),
            },
            held => Err(Refused::Foreign {
                found: holder.epoch,
                driver_id: holder.driver_id.clone(),
                epoch: held.as_ref().map(|held| held.holder.epoch),
            }),
        }
    }

    /// The present epoch has ended.
    pub fn end(&mut self) {
        if let Some(held) = &mut self.held {
            held.phase = Phase::Over;
        }
    }

    /// The present holder, whether it lives or not.
    pub fn holder(&self) -> Option<&Holder> {
        self.held.as_ref().map(|held| &held.holder)
    }

    /// Whether the present holder lives.
    pub fn lives(&self, now: Instant) -> bool {
        self.held.as_ref().is_some_and(|held| held.lives(now))
    }
}

impl Held {
    fn lives(&self, now: Instant) -> bool {
        match self.phase {
            Phase::Joined { at } => now.saturating_duration_since(at) < JOIN_GRACE,
            Phase::Running => true,
            Phase::Over => false,
        }
    }
}

#[cfg(test)]
mod tests;
