//! What one site may take: streams open at once, bytes and calls a second. Who is too fast is slowed down first, and
//! refused only where that would take long, so that a sound client sees no refusal.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use fedtune_config::server::Limits;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

use crate::pki::{Identity, Role};

/// A call that would have to wait longer is refused.
const WAIT_MAX: Duration = Duration::from_secs(5);
/// What may come at once, in seconds of the rate.
const BURST: f64 = 2.0;

/// The limits, and what each site has taken. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct SiteLimits(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    streams: u32,
    bytes: u64,
    calls: u32,
    sites: Mutex<HashMap<String, Site>>,
}

/// One site. There are no more of them than certificates were issued.
#[derive(Debug)]
struct Site {
    streams: Arc<Semaphore>,
    bytes: Bucket,
    calls: Bucket,
}

impl SiteLimits {
    pub(super) fn new(limits: &Limits) -> Self {
        let Limits { streams_per_site: streams, bytes_per_second: bytes, calls_per_second: calls, .. } = *limits;
        Self(Arc::new(Shared { streams, bytes, calls, sites: Mutex::default() }))
    }

    /// What a site has taken; nothing is counted of operators.
    fn site<T>(&self, identity: &Identity, take: impl FnOnce(&mut Site) -> T) -> Option<T> {
        if identity.role == Role::Operator {
            return None;
        }
        let Shared { streams, bytes, calls, sites } = &*self.0;
        let mut sites = sites.lock().unwrap_or_else(PoisonError::into_inner);
        let site = sites.entry(identity.name.clone()).or_insert_with(|| {
            let now = Instant::now();
            Site {
                streams: Arc::new(Semaphore::new(*streams as usize)),
                bytes: Bucket::new(*bytes as f64, now),
                calls: Bucket::new(f64::from(*calls), now),
            }
        });
        Some(take(site))
    }

    /// The right to a stream for as long as the permit lives.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED: too many are open.
    pub(super) fn stream(&self, identity: &Identity) -> Result<Option<OwnedSemaphorePermit>, Status> {
        let taken = self.site(identity, |site| site.streams.clone().try_acquire_owned());
        taken.transpose().map_err(|_| {
            exhausted(
                &format!("{} has {} streams open (limits.streams_per_site)", identity.name, self.0.streams),
                WAIT_MAX,
            )
        })
    }

    /// Waits until the site's rate allows a call.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED: it would be long.
    pub(super) async fn call(&self, identity: &Identity) -> Result<(), Status> {
        let wait = self.site(identity, |site| site.calls.take_within(1.0, WAIT_MAX, Instant::now()));
        match wait.unwrap_or(Ok(Duration::ZERO)) {
            Ok(wait) => {
                pause(wait).await;
                Ok(())
            }
            Err(wait) => {
                let Identity { name, .. } = identity;
                Err(exhausted(
                    &format!("{name} makes more than {} calls a second (limits.calls_per_second)", self.0.calls),
                    wait,
                ))
            }
        }
    }

    /// Waits until the site's rate allows for so many bytes that have moved.
    pub(super) async fn bytes(&self, identity: &Identity, bytes: usize) {
        let wait = self.site(identity, |site| site.bytes.take(bytes as f64, Instant::now()));
        pause(wait.unwrap_or_default()).await;
    }
}

async fn pause(wait: Duration) {
    if !wait.is_zero() {
        tokio::time::sleep(wait).await;
    }
}

/// A refusal that says when to come again, in words and as gRPC clients read it.
fn exhausted(reason: &str, wait: Duration) -> Status {
    let mut status =
        Status::new(Code::ResourceExhausted, format!("{reason}; try again in {:.1} s", wait.as_secs_f64()));
    let millis = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
    status.metadata_mut().insert("grpc-retry-pushback-ms", MetadataValue::from(millis));
    status
}

/// A token bucket that lends: what is taken beyond its content is waited for.
#[derive(Debug)]
struct Bucket {
    /// Tokens a second; 0 is no limit.
    rate: f64,
    /// Tokens now; below zero they are owed.
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    fn new(rate: f64, now: Instant) -> Self {
        Self { rate, tokens: rate * BURST, filled: now }
    }

    fn fill(&mut self, now: Instant) {
        let since = now.saturating_duration_since(self.filled).as_secs_f64();
        self.tokens = (self.tokens + since * self.rate).min(self.rate * BURST);
        self.filled = self.filled.max(now);
    }

    /// The wait for so many tokens if they were taken now.
    fn wait(&self, tokens: f64) -> Duration {
        let owed = tokens - self.tokens;
        if self.rate <= 0.0 || owed <= 0.0 { Duration::ZERO } else { Duration::from_secs_f64(owed / self.rate) }
    }

    /// Takes tokens. Gives how long to wait for them.
    fn take(&mut self, tokens: f64, now: Instant) -> Duration {
        self.fill(now);
        let wait = self.wait(tokens);
        self.tokens -= tokens;
        wait
    }

    /// The same where the wait is short; otherwise takes nothing and gives the wait.
    fn take_within(&mut self, tokens: f64, longest: Duration, now: Instant) -> Result<Duration, Duration> {
        self.fill(now);
        let wait = self.wait(tokens);
        if wait > longest {
            return Err(wait);
        }
        self.tokens -= tokens;
        Ok(wait)
    }
}

#[cfg(test)]
mod tests;
