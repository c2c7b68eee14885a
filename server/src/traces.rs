//! What is traced: a round with the strategy's pass in it, and those calls that move bytes, report a result or hold a
//! session. With the feature `otel`, `log.otlp` says where the spans are sent.

#[cfg(feature = "otel")]
mod otlp;

use std::collections::BTreeMap;

use tracing::{Span, info_span};
use tracing_subscriber::{Layer, Registry};

use crate::log::LogError;
use crate::round::Phase;

/// The spans of the rounds that are open, by job.
#[derive(Debug, Default)]
pub struct Rounds(BTreeMap<String, Open>);

#[derive(Debug)]
struct Open {
    round: u32,
    attempt: u32,
    span: Span,
}

impl Rounds {
    /// What a job's machine has become: begins the span of an attempt at a round, and ends that of the one before.
    pub fn transition(&mut self, job: &str, after: &Phase) {
        let now = match after {
            Phase::Training { round, attempt, .. } | Phase::Aggregating { round, attempt, .. } => {
                Some((*round, *attempt))
            }
            Phase::Evaluating { record, .. } => Some((record.round, record.attempt)),
            _ => None,
        };
        if self.0.get(job).map(|open| (open.round, open.attempt)) == now {
            return;
        }
        self.0.remove(job);
        if let Some((round, attempt)) = now {
            let span = info_span!(parent: None, "round", job, round, attempt);
            self.0.insert(job.to_owned(), Open { round, attempt, span });
        }
    }

    /// The span of the pass over the updates of a job's open round.
    pub fn aggregation(&self, job: &str, round: u32, attempt: u32) -> Span {
        let of = self.0.get(job).and_then(|open| open.span.id());
        info_span!(parent: of, "aggregation", job, round, attempt)
    }
}

/// The span that one is in, until this is dropped. By itself it would end when it was last left.
#[derive(Debug)]
pub struct Lasting(Span);

impl Lasting {
    /// The span of who calls.
    pub fn current() -> Self {
        Self(Span::current())
    }
}

impl Drop for Lasting {
    fn drop(&mut self) {
        drop(self.0.enter());
    }
}

/// What sees the spans and sends them.
pub(crate) type Sending = Box<dyn Layer<Registry> + Send + Sync>;

/// Spans on their way to where `log.otlp` says; nothing if nothing is sent.
#[derive(Debug, Default)]
pub struct Traces {
    #[cfg(feature = "otel")]
    provider: Option<opentelemetry_sdk::trace::SdkTracerProvider>,
}

impl Traces {
    /// Begins to send, from within a runtime, to a collector that speaks OTLP over gRPC.
    #[cfg(feature = "otel")]
    pub(crate) fn send_to(endpoint: &str) -> Result<(Sending, Self), LogError> {
        let (sending, provider) = otlp::send_to(endpoint)?;
        Ok((sending, Self { provider: Some(provider) }))
    }

    /// This program cannot.
    #[cfg(not(feature = "otel"))]
    pub(crate) fn send_to(_endpoint: &str) -> Result<(Sending, Self), LogError> {
        Err(LogError::NoTraces)
    }

    /// Sends what has ended and was not sent yet, for a short time.
    pub async fn flush(self) {
        #[cfg(feature = "otel")]
        if let Some(provider) = self.provider {
            otlp::flush(provider).await;
        }
    }
}

#[cfg(test)]
mod tests;
