//! Spans reach an OTLP receiver over a real socket.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use asterism_process::listen::{bind, loopback};
use asterism_process::trace::{self, ExportError, Part, TraceContext, Tracer};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};

struct Receiver(mpsc::Sender<ExportTraceServiceRequest>);

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.send(request.into_inner()).await.map_err(|_| Status::unavailable("nobody looks"))?;
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spans_go_out_with_their_parents_and_no_others() {
    let (listener, address) = bind(loopback(0)).await.unwrap();
    let (sender, mut received) = mpsc::channel(8);
    let incoming = asterism_process::channel::incoming(listener);
    let server = tonic::transport::Server::builder().add_service(TraceServiceServer::new(Receiver(sender)));
    tokio::spawn(server.serve_with_incoming(incoming));

    let error = trace::export("no address").unwrap_err();
    assert!(matches!(error, ExportError::Endpoint { .. }), "{error}");
    let endpoint = format!("http://{address}");
    let export = trace::export(&endpoint).unwrap();
    assert!(matches!(trace::export(&endpoint), Err(ExportError::Twice)));

    let tracer = Tracer::new("asterism.test");
    let caller = TraceContext::parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
    let not_sampled = TraceContext::parse("00-4bf92f3577b34da6a3ce929d0e0e4737-00f067aa0ba902b7-00");
    assert!(tracer.start("request", Part::Served, &not_sampled).is_none());
    let mut request = tracer.start("request", Part::Served, &caller).expect("a sampled caller");
    let mut step = tracer.start("step", Part::Within, &request.context()).expect("a recorded parent");
    step.set("rows", 7_i64);
    request.fail("CANCELLED");
    drop(step);
    drop(request);
    tokio::task::spawn_blocking(move || export.flush()).await.unwrap().unwrap();

    let mut spans = Vec::new();
    while spans.len() < 2 {
        for resource in received.recv().await.expect("spans").resource_spans {
            for scope in resource.scope_spans {
                assert_eq!(scope.scope.expect("a scope").name, "asterism.test");
                spans.extend(scope.spans);
            }
        }
    }
    let [step, request] = &*spans else { panic!("{spans:?}") };
    assert_eq!((step.name.as_str(), request.name.as_str()), ("step", "request"));
    assert_eq!(request.trace_id, 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736_u128.to_be_bytes());
    assert_eq!(request.parent_span_id, 0x00f0_67aa_0ba9_02b7_u64.to_be_bytes());
    assert_eq!((&step.trace_id, &step.parent_span_id), (&request.trace_id, &request.span_id));
    assert_eq!(request.status.as_ref().expect("a status").message, "CANCELLED");
    assert_eq!(step.attributes[0].key, "rows");
}
