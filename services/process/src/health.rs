//! `grpc.health.v1`: one entry per service name, the empty name for the whole process, and [`LIVENESS`].

use tonic_health::ServingStatus;
use tonic_health::pb::health_server::{Health as HealthRpc, HealthServer};
use tonic_health::server::HealthReporter;

/// The entry that says SERVING as long as the process answers, ready or not: a probe that restarts processes asks for it.
pub const LIVENESS: &str = "liveness";

/// Tells probes whether the process is ready.
#[derive(Clone, Debug)]
pub struct Health {
    reporter: HealthReporter,
    services: &'static [&'static str],
}

impl Health {
    /// Health of the named gRPC services, not ready at first, and the server that answers probes.
    pub async fn new(services: &'static [&'static str]) -> (Self, HealthServer<impl HealthRpc>) {
        let (reporter, server) = tonic_health::server::health_reporter();
        let health = Self { reporter, services };
        health.set(ServingStatus::NotServing).await;
        health.reporter.set_service_status(LIVENESS, ServingStatus::Serving).await;
        (health, server)
    }

    /// From now on every entry says SERVING.
    pub async fn ready(&self) {
        self.set(ServingStatus::Serving).await;
    }

    /// From now on every entry says NOT_SERVING.
    pub async fn not_ready(&self) {
        self.set(ServingStatus::NotServing).await;
    }

    async fn set(&self, status: ServingStatus) {
        self.reporter.set_service_status("", status).await;
        for service in self.services {
            self.reporter.set_service_status(*service, status).await;
        }
    }
}
