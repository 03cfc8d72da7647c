//! Spans of requests and steps, exported by OTLP, and the W3C Trace Context that ties those of several processes together.
//!
//! Spans are for what a request waits for, not for what it says: they carry names, counts and times, no text. Log lines
//! are not exported. Unless an endpoint was given, [`Tracer::start`] returns nothing and costs one load.

use std::borrow::Cow;
use std::sync::OnceLock;
use std::time::SystemTime;

use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanContext, SpanKind, Status, TraceContextExt as _, TraceFlags, Tracer as _,
    TracerProvider as _,
};
use opentelemetry::{Context, KeyValue, Value};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};

/// Set once, for the whole process.
static PROVIDER: OnceLock<SdkTracerProvider> = OnceLock::new();

/// Why spans cannot be exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The endpoint is none that can be dialled.
    #[error("cannot export spans to {endpoint:?}: {message}")]
    Endpoint {
        /// As given.
        endpoint: String,
        /// What is wrong with it.
        message: String,
    },
    /// The process exports already.
    #[error("spans are exported already")]
    Twice,
}

/// That spans of this process are exported; tells the receiver the last of them when it is dropped.
#[derive(Debug)]
pub struct Export {
    provider: SdkTracerProvider,
}

/// Where a span belongs: its trace and the span above it. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct TraceContext(Option<SpanContext>);

/// Starts the spans of one part of the system.
#[derive(Clone, Debug)]
pub struct Tracer(Option<SdkTracer>);

/// A span that is recorded. It ends when it is dropped.
#[derive(Debug)]
pub struct Span(opentelemetry_sdk::trace::Span);

/// Which part of a trace a span is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// What a caller asked for.
    Served,
    /// Work within a service.
    Within,
}

/// Exports the spans of this process to an OTLP receiver over gRPC (`http://host:4317`), in the background. A receiver that does
/// not answer loses spans, never requests. Sampling, limits and the resource follow the standard `OTEL_*` variables.
///
/// Must be called within a runtime that outlives the [`Export`].
///
/// # Errors
/// The endpoint is no address, or the process exports already.
pub fn export(endpoint: &str) -> Result<Export, ExportError> {
    let exporter = SpanExporter::builder().with_tonic().with_endpoint(endpoint).build().map_err(|error| {
        ExportError::Endpoint { endpoint: endpoint.to_owned(), message: error.to_string() }
    })?;
    let provider =
        SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource()).build();
    PROVIDER.set(provider.clone()).map_err(|_| ExportError::Twice)?;
    Ok(Export { provider })
}

/// Who the spans are from.
fn resource() -> Resource {
    let named = std::env::var_os("OTEL_SERVICE_NAME").is_some();
    let builder = Resource::builder();
    if named { builder.build() } else { builder.with_service_name("asterism").build() }
}

// === impl Export ===

impl Export {
    /// Sends what is recorded and waits for it. Blocks: not for a thread that serves others.
    ///
    /// # Errors
    /// The receiver did not take it.
    pub fn flush(&self) -> Result<(), String> {
        self.provider.force_flush().map_err(|error| error.to_string())
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        if let Err(error) = self.provider.shutdown() {
            tracing::warn!(%error, "the last spans were not exported");
        }
    }
}

// === impl TraceContext ===

/// Whether a `traceparent` is as long as its version wants it, which the propagator does not look at.
fn is_whole(traceparent: &str) -> bool {
    let traceparent = traceparent.trim();
    traceparent.len() == 55 || (traceparent.len() > 55 && !traceparent.starts_with("00"))
}

/// What the propagator may ask for.
struct Headers<'h> {
    traceparent: &'h str,
    tracestate: Option<&'h str>,
}

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        match key {
            "traceparent" => Some(self.traceparent),
            "tracestate" => self.tracestate,
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        vec!["traceparent", "tracestate"]
    }
}

impl TraceContext {
    /// What a caller's two headers say, by the W3C recommendation; none where they say nothing valid.
    pub fn of_headers(traceparent: Option<&str>, tracestate: Option<&str>) -> Self {
        let Some(traceparent) = traceparent.filter(|header| is_whole(header)) else { return Self::default() };
        let headers = Headers { traceparent, tracestate };
        let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &headers);
        let found = context.span().span_context().clone();
        Self(found.is_valid().then_some(found))
    }

    /// What a `traceparent` alone says; none if it is empty or not valid.
    pub fn parse(traceparent: &str) -> Self {
        Self::of_headers(Some(traceparent), None)
    }

    /// As a `traceparent`; empty where there is none.
    pub fn traceparent(&self) -> String {
        self.0.as_ref().map_or_else(String::new, |context| {
            let flags = context.trace_flags() & TraceFlags::SAMPLED;
            format!("00-{}-{}-{flags:02x}", context.trace_id(), context.span_id())
        })
    }

    /// Whether there is none.
    pub fn is_none(&self) -> bool {
        self.0.is_none()
    }
}

// === impl Tracer ===

impl Tracer {
    /// For a part of the system, by its name.
    pub fn new(part: &'static str) -> Self {
        Self(PROVIDER.get().map(|provider| provider.tracer(part)))
    }

    /// Whether spans are exported.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Begins a span below another. `None`: nothing is exported, or the trace is not sampled.
    pub fn start(
        &self,
        name: impl Into<Cow<'static, str>>,
        part: Part,
        above: &TraceContext,
    ) -> Option<Span> {
        self.start_at(name, (part, above), SystemTime::now())
    }

    /// Begins a span at a time that has passed.
    pub fn start_at(
        &self,
        name: impl Into<Cow<'static, str>>,
        (part, above): (Part, &TraceContext),
        at: SystemTime,
    ) -> Option<Span> {
        let tracer = self.0.as_ref()?;
        let kind = match part {
            Part::Served => SpanKind::Server,
            Part::Within => SpanKind::Internal,
        };
        let above =
            above.0.clone().map_or_else(Context::new, |above| Context::new().with_remote_span_context(above));
        let builder = SpanBuilder::from_name(name).with_kind(kind).with_start_time(at);
        let span = tracer.build_with_context(builder, &above);
        span.is_recording().then_some(Span(span))
    }
}

// === impl Span ===

impl Span {
    /// For spans below this one.
    pub fn context(&self) -> TraceContext {
        TraceContext(Some(self.0.span_context().clone()))
    }

    /// Notes a number or a name.
    pub fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        self.0.set_attribute(KeyValue::new(key, value));
    }

    /// Notes that it belongs to another trace too.
    pub fn link(&mut self, other: &TraceContext) {
        if let Some(other) = &other.0 {
            self.0.add_link(other.clone(), Vec::new());
        }
    }

    /// Marks it as failed, with the kind of failure.
    pub fn fail(&mut self, kind: &'static str) {
        self.0.set_attribute(KeyValue::new("error.type", kind));
        self.0.set_status(Status::error(kind));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_traceparent_is_written_as_it_is_read() {
        assert_eq!(TraceContext::parse(PARENT).traceparent(), PARENT);
        assert_eq!(TraceContext::default().traceparent(), "");
        let unknown_flags = PARENT.replace("-01", "-0b");
        assert_eq!(TraceContext::parse(&unknown_flags).traceparent(), PARENT);
    }

    #[test]
    fn what_is_not_valid_is_none() {
        let zero = "00-00000000000000000000000000000000-00f067aa0ba902b7-01";
        let upper = PARENT.to_uppercase();
        for text in ["", "00", "hello", &PARENT[..54], &PARENT.replace("00-", "ff-"), zero, &upper, "é-é-é-é"]
        {
            assert!(TraceContext::parse(text).is_none(), "{text:?}");
        }
    }

    #[test]
    fn nothing_is_recorded_unless_it_is_exported() {
        let tracer = Tracer::new("test");
        assert!(!tracer.is_on());
        assert!(tracer.start("request", Part::Served, &TraceContext::parse(PARENT)).is_none());
    }
}
