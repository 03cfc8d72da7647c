//! Metrics for Prometheus: how a registry is written and served. What is counted, each service says itself.

use std::sync::Arc;

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// OpenMetrics, which Prometheus has read since 2.5; gauges and histograms are as in its older text format.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A registry as an answer to a scrape.
pub fn exposition(registry: &Registry) -> Response {
    let mut text = String::new();
    match encode(&mut text, registry) {
        Ok(()) => ([(CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(std::fmt::Error) => axum::http::StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// Serves `/metrics` and nothing else until `stop`.
///
/// # Errors
/// The socket failed.
pub async fn serve(
    listener: TcpListener,
    registry: Arc<Registry>,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let router = Router::new().route("/metrics", get(move || async move { exposition(&registry) }));
    axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await
}
