//! Benchmark: the aggregator's peak resident memory with so many sites and a state of so many megabytes.
//!
//! Starts the real aggregator, and in this process sites that speak the protocol and send made-up updates. Prints one
//! JSON object a run. `cargo run --release -p fedtune-tests --bin aggregator-memory -- --megabytes 440 --sites 8 --sites 2`

use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use fedtune_tests::{Federation, SyntheticSite, delta_file, model_folder, state_file, text};

/// Longest wait for a job.
const PATIENCE: Duration = Duration::from_secs(2 * 60 * 60);

#[derive(Parser)]
#[command(about = "Measures the aggregator's peak resident memory")]
struct Arguments {
    /// Size of the state in megabytes (10^6 bytes)
    #[arg(long, default_value_t = 440)]
    megabytes: u64,
    /// Number of sites; may be given more than once
    #[arg(long, default_values_t = [8, 2])]
    sites: Vec<usize>,
    /// Rounds of the job
    #[arg(long, default_value_t = 1)]
    rounds: u32,
}

fn main() -> anyhow::Result<()> {
    let Arguments { megabytes, sites, rounds } = Arguments::parse();
    for sites in sites {
        let federation = Federation::start();
        let began = Instant::now();
        let shown = drive(&federation, sites, megabytes * 250_000, rounds)?;
        let status = std::fs::read_to_string(format!("/proc/{}/status", federation.server_id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
        let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
        let report = serde_json::json!({
            "sites": sites, "state_megabytes": megabytes, "rounds": rounds,
            "aggregator_peak_rss_megabytes": (kib * 1024) as f64 / 1e6,
            "aggregate_seconds": shown["rounds"][0]["aggregate_seconds"], "wall_seconds": began.elapsed().as_secs_f64(),
        });
        println!("{report}");
    }
    Ok(())
}

fn drive(federation: &Federation, sites: usize, elements: u64, rounds: u32) -> anyhow::Result<serde_json::Value> {
    let work = federation.path("synthetic");
    let job = model_folder(&work, rounds, sites)?;
    let state = state_file(&work.join("state"), elements)?;
    let update = delta_file(&work.join("update"), elements, 7)?;
    let bundles: Vec<_> = (0..sites).map(|i| federation.enrol(&format!("site-{i}"), "site")).collect();
    let runtime = tokio::runtime::Runtime::new()?;
    for (i, bundle) in bundles.into_iter().enumerate() {
        let (address, state, update) = (federation.address().to_owned(), state.clone(), update.clone());
        let folder = work.join(format!("site-{i}"));
        std::fs::create_dir_all(&folder)?;
        runtime.spawn(async move {
            let serving = async {
                let mut site = SyntheticSite::connect(&address, &bundle).await?;
                site.serve(&state, &update, &folder).await
            };
            // It is dropped once the job has ended; nobody else says why there is no end.
            if let Err(e) = serving.await {
                eprintln!("site-{i} is gone: {e:#}");
            }
        });
    }
    let id = federation.operator(&["job", "submit", text(&job)]).ok().stdout;
    Ok(federation.ended_within(PATIENCE, id.trim(), "completed"))
}
