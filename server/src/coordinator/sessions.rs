//! The open sessions: at most one a site, the newest.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use fedtune_config::server::Sessions as Times;
use fedtune_proto::digest::ArtifactRef;
use tokio::sync::mpsc;
use uuid::Uuid;

use super::snapshot::SiteSnapshot;
use crate::pki::{Identity, Role};
use crate::round::{Difference, Turn};
use crate::store::records::BaseFile;

/// Directives that may wait for a slow site; one that lets more pile up is disconnected.
const DIRECTIVES_MAX: usize = 64;

/// What a site says of itself.
#[derive(Debug, Clone, Default)]
pub struct About {
    /// Its program and version.
    pub program: String,
    /// Its device.
    pub device: String,
    /// Its memory, in bytes.
    pub memory_bytes: u64,
    /// Its examples by label, where its policy allows it; `site list` shows them.
    pub label_counts: BTreeMap<String, u64>,
}

/// A unit of work with everything it needs.
#[derive(Debug, Clone)]
pub struct Task {
    /// The job's id.
    pub job: String,
    /// Which turn of it.
    pub turn: Turn,
    /// The job's canonical text.
    pub job_text: String,
    /// The base model's files.
    pub base_model: Vec<BaseFile>,
    /// The state to start from.
    pub state: Option<ArtifactRef>,
    /// What a site that has the state before can make it of.
    pub difference: Option<Difference>,
    /// What the job's learning rate is multiplied by.
    pub learning_rate_factor: f64,
}

/// What is told to a site.
#[derive(Debug, Clone)]
pub enum Directive {
    /// Work.
    Task(Task),
    /// Work that is not wanted any more.
    Withdraw {
        /// The job's id.
        job: String,
        /// Which turn of it.
        turn: Turn,
        /// Why.
        reason: String,
    },
    /// Why what the site did does not count.
    Notify {
        /// The job's id.
        job: String,
        /// Which turn of it.
        turn: Turn,
        /// Why.
        reason: String,
    },
    /// Whatever the site has begun is not wanted any more.
    WithdrawAll,
    /// The session ends.
    Close {
        /// Why.
        reason: String,
        /// Whether the site should stay away.
        r#final: bool,
    },
}

/// A session that was just opened.
#[derive(Debug)]
pub struct Opened {
    /// Names it in the site's calls.
    pub session: String,
    /// How often the site says that it is there, in milliseconds.
    pub heartbeat_millis: u32,
    /// Where its directives come from.
    pub directives: mpsc::Receiver<Directive>,
    pub(super) sender: mpsc::Sender<Directive>,
}

struct Session {
    id: String,
    role: Role,
    about: About,
    heard: Instant,
    sender: mpsc::Sender<Directive>,
}

pub(super) struct Sessions {
    times: Times,
    open: BTreeMap<String, Session>,
}

impl Sessions {
    pub(super) fn new(times: Times) -> Self {
        Self { times, open: BTreeMap::new() }
    }

    pub(super) fn open(&mut self, identity: Identity, about: About) -> Opened {
        let (sender, directives) = mpsc::channel(DIRECTIVES_MAX);
        let id = Uuid::now_v7().to_string();
        let session =
            Session { id: id.clone(), role: identity.role, about, heard: Instant::now(), sender: sender.clone() };
        if let Some(older) = self.open.insert(identity.name, session) {
            // Final for the program that holds it: two programs with one identity would take turns for ever.
            let reason = "a newer session of this site took over; is the client running twice?".into();
            let _ = older.sender.try_send(Directive::Close { reason, r#final: true });
        }
        let heartbeat_millis = self.times.heartbeat.0.as_millis().try_into().unwrap_or(u32::MAX);
        Opened { session: id, heartbeat_millis, directives, sender }
    }

    /// Closes a session, unless a newer one has taken its place.
    pub(super) fn close(&mut self, site: &str, session: String) -> bool {
        let current = self.open.get(site).is_some_and(|open| open.id == session);
        if current {
            self.open.remove(site);
        }
        current
    }

    /// Notes a sign of life; false if the session is not the current one.
    pub(super) fn heard(&mut self, site: &str, session: &str) -> bool {
        match self.open.get_mut(site).filter(|open| open.id == session) {
            Some(open) => {
                open.heard = Instant::now();
                true
            }
            None => false,
        }
    }

    /// Counts time in which nobody was listened to as nobody's silence.
    pub(super) fn excuse(&mut self, deaf: Duration, now: Instant) {
        for session in self.open.values_mut() {
            session.heard = (session.heard + deaf).min(now);
        }
    }

    /// Closes the sessions of silent sites and names them.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<String> {
        let silent: Vec<String> = self
            .open
            .iter()
            .filter(|(_, session)| now.saturating_duration_since(session.heard) > self.times.timeout.0)
            .map(|(site, _)| site.clone())
            .collect();
        for session in silent.iter().filter_map(|site| self.open.remove(site)) {
            // Should it still be there, it comes again.
            let reason = "the site was silent too long; connect again".into();
            let _ = session.sender.try_send(Directive::Close { reason, r#final: false });
        }
        silent
    }

    pub(super) fn send(&mut self, site: &str, directive: Directive) {
        // A site that is offline is told when it joins again.
        if self.open.get(site).is_some_and(|session| session.sender.try_send(directive).is_err()) {
            self.open.remove(site);
        }
    }

    /// Closes every session; the sites may come again.
    pub(super) fn close_all(&mut self, reason: &str) {
        for (_, session) in std::mem::take(&mut self.open) {
            // One that lets so much pile up learns of it when its connection ends.
            let _ = session.sender.try_send(Directive::Close { reason: reason.to_owned(), r#final: false });
        }
    }

    pub(super) fn online(&self, role: Role) -> BTreeSet<String> {
        self.open.iter().filter(|(_, session)| session.role == role).map(|(site, _)| site.clone()).collect()
    }

    /// How many examples a site says it has; `None` where its policy does not let it say.
    pub(super) fn examples(&self, site: &str) -> Option<u64> {
        let counts = &self.open.get(site)?.about.label_counts;
        (!counts.is_empty()).then(|| counts.values().fold(0, |sum: u64, count| sum.saturating_add(*count)))
    }

    pub(super) fn snapshot(&self, enrolled: Vec<Identity>) -> Vec<SiteSnapshot> {
        enrolled
            .into_iter()
            .map(|identity| {
                let about = self.open.get(&identity.name).map(|session| session.about.clone());
                SiteSnapshot { identity, about }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_site_is_silent_only_while_it_is_listened_to() {
        let times = Times::default();
        let timeout = times.timeout.0;
        let mut sessions = Sessions::new(times);
        let site = Identity { name: "north".into(), role: Role::Site };
        let mut opened = sessions.open(site.clone(), About::default());
        let later = Instant::now() + 2 * timeout;
        sessions.excuse(2 * timeout, later);
        assert!(sessions.expire(later).is_empty());
        assert!(sessions.expire(later + timeout / 2).is_empty());
        assert_eq!(sessions.expire(later + 2 * timeout), ["north"]);
        assert!(!sessions.heard("north", &opened.session));
        let told = opened.directives.try_recv();
        assert!(
            matches!(&told, Ok(Directive::Close { r#final: false, reason }) if reason.contains("silent")),
            "{told:?}"
        );
    }
}
