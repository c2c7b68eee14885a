//! A site's life in a federation: one outbound session, one task at a time, an outbox.
//!
//! Read in this order: [`run`] (connects again and again), `tasks` (what a directive sets going), `work` (the computing,
//! which knows no network), `encode` (an update made smaller), `outbox` and `states` (what is on disk), `hold` (who may write
//! there), `calls` (unary calls that are repeated until they succeed).

mod calls;
mod capabilities;
mod encode;
mod error;
mod hold;
mod outbox;
mod states;
mod tasks;
mod work;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use fedtune_config::SiteConfig;
use fedtune_proto::channel::{self, ChannelError, Credentials};
use fedtune_proto::v1::directive::Kind;
use fedtune_proto::v1::federation_client::FederationClient;
use fedtune_proto::v1::{Close, Directive, HeartbeatRequest, OpenSessionRequest, Welcome};
use fedtune_proto::{MESSAGE_BYTES_MAX, version};
use tokio::sync::watch;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tracing::{info, warn};

use calls::Backoff;
pub use error::SessionError;
use tasks::Tasks;

/// How long a session that does not answer any more is listened to for why.
const FAREWELL: Duration = Duration::from_secs(1);

/// This program and its version, as it tells its peers.
pub const PROGRAM: &str = concat!("fedtune-client ", env!("CARGO_PKG_VERSION"));

/// Takes part in a federation until SIGTERM or Ctrl-C, or until the aggregator refuses this site for good. A link that
/// breaks, or an aggregator that is away, is waited for.
///
/// # Errors
/// The configuration is wrong, or the aggregator refuses the site.
pub fn run(config: &Path) -> Result<(), SessionError> {
    let config: SiteConfig = fedtune_config::load(config)?;
    // The one provider of this program, whatever its dependencies link; an embedding program may have chosen before.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    for file in [&config.data.train, &config.data.test].into_iter().flatten() {
        std::fs::File::open(file).map_err(|source| SessionError::File { path: file.clone(), source })?;
    }
    let device = crate::device::open(&config.device)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(SessionError::Runtime)?;
    let site = Arc::new(work::Site { config, device });
    let ended = runtime.block_on(async {
        let mut terminate =
            tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).map_err(SessionError::Runtime)?;
        tokio::select! {
            ended = live(site) => ended,
            _ = terminate.recv() => Ok(()),
            _ = tokio::signal::ctrl_c() => Err(SessionError::Interrupted),
        }
    });
    // A computation in progress is not waited for: its task is offered again.
    runtime.shutdown_background();
    ended
}

async fn live(site: Arc<work::Site>) -> Result<(), SessionError> {
    let aggregator = &site.config.aggregator;
    let credentials = Credentials::read(&aggregator.bundle, "site")?;
    let capabilities = capabilities::of(&site)?;
    let (session, sessions) = watch::channel(String::new());
    let mut backoff = Backoff::default();
    let mut connected: Option<(Channel, Tasks)> = None;
    loop {
        let (link, tasks) = match &mut connected {
            Some(connected) => connected,
            None => match credentials.connect_within(&aggregator.address, aggregator.timeout.0).await {
                // The channel dials again by itself from here on.
                Ok(channel) => {
                    let tasks = Tasks::new(site.clone(), channel.clone(), sessions.clone());
                    connected.insert((channel, tasks))
                }
                Err(error @ (ChannelError::Malformed { .. } | ChannelError::Bundle { .. })) => return Err(error.into()),
                Err(ChannelError::Connect { address, reason }) => {
                    if channel::is_refusal(&reason) {
                        return Err(SessionError::Refused { address, reason: channel::explained(&reason) });
                    }
                    warn!("{address}: cannot connect: {reason}; trying again in {}", backoff.next_in());
                    backoff.wait().await;
                    continue;
                }
            },
        };
        let request = OpenSessionRequest {
            protocol: Some(version::PROTOCOL),
            program: PROGRAM.into(),
            capabilities: Some(capabilities.clone()),
        };
        let ended = follow(link, request, tasks, &session, &mut backoff).await;
        let (reason, for_good) = match ended {
            Ended::Final(reason) => (reason, true),
            // Once the aggregator was there, what answers in its place, or a clock, may be wrong for a while.
            Ended::Refused(reason) => (reason, session.borrow().is_empty()),
            Ended::Broken(reason) => (reason, false),
        };
        if for_good {
            let address = aggregator.address.clone();
            return Err(SessionError::Refused { address, reason: channel::explained(&reason) });
        }
        warn!("session ended: {reason}; connecting again in {}", backoff.next_in());
        backoff.wait().await;
    }
}

enum Ended {
    /// Worth another try.
    Broken(String),
    /// By TLS, of the other side or by it.
    Refused(String),
    /// By the aggregator.
    Final(String),
}

/// One session, from its opening to its end.
async fn follow(
    channel: &Channel,
    request: OpenSessionRequest,
    tasks: &mut Tasks,
    session: &watch::Sender<String>,
    backoff: &mut Backoff,
) -> Ended {
    let mut client = FederationClient::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let mut directives = match client.open_session(request).await {
        Ok(stream) => stream.into_inner(),
        Err(status) => return ended_by(&status),
    };
    let welcome = match directives.message().await {
        Ok(Some(directive)) => match directive.kind {
            Some(Kind::Welcome(welcome)) => welcome,
            _ => return Ended::Broken("the aggregator did not say welcome".into()),
        },
        Ok(None) => return Ended::Broken("the aggregator closed the stream".into()),
        Err(status) => return ended_by(&status),
    };
    let Welcome { protocol, program, session: id, site, role, heartbeat_millis } = welcome;
    if let Err(e) = version::check(&program, protocol) {
        return Ended::Final(e.to_string());
    }
    info!(site, role, aggregator = program, "session open");
    *backoff = Backoff::default();
    session.send_replace(id.clone());
    let mut heartbeat = tokio::time::interval(Duration::from_millis(u64::from(heartbeat_millis.max(100))));
    heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            directive = directives.message() => match directive {
                Ok(Some(directive)) => match directive.kind {
                    Some(Kind::Task(task)) => tasks.begin(task),
                    Some(Kind::Withdraw(withdraw)) => tasks.withdraw(withdraw),
                    Some(Kind::Close(close)) => return closed(close),
                    Some(Kind::Notice(notice)) => {
                        let round = notice.id.unwrap_or_default().round;
                        warn!(round, "the aggregator leaves this site's result out: {}", notice.reason);
                    }
                    // A newer aggregator may say more than this program knows.
                    Some(Kind::Welcome(_)) | None => {}
                },
                Ok(None) => return Ended::Broken("the aggregator closed the stream".into()),
                Err(status) => return ended_by(&status),
            },
            _ = heartbeat.tick() => {
                if let Err(status) = client.heartbeat(HeartbeatRequest { session: id.clone() }).await {
                    // If the session was closed, the reason is on its way.
                    let said = tokio::time::timeout(FAREWELL, directives.message()).await;
                    return match said {
                        Ok(Ok(Some(Directive { kind: Some(Kind::Close(close)) }))) => closed(close),
                        _ => Ended::Broken(channel::told(&status)),
                    };
                }
            }
        }
    }
}

fn closed(close: Close) -> Ended {
    if close.r#final { Ended::Final(close.reason) } else { Ended::Broken(close.reason) }
}

fn ended_by(status: &Status) -> Ended {
    let refused = matches!(status.code(), Code::FailedPrecondition | Code::PermissionDenied | Code::Unauthenticated);
    let reason = channel::told(status);
    if refused {
        Ended::Final(reason)
    } else if channel::is_refusal(&reason) {
        Ended::Refused(reason)
    } else {
        Ended::Broken(reason)
    }
}
