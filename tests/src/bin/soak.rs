//! Benchmark: whether the aggregator grows with the rounds it has done.
//!
//! Starts the real aggregator, and in this process sites that speak the protocol and send a tiny made-up update. Prints
//! memory and open files now and then, and the slope of memory over rounds by least squares.
//! `cargo run -p fedtune-tests --bin soak -- --rounds 1000 --sites 8`

use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use fedtune_tests::{Federation, SyntheticSite, delta_file, model_folder, state_file, text};

#[derive(Parser)]
#[command(about = "Measures how the aggregator's memory and open files grow with rounds")]
struct Arguments {
    /// Rounds of the job
    #[arg(long, default_value_t = 300)]
    rounds: u32,
    /// Number of sites
    #[arg(long, default_value_t = 8)]
    sites: usize,
    /// Values of the state
    #[arg(long, default_value_t = 1000)]
    elements: u64,
    /// Rounds between two lines
    #[arg(long, default_value_t = 50)]
    every: u32,
    /// Rounds that the slope leaves out, in which caches and pools fill
    #[arg(long, default_value_t = 50)]
    warm_up: u32,
}

fn main() -> anyhow::Result<()> {
    let Arguments { rounds, sites, elements, every, warm_up } = Arguments::parse();
    let federation = Federation::start();
    let work = federation.path("synthetic");
    let job = model_folder(&work, rounds, sites)?;
    let state = state_file(&work.join("state"), elements)?;
    let update = delta_file(&work.join("update"), elements, 7)?;
    let runtime = tokio::runtime::Runtime::new()?;
    for i in 0..sites {
        let bundle = federation.enrol(&format!("site-{i}"), "site");
        let (address, state, update) = (federation.address().to_owned(), state.clone(), update.clone());
        let folder = work.join(format!("site-{i}"));
        std::fs::create_dir_all(&folder)?;
        runtime.spawn(async move {
            // Ends with the aggregator.
            SyntheticSite::connect(&address, &bundle).await?.serve(&state, &update, &folder).await
        });
    }
    let id = federation.operator(&["job", "submit", text(&job)]).ok().stdout;
    let mut samples: Vec<(f64, f64)> = Vec::new();
    let mut told = None;
    println!("{:>7} {:>12} {:>10}", "round", "memory (MB)", "open files");
    loop {
        // From the log: whoever asks for all rounds many times a second makes the aggregator larger.
        let log = federation.log_text("aggregator");
        let done = committed(&log);
        let megabytes = resident(federation.server_id())?;
        if done >= warm_up && samples.last().is_none_or(|(last, _)| f64::from(done) > *last) {
            samples.push((f64::from(done), megabytes));
        }
        let over = log.contains("job ended");
        if over || told.is_none_or(|last| done >= last + every) {
            told = Some(done - done % every);
            let files = std::fs::read_dir(format!("/proc/{}/fd", federation.server_id()))?.count();
            println!("{done:>7} {megabytes:>12.1} {files:>10}");
        }
        if over {
            break;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    federation.ended(id.trim(), "completed");
    match slope(&samples) {
        Some(slope) => println!("{slope:+.4} MB a round, over {} samples from round {warm_up} on", samples.len()),
        None => println!("too few rounds after the first {warm_up} for a slope"),
    }
    Ok(())
}

/// The last round that a log says is committed.
fn committed(log: &str) -> u32 {
    let line = log.lines().rev().find(|line| line.contains("round committed")).unwrap_or_default();
    line.split_whitespace().find_map(|word| word.strip_prefix("round=")?.parse().ok()).unwrap_or(0)
}

/// Resident memory of a process, in 10^6 bytes.
fn resident(process: u32) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib * 1024.0 / 1e6)
}

/// The slope of the least-squares line; `None` where there is no line.
fn slope(samples: &[(f64, f64)]) -> Option<f64> {
    let count = samples.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| samples.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|sample| sample.0), mean(|sample| sample.1));
    let spread: f64 = samples.iter().map(|sample| (sample.0 - x).powi(2)).sum();
    let together: f64 = samples.iter().map(|sample| (sample.0 - x) * (sample.1 - y)).sum();
    (spread > 0.0).then(|| together / spread)
}
