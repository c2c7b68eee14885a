//! `docker compose up`, as README.md gives it: the demo's federation in containers, with three sites and with five.
//!
//! Skipped, with the reason, where no Docker engine or no Compose is there, or no base image is to be had. The programs
//! of the image are those built beside this test, so that nothing is compiled in a container.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use fedtune_tests::{program, repository, run, text};
use serde_json::Value;

/// For one `up`; it takes half a minute.
const LIMIT: Duration = Duration::from_secs(240);
const POLL: Duration = Duration::from_millis(200);
/// What make-base-images.sh answers where this machine cannot make them.
const CANNOT: i32 = 3;

#[test]
fn the_demo_runs_to_its_end_with_three_sites_and_with_five() {
    let Some(compose) = compose() else {
        return skip(
            "no Docker engine answers (`docker info`), or there is neither `docker compose` nor docker-compose",
        );
    };
    let made = Command::new(repository().join("tests/images/make-base-images.sh")).arg("debian").output().unwrap();
    if made.status.code() == Some(CANNOT) {
        return skip(&String::from_utf8_lossy(&made.stderr));
    }
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let image = Image::build();

    let ended = up(&compose, &image, "three", 2, &[]);
    let job = &ended.job;
    assert_eq!(job["rounds_done"], 2);
    assert_eq!(sites(job), ["north-hospital", "river-clinic", "south-hospital"]);
    assert_eq!(examples(job), [380, 220, 300]);
    for part in ["round 1/2: 3 sites, 900 examples, accuracy", "round 2/2: ", "job completed", "ROUND  SITES  ACCURACY"]
    {
        assert!(ended.log.contains(part), "{part}\n{}", ended.log);
    }

    let job = up(&compose, &image, "five", 1, &["--scale", "site=5"]).job;
    assert_eq!(sites(&job), ["site-1", "site-2", "site-3", "site-4", "site-5"]);
    assert_eq!(examples(&job), [180; 5]);
}

/// What one `up` left.
struct Ended {
    log: String,
    job: Value,
}

/// Runs a federation to its end, takes the results out as docs/compose.md says, and uses the model.
fn up(compose: &[&'static str], image: &Image, name: &str, rounds: u32, arguments: &[&str]) -> Ended {
    let project = Project { compose: compose.to_vec(), name: format!("{}-{name}", image.0), image: &image.0, rounds };
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let mut command = project.command(&["up", "--no-build", "--exit-code-from", "run"]);
    command
        .args(arguments)
        .stdout(File::create(&log).unwrap())
        .stderr(File::options().append(true).open(&log).unwrap());
    let code = ended(command);
    let log = std::fs::read_to_string(&log).unwrap();
    assert_eq!(code, Some(0), "{log}");

    let container = output(&mut project.command(&["ps", "--all", "--quiet", "run"]));
    let results = folder.path().join("results");
    output(Command::new("docker").args(["cp", &format!("{}:/results", container.trim()), text(&results)]));
    let jobs: Vec<_> = std::fs::read_dir(&results).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(jobs.len(), 1, "{jobs:?}");
    let job: Value = serde_json::from_slice(&std::fs::read(jobs[0].join("job.json")).unwrap()).unwrap();
    assert_eq!(job["status"], "completed", "{job}");
    predict(&jobs[0], folder.path());
    Ended { log, job }
}

fn predict(model: &Path, folder: &Path) {
    let notes = folder.join("notes.csv");
    std::fs::write(&notes, "text\n\"itchy red rash on both arms\"\n").unwrap();
    let predictions = folder.join("predictions.csv");
    run("fedtune-client", ["predict", "--model", text(model), "--data", text(&notes), "--out", text(&predictions)])
        .ok();
}

fn sites(job: &Value) -> Vec<&str> {
    job["rounds"][0]["sites"].as_array().unwrap().iter().map(|site| site["name"].as_str().unwrap()).collect()
}

fn examples(job: &Value) -> Vec<u64> {
    job["rounds"][0]["sites"].as_array().unwrap().iter().map(|site| site["examples"].as_u64().unwrap()).collect()
}

/// A project of Compose. Everything of it is removed at the end.
struct Project<'a> {
    compose: Vec<&'static str>,
    name: String,
    image: &'a str,
    rounds: u32,
}

impl Project<'_> {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.compose[0]);
        command
            .args(&self.compose[1..])
            .args(["--file", "docker-compose.yml", "--project-name", &self.name])
            .args(arguments);
        command.env("FEDTUNE_IMAGE", self.image).env("ROUNDS", self.rounds.to_string()).current_dir(repository());
        command
    }
}

impl Drop for Project<'_> {
    fn drop(&mut self) {
        let down = self.command(&["down", "--volumes", "--timeout", "2"]).output();
        if !down.is_ok_and(|down| down.status.success()) {
            complain(&format!("the project {} could not be removed", self.name));
        }
    }
}

/// The image with the programs built beside this test. Removed at the end.
struct Image(String);

impl Image {
    fn build() -> Self {
        let image = Self(format!("fedtune-test-{}", std::process::id()));
        let programs = program("fedtune-server");
        assert_eq!(programs.parent(), program("fedtune-client").parent());
        let script = repository().join("deploy/image-from-programs.sh");
        output(Command::new(script).arg(programs.parent().unwrap()).arg(&image.0));
        image
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let runtime = format!("{}-runtime", self.0);
        let removed = Command::new("docker").args(["image", "rm", &self.0, &runtime]).output();
        if !removed.is_ok_and(|removed| removed.status.success()) {
            complain(&format!("the image {} could not be removed", self.0));
        }
    }
}

/// The words that call Compose, where it and an engine are there.
fn compose() -> Option<Vec<&'static str>> {
    let answers = |words: &[&str]| {
        Command::new(words[0])
            .args(&words[1..])
            .stdin(Stdio::null())
            .output()
            .is_ok_and(|output| output.status.success())
    };
    if !answers(&["docker", "info"]) {
        return None;
    }
    let all = [vec!["docker", "compose"], vec!["docker-compose"]];
    all.into_iter().find(|words| answers(&[words.as_slice(), &["version"]].concat()))
}

/// The exit code, or `None` where the command did not end in time and was ended.
fn ended(mut command: Command) -> Option<i32> {
    let begun = Instant::now();
    let mut child = command.stdin(Stdio::null()).spawn().unwrap();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        if begun.elapsed() > LIMIT {
            child.kill().unwrap();
            child.wait().unwrap();
            return None;
        }
        std::thread::sleep(POLL);
    }
}

/// What a command printed, where it succeeds.
fn output(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn skip(reason: &str) {
    complain(&format!("skipped: {}", reason.trim()));
}

/// Past the test runner, which keeps what a passing test prints to itself.
fn complain(text: &str) {
    let _ = writeln!(std::io::stderr(), "compose: {text}");
}
