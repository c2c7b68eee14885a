//! What monitoring asks, in plain HTTP: `/livez`, `/readyz`, `/metrics`. It tells no secret and takes no order: GET alone, no
//! body, one request a connection, and each connection for a short time.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tracing::{debug, warn};

use crate::coordinator::Handle;
use crate::health::Health;
use crate::metrics::{self, Metrics};

/// Connections served at once; others wait to be accepted.
const CONNECTIONS_MAX: usize = 32;
/// The request line and headers, in bytes.
const HEADERS_MAX: usize = 8 << 10;
/// From its acceptance to its end.
const CONNECTION_TIME: Duration = Duration::from_secs(5);
/// After the system refused to accept one, as when there are no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const METRICS: HeaderValue = HeaderValue::from_static(metrics::CONTENT_TYPE);
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// What the answers are made of.
#[derive(Debug, Clone)]
pub struct Operations {
    /// For readiness.
    pub health: Health,
    /// For liveness.
    pub coordinator: Handle,
    /// What is counted.
    pub metrics: Metrics,
}

impl Operations {
    /// Answers until it is dropped.
    pub async fn serve(self, listener: TcpListener) -> Infallible {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let place = places.clone().acquire_owned().await;
            match listener.accept().await {
                Ok((stream, _)) => {
                    let operations = self.clone();
                    tokio::spawn(async move {
                        operations.connection(stream).await;
                        drop(place);
                    });
                }
                Err(e) => {
                    warn!("a connection to listen.http cannot be accepted: {e}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn connection(self, stream: TcpStream) {
        let service = service_fn(|request| std::future::ready(Ok::<_, Infallible>(self.answer(&request))));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(CONNECTION_TIME)
            .max_buf_size(HEADERS_MAX)
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), service);
        match tokio::time::timeout(CONNECTION_TIME, connection).await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => debug!("a connection to listen.http failed: {e}"),
            Err(_) => debug!("a connection to listen.http took longer than {} s", CONNECTION_TIME.as_secs()),
        }
    }

    fn answer<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        if request.method() != Method::GET {
            let mut response = response(StatusCode::METHOD_NOT_ALLOWED, TEXT, "expected GET\n");
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
            return response;
        }
        match request.uri().path() {
            // What a restart would mend. A disk that fails is not.
            "/livez" if self.coordinator.is_gone() => {
                response(StatusCode::SERVICE_UNAVAILABLE, TEXT, "the coordinator has ended\n")
            }
            "/livez" => response(StatusCode::OK, TEXT, "alive\n"),
            "/readyz" => {
                let report = self.health.reports().borrow().clone();
                let status = if report.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
                response(status, JSON, serde_json::to_string(&report).unwrap_or_default() + "\n")
            }
            "/metrics" => response(StatusCode::OK, METRICS, self.metrics.render()),
            path => {
                let path: String = path.chars().take(64).collect();
                response(
                    StatusCode::NOT_FOUND,
                    TEXT,
                    format!("nothing is at {path}; there are /livez, /readyz and /metrics\n"),
                )
            }
        }
    }
}

fn response(status: StatusCode, kind: HeaderValue, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests;
