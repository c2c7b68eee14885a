//! A real aggregator in a folder of its own, and real programs around it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use fedtune_config::demo;
use tempfile::TempDir;

use crate::program;

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(240);

/// A program that has ended.
#[derive(Debug)]
pub struct Ran {
    /// Its exit code; -1 for a signal.
    pub code: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Self { code: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

impl Ran {
    /// The same, if it succeeded.
    ///
    /// # Panics
    /// It failed.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, 0, "{self:?}");
        self
    }

    /// Checks that it failed with this code and said all of these.
    ///
    /// # Panics
    /// It did not.
    #[track_caller]
    pub fn failed(&self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, code, "{self:?}");
        for part in parts {
            assert!(self.stderr.contains(part), "{:?} lacks {part:?}", self.stderr);
        }
    }
}

/// Runs a program to its end.
///
/// # Panics
/// It cannot be started.
pub fn run<S: AsRef<std::ffi::OsStr>>(name: &str, arguments: impl IntoIterator<Item = S>) -> Ran {
    let mut command = Command::new(program(name));
    command.args(arguments).stdin(Stdio::null());
    command.output().expect("the program starts").into()
}

/// A path as text.
///
/// # Panics
/// It is not UTF-8.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}

/// An aggregator, its folder, and the clients started by it. All are killed when it goes.
#[derive(Debug)]
pub struct Federation {
    folder: TempDir,
    server: Option<Child>,
    /// Set by environment variables over server.toml.
    settings: Vec<(String, String)>,
    /// Whom the aggregator runs as, where that is not who runs the test.
    user: Option<u32>,
    address: String,
    monitoring: String,
    clients: Vec<(String, Child)>,
}

impl Federation {
    /// Makes a federation and starts its aggregator.
    ///
    /// # Panics
    /// It does not start.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same with settings such as `("LISTEN__DRAIN", "5s")` over its server.toml.
    ///
    /// # Panics
    /// It does not start.
    pub fn start_with(settings: &[(&str, &str)]) -> Self {
        let mut federation = Self::make(settings);
        federation.start_server();
        federation
    }

    /// The same with an aggregator that file permissions bind, also where root runs the tests.
    ///
    /// # Panics
    /// It does not start.
    pub fn start_unprivileged() -> Self {
        const NOBODY: u32 = 65534;
        let mut federation = Self::make(&[]);
        let folder = federation.folder.path();
        if std::fs::metadata(folder).expect("there").uid() == 0 {
            std::fs::copy(program("fedtune-server"), folder.join("fedtune-server")).expect("copied");
            let chown = Command::new("chown").arg("-R").arg(NOBODY.to_string()).arg(folder).status();
            assert!(chown.expect("chown starts").success());
            federation.user = Some(NOBODY);
        }
        federation.start_server();
        federation
    }

    fn make(settings: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        demo::write(&folder.path().join("demo")).expect("the demo's files");
        run("fedtune-server", ["init", "--dir", text(&folder.path().join("federation"))]).ok();
        let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let (address, monitoring) = (String::new(), String::new());
        Self { folder, server: None, settings, user: None, address, monitoring, clients: Vec::new() }
    }

    /// Starts the aggregator, on the port it had before if it had one.
    ///
    /// # Panics
    /// It does not start.
    pub fn start_server(&mut self) {
        let port = self.address.rsplit_once(':').map_or("0", |(_, port)| port).to_owned();
        let mut command = match self.user {
            Some(user) => {
                let mut command = Command::new(self.path("fedtune-server"));
                command.uid(user).gid(user);
                command
            }
            None => Command::new(program("fedtune-server")),
        };
        command
            .args(["run", "--config", text(&self.path("federation/server.toml"))])
            .env("FEDTUNE_SERVER__LISTEN__ADDRESS", format!("127.0.0.1:{port}"))
            .env("FEDTUNE_SERVER__LISTEN__HTTP", "127.0.0.1:0")
            .env("FEDTUNE_SERVER__SESSIONS__HEARTBEAT", "500ms")
            .env("FEDTUNE_SERVER__SESSIONS__TIMEOUT", "5s")
            .envs(self.settings.iter().map(|(name, value)| (format!("FEDTUNE_SERVER__{name}"), value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(self.log("aggregator"));
        let mut child = command.spawn().expect("the aggregator starts");
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        let [mut line, mut monitoring] = [String::new(), String::new()];
        stdout.read_line(&mut line).expect("a line");
        stdout.read_line(&mut monitoring).expect("a line");
        let address = line.trim().strip_prefix("listening on ");
        let address =
            address.unwrap_or_else(|| panic!("the aggregator said {line:?}: {}", self.log_text("aggregator")));
        let (_, port) = address.rsplit_once(':').expect("a port");
        self.address = format!("https://localhost:{port}");
        self.monitoring = monitoring.trim().trim_start_matches("monitoring at http://").to_owned();
        self.server = Some(child);
    }

    /// Kills the aggregator, as a power cut would.
    ///
    /// # Panics
    /// It was not running.
    pub fn kill_server(&mut self) {
        let mut server = self.server.take().expect("running");
        server.kill().expect("killed");
        server.wait().expect("reaped");
    }

    /// Sends the aggregator a signal, such as `TERM`.
    ///
    /// # Panics
    /// It is not running.
    pub fn signal_server(&self, signal: &str) {
        let kill = Command::new("kill").args(["-s", signal, &self.server_id().to_string()]).status();
        assert!(kill.expect("kill starts").success());
    }

    /// Waits for the end of the aggregator, of its own accord. Gives its exit code; -1 for a signal.
    ///
    /// # Panics
    /// It does not end.
    pub fn server_ended(&mut self) -> i32 {
        let server = self.server.take().expect("running");
        self.ended_by_itself(server, "aggregator")
    }

    /// The same for the first of the clients of a site.
    ///
    /// # Panics
    /// It was not started, or does not end.
    pub fn client_ended(&mut self, name: &str) -> i32 {
        let at = self.clients.iter().position(|(running, _)| running == name).expect("started");
        let (_, client) = self.clients.remove(at);
        self.ended_by_itself(client, name)
    }

    fn ended_by_itself(&self, mut child: Child, name: &str) -> i32 {
        let began = Instant::now();
        loop {
            if let Some(status) = child.try_wait().expect("waited") {
                return status.code().unwrap_or(-1);
            }
            if began.elapsed() > PATIENCE {
                let _ = child.kill();
                panic!("it does not end:\n{}", self.log_text(name));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Asks the aggregator's HTTP side; gives status and body, or nothing where it does not answer.
    pub fn monitoring(&self, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(&self.monitoring).ok()?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
    }

    /// Process id of the aggregator.
    ///
    /// # Panics
    /// It is not running.
    pub fn server_id(&self) -> u32 {
        self.server.as_ref().expect("running").id()
    }

    /// `https://localhost:port`
    pub fn address(&self) -> &str {
        &self.address
    }

    /// A path below the federation's temporary folder; `demo` and `federation` are there.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn log(&self, name: &str) -> std::fs::File {
        let path = self.path(&format!("{name}.log"));
        std::fs::OpenOptions::new().create(true).append(true).open(path).expect("a log file")
    }

    /// What a program has logged.
    pub fn log_text(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(&format!("{name}.log"))).unwrap_or_default()
    }

    /// Enrols a site; its bundle is the folder `NAME-bundle`.
    pub fn enrol(&self, name: &str, role: &str) -> PathBuf {
        let bundle = self.path(&format!("{name}-bundle"));
        let config = self.path("federation/server.toml");
        run("fedtune-server", ["site", "add", name, "--role", role, "--config", text(&config), "--out", text(&bundle)])
            .ok();
        bundle
    }

    /// Enrols a site and writes its site.toml, with this `[data]` section.
    ///
    /// # Panics
    /// It cannot be written.
    pub fn write_site(&self, name: &str, role: &str, data: &str) -> PathBuf {
        let bundle = self.enrol(name, role);
        let path = self.path(&format!("{name}.toml"));
        let text = format!(
            "[aggregator]\naddress = {:?}\nbundle = {:?}\n[data]\n{data}\n[device]\nthreads = 1\n[storage]\nwork = {:?}\n",
            self.address,
            bundle,
            self.path(&format!("{name}-work"))
        );
        std::fs::write(&path, text).expect("written");
        path
    }

    /// Starts the real client of a site that [`Self::write_site`] made.
    ///
    /// # Panics
    /// It does not start.
    pub fn start_client(&mut self, name: &str) {
        let child = Command::new(program("fedtune-client"))
            .args(["run", "--config", text(&self.path(&format!("{name}.toml")))])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(self.log(name))
            .spawn()
            .expect("the client starts");
        self.clients.push((name.into(), child));
    }

    /// Kills a client, as a power cut would.
    ///
    /// # Panics
    /// It was not started.
    pub fn kill_client(&mut self, name: &str) {
        let at = self.clients.iter().position(|(running, _)| running == name).expect("started");
        let (_, mut child) = self.clients.remove(at);
        child.kill().expect("killed");
        child.wait().expect("reaped");
    }

    /// Runs `fedtune-server WORDS…` with this federation's address and operator.
    pub fn operator(&self, words: &[&str]) -> Ran {
        let bundle = self.path("federation/operator");
        let remote = ["--address", &self.address, "--operator", text(&bundle)];
        run("fedtune-server", words.iter().chain(&remote))
    }

    /// Submits a job made from the demo's with these lines replaced. Returns its id.
    ///
    /// # Panics
    /// It is refused.
    pub fn submit(&self, changes: &[(&str, &str)]) -> String {
        let mut job = std::fs::read_to_string(self.path("demo/job.toml")).expect("the demo's job");
        for (from, to) in changes {
            assert!(job.contains(from), "the demo's job lacks {from:?}");
            job = job.replace(from, to);
        }
        let path = self.path("demo/changed.toml");
        std::fs::write(&path, job).expect("written");
        self.operator(&["job", "submit", text(&path)]).ok().stdout.trim().to_owned()
    }

    /// `job show --output json`
    ///
    /// # Panics
    /// The call fails.
    pub fn show(&self, job: &str) -> serde_json::Value {
        let shown = self.operator(&["job", "show", job, "--output", "json"]);
        assert!(shown.code == 0, "{shown:?}\naggregator:\n{}", self.log_text("aggregator"));
        serde_json::from_str(&shown.stdout).expect("JSON")
    }

    /// Asks again until the job is as wanted; fails with the logs when that takes too long.
    ///
    /// # Panics
    /// It took too long.
    pub fn wait_for(&self, job: &str, what: &str, wanted: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
        self.wait_within(PATIENCE, job, what, wanted)
    }

    fn wait_within(
        &self,
        patience: Duration,
        job: &str,
        what: &str,
        wanted: impl Fn(&serde_json::Value) -> bool,
    ) -> serde_json::Value {
        let began = Instant::now();
        loop {
            let shown = self.show(job);
            if wanted(&shown) {
                return shown;
            }
            assert!(began.elapsed() < patience, "no {what}: {shown}\naggregator:\n{}", self.log_text("aggregator"));
            // What takes long is asked for less often.
            std::thread::sleep((began.elapsed() / 20).clamp(Duration::from_millis(100), Duration::from_secs(5)));
        }
    }

    /// Waits until the job has ended in this status.
    ///
    /// # Panics
    /// It ended in another one, or did not end.
    pub fn ended(&self, job: &str, status: &str) -> serde_json::Value {
        self.ended_within(PATIENCE, job, status)
    }

    /// The same, for what takes longer than tests may.
    ///
    /// # Panics
    /// As there.
    pub fn ended_within(&self, patience: Duration, job: &str, status: &str) -> serde_json::Value {
        let over = |shown: &serde_json::Value| !["queued", "running"].contains(&shown["status"].as_str().unwrap_or(""));
        let shown = self.wait_within(patience, job, "end", over);
        assert_eq!(shown["status"], status, "{shown}\naggregator:\n{}", self.log_text("aggregator"));
        shown
    }
}

impl Drop for Federation {
    fn drop(&mut self) {
        let children = self.clients.iter_mut().map(|(_, child)| child).chain(self.server.as_mut());
        for child in children {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
