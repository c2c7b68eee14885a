//! The processes of a simulation: folders, certificates and configurations are made, the real programs are started, and
//! all of it is removed at the end.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use fedtune_config::site::{Aggregator, Data, Device, Policy, Storage};
use fedtune_config::{Job, SiteConfig};
use fedtune_proto::v1::plan_export_request::Selector;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};

use super::SimulateError;
use super::partition::{Shard, Table};
use super::report::Score;
use crate::coordinator::now_ms;
use crate::operator::Operator;
use crate::pki::{Authority, Identity, Role};

const EVALUATOR: &str = "evaluator";
/// How often it is asked whether the sites are online, and whether a process has ended.
const POLL: Duration = Duration::from_millis(100);
/// Longest wait for a killed program to be gone.
const KILLED_WITHIN: Duration = Duration::from_secs(5);
/// Longest wait for the sites to connect.
const ONLINE_WITHIN: Duration = Duration::from_secs(120);
/// Bytes of a log that are shown when its program failed.
const LOG_TAIL: usize = 2000;

pub(super) struct Federation {
    root: PathBuf,
    logs: PathBuf,
    client: PathBuf,
    ending: &'static str,
    threads: usize,
    sites: Vec<String>,
    address: String,
    running: Vec<(String, Child)>,
}

impl Federation {
    /// Makes everything the programs need below `root`.
    pub(super) fn create(
        root: &Path,
        logs: &Path,
        job: &Job,
        table: &Table,
        shards: &[Shard],
        test: Option<&Path>,
        threads: usize,
    ) -> anyhow::Result<Self> {
        let client = client_program()?;
        std::fs::create_dir_all(logs).map_err(SimulateError::file(logs))?;
        let root = &absolute(root)?;
        crate::cli::new_federation(root)?;
        let mut sites: Vec<String> = shards.iter().map(|shard| shard.site.clone()).collect();
        for shard in shards {
            let folder = root.join("sites").join(&shard.site);
            std::fs::create_dir_all(&folder).map_err(SimulateError::file(&folder))?;
            table.write(shard, &folder.join(format!("train.{}", table.ending())))?;
        }
        if test.is_some() {
            if sites.iter().any(|site| site == EVALUATOR) {
                let reason = format!("a site would be named {EVALUATOR:?}, which is the evaluator's name here");
                return Err(SimulateError::Usage(reason).into());
            }
            sites.push(EVALUATOR.into());
        }
        let federation = Self {
            root: root.clone(),
            logs: absolute(logs)?,
            client,
            ending: table.ending(),
            threads,
            sites,
            address: String::new(),
            running: Vec::new(),
        };
        for site in &federation.sites {
            federation.write_site(site, job, test)?;
        }
        Ok(federation)
    }

    fn write_site(&self, site: &str, job: &Job, test: Option<&Path>) -> anyhow::Result<()> {
        let folder = self.root.join("sites").join(site);
        std::fs::create_dir_all(&folder).map_err(SimulateError::file(&folder))?;
        let evaluates = site == EVALUATOR && test.is_some();
        let train = (!evaluates).then(|| self.root.join("sites").join(site).join(format!("train.{}", self.ending)));
        let by_sites = job.evaluation.by == fedtune_config::job::Evaluator::Sites;
        let config = SiteConfig {
            // The port is known once the aggregator runs; the environment tells it.
            aggregator: Aggregator {
                address: "https://localhost:7443".into(),
                bundle: "bundle".into(),
                timeout: Aggregator::default_timeout(),
            },
            data: Data {
                train,
                test: if evaluates { test.map(absolute).transpose()? } else { None },
                validation_fraction: if by_sites { 0.1 } else { 0.0 },
                ..Data::default()
            },
            device: Device { threads: self.threads, ..Device::default() },
            storage: Storage::default(),
            policy: Policy::default(),
        };
        let path = folder.join("site.toml");
        let text = toml::to_string(&config).map_err(|e| SimulateError::Usage(e.to_string()))?;
        Ok(std::fs::write(&path, text).map_err(SimulateError::file(&path))?)
    }

    /// Starts the aggregator and every site.
    pub(super) async fn start(&mut self) -> anyhow::Result<()> {
        let config = self.root.join("server.toml");
        let (records, artifacts) = crate::api::open_storage(&self.root.join("data")).await?;
        drop(artifacts);
        let authority = Authority::open(&self.root.join("pki"))?;
        for site in &self.sites {
            let role = if site == EVALUATOR { Role::Evaluator } else { Role::Site };
            let identity = Identity::new(role, site)?;
            authority.issue_bundle(&identity, &self.root.join("sites").join(site).join("bundle"))?;
            records.add_site(&identity, now_ms()).await?;
        }
        drop(records);
        let server = std::env::current_exe().map_err(SimulateError::file("fedtune-server".as_ref()))?;
        let mut command = Command::new(server);
        command.arg("run").arg("--config").arg(&config);
        let mut aggregator = self.spawn("aggregator", command, Stdio::piped())?;
        let stdout = aggregator.stdout.take();
        self.running.push(("aggregator".into(), aggregator));
        let mut line = String::new();
        if let Some(stdout) = stdout {
            let mut stdout = BufReader::new(stdout);
            stdout.read_line(&mut line).await.map_err(SimulateError::file("aggregator".as_ref()))?;
        }
        let port = line.trim().rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
        let Some(port) = port else {
            return Err(self.process_error("aggregator", "did not start").into());
        };
        self.address = format!("https://localhost:{port}");
        for site in self.sites.clone() {
            let mut command = Command::new(&self.client);
            command.arg("run").arg("--config").arg(self.root.join("sites").join(&site).join("site.toml"));
            command.env("FEDTUNE_SITE__AGGREGATOR__ADDRESS", &self.address);
            let child = self.spawn(&site, command, Stdio::null())?;
            self.running.push((site, child));
        }
        Ok(())
    }

    fn spawn(&self, name: &str, mut command: Command, stdout: Stdio) -> Result<Child, SimulateError> {
        let log = self.logs.join(format!("{name}.log"));
        let file = std::fs::File::create(&log).map_err(SimulateError::file(&log))?;
        command.stdin(Stdio::null()).stdout(stdout).stderr(file).kill_on_drop(true);
        command.spawn().map_err(|e| self.process_error(name, &format!("cannot be started: {e}")))
    }

    fn process_error(&self, name: &str, what: &str) -> SimulateError {
        let path = self.logs.join(format!("{name}.log"));
        let text = std::fs::read(&path).unwrap_or_default();
        let tail = String::from_utf8_lossy(&text[text.len().saturating_sub(LOG_TAIL)..]).into_owned();
        SimulateError::Process { what: format!("{name} {what}; the end of {}:", path.display()), log: tail }
    }

    pub(super) async fn operator(&self) -> anyhow::Result<Operator> {
        Ok(Operator::connect(&self.address, &self.root.join("operator")).await?)
    }

    /// Waits until every site has opened its session.
    pub(super) async fn all_online(&mut self) -> anyhow::Result<()> {
        let mut operator = self.operator().await?;
        let began = Instant::now();
        loop {
            let sites = operator.sites().await?;
            let Some(missing) = sites.iter().find(|site| !site.online) else { return Ok(()) };
            if began.elapsed() > ONLINE_WITHIN {
                return Err(self.process_error(&missing.name, "has not connected").into());
            }
            if let Some(error) = self.ended() {
                return Err(error.into());
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Ready when one of the programs has ended, which none should.
    pub(super) async fn failed(&mut self) -> SimulateError {
        loop {
            if let Some(error) = self.ended() {
                return error;
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn ended(&mut self) -> Option<SimulateError> {
        let ended = self.running.iter_mut().find_map(|(name, child)| match child.try_wait() {
            Ok(Some(status)) => Some((name.clone(), format!("ended ({status})"))),
            _ => None,
        })?;
        Some(self.process_error(&ended.0, &ended.1))
    }

    /// Peak resident memory of the aggregator so far, where the system tells it.
    pub(super) fn aggregator_peak_rss(&self) -> Option<u64> {
        let id = self.running.first()?.1.id()?;
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kib * 1024)
    }

    pub(super) async fn client_program(&self) -> anyhow::Result<String> {
        let sites = self.operator().await?.sites().await?;
        Ok(sites.into_iter().find_map(|site| site.online.then_some(site.program)).unwrap_or_default())
    }

    /// Writes the best model.
    pub(super) async fn export(&self, job: &str, folder: &Path) -> anyhow::Result<()> {
        self.operator().await?.export(job, Selector::Best(true), folder).await?;
        Ok(())
    }

    /// Ends every process.
    pub(super) async fn stop(&mut self) -> Result<(), SimulateError> {
        for (name, mut child) in self.running.drain(..) {
            child.kill().await.map_err(SimulateError::file(name.as_ref()))?;
        }
        Ok(())
    }

    pub(super) fn shard_file(&self, shard: &Shard) -> PathBuf {
        self.root.join("sites").join(&shard.site).join(format!("train.{}", self.ending))
    }

    /// Fine-tunes without a federation, with the budget of the whole job. Returns the score on the test file.
    pub(super) async fn finetune(
        &self,
        job: &Job,
        train: &Path,
        test: &Path,
        name: &str,
        logs: &Path,
    ) -> Result<Score, SimulateError> {
        let folder = self.root.join("baselines").join(name);
        std::fs::create_dir_all(&folder).map_err(SimulateError::file(&folder))?;
        let path = folder.join("job.toml");
        std::fs::write(&path, job.to_toml()).map_err(SimulateError::file(&path))?;
        let what = format!("baseline-{name}");
        let mut command = Command::new(&self.client);
        command.arg("finetune").arg("--job").arg(&path).arg("--model").arg(&job.model.path);
        command.arg("--train").arg(train).arg("--test").arg(test).arg("--out").arg(folder.join("model"));
        command.args(["--output", "json"]);
        let mut child = self.spawn(&what, command, Stdio::piped())?;
        let mut text = String::new();
        if let Some(mut stdout) = child.stdout.take() {
            stdout.read_to_string(&mut text).await.map_err(SimulateError::file(logs))?;
        }
        let status = child.wait().await.map_err(SimulateError::file(logs))?;
        let report: Option<serde_json::Value> = text.lines().last().and_then(|line| serde_json::from_str(line).ok());
        let metric = job.task.kind.metrics()[0];
        let value = report.and_then(|report| report["evaluation"][metric.name()].as_f64());
        let failed = self.process_error(&what, &format!("ended ({status})"));
        value.filter(|_| status.success()).map(|value| Score { metric, value }).ok_or(failed)
    }
}

impl Drop for Federation {
    fn drop(&mut self) {
        // The children first, then their keys and shards.
        for (_, child) in &mut self.running {
            // One that has ended cannot be killed, and need not be.
            let _ = child.start_kill();
        }
        let began = Instant::now();
        while began.elapsed() < KILLED_WITHIN && self.running.iter_mut().any(|(_, c)| matches!(c.try_wait(), Ok(None)))
        {
            std::thread::sleep(Duration::from_millis(10));
        }
        if let Err(e) = std::fs::remove_dir_all(&self.root) {
            eprintln!(
                "{}: cannot be removed: {e}; it holds throw-away keys and copies of the rows",
                self.root.display()
            );
        }
    }
}

/// The client stands beside this program.
fn client_program() -> Result<PathBuf, SimulateError> {
    let own = std::env::current_exe().map_err(SimulateError::file("fedtune-server".as_ref()))?;
    let client = own.with_file_name(format!("fedtune-client{}", std::env::consts::EXE_SUFFIX));
    if client.is_file() {
        return Ok(client);
    }
    let reason = format!(
        "{} is not there; a simulation runs the real client, so install it beside fedtune-server (cargo build --release makes both)",
        client.display()
    );
    Err(SimulateError::Usage(reason))
}

fn absolute(path: &Path) -> Result<PathBuf, SimulateError> {
    std::path::absolute(path).map_err(SimulateError::file(path))
}
