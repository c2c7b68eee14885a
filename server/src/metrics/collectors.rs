//! What is not counted but looked up when monitoring asks.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet};
use prometheus_client::metrics::MetricType;

use super::Word;
use crate::coordinator::Overview;
use crate::pki::Identity;

/// Who is enrolled, online, at work.
#[derive(Debug, Default)]
pub(super) struct Sites {
    pub(super) enrolled: Vec<Identity>,
    pub(super) overview: Overview,
}

#[derive(Debug)]
pub(super) struct Shared(pub(super) Arc<Mutex<Sites>>);

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct State {
    state: Word,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Site {
    role: Word,
    site: String,
}

impl Collector for Shared {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let sites = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Sites { enrolled, overview: Overview { online, working } } = &*sites;
        let is_online = |site: &&Identity| online.contains(&site.name);
        let is_working = |site: &&Identity| working.contains(&site.name);
        let help = "Sites and evaluators; each that works is online, each that is online is enrolled";
        let mut gauge = encoder.encode_descriptor("sites", help, None, MetricType::Gauge)?;
        for (state, count) in [
            ("enrolled", enrolled.len()),
            ("online", enrolled.iter().filter(is_online).count()),
            ("working", enrolled.iter().filter(is_working).count()),
        ] {
            gauge.encode_family(&State { state: Word(state) })?.encode_gauge(&(count as u64))?;
        }
        let label = |site: &Identity| Site { role: Word(site.role.as_str()), site: site.name.clone() };
        for (name, help, holds) in [
            ("site_online", "Whether the site has an open session", &is_online as &dyn Fn(&&Identity) -> bool),
            ("site_working", "Whether a running job waits for the site", &is_working),
        ] {
            let mut gauge = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for site in enrolled {
                gauge.encode_family(&label(site))?.encode_gauge(&u64::from(holds(&site)))?;
            }
        }
        Ok(())
    }
}

/// This process, by the names that every Prometheus client gives them.
#[derive(Debug)]
pub(super) struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut gauge = |name: &str, help: &str, value: Option<u64>| {
            // Where the system does not say, there is no such metric.
            value.map_or(Ok(()), |value| {
                encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
            })
        };
        gauge("process_resident_memory_bytes", "Resident memory", resident_bytes())?;
        let files = std::fs::read_dir("/proc/self/fd").ok().map(|open| open.count() as u64);
        gauge("process_open_fds", "Open file descriptors", files)
    }
}

fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    kib.checked_mul(1024)
}
