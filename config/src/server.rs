//! `server.toml`: what the operator writes to run the aggregator.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::de::value::StringDeserializer;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::error::Problems;
use crate::load::Document;
use crate::units::Span;

/// The configuration of the aggregator.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerConfig {
    /// Where it listens.
    #[serde(default)]
    pub listen: Listen,
    /// Its certificates.
    pub tls: Tls,
    /// Where it keeps records and artifacts.
    pub storage: Storage,
    /// Sessions of sites.
    #[serde(default)]
    pub sessions: Sessions,
    /// What it accepts at most.
    #[serde(default)]
    pub limits: Limits,
    /// What it writes to standard error.
    #[serde(default)]
    pub log: Log,
}

/// Where the aggregator listens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Listen {
    /// Address and port; port 0 takes a free one.
    pub address: SocketAddr,
    /// Where health is told in plain HTTP, for probes and monitoring; nowhere if absent.
    pub http: Option<SocketAddr>,
    /// How long calls in progress may take to end once it is told to stop.
    pub drain: Span,
}

impl Default for Listen {
    fn default() -> Self {
        Self { address: SocketAddr::from(([0, 0, 0, 0], 7443)), http: None, drain: Span::seconds(30) }
    }
}

/// PEM files; relative to the file they are named in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// The federation's authority, which signed every site.
    pub ca: PathBuf,
    /// The server's certificate.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// The data folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Storage {
    /// Holds records.sqlite and artifacts/.
    pub data: PathBuf,
    /// How long all artifacts of an ended job stay. After that only what its models are exported of does.
    #[serde(default)]
    pub retention: Retention,
}

/// How long something stays: `"forever"`, or a length of time such as `"30d"`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Retention {
    /// Nothing is deleted.
    #[default]
    Forever,
    /// For so long.
    After(Span),
}

impl Serialize for Retention {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Forever => serializer.serialize_str("forever"),
            Self::After(span) => span.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Retention {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text == "forever" {
            return Ok(Self::Forever);
        }
        let span = Span::deserialize(StringDeserializer::<serde::de::value::Error>::new(text));
        span.map(Self::After).map_err(|e| de::Error::custom(format!("{e}, or \"forever\"")))
    }
}

/// Sessions of sites.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sessions {
    /// How often a site says that it is there.
    pub heartbeat: Span,
    /// A site silent for so long counts as offline.
    pub timeout: Span,
}

impl Default for Sessions {
    fn default() -> Self {
        Self { heartbeat: Span::seconds(10), timeout: Span::seconds(60) }
    }
}

/// What the aggregator accepts at most.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Largest artifact, in bytes.
    pub artifact_bytes: u64,
    /// Largest example count an update may claim.
    pub examples_per_update: u64,
    /// Sessions and transfers that one site may have open at once.
    pub streams_per_site: u32,
    /// Bytes of artifacts a second of one site, both ways together; 0 is no limit.
    pub bytes_per_second: u64,
    /// Calls a second of one site; 0 is no limit.
    pub calls_per_second: u32,
    /// Jobs that run at once; the others wait in the order they came.
    pub running_jobs: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            artifact_bytes: 64 << 30,
            examples_per_update: 100_000_000,
            streams_per_site: 16,
            bytes_per_second: 0,
            calls_per_second: 50,
            running_jobs: 4,
        }
    }
}

/// The form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What is logged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// Text or JSON.
    pub format: LogFormat,
    /// `error`, `warn`, `info`, `debug` or `trace`, or a filter such as `info,fedtune_server=debug`.
    pub level: String,
    /// Where traces are sent, as OTLP over gRPC; nowhere if absent.
    pub otlp: Option<String>,
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Text, level: "info".into(), otlp: None }
    }
}

impl Document for ServerConfig {
    const ENV_PREFIX: Option<&'static str> = Some("FEDTUNE_SERVER");

    fn validate(&self, p: &mut Problems) {
        let Listen { address, http, drain: _ } = &self.listen;
        p.check(http.is_none_or(|http| http.port() == 0 || http.port() != address.port()), "listen.http", || {
            format!("found the port {} of listen.address; expected a port of its own", address.port())
        });
        let Sessions { heartbeat, timeout } = &self.sessions;
        p.check(heartbeat.0.as_millis() >= 100, "sessions.heartbeat", || {
            format!("found {heartbeat}; expected at least \"100ms\"")
        });
        p.check(timeout.0 >= heartbeat.0 * 2, "sessions.timeout", || {
            format!("found {timeout}; expected at least twice sessions.heartbeat, which is {heartbeat}")
        });
        if let Retention::After(span) = self.storage.retention {
            // What a site was told is here may be reported much later.
            p.check(span.0.as_secs() >= 24 * 60 * 60, "storage.retention", || {
                format!("found {span}; expected at least \"1d\", or \"forever\"")
            });
        }
        let Limits {
            artifact_bytes,
            examples_per_update,
            streams_per_site,
            bytes_per_second,
            calls_per_second: _,
            running_jobs,
        } = &self.limits;
        p.check((1..=64).contains(running_jobs), "limits.running_jobs", || {
            format!("found {running_jobs}; expected 1 to 64")
        });
        p.check(*artifact_bytes >= 1 << 20, "limits.artifact_bytes", || {
            format!("found {artifact_bytes}; expected at least 1048576")
        });
        p.check(*examples_per_update >= 1, "limits.examples_per_update", || "found 0; expected at least 1".into());
        // A session, and a transfer beside it; again while those of a broken link are not given up.
        p.check(*streams_per_site >= 4, "limits.streams_per_site", || {
            format!("found {streams_per_site}; expected at least 4")
        });
        p.check(*bytes_per_second == 0 || *bytes_per_second >= 1 << 16, "limits.bytes_per_second", || {
            format!("found {bytes_per_second}; expected 0 (no limit) or at least 65536, the bytes of a chunk")
        });
        p.check(!self.log.level.trim().is_empty(), "log.level", || {
            "is empty; expected a level such as \"info\"".into()
        });
        let otlp = self.log.otlp.as_deref().unwrap_or("http://127.0.0.1:4317");
        p.check(otlp.strip_prefix("http://").is_some_and(|host| !host.is_empty()), "log.otlp", || {
            format!("found {otlp:?}; expected an address such as \"http://127.0.0.1:4317\", without TLS")
        });
    }

    fn resolve(&mut self, folder: &Path) {
        let Tls { ca, certificate, key } = &mut self.tls;
        for path in [ca, certificate, key, &mut self.storage.data] {
            *path = folder.join(&path);
        }
    }
}
