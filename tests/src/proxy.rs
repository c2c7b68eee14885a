//! A bad link: a TCP proxy on this machine, between sites and the aggregator, that is slow, late, and broken when it is told.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// Bytes that are passed on in one go.
const PIECE: usize = 16 << 10;

/// The same on a line that has a rate: what one packet carries.
const PACKET: usize = 1460;

/// So long a sleep may last too long, which the next packets make good.
const OVERSLEPT: Duration = Duration::from_millis(5);

/// Pieces that may be on their way in the proxy: more than HTTP/2 lets anybody send unasked.
const PIECES: usize = 2048;

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the site to the aggregator.
    Up,
    /// From the aggregator to the site.
    Down,
}

/// How a link breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Break {
    /// Its connections are closed, and new ones are refused.
    Cut,
    /// Bytes are swallowed and nobody is told. A connection that lost some never recovers.
    BlackHole,
}

/// A break that comes by itself.
#[derive(Debug, Clone, Copy)]
pub struct Outage {
    /// It begins when so many bytes have come, counted from when it was planned.
    pub after: u64,
    /// Bytes of this way.
    pub way: Way,
    /// What happens.
    pub how: Break,
    /// How long new connections suffer too.
    pub lasts: Duration,
}

/// How a link is while it is not broken.
#[derive(Debug, Clone, Copy, Default)]
pub struct Link {
    /// How late bytes are.
    pub delay: Duration,
    /// Bytes a second from the site, `None` for any number.
    pub up: Option<u64>,
    /// Bytes a second to the site.
    pub down: Option<u64>,
}

impl Link {
    fn rate(&self, way: Way) -> Option<u64> {
        if way == Way::Up { self.up } else { self.down }
    }
}

#[derive(Debug)]
struct State {
    link: Mutex<Link>,
    /// What is planned, with the absolute count of bytes at which it comes.
    planned: Mutex<VecDeque<Outage>>,
    broken: watch::Sender<Option<Break>>,
    sent: [AtomicU64; 2],
    delivered: [AtomicU64; 2],
    connections: AtomicU64,
}

/// The proxy; its connections end when it goes.
#[derive(Debug)]
pub struct Proxy {
    runtime: Option<Runtime>,
    address: SocketAddr,
    state: Arc<State>,
}

impl Proxy {
    /// A perfect link to `https://localhost:port`.
    ///
    /// # Errors
    /// The address has no port, or no port is free.
    pub fn start(target: &str) -> anyhow::Result<Self> {
        let port: u16 = target.rsplit_once(':').context("no port")?.1.parse()?;
        let target = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
        let address = listener.local_addr()?;
        let state = Arc::new(State {
            link: Mutex::default(),
            planned: Mutex::default(),
            broken: watch::Sender::new(None),
            sent: Default::default(),
            delivered: Default::default(),
            connections: AtomicU64::new(0),
        });
        runtime.spawn(listen(state.clone(), listener, address, target));
        Ok(Self { runtime: Some(runtime), address, state })
    }

    /// `https://localhost:port`, where sites find it.
    pub fn address(&self) -> String {
        format!("https://localhost:{}", self.address.port())
    }

    /// Makes the link slow or late from here on.
    pub fn set(&self, link: Link) {
        *lock(&self.state.link) = link;
    }

    /// Plans outages, one after the other.
    pub fn plan(&self, outages: impl IntoIterator<Item = Outage>) {
        let from_now = |outage: Outage| Outage { after: outage.after + self.sent(outage.way), ..outage };
        lock(&self.state.planned).extend(outages.into_iter().map(from_now));
    }

    /// Outages that have not come yet.
    pub fn outages_left(&self) -> usize {
        lock(&self.state.planned).len()
    }

    /// Breaks the link until it is mended.
    pub fn fail(&self, how: Break) {
        self.state.broken.send_replace(Some(how));
    }

    /// Lets new connections through again.
    pub fn mend(&self) {
        self.state.broken.send_replace(None);
    }

    /// Bytes that one side sent, with all that TLS and HTTP/2 add.
    pub fn sent(&self, way: Way) -> u64 {
        self.state.sent[way as usize].load(Ordering::Relaxed)
    }

    /// Bytes that were given to the other side.
    pub fn delivered(&self, way: Way) -> u64 {
        self.state.delivered[way as usize].load(Ordering::Relaxed)
    }

    /// Connections that were made.
    pub fn connections(&self) -> u64 {
        self.state.connections.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    /// Counts bytes that came, and begins the outage that they bring.
    fn count(self: &Arc<Self>, way: Way, bytes: usize) {
        let sent = self.sent[way as usize].fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64;
        let mut planned = lock(&self.planned);
        if let Some(outage) = planned.pop_front_if(|outage| outage.way == way && outage.after <= sent) {
            self.broken.send_replace(Some(outage.how));
            let state = self.clone();
            tokio::spawn(async move {
                tokio::time::sleep(outage.lasts).await;
                state.broken.send_replace(None);
            });
        }
    }

    fn is_black_hole(&self) -> bool {
        *self.broken.borrow() == Some(Break::BlackHole)
    }
}

/// Waits until the link is cut, or is not.
async fn until_cut(state: &State, cut: bool) {
    // The sender is in the state.
    let _ = state.broken.subscribe().wait_for(|how| (*how == Some(Break::Cut)) == cut).await;
}

async fn listen(state: Arc<State>, first: TcpListener, address: SocketAddr, target: SocketAddr) -> io::Result<()> {
    let mut listener = first;
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                tokio::spawn(connection(state.clone(), accepted?.0, target));
                continue;
            }
            () = until_cut(&state, true) => {}
        }
        // Nobody listens: the system refuses.
        drop(listener);
        until_cut(&state, false).await;
        listener = TcpListener::bind(address).await?;
    }
}

async fn connection(state: Arc<State>, site: TcpStream, target: SocketAddr) -> io::Result<()> {
    state.connections.fetch_add(1, Ordering::Relaxed);
    let aggregator = TcpStream::connect(target).await?;
    site.set_nodelay(true)?;
    aggregator.set_nodelay(true)?;
    let ((from_site, to_site), (from_aggregator, to_aggregator)) = (site.into_split(), aggregator.into_split());
    let lost = AtomicBool::new(false);
    tokio::select! {
        () = until_cut(&state, true) => {}
        _ = async { tokio::join!(
            pass(&state, Way::Up, from_site, to_aggregator, &lost),
            pass(&state, Way::Down, from_aggregator, to_site, &lost),
        ) } => {}
    }
    Ok(())
}

/// Passes on the bytes of one way. `lost` is whether the connection has lost some.
async fn pass(state: &Arc<State>, way: Way, mut from: OwnedReadHalf, mut to: OwnedWriteHalf, lost: &AtomicBool) {
    let (sender, mut receiver) = mpsc::channel::<(Instant, Vec<u8>)>(PIECES);
    let taking = async move {
        let mut free = Instant::now();
        loop {
            let limited = lock(&state.link).rate(way).is_some();
            let mut piece = vec![0; if limited { PACKET } else { PIECE }];
            let Ok(length @ 1..) = from.read(&mut piece).await else { break };
            piece.truncate(length);
            state.count(way, length);
            if state.is_black_hole() {
                lost.store(true, Ordering::Relaxed);
            }
            if lost.load(Ordering::Relaxed) {
                continue;
            }
            let link = *lock(&state.link);
            if let Some(rate) = link.rate(way) {
                free = free.max(Instant::now() - OVERSLEPT) + Duration::from_secs_f64(length as f64 / rate as f64);
                tokio::time::sleep_until(free).await;
            }
            if sender.send((Instant::now() + link.delay, piece)).await.is_err() {
                break;
            }
        }
        if lost.load(Ordering::Relaxed) {
            // Nobody hears of the end either.
            std::future::pending::<()>().await;
        }
    };
    let giving = async {
        while let Some((at, piece)) = receiver.recv().await {
            tokio::time::sleep_until(at).await;
            if state.is_black_hole() {
                lost.store(true, Ordering::Relaxed);
            }
            if !lost.load(Ordering::Relaxed) && to.write_all(&piece).await.is_ok() {
                state.delivered[way as usize].fetch_add(piece.len() as u64, Ordering::Relaxed);
            }
        }
        let _ = to.shutdown().await;
    };
    tokio::join!(taking, giving);
}
