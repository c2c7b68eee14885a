//! Around every call: whether it is taken at all, how long it took and how it was answered.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use hyper::{Request, Response};
use tonic::{Code, Status};
use tower::Service;

use super::drain::Drain;
use crate::metrics::Metrics;

/// A service whose calls are counted.
#[derive(Debug, Clone)]
pub(super) struct Calls<S> {
    pub(super) inner: S,
    pub(super) metrics: Metrics,
    pub(super) drain: Drain,
}

impl<S, B, R> Service<Request<B>> for Calls<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    R: Default + Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let entered = match self.drain.enter() {
            Ok(entered) => entered,
            Err(stopping) => return Box::pin(std::future::ready(Ok(stopping.into_http()))),
        };
        let (began, path, metrics) = (Instant::now(), request.uri().path().to_owned(), self.metrics.clone());
        let answer = self.inner.call(request);
        Box::pin(async move {
            let response = answer.await?;
            drop(entered);
            let code = Status::from_header_map(response.headers()).map_or(Code::Ok, |status| status.code());
            // Whoever is let in may ask for any path; one that exists is never answered like this.
            let method = if code == Code::Unimplemented { "other" } else { path.trim_start_matches('/') };
            metrics.call(method, code, began.elapsed());
            Ok(response)
        })
    }
}
