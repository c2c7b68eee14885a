//! Around every call: whose it is, whether and when it is taken, how long it took and how it was answered.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use hyper::{Request, Response};
use tonic::{Code, Status};
use tower::Service;
use tracing::field::Empty;
use tracing::{Instrument, error_span};

use super::drain::Drain;
use super::identity;
use super::limits::SiteLimits;
use crate::metrics::{Direction, Metrics};
use crate::pki::Role;

/// A service whose calls are counted.
#[derive(Debug, Clone)]
pub(super) struct Calls<S> {
    pub(super) inner: S,
    pub(super) metrics: Metrics,
    pub(super) drain: Drain,
    pub(super) limits: SiteLimits,
}

impl<S, B, R> Service<Request<B>> for Calls<S>
where
    S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    B: Send + 'static,
    R: Default + Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let entered = match self.drain.enter() {
            Ok(entered) => entered,
            Err(stopping) => return Box::pin(std::future::ready(Ok(stopping.into_http()))),
        };
        let (began, path, metrics) = (Instant::now(), request.uri().path().to_owned(), self.metrics.clone());
        // An error, so that it is there whatever level is logged. Who knows the job and the round records them.
        let span = error_span!("call", method = path, site = Empty, operator = Empty, job = Empty, round = Empty);
        let identity = identity::of_connection(request.extensions());
        if let Some(identity) = &identity {
            let field = if identity.role == Role::Operator { "operator" } else { "site" };
            span.record(field, identity.name.as_str());
            request.extensions_mut().insert(identity.clone());
        }
        // The clone takes the place of the service that was made ready.
        let ready = self.inner.clone();
        let (mut inner, limits) = (std::mem::replace(&mut self.inner, ready), self.limits.clone());
        let answer = async move {
            if let Some(identity) = &identity
                && let Err(refused) = limits.call(identity).await
            {
                return Ok(refused.into_http());
            }
            inner.call(request).await
        };
        Box::pin(async move {
            let response = answer.instrument(span).await?;
            drop(entered);
            let code = Status::from_header_map(response.headers()).map_or(Code::Ok, |status| status.code());
            // Whoever is let in may ask for any path; one that exists is never answered like this.
            let method = if code == Code::Unimplemented { "other" } else { path.trim_start_matches('/') };
            // Transfers are counted when they end.
            let begun = code == Code::Ok && [Direction::Up, Direction::Down].map(Direction::method).contains(&method);
            if !begun {
                metrics.call(method, code, began.elapsed());
            }
            Ok(response)
        })
    }
}
