//! Connections on their way in: accepted, and not yet known by a certificate. Who says nothing, or says it byte by byte,
//! is closed after the limit of a handshake; and of those who wait at once the oldest go first, so that they hold a
//! bounded part of the aggregator and keep nobody out.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::{Stream, stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::{Connected, TcpConnectInfo};
use tracing::warn;

/// Connections in their handshake at once. One that goes its way takes a few round trips.
const HANDSHAKES_MAX: usize = 256;
/// After the system refused to accept one, as when there are no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Those in their handshake, by when they came.
#[derive(Debug, Clone, Default)]
struct Waiting(Arc<Mutex<Queue>>);

#[derive(Debug, Default)]
struct Queue {
    next: u64,
    turned_away: BTreeMap<u64, CancellationToken>,
}

impl Waiting {
    /// Takes one more; if they are too many now, the oldest is turned away.
    fn enter(&self, stream: TcpStream) -> Entering {
        let token = CancellationToken::new();
        let mut queue = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let number = queue.next;
        queue.next += 1;
        queue.turned_away.insert(number, token.clone());
        if queue.turned_away.len() > HANDSHAKES_MAX
            && let Some((_, oldest)) = queue.turned_away.pop_first()
        {
            oldest.cancel();
        }
        drop(queue);
        Entering { stream, number, turned_away: Box::pin(token.cancelled_owned()), waiting: self.clone() }
    }

    fn leave(&self, number: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).turned_away.remove(&number);
    }
}

/// Accepts connections, without end.
pub(super) fn connections(listener: TcpListener) -> impl Stream<Item = io::Result<Entering>> {
    stream::unfold((listener, Waiting::default()), |(listener, waiting)| async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    // Of a connection that is gone already, reading will tell.
                    let _ = stream.set_nodelay(true);
                    return Some((Ok(waiting.enter(stream)), (listener, waiting)));
                }
                Err(e) => {
                    warn!("a connection to listen.address cannot be accepted: {e}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    })
}

/// A connection that may be turned away until its handshake is done.
#[derive(Debug)]
pub(super) struct Entering {
    stream: TcpStream,
    number: u64,
    turned_away: Pin<Box<WaitForCancellationFutureOwned>>,
    waiting: Waiting,
}

impl Connected for Entering {
    type ConnectInfo = TcpConnectInfo;

    /// Asked for once, when the handshake is done: from here on it cannot be turned away.
    fn connect_info(&self) -> TcpConnectInfo {
        self.waiting.leave(self.number);
        self.stream.connect_info()
    }
}

impl Drop for Entering {
    fn drop(&mut self) {
        self.waiting.leave(self.number);
    }
}

impl AsyncRead for Entering {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        // A handshake waits for nothing but bytes.
        if read.is_pending() && self.turned_away.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
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
