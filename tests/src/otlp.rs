//! An OTLP receiver: gets the spans that this process exports.

use std::sync::Arc;

use asterism_process::listen::{bind, loopback};
use asterism_process::trace::{self, Export};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};

/// Spans that may wait to be looked at.
const WAITING: usize = 1 << 16;

/// A receiver at work. There can be one in a process, and it gets the spans of all that the process runs.
pub struct Receiver {
    export: Arc<Export>,
    received: mpsc::Receiver<Span>,
}

struct Service(mpsc::Sender<Span>);

impl Receiver {
    /// Listens, and has this process export to it.
    pub async fn start() -> Self {
        let (listener, address) = bind(loopback(0)).await.expect("a port");
        let (sender, received) = mpsc::channel(WAITING);
        let server =
            tonic::transport::Server::builder().add_service(TraceServiceServer::new(Service(sender)));
        tokio::spawn(server.serve_with_incoming(asterism_process::channel::incoming(listener)));
        let export = trace::export(&format!("http://{address}")).expect("the only one of this process");
        Self { export: Arc::new(export), received }
    }

    /// Takes spans in until they are all that is waited for.
    pub async fn until(&mut self, complete: impl Fn(&[Span]) -> bool) -> Vec<Span> {
        let mut spans = Vec::new();
        while !complete(&spans) {
            let export = Arc::clone(&self.export);
            let flushed = tokio::task::spawn_blocking(move || export.flush()).await;
            flushed.expect("no panic").expect("the receiver is there");
            while let Ok(span) = self.received.try_recv() {
                spans.push(span);
            }
        }
        spans
    }
}

#[tonic::async_trait]
impl TraceService for Service {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for resource in request.into_inner().resource_spans {
            for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                self.0.try_send(span).map_err(|_| Status::unavailable("nobody looks at so many spans"))?;
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}
