//! Who this gateway is to the database: a row with a lease, which it renews.
//!
//! While its row is there, the turns that run under it are its own. Once its lease is over, any other gateway that claims turns
//! removes the row; that is the fence, as every step of a turn needs it. A gateway that finds itself without one goes on under
//! another name, and what ran under the one before is no longer its own.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sqlx::postgres::PgPool;
use sqlx::{PgConnection, query, query_scalar};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::connections::{Server, within_a_call};
use super::error::Failure;

/// How often the lease is renewed before it would be over.
const RENEWALS: u32 = 3;
/// The shortest time between two.
const SHORTEST: Duration = Duration::from_millis(50);
/// How long it may take to say that this gateway leaves.
const LEAVING: Duration = Duration::from_secs(1);

/// A gateway's row.
#[derive(Debug)]
pub struct Gateway {
    id: Mutex<Uuid>,
    /// Held while a new name is made, so that one is.
    registering: tokio::sync::Mutex<()>,
    /// Its own, so that no number of steps keeps it from renewing.
    pool: PgPool,
    renewal: Duration,
}

impl Gateway {
    /// A new one.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn register(server: &Server, connection: &mut PgConnection) -> Result<Self, Failure> {
        query("SELECT sweep()").execute(&mut *connection).await?;
        let lease = query_scalar::<_, i64>("SELECT (extract(epoch FROM lease()) * 1000)::bigint");
        let lease = lease.fetch_one(&mut *connection).await?;
        let renewal = Duration::from_millis(u64::try_from(lease).unwrap_or_default()) / RENEWALS;
        let id = Uuid::now_v7();
        query("SELECT register($1)").bind(id).execute(connection).await?;
        let (id, registering, pool) = (Mutex::new(id), tokio::sync::Mutex::default(), server.pool(1));
        Ok(Self { id, registering, pool, renewal: renewal.max(SHORTEST) })
    }

    /// Its name now.
    pub fn id(&self) -> Uuid {
        *self.id.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes another name in the place of one that was given up.
    ///
    /// # Errors
    /// [`Failure`]; it has the name that it had.
    pub async fn rename(&self, given_up: Uuid) -> Result<(), Failure> {
        let _one = self.registering.lock().await;
        if self.id() != given_up {
            return Ok(());
        }
        let id = Uuid::now_v7();
        let registered = async { Ok(query("SELECT register($1)").bind(id).execute(&self.pool).await?) };
        within_a_call(registered).await?;
        *self.id.lock().unwrap_or_else(PoisonError::into_inner) = id;
        tracing::warn!("this gateway was taken for dead: others go on with its turns");
        Ok(())
    }

    /// Renews the lease until the gateway leaves, and then gives its turns up.
    pub async fn keep(self: std::sync::Arc<Self>, left: CancellationToken) {
        let mut renewals = tokio::time::interval(self.renewal);
        renewals.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = left.cancelled() => break,
                _ = renewals.tick() => {}
            }
            tokio::select! {
                () = left.cancelled() => break,
                renewed = within_a_call(self.renew()) => if let Err(failure) = renewed {
                    tracing::warn!(?failure, "the lease on running turns cannot be renewed now");
                }
            }
        }
        let leave = query("DELETE FROM gateways WHERE id = $1").bind(self.id()).execute(&self.pool);
        if !matches!(tokio::time::timeout(LEAVING, leave).await, Ok(Ok(_))) {
            tracing::warn!("it cannot be said that this gateway leaves; its lease ends by itself");
        }
    }

    /// Renews once.
    #[cfg(test)]
    pub async fn keep_once(&self) {
        assert!(self.renew().await.is_ok());
    }

    async fn renew(&self) -> Result<(), Failure> {
        let id = self.id();
        let is_there = query_scalar::<_, bool>("SELECT renew($1)").bind(id).fetch_one(&self.pool).await?;
        if is_there { Ok(()) } else { self.rename(id).await }
    }
}
