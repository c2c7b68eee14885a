//! Spans in OpenTelemetry's protocol, over gRPC. They are sent by a thread of their own out of a bounded queue, so nothing
//! waits for the collector; where it is away they are lost.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry::trace::{Link, SpanKind, TraceContextExt, TraceId, TraceState, TracerProvider};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    SamplingDecision, SamplingResult, SdkTracerProvider, ShouldSample, SpanData, SpanExporter,
};
use tracing::{info, warn};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;

use super::Sending;
use crate::log::LogError;

/// For what is left when the aggregator stops.
const FLUSH_TIME: Duration = Duration::from_secs(3);

/// The calls that are worth a span; the others are short and many.
const CALLS: [&str; 4] = ["/Upload", "/Download", "/ReportResult", "/OpenSession"];

pub(super) fn send_to(endpoint: &str) -> Result<(Sending, SdkTracerProvider), LogError> {
    let exporter = opentelemetry_otlp::SpanExporter::builder().with_tonic().with_endpoint(endpoint).build();
    let exporter = exporter.map_err(|e| LogError::Endpoint { endpoint: endpoint.into(), reason: e.to_string() })?;
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let provider = SdkTracerProvider::builder()
        .with_resource(Resource::builder().with_service_name("fedtune-server").with_attribute(version).build())
        .with_sampler(Worthwhile)
        .with_batch_exporter(SaidOnce { exporter, endpoint: endpoint.into(), away: AtomicBool::new(false) })
        .build();
    let ours = filter_fn(|of| of.is_span() && of.target().starts_with("fedtune_server"));
    let layer = tracing_opentelemetry::layer()
        .with_tracer(provider.tracer("fedtune-server"))
        .with_location(false)
        .with_threads(false)
        .with_tracked_inactivity(false)
        .with_context_activation(false);
    Ok((layer.with_filter(ours).boxed(), provider))
}

pub(super) async fn flush(provider: SdkTracerProvider) {
    // What could not be sent has been said.
    let _ = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(FLUSH_TIME)).await;
}

/// Everything but the calls that are not worth it.
#[derive(Debug, Clone)]
struct Worthwhile;

impl ShouldSample for Worthwhile {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        _: TraceId,
        name: &str,
        _: &SpanKind,
        attributes: &[KeyValue],
        _: &[Link],
    ) -> SamplingResult {
        let method = attributes.iter().find(|attribute| attribute.key.as_str() == "method");
        let method = method.map(|method| method.value.as_str()).unwrap_or_default();
        let worthwhile = name != "call" || CALLS.iter().any(|call| method.ends_with(call));
        SamplingResult {
            decision: if worthwhile { SamplingDecision::RecordAndSample } else { SamplingDecision::Drop },
            attributes: Vec::new(),
            trace_state: parent.map_or_else(TraceState::default, |of| of.span().span_context().trace_state().clone()),
        }
    }
}

/// An exporter that says when the collector goes away and when it is back, and not each time.
#[derive(Debug)]
pub(super) struct SaidOnce<E> {
    pub(super) exporter: E,
    pub(super) endpoint: String,
    pub(super) away: AtomicBool,
}

impl<E: SpanExporter> SpanExporter for SaidOnce<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let sent = self.exporter.export(batch).await;
        match (&sent, self.away.swap(sent.is_err(), Ordering::Relaxed)) {
            (Err(e), false) => {
                let endpoint = &self.endpoint;
                warn!(endpoint, "traces cannot be sent where log.otlp says, and are lost until they can: {e}");
            }
            (Ok(()), true) => info!(endpoint = self.endpoint, "traces are sent again"),
            _ => {}
        }
        sent
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

#[cfg(test)]
mod tests;
