//! Attacks of malicious sites against the rules by which updates are combined, on a small network that learns digits: what
//! accuracy is left, and whether that is enough. Ends with 1 where it is not. `tests/bench/red_team.py` makes the data.

mod attack;
mod digits;
mod federation;
mod network;
mod probes;
mod results;
mod thresholds;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use anyhow::{Context, bail};
use clap::{Parser, ValueEnum};
use fedtune_config::job::{Rule, Weighting};
use fedtune_server::simulate::partition::{Partition, Table};
use indicatif::{ProgressBar, ProgressStyle};

use attack::Attack;
use digits::Digits;
use federation::{Federation, Outcome, job_by};
use results::{Key, Results, Split};

/// The rules, mean first.
const RULES: [Rule; 9] = [
    Rule::Mean,
    Rule::NormClipping,
    Rule::CenteredClipping,
    Rule::Median,
    Rule::TrimmedMean,
    Rule::Krum,
    Rule::MultiKrum,
    Rule::Bulyan,
    Rule::GeometricMedian,
];

#[derive(Parser)]
#[command(about = "Runs attacks against the aggregation rules and checks what is left")]
struct Arguments {
    /// CSV of training digits: 64 columns of pixels, 0 to 16, and label
    #[arg(long)]
    train: PathBuf,
    /// CSV of test digits
    #[arg(long)]
    test: PathBuf,
    /// Seeds of split, first network and order of rows
    #[arg(long, num_args = 1.., default_values_t = [1, 2, 3])]
    seeds: Vec<u64>,
    /// Rules to run; the thresholds are checked only on all of them
    #[arg(long, num_args = 1.., value_parser = rule)]
    rules: Vec<Rule>,
    /// Attacks to run; the thresholds are checked only on all of them
    #[arg(long, num_args = 1.., value_enum)]
    attacks: Vec<Attack>,
    /// Sites
    #[arg(long, default_value_t = 11)]
    sites: usize,
    /// How many of them are malicious
    #[arg(long, default_value_t = 2)]
    malicious: usize,
    /// The sites with the most examples are malicious, not any
    #[arg(long)]
    largest: bool,
    /// What updates weigh by, under rules with weights. By the same, the strength of an attack does not hang on the split
    #[arg(long, value_enum, default_value_t = Weigh::Uniform)]
    weighting: Weigh,
    /// Rounds
    #[arg(long, default_value_t = 25)]
    rounds: u32,
    /// Threads; by default all cores
    #[arg(long)]
    threads: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Weigh {
    /// All the same
    Uniform,
    /// By the number of examples, the default of a job
    Examples,
}

fn rule(text: &str) -> Result<Rule, String> {
    let expected = || RULES.map(|rule| rule.to_string()).join(", ");
    RULES.into_iter().find(|rule| rule.to_string() == text).ok_or_else(|| format!("expected {}", expected()))
}

fn main() -> anyhow::Result<ExitCode> {
    let mut arguments = Arguments::parse();
    let complete = arguments.rules.is_empty() && arguments.attacks.is_empty();
    if arguments.rules.is_empty() {
        arguments.rules = RULES.to_vec();
    }
    if arguments.attacks.is_empty() {
        arguments.attacks = Attack::value_variants().to_vec();
    }
    if arguments.malicious >= arguments.sites {
        bail!("--malicious {} of --sites {}: expected fewer", arguments.malicious, arguments.sites);
    }
    let probes = runtime()?.block_on(probes::all())?;
    let results = run(&arguments)?;
    for split in Split::ALL {
        for compared in [false, true] {
            print!("{}", results.table(split, compared, &arguments.rules, &arguments.attacks));
        }
    }
    print!("{}", results.notes());
    let mut checks = probes;
    if complete {
        checks.extend(thresholds::all(&results, &RULES, Attack::value_variants()));
    } else {
        println!("The thresholds of accuracy are not checked, since not every rule and attack was run.");
    }
    for check in &checks {
        println!("{check}");
    }
    Ok(if checks.iter().all(|check| check.passed) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// All cases, by several threads.
fn run(arguments: &Arguments) -> anyhow::Result<Results> {
    let (train, test) = (Digits::read(&arguments.train)?, Digits::read(&arguments.test)?);
    let table = Table::read(&arguments.train, Some("label"))?;
    let mut federations = Vec::new();
    for split in Split::ALL {
        for seed in &arguments.seeds {
            let partition = match split {
                Split::Iid => Partition::Iid,
                Split::Dirichlet => Partition::Dirichlet(0.5),
            };
            let shards = partition.split(&table, Some(arguments.sites), *seed)?;
            let mut rows: Vec<Vec<usize>> = shards.into_iter().map(|shard| shard.rows).collect();
            if arguments.largest {
                rows.sort_by_key(|rows| std::cmp::Reverse(rows.len()));
            }
            let federation = Federation {
                train: &train,
                test: &test,
                rows,
                malicious: arguments.malicious,
                rounds: arguments.rounds,
                seed: *seed,
            };
            federations.push((split, federation));
        }
    }
    let mut cases = Vec::new();
    for (split, federation) in &federations {
        for rule in &arguments.rules {
            for attack in &arguments.attacks {
                cases.push((*split, federation, *rule, *attack));
            }
        }
    }
    let progress = ProgressBar::new(cases.len() as u64)
        .with_style(ProgressStyle::with_template("{wide_bar} {pos} of {len} federations, {eta} left")?);
    let threads = match arguments.threads {
        Some(threads) => threads.max(1),
        None => std::thread::available_parallelism()?.get(),
    };
    let weighting = match arguments.weighting {
        Weigh::Uniform => Weighting::Uniform,
        Weigh::Examples => Weighting::Examples,
    };
    let next = AtomicUsize::new(0);
    let (sender, receiver) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let (sender, next, cases) = (sender.clone(), &next, &cases);
            scope.spawn(move || {
                while let Some((split, federation, rule, attack)) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let done = both(federation, *rule, *attack, weighting);
                    let what = || format!("{attack:?} against {rule}, {split:?}, seed {}", federation.seed);
                    let failed = done.is_err();
                    if sender.send(((*split, *rule, *attack), done.with_context(what))).is_err() || failed {
                        break;
                    }
                }
            });
        }
        drop(sender);
        let mut results = Results::default();
        for ((split, rule, attack), done) in receiver {
            let [plain, compared] = done.inspect_err(|_| next.store(cases.len(), Ordering::Relaxed))?;
            progress.inc(1);
            for (outcome, compared) in [(plain, false), (compared, true)] {
                results.add(Key { split, compared, rule: rule.to_string(), attack }, outcome);
            }
        }
        progress.finish_and_clear();
        Ok(results)
    })
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// A federation without the comparison of updates, and with it.
fn both(federation: &Federation<'_>, rule: Rule, attack: Attack, weighting: Weighting) -> anyhow::Result<[Outcome; 2]> {
    let job = job_by(rule, federation.rows.len(), federation.malicious, weighting)?;
    runtime()?.block_on(async {
        let plain = federation.run(&job, attack, false).await?;
        // Where nothing would have been left out, nothing would have been otherwise.
        let compared = match plain.forged_left_out + plain.honest_left_out {
            0 => plain.clone(),
            _ => federation.run(&job, attack, true).await?,
        };
        Ok([plain, compared])
    })
}
