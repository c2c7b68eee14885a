//! Power cuts in the middle of a job: programs are killed at seeded instants of every phase and started again, and the job
//! ends with the bits of the job that nobody disturbed.
//!
//! There are 20 kills; `FEDTUNE_TEST_KILLS=200` makes it 200 and the rounds longer, so that all are within the job.
//! `FEDTUNE_TEST_SEED=7` chooses other instants. With `--nocapture` each kill is told, with the time until the program was
//! back.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use chacha20::ChaCha8Rng;
use fedtune_proto::v1::{JobStatus, RoundSummary, ShowJobResponse};
use fedtune_tests::{Federation, Watch};
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

const ROUNDS: u32 = 10;

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(120);

/// In half of all cases a program is back within this.
const BACK: Duration = Duration::from_secs(5);

/// Where in a round a program is killed, in the order in which a round gets there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Moment {
    Training,
    /// Some bytes of an update are at the aggregator.
    Uploading,
    /// An update is decoded and checked.
    Checking,
    Aggregating,
    Evaluating,
}

const MOMENTS: [Moment; 5] =
    [Moment::Training, Moment::Uploading, Moment::Checking, Moment::Aggregating, Moment::Evaluating];

/// What there was when something was waited for.
struct Met {
    /// The moment, or a later one if that was over before it was seen.
    moment: Moment,
    /// The site that it is of, if it is of one.
    site: Option<String>,
    /// Whether the job is in a later round already; then it is the site that holds the round up while it is away.
    late: bool,
}

/// A job of the demo's three sites and its evaluator, with all that can go wrong in it: checkpoints, updates of eight bits,
/// and what they lost added to the next.
struct Run {
    federation: Federation,
    sites: Vec<String>,
    job: String,
    watch: Watch,
}

impl Run {
    /// Rounds of so many steps at each site.
    fn new(steps: u64) -> Self {
        let mut federation = Federation::start();
        let rows = std::fs::read_to_string(federation.path("demo/data/train.csv")).unwrap();
        let (header, rows) = rows.split_once('\n').unwrap();
        let of_row = |row: &str| row.rsplit_once(',').unwrap().1.to_owned();
        let sites: Vec<String> = rows.lines().map(of_row).collect::<BTreeSet<_>>().into_iter().collect();
        for name in &sites {
            let own = rows.lines().filter(|row| of_row(row) == *name);
            let path = federation.path(&format!("{name}.csv"));
            std::fs::write(&path, [header].into_iter().chain(own).collect::<Vec<_>>().join("\n")).unwrap();
            let config = federation.write_site(name, "site", &format!("train = {path:?}"));
            let text = std::fs::read_to_string(&config).unwrap();
            std::fs::write(config, text.replace("[storage]", "[storage]\ncheckpoint_steps = 5")).unwrap();
        }
        let test = federation.path("demo/data/test.csv");
        federation.write_site("judge", "evaluator", &format!("test = {test:?}"));
        for name in sites.iter().map(String::as_str).chain(["judge"]) {
            federation.start_client(name);
        }
        let job = federation.submit(&[
            ("epochs = 2", &format!("steps = {steps}")),
            ("count = 6", &format!("count = {ROUNDS}")),
            ("[rounds]", "[updates]\ncompression = \"int8\"\nerror_feedback = true\n[rounds]"),
        ]);
        let watch = Watch::new(&federation, &job).unwrap();
        Self { federation, sites, job, watch }
    }

    fn everybody(&self) -> impl Iterator<Item = &str> {
        self.sites.iter().map(String::as_str).chain(["judge"])
    }

    fn logs(&self) -> String {
        let mut logs = format!("aggregator:\n{}", self.federation.log_text("aggregator"));
        for name in self.everybody() {
            let _ = write!(logs, "\n{name}:\n{}", self.federation.log_text(name));
        }
        logs
    }

    /// Looks until something is there.
    fn until<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        let began = Instant::now();
        loop {
            if let Some(found) = look() {
                return found;
            }
            assert!(began.elapsed() < PATIENCE, "no {what}\n{}", self.logs());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// The name of the first staging file like this.
    fn staged(&self, like: impl Fn(&str) -> bool) -> Option<String> {
        let folder = self.federation.path("federation/data/artifacts/staging");
        let names = std::fs::read_dir(folder).unwrap().flatten().map(|entry| entry.file_name());
        names.filter_map(|name| name.into_string().ok()).find(|name| like(name))
    }

    /// Waits for a moment of a round.
    fn reached(&self, round: u32, moment: Moment) -> Met {
        let site_of = |name: &str| self.sites.iter().find(|site| name.contains(site.as_str())).cloned();
        let mut looked = Instant::now();
        self.until(&format!("{moment:?} of round {round}"), || {
            let name = match moment {
                Moment::Uploading => self.staged(|name| name.ends_with(".part")),
                Moment::Checking => self.staged(|name| name.ends_with(".decoded")),
                Moment::Aggregating => self.staged(|name| name.starts_with(&format!("{}-{round}-1.", self.job))),
                Moment::Training | Moment::Evaluating => None,
            };
            if let Some(name) = name {
                return Some(Met { moment, site: site_of(&name), late: false });
            }
            // Files are there for a millisecond, phases for longer.
            if looked.elapsed() < Duration::from_millis(20) {
                return None;
            }
            looked = Instant::now();
            let shown = self.watch.look()?;
            assert_eq!(status(&shown), JobStatus::Running, "the job ended before {moment:?} of round {round}");
            let at = position(&shown);
            let there = match moment {
                Moment::Training | Moment::Evaluating => at >= (round, moment),
                Moment::Uploading | Moment::Checking | Moment::Aggregating => at > (round, moment),
            };
            let late = at.0 > round;
            let busy = shown.activity.iter().find(|of| late && of.activity == "training").map(|of| of.site.clone());
            there.then_some(Met { moment: at.1, site: busy, late })
        })
    }

    /// How often a site has opened a session.
    fn sessions(&self, name: &str) -> usize {
        self.federation.log_text(name).matches("session open").count()
    }

    /// Kills programs, starts them again, and waits until they are back: the aggregator answers, and the sessions that
    /// ended are open. Gives how long that took.
    fn kill(&mut self, aggregator: bool, client: Option<&str>) -> Duration {
        let ended: Vec<(String, usize)> = self
            .everybody()
            .filter(|name| aggregator || Some(*name) == client)
            .map(|name| (name.to_owned(), self.sessions(name)))
            .collect();
        if aggregator {
            self.federation.kill_server();
        }
        if let Some(name) = client {
            self.federation.kill_client(name);
        }
        let began = Instant::now();
        if let Some(name) = client {
            self.federation.start_client(name);
        }
        if aggregator {
            self.federation.start_server();
            self.until("answer of the aggregator", || self.watch.look());
        }
        for (name, before) in ended {
            self.until(&format!("session of {name}"), || (self.sessions(&name) > before).then_some(()));
        }
        began.elapsed()
    }

    fn ended(&self) -> ShowJobResponse {
        let over = |shown: &ShowJobResponse| !matches!(status(shown), JobStatus::Queued | JobStatus::Running);
        let mut rounds = 0;
        let shown = loop {
            // Patience is for a round.
            let shown = self.until("end of a round", || {
                std::thread::sleep(Duration::from_millis(20));
                self.watch.look().filter(|shown| over(shown) || shown.rounds.len() > rounds)
            });
            if over(&shown) {
                break shown;
            }
            rounds = shown.rounds.len();
        };
        assert_eq!(status(&shown), JobStatus::Completed, "{shown:?}\n{}", self.logs());
        shown
    }
}

fn status(shown: &ShowJobResponse) -> JobStatus {
    shown.summary.as_ref().unwrap().status()
}

/// The round and the part of it that a job is in.
fn position(shown: &ShowJobResponse) -> (u32, Moment) {
    let committed = shown.rounds.last().map_or(0, |round| round.round);
    if shown.phase.contains("evalua") {
        (committed, Moment::Evaluating)
    } else if shown.phase.ends_with("aggregating") {
        (committed + 1, Moment::Aggregating)
    } else {
        (committed + 1, Moment::Training)
    }
}

/// All of a round that must not depend on when programs were killed. Times do, and so do bytes.
fn facts(round: &RoundSummary) -> String {
    let mut text = format!("{} {} {:?}", round.round, round.attempt, round.scores);
    for site in &round.sites {
        let _ = write!(text, "\n{} {} {:?} {:?}", site.site, site.examples, site.norm, site.relative_error);
        let _ = write!(text, " {:?} {:?}", site.share, site.train_loss);
    }
    let _ = write!(text, "\n{:?} {:?}\n{}", round.problems, round.flags, round.state_digest);
    text
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap())
}

#[test]
fn kills_at_any_instant_lose_nothing_count_nothing_twice_and_change_no_bit() {
    let (kills, seed) = (number("FEDTUNE_TEST_KILLS", 20), number("FEDTUNE_TEST_SEED", 1));
    let steps = 12 * kills.div_ceil(20);
    let undisturbed: Vec<String> = Run::new(steps).ended().rounds.iter().map(facts).collect();
    assert_eq!(undisturbed.len(), ROUNDS as usize);

    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut deck: Vec<Moment> = (1..kills as usize).map(|i| MOMENTS[i % MOMENTS.len()]).collect();
    deck.shuffle(&mut random);
    // As many in each round, in the order of its moments, so that each can still come; and one in the last round.
    let round = |i: usize| 1 + (i as u64 * u64::from(ROUNDS - 1) / kills) as u32;
    let mut plan: Vec<(u32, Moment)> = deck.iter().enumerate().map(|(i, moment)| (round(i), *moment)).collect();
    plan.sort_unstable();
    plan.push((ROUNDS, Moment::Training));

    let mut run = Run::new(steps);
    let (mut times, mut met) = (Vec::new(), BTreeMap::<Moment, usize>::new());
    for (round, moment) in plan {
        let Met { moment, site, late } = run.reached(round, moment);
        let longest = match moment {
            _ if late => 50_000,
            Moment::Training => 1_000_000,
            _ => 5_000,
        };
        std::thread::sleep(Duration::from_micros(random.random_range(0..longest)));
        let site = site.unwrap_or_else(|| run.sites[random.random_range(0..run.sites.len())].clone());
        let client = if moment == Moment::Evaluating { "judge".to_owned() } else { site };
        let (aggregator, client) = match random.random_range(0..5) {
            0 | 1 if !late => (true, None),
            2 => (true, Some(client)),
            _ => (false, Some(client)),
        };
        let took = run.kill(aggregator, client.as_deref());
        let whom: Vec<&str> = aggregator.then_some("aggregator").into_iter().chain(client.as_deref()).collect();
        println!("round {round}, {moment:?}: {}: back after {took:.1?}", whom.join(", "));
        times.push(took);
        *met.entry(moment).or_default() += 1;
    }
    let shown = run.ended();
    let disturbed: Vec<String> = shown.rounds.iter().map(facts).collect();
    assert_eq!(disturbed, undisturbed, "{}", run.logs());
    for round in &shown.rounds {
        let names: Vec<&str> = round.sites.iter().map(|site| site.site.as_str()).collect();
        assert_eq!(names, run.sites, "each site counts once in round {}", round.round);
    }
    times.sort_unstable();
    let (median, longest) = (times[times.len() / 2], times[times.len() - 1]);
    println!("{kills} kills, {met:?}; back after {median:.2?} in the median, {longest:.2?} at most");
    assert!(met.contains_key(&Moment::Training) && met.contains_key(&Moment::Evaluating), "{met:?}");
    assert!(median < BACK, "{times:?}");
}
