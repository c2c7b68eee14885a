//! A job on the terminal: live bars where there is a terminal, plain lines where there is none.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::IsTerminal;
use std::time::Duration;

use fedtune_config::job::Metric;
use fedtune_proto::channel;
use fedtune_proto::v1::{Measure, RoundSummary, Scores, ShowJobResponse, SiteActivity};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tonic::{Code, Status};

use super::job::status;
use super::table;
use crate::operator::{Operator, OperatorError};

/// How often in a row, and with which pause, an aggregator that is away is tried again: two minutes in all.
const AWAY_MAX: u32 = 60;
const AWAY_PAUSE: Duration = Duration::from_secs(2);

/// Follows a job until it has ended, printing each round as it is committed.
pub(super) async fn to_the_end(operator: &mut Operator, job: &str) -> Result<ShowJobResponse, OperatorError> {
    let mut view = View::new();
    let mut last = ShowJobResponse::default();
    let mut failures = 0;
    loop {
        let ended = follow(operator, job, &mut view, &mut last, &mut failures).await;
        match ended {
            Ok(()) => break,
            // The aggregator restarts, say; the job goes on there, and so does the watching.
            Err(OperatorError::Remote(status)) if is_away(&status) && failures < AWAY_MAX => {
                failures += 1;
                eprintln!("the aggregator is away ({}); trying again", channel::told(&status));
                tokio::time::sleep(AWAY_PAUSE).await;
            }
            Err(error) => return Err(error),
        }
    }
    view.finish(&last);
    Ok(last)
}

async fn follow(
    operator: &mut Operator,
    job: &str,
    view: &mut View,
    last: &mut ShowJobResponse,
    failures: &mut u32,
) -> Result<(), OperatorError> {
    let mut stream = operator.watch(job).await?;
    while let Some(shown) = stream.message().await? {
        *failures = 0;
        view.update(&shown);
        *last = shown;
    }
    Ok(())
}

fn is_away(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal)
}

/// What is on the terminal.
pub(crate) struct View {
    bars: MultiProgress,
    phase: ProgressBar,
    sites: BTreeMap<String, ProgressBar>,
    rounds_shown: usize,
    phase_shown: String,
    live: bool,
}

impl View {
    pub(crate) fn new() -> Self {
        let bars = MultiProgress::new();
        let style =
            ProgressStyle::with_template("{spinner} {msg}").unwrap_or_else(|_| ProgressStyle::default_spinner());
        let phase = bars.add(ProgressBar::new_spinner().with_style(style));
        let live = std::io::stderr().is_terminal();
        if live {
            phase.enable_steady_tick(Duration::from_millis(120));
        }
        Self { bars, phase, sites: BTreeMap::new(), rounds_shown: 0, phase_shown: String::new(), live }
    }

    pub(crate) fn update(&mut self, shown: &ShowJobResponse) {
        let total = shown.summary.as_ref().map_or(0, |summary| summary.rounds_total);
        // A round is shown once its evaluation is in, or the next one has begun.
        let ended = shown.activity.is_empty() || shown.phase.ends_with("training");
        let ready = shown.rounds.iter().take_while(|round| round.scores.is_some() || ended).count();
        for round in shown.rounds.iter().take(ready).skip(self.rounds_shown) {
            self.line(&round_line(round, total));
        }
        self.rounds_shown = self.rounds_shown.max(ready);
        if self.live {
            self.phase.set_message(shown.phase.clone());
            self.bars_of(&shown.activity);
        } else if shown.phase != self.phase_shown {
            self.line(&shown.phase);
        }
        self.phase_shown.clone_from(&shown.phase);
    }

    pub(crate) fn finish(&mut self, shown: &ShowJobResponse) {
        self.bars_of(&[]);
        self.phase.finish_and_clear();
        if let Some(summary) = &shown.summary {
            let best =
                if summary.best_round > 0 { format!("; best round {}", summary.best_round) } else { String::new() };
            eprintln!("job {}: {}{best}", status(summary), summary.reason);
        }
    }

    fn line(&self, text: &str) {
        if self.live {
            let _ = self.bars.println(text);
        } else {
            eprintln!("{text}");
        }
    }

    fn bars_of(&mut self, activity: &[SiteActivity]) {
        self.sites.retain(|site, bar| {
            let keep = activity.iter().any(|a| a.site == *site);
            if !keep {
                bar.finish_and_clear();
            }
            keep
        });
        let width = activity.iter().map(|a| a.site.len()).max().unwrap_or(0);
        for a in activity {
            let bar = self.sites.entry(a.site.clone()).or_insert_with(|| {
                let template = "  {prefix} {bar:24} {pos}/{len} {msg}";
                let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
                self.bars.add(ProgressBar::new(1).with_style(style))
            });
            bar.set_prefix(format!("{:<width$}", a.site));
            let done = a.activity == "done";
            bar.set_length(a.total.max(1));
            bar.set_position(if done { a.total.max(1) } else { a.done });
            let mut message = a.activity.clone();
            if let Some(loss) = a.loss {
                let _ = write!(message, "  loss {loss:.4}");
            }
            if a.examples_per_second > 0.0 && !done {
                let _ = write!(message, "  {:.0} examples/s", a.examples_per_second);
            }
            bar.set_message(message);
        }
    }
}

/// One committed round in one line.
fn round_line(round: &RoundSummary, total: u32) -> String {
    let examples: u64 = round.sites.iter().map(|site| site.examples).sum();
    let mut line = format!("round {}/{total}: {} sites, {examples} examples", round.round, round.sites.len());
    if let Some(scores) = &round.scores {
        for Measure { name, value } in &scores.measures {
            let _ = write!(line, ", {} {value:.4}", title(name));
        }
    }
    let _ = write!(line, ", {:.1} s", round.wall_seconds);
    for problem in &round.problems {
        let _ = write!(line, "\n  {}: left out: {}", problem.site, problem.reason);
    }
    for flag in &round.flags {
        let _ = write!(line, "\n  {}: counts, but {}", flag.site, flag.reason);
    }
    line
}

/// A job with its rounds, for reading.
pub(super) fn describe(shown: &ShowJobResponse) -> String {
    let summary = shown.summary.clone().unwrap_or_default();
    let mut text = format!("job     {}\nname    {}\nstatus  {}", summary.job, summary.name, status(&summary));
    if !summary.reason.is_empty() {
        let _ = write!(text, " ({})", summary.reason);
    }
    let _ = writeln!(text, "\nnow     {}\nrounds  {} of {}", shown.phase, summary.rounds_done, summary.rounds_total);
    if summary.best_round > 0 {
        let _ = writeln!(text, "best    round {}", summary.best_round);
    }
    text.push('\n');
    // The two most important measures beside the loss.
    let measures = shown.rounds.iter().filter_map(|round| round.scores.as_ref()).flat_map(|scores| &scores.measures);
    let mut names = measures.map(|measure| measure.name.as_str()).filter(|name| *name != "loss");
    let first = names.next().unwrap_or("score").to_owned();
    let second = names.find(|name| *name != first).unwrap_or("-").to_owned();
    let measure = |scores: Option<&Scores>, name: &str| {
        scores?.measures.iter().find(|measure| measure.name == name).map(|measure| measure.value)
    };
    let rows = shown.rounds.iter().map(|round| {
        let scores = round.scores.as_ref();
        let score = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.4}"));
        [
            round.round.to_string(),
            round.sites.len().to_string(),
            score(measure(scores, &first)),
            score(measure(scores, &second)),
            score(measure(scores, "loss")),
            format!("{:.1}", round.wall_seconds),
            round.state_digest.chars().take(16).collect(),
        ]
    });
    let (one, other) = (title(&first).to_uppercase(), title(&second).to_uppercase());
    text += &table::layout(["ROUND", "SITES", &one, &other, "LOSS", "SECONDS", "STATE"], rows);
    text += &site_table(&shown.rounds, &first);
    for round in &shown.rounds {
        if let Some(from) = round.from_round {
            let _ =
                write!(text, "\nround {} started from the state of round {from}: the model had collapsed", round.round);
        }
        let left_out = round.problems.iter().map(|problem| (problem, "left out: "));
        for (of, word) in left_out.chain(round.flags.iter().map(|flag| (flag, "counts, but "))) {
            let _ = write!(text, "\nround {}: {}: {word}{}", round.round, of.site, of.reason);
        }
    }
    text
}

/// A measure of each site in each round, with the worst and the spread, where several sites score.
fn site_table(rounds: &[RoundSummary], measure: &str) -> String {
    let value = |scores: &Scores| scores.measures.iter().find(|m| m.name == measure).map(|m| m.value);
    let mut sites: Vec<&str> = rounds.iter().flat_map(|round| &round.site_scores).map(|of| of.site.as_str()).collect();
    sites.sort_unstable();
    sites.dedup();
    if sites.len() < 2 {
        return String::new();
    }
    let shown = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.4}"));
    let mut lines = vec![format!("{:>5}  {}  {:>8}  {:>8}", "ROUND", sites.join("  "), "WORST", "SPREAD")];
    for round in rounds.iter().filter(|round| !round.site_scores.is_empty()) {
        let of = |site: &str| round.site_scores.iter().find(|of| of.site == site)?.scores.as_ref().and_then(value);
        let values: Vec<f64> = sites.iter().filter_map(|site| of(site)).collect();
        let cells: Vec<String> = sites.iter().map(|site| format!("{:>1$}", shown(of(site)), site.len())).collect();
        let (least, most) = values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(*v), b.max(*v)));
        let worst = if smaller_is_better(measure) { most } else { least };
        lines.push(format!("{:>5}  {}  {worst:>8.4}  {:>8.4}", round.round, cells.join("  "), most - least));
    }
    format!("\n{} by site\n{}\n", title(measure), lines.join("\n"))
}

fn smaller_is_better(measure: &str) -> bool {
    let metric: Option<Metric> = serde_json::from_value(measure.into()).ok();
    measure == "calibration_error" || metric.is_some_and(|metric| metric.score(1.0) < 0.0)
}

/// What a measure is called for people.
fn title(name: &str) -> String {
    name.replace("_f1", "-F1").replace('_', " ")
}
