//! Connections on their way in: accepted, and not yet known by a certificate, or known and not heard since. Who says
//! nothing, or says it byte by byte, is closed after a limit; and of those who wait at once the oldest go first, so that they
//! hold a bounded part of the aggregator and keep nobody out.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::{Stream, stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Sleep, sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::{Connected, TcpConnectInfo};
use tracing::warn;

/// Connections on their way in at once. One that goes its way takes a few round trips.
const ENTERING_MAX: usize = 256;
/// After the system refused to accept one, as when there are no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Those on their way in, by when they came.
#[derive(Debug, Clone, Default)]
struct Waiting(Arc<Mutex<Queue>>);

#[derive(Debug, Default)]
struct Queue {
    next: u64,
    turned_away: BTreeMap<u64, CancellationToken>,
}

impl Waiting {
    /// Takes one more; if they are too many now, the oldest is turned away.
    fn enter(&self, stream: TcpStream, limit: Duration) -> Entering {
        let token = CancellationToken::new();
        let mut queue = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let number = queue.next;
        queue.next += 1;
        queue.turned_away.insert(number, token.clone());
        if queue.turned_away.len() > ENTERING_MAX
            && let Some((_, oldest)) = queue.turned_away.pop_first()
        {
            oldest.cancel();
        }
        drop(queue);
        let turned_away = Box::pin(token.cancelled_owned());
        let place = Place { waiting: self.clone(), number, turned_away, limit: Box::pin(sleep(limit)) };
        Entering { stream, place: Some(place), known: AtomicBool::new(false) }
    }
}

/// The place of one that is on its way in.
#[derive(Debug)]
struct Place {
    waiting: Waiting,
    number: u64,
    turned_away: Pin<Box<WaitForCancellationFutureOwned>>,
    limit: Pin<Box<Sleep>>,
}

impl Place {
    /// Whether it has been given up.
    fn poll_lost(&mut self, context: &mut Context<'_>) -> Poll<io::ErrorKind> {
        if self.turned_away.as_mut().poll(context).is_ready() {
            return Poll::Ready(io::ErrorKind::ConnectionAborted);
        }
        self.limit.as_mut().poll(context).map(|()| io::ErrorKind::TimedOut)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.waiting.0.lock().unwrap_or_else(PoisonError::into_inner).turned_away.remove(&self.number);
    }
}

/// Accepts connections, without end; each has so long to come in.
pub(super) fn connections(listener: TcpListener, limit: Duration) -> impl Stream<Item = io::Result<Entering>> {
    stream::unfold((listener, Waiting::default()), move |(listener, waiting)| async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    // Of a connection that is gone already, reading will tell.
                    let _ = stream.set_nodelay(true);
                    return Some((Ok(waiting.enter(stream, limit)), (listener, waiting)));
                }
                Err(e) => {
                    warn!("a connection to listen.address cannot be accepted: {e}");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    })
}

/// A connection that may be given up until it is in: its handshake is done, and bytes have come since.
#[derive(Debug)]
pub(super) struct Entering {
    stream: TcpStream,
    /// `None` once it is in.
    place: Option<Place>,
    /// Whether the handshake is done.
    known: AtomicBool,
}

impl Connected for Entering {
    type ConnectInfo = TcpConnectInfo;

    /// Asked for once, when the handshake is done.
    fn connect_info(&self) -> TcpConnectInfo {
        self.known.store(true, Ordering::Relaxed);
        self.stream.connect_info()
    }
}

impl AsyncRead for Entering {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        // It waits for nothing but bytes: those of the handshake, and at least one answer to our settings of HTTP/2.
        if let Some(place) = &mut self.place {
            if let (Poll::Pending, Poll::Ready(lost)) = (&read, place.poll_lost(context)) {
                return Poll::Ready(Err(lost.into()));
            }
            if buffer.filled().len() > before && *self.known.get_mut() {
                self.place = None;
            }
        }
        read
    }
}

impl AsyncWrite for Entering {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }
}
