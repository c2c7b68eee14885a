//! A federation of which some sites are malicious. Sites train here; that updates are checked, compared and aggregated, and
//! by which defaults, is the aggregator's own code over its own artifact store.

use std::collections::BTreeMap;
use std::io::Write;

use anyhow::{Context, bail};
use chacha20::ChaCha8Rng;
use fedtune_config::Job;
use fedtune_config::job::{Patterns, Rule, Weighting};
use fedtune_proto::digest::ArtifactRef;
use fedtune_proto::layout::Layout;
use fedtune_server::aggregate::{
    AggregateError, Before, Bounds, Keep, Rejection, Weighted, aggregate, check_update, weights,
};
use fedtune_server::round::{SiteShare, admission};
use fedtune_server::store::artifacts::Writer;
use fedtune_server::store::{Artifacts, StoreError};
use rand::SeedableRng;

use crate::attack::{Attack, Known};
use crate::digits::Digits;
use crate::network::{Network, TENSORS, Training};

const TRAINING: Training = Training { rate: 0.1, batch: 16, epochs: 2 };

/// Random numbers for a purpose, and a count within it.
pub(crate) fn stream(seed: u64, purpose: [u64; 2]) -> ChaCha8Rng {
    let mut key = [0; 32];
    for (part, number) in key.chunks_exact_mut(8).zip([seed, purpose[0], purpose[1]]) {
        part.copy_from_slice(&number.to_le_bytes());
    }
    ChaCha8Rng::from_seed(key)
}

/// Artifacts in a temporary folder.
pub(crate) struct Shelf {
    _folder: tempfile::TempDir,
    pub(crate) artifacts: Artifacts,
}

impl Shelf {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir().context("no temporary folder")?;
        let artifacts = Artifacts::open(folder.path())?;
        Ok(Self { _folder: folder, artifacts })
    }

    /// Stores bytes as they are.
    pub(crate) async fn put_bytes(&self, parts: &[&[u8]]) -> anyhow::Result<ArtifactRef> {
        let mut writer = Writer::create(&self.artifacts, "new").await?;
        for part in parts {
            writer.write_all(part)?;
        }
        Ok(writer.finish(&self.artifacts).await?)
    }

    /// Stores values as tensors of these names and shapes.
    pub(crate) async fn put_tensors(
        &self,
        tensors: &[(&str, &[usize])],
        values: &[f32],
    ) -> anyhow::Result<ArtifactRef> {
        let entry = |(name, shape): &(&str, &[usize])| {
            ((*name).to_owned(), "F32".to_owned(), shape.iter().map(|length| *length as u64).collect())
        };
        let layout = Layout::of_tensors(tensors.iter().map(entry)).context("tensors that are too large")?;
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.put_bytes(&[&layout.header(), &bytes]).await
    }

    /// Stores values as the tensors of a network.
    pub(crate) async fn put(&self, values: &[f32]) -> anyhow::Result<ArtifactRef> {
        self.put_tensors(&TENSORS, values).await
    }

    pub(crate) async fn values(&self, artifact: ArtifactRef) -> anyhow::Result<Vec<f32>> {
        let layout = self.artifacts.layout(artifact).await?;
        let bytes = self.artifacts.read(artifact.digest, layout.data_start..layout.file_bytes).await?;
        Ok(bytes.as_chunks::<4>().0.iter().map(|value| f32::from_le_bytes(*value)).collect())
    }
}

/// A job with these lines of `[aggregation]`, completed and checked as an operator's.
pub(crate) fn job(quorum: usize, aggregation: &str) -> anyhow::Result<Job> {
    let text = format!(
        "name = \"red-team\"\n[model]\npath = \"none\"\n[task]\nkind = \"image-classification\"\n\
         labels = [\"0\", \"1\", \"2\", \"3\", \"4\", \"5\", \"6\", \"7\", \"8\", \"9\"]\n\
         [rounds]\nquorum = {quorum}\n[aggregation]\n{aggregation}\n"
    );
    Ok(fedtune_config::parse("red-team.toml".as_ref(), &text, std::iter::empty())?)
}

/// The job of a federation of `sites`, with as much said to the rule as it takes.
pub(crate) fn job_by(rule: Rule, sites: usize, malicious: usize, weighting: Weighting) -> anyhow::Result<Job> {
    let mut lines = format!("rule = \"{rule}\"\n");
    match rule {
        Rule::Krum | Rule::MultiKrum | Rule::Bulyan => lines += &format!("malicious = {malicious}\n"),
        _ => {}
    }
    if rule.is_weighted() && weighting == Weighting::Uniform {
        lines += "weighting = \"uniform\"\n";
    }
    job(sites, &lines)
}

/// The sites, their rows and how long they train.
pub(crate) struct Federation<'a> {
    pub(crate) train: &'a Digits,
    pub(crate) test: &'a Digits,
    /// Of each site; the malicious ones come first.
    pub(crate) rows: Vec<Vec<usize>>,
    pub(crate) malicious: usize,
    pub(crate) rounds: u32,
    pub(crate) seed: u64,
}

/// What came of it.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Outcome {
    /// Of the last state, on the test rows.
    pub(crate) accuracy: f64,
    /// How many updates malicious sites sent.
    pub(crate) forged: usize,
    /// How many of those were refused for what they are.
    pub(crate) forged_refused: usize,
    /// How many of those the comparison left out, or would have if it were on.
    pub(crate) forged_left_out: usize,
    /// The same of honest updates.
    pub(crate) honest_refused: usize,
    /// The same of honest updates.
    pub(crate) honest_left_out: usize,
    /// Rounds that changed nothing, since no update was left or their sum was not finite.
    pub(crate) lost: usize,
    /// Rounds in which fewer updates were left than the rule is defined for with so many malicious: a job would have waited.
    pub(crate) short: usize,
}

impl Federation<'_> {
    /// Runs all rounds. With `compared`, what the comparison of a round's updates leaves out does not count.
    pub(crate) async fn run(&self, job: &Job, attack: Attack, compared: bool) -> anyhow::Result<Outcome> {
        let shelf = Shelf::new()?;
        let mut outcome = Outcome::default();
        let mut network = Network::first(&mut stream(self.seed, [0, 0]));
        let mut first: BTreeMap<usize, Vec<f32>> = BTreeMap::new();
        let mut strikes = vec![0; self.rows.len()];
        for round in 1..=self.rounds {
            let asked = |strikes: u32| job.admission.strikes == 0 || strikes < job.admission.strikes;
            let asked: Vec<bool> = strikes.iter().map(|strikes| asked(*strikes)).collect();
            let state = shelf.put(&network.0).await?;
            let sent = self.updates(&network, round, &asked, attack, &mut first);
            outcome.forged += sent.keys().filter(|site| **site < self.malicious).count();
            let mut shares = BTreeMap::new();
            for (site, update) in &sent {
                let update = shelf.put(update).await?;
                let examples = self.rows[*site].len() as u64;
                let norm = job.admission.norm_max.unwrap_or(f64::INFINITY);
                let bounds = Bounds { examples, norm, excluded: Patterns::default() };
                match check_update(&shelf.artifacts, state, update, examples, &bounds).await {
                    Ok(norm) => drop(shares.insert(name(*site), SiteShare::new(update, examples, norm))),
                    Err(Rejection::Unfit(_)) => {
                        strikes[*site] += 1;
                        *self.which(*site, &mut outcome.forged_refused, &mut outcome.honest_refused) += 1;
                    }
                    Err(Rejection::Store(error)) => return Err(error.into()),
                }
            }
            let left_out = admission::compare(&job.admission, &shares).left_out;
            for site in sent.keys().filter(|site| left_out.contains_key(&name(**site))) {
                *self.which(*site, &mut outcome.forged_left_out, &mut outcome.honest_left_out) += 1;
                if compared {
                    strikes[*site] += 1;
                    shares.remove(&name(*site));
                }
            }
            match self.next(&shelf, job, state, &shares, &mut outcome).await? {
                Some(values) => network = Network(values),
                None => outcome.lost += 1,
            }
        }
        outcome.accuracy = network.accuracy(self.test);
        Ok(outcome)
    }

    /// The count that a site belongs to.
    fn which<'a>(&self, site: usize, forged: &'a mut usize, honest: &'a mut usize) -> &'a mut usize {
        if site < self.malicious { forged } else { honest }
    }

    /// What the sites that are asked send.
    fn updates(
        &self,
        network: &Network,
        round: u32,
        asked: &[bool],
        attack: Attack,
        first: &mut BTreeMap<usize, Vec<f32>>,
    ) -> BTreeMap<usize, Vec<f32>> {
        let mut trained = BTreeMap::new();
        for (site, rows) in self.rows.iter().enumerate().filter(|(site, _)| asked[*site]) {
            let mut after = network.clone();
            let random = &mut stream(self.seed, [1 + site as u64, round.into()]);
            let label = |label| if site < self.malicious { attack.label(label) } else { label };
            after.train(self.train, rows, label, &TRAINING, random);
            let update: Vec<f32> = after.0.iter().zip(&network.0).map(|(after, before)| after - before).collect();
            trained.insert(site, update);
        }
        let honest: Vec<Vec<f32>> = trained.range(self.malicious..).map(|(_, update)| update.clone()).collect();
        for (site, update) in trained.range_mut(..self.malicious) {
            let first = first.entry(*site).or_insert_with(|| update.clone());
            let known = Known { own: update, first, honest: &honest, sites: self.rows.len() };
            let random = &mut stream(self.seed, [1 + (self.rows.len() + site) as u64, round.into()]);
            *update = attack.forge(&known, random);
        }
        trained
    }

    /// The values of the next state, if there is one.
    async fn next(
        &self,
        shelf: &Shelf,
        job: &Job,
        state: ArtifactRef,
        shares: &BTreeMap<String, SiteShare>,
        outcome: &mut Outcome,
    ) -> anyhow::Result<Option<Vec<f32>>> {
        let mut aggregation = job.aggregation.clone();
        let (rule, assumed) = (aggregation.rule, aggregation.malicious.unwrap_or(0));
        if shares.len() < rule.updates_min(assumed) {
            outcome.short += 1;
            // Those that do not count are no longer among the updates.
            aggregation.malicious = (0..assumed).rev().find(|assumed| rule.updates_min(*assumed) <= shares.len());
            if aggregation.malicious.is_none() {
                return Ok(None);
            }
        }
        let examples = shares.iter().map(|(site, share)| (site.clone(), share.examples)).collect();
        let weights = weights(&aggregation, &examples);
        let weighted = |(site, share): (&String, &SiteShare)| {
            (site.clone(), Weighted::new(share.update, weights.get(site).copied().unwrap_or(1)))
        };
        let updates: BTreeMap<String, Weighted> = shares.iter().map(weighted).collect();
        if updates.is_empty() {
            return Ok(None);
        }
        let before = Before { state, moments: Vec::new(), step: 1 };
        match aggregate(&shelf.artifacts, &aggregation, &before, &updates, Keep::All("next")).await {
            Ok(after) => Ok(Some(shelf.values(after.state).await?)),
            Err(AggregateError::Store(StoreError::Unsound { .. })) => Ok(None),
            Err(error) => bail!(error),
        }
    }
}

/// A site's name.
pub(crate) fn name(site: usize) -> String {
    format!("site-{:02}", site + 1)
}
