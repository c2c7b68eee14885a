//! Benchmark: an upload over a slow line with outages, in the figures of a hospital's line or any others.
//!
//! Starts the real aggregator and a site that speaks the protocol behind a line of so many bytes a second, which is cut and
//! swallows bytes in turns. Prints how long the upload took and how many bytes travelled again: all that the site gave to the
//! line, less what a file of the same size takes on a line that does not break.
//! `cargo run -p fedtune-tests --bin bad-links` takes about a quarter of an hour; `--times 10` lets time pass faster.

use std::time::{Duration, Instant};

use anyhow::ensure;
use clap::Parser;
use fedtune_proto::channel::Credentials;
use fedtune_proto::digest::ArtifactRef;
use fedtune_proto::v1::report_result_request::Outcome;
use fedtune_proto::{transfer, v1, version};
use fedtune_tests::{
    Break, Federation, Link, Outage, Proxy, SyntheticSite, Way, delta_file, model_folder, state_file, text,
};

#[derive(Parser)]
#[command(about = "Sends an update over a slow line with outages")]
struct Arguments {
    /// Size of the update in megabytes (10^6 bytes)
    #[arg(long, default_value_t = 90)]
    megabytes: u64,
    /// Rate of the line in megabits a second, upwards
    #[arg(long, default_value_t = 4.0)]
    megabits: f64,
    /// How late bytes are, in milliseconds, each way
    #[arg(long, default_value_t = 20)]
    delay: u64,
    /// Seconds of an outage
    #[arg(long, default_value_t = 360.0)]
    outage: f64,
    /// Number of outages, cuts and black holes in turns
    #[arg(long, default_value_t = 2)]
    outages: u64,
    /// How many times as fast time passes: the line is so much faster, and outages and patience are so much shorter
    #[arg(long, default_value_t = 1.0)]
    times: f64,
}

fn main() -> anyhow::Result<()> {
    let Arguments { megabytes, megabits, delay, outage, outages, times } = Arguments::parse();
    let federation = Federation::start();
    let proxy = Proxy::start(federation.address())?;
    let work = federation.path("synthetic");
    let job = model_folder(&work, 1, 1)?;
    let state = state_file(&work.join("state"), megabytes * 250_000)?;
    let update = delta_file(&work.join("update"), megabytes * 250_000, 7)?;
    let bundle = federation.enrol("far", "site");
    let id = federation.operator(&["job", "submit", text(&job)]).ok().stdout;
    tokio::runtime::Runtime::new()?.block_on(async {
        let silence = fedtune_proto::channel::SILENCE.div_f64(times).max(Duration::from_secs(1));
        let channel = Credentials::read(&bundle, "site")?.connect_within(&proxy.address(), silence).await?;
        let mut site = SyntheticSite::open(channel, version::PROTOCOL).await?;
        let _beating = site.beat();
        let task = site.task().await?;
        let rate = megabits * times * 1e6 / 8.0;
        let delay = Duration::from_millis(delay).div_f64(times);
        proxy.set(Link { delay, up: Some(rate as u64), down: None });
        let before = proxy.sent(Way::Up);
        let (artifact, _) = site.upload(&state).await?;
        let undisturbed = proxy.sent(Way::Up) - before;
        let recipe_json = r#"{"config_json":"{}","tensors":[]}"#.into();
        let initialized = v1::Initialized { state: Some(artifact), recipe_json };
        ensure!(site.report(&task, Outcome::Initialized(initialized)).await?.accepted, "the first state is refused");
        let task = site.task().await?;

        let lasts = Duration::from_secs_f64(outage / times);
        let after = |i: u64| (i + 1) * megabytes * 1_000_000 / (outages + 1);
        let how = |i: u64| if i.is_multiple_of(2) { Break::Cut } else { Break::BlackHole };
        proxy.plan((0..outages).map(|i| Outage { after: after(i), way: Way::Up, how: how(i), lasts }));
        let artifact = v1::Artifact::from(ArtifactRef::of_file(&update)?);
        let (began, before, mut pause) = (Instant::now(), proxy.sent(Way::Up), Duration::from_millis(250));
        while let Err(e) = transfer::upload(&site.channel, &artifact, &update).await {
            ensure!(e.is_transient(), e);
            println!("{:>7.1} s: {e}", began.elapsed().as_secs_f64());
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(30).div_f64(times));
        }
        let (took, sent) = (began.elapsed().as_secs_f64(), proxy.sent(Way::Up) - before);
        ensure!(site.send_update(&task, &update, 10).await?.accepted, "the update is refused");
        let ideal = artifact.size as f64 / rate + outages as f64 * lasts.as_secs_f64();
        println!("{took:.1} s for what takes {ideal:.1} s");
        let again = sent.saturating_sub(undisturbed);
        println!("{again} of {undisturbed} bytes again, {:.0} an outage", again as f64 / outages.max(1) as f64);
        anyhow::Ok(())
    })?;
    federation.ended(id.trim(), "completed");
    Ok(())
}
