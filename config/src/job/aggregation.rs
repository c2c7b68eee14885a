//! `[aggregation]`: how the updates of a round are combined, and how the state moves by what comes out.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Patterns, Rounds, range};
use crate::error::Problems;

/// How the state moves by the combined update Δ (the server optimisers of Reddi et al. 2021, 2003.00295).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Strategy {
    /// `x += η Δ` (McMahan et al. 2017, 1602.05629).
    Fedavg,
    /// FedAvg without waiting (Nguyen et al. 2022, 2106.06639): a round closes with the first updates, sites are always at work,
    /// and the update of one that began `τ` rounds ago counts `1 / √(1 + τ)`.
    Fedbuff,
    /// `m = β m + Δ; x += η m` (Hsu et al. 2019, 1909.06335).
    Fedavgm,
    /// `m = β m + (1 − β) Δ; v = β₂ v + (1 − β₂) Δ²; x += η m / (√v + τ)`.
    Fedadam,
    /// As FedAdam with `v −= (1 − β₂) Δ² sign(v − Δ²)`.
    Fedyogi,
    /// As FedAdam with `v += Δ²`.
    Fedadagrad,
}

impl Strategy {
    /// Whether steps are divided by the root of a second moment.
    pub fn is_adaptive(self) -> bool {
        matches!(self, Self::Fedadam | Self::Fedyogi | Self::Fedadagrad)
    }

    /// Whether it goes by more than the update of this round.
    fn remembers(self) -> bool {
        !matches!(self, Self::Fedavg | Self::Fedbuff)
    }

    /// Whether the second moment forgets, so that it has a start to be corrected for.
    fn forgets(self) -> bool {
        matches!(self, Self::Fedadam | Self::Fedyogi)
    }
}

/// How the updates of a round become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// The weighted mean.
    #[default]
    Mean,
    /// The weighted mean of updates that are scaled down to a norm.
    NormClipping,
    /// The mean, moved from zero towards the updates by so much at most for each (Karimireddy et al. 2021, 2012.10333).
    CenteredClipping,
    /// The median of each value (Yin et al. 2018, 1803.01498).
    Median,
    /// The mean of each value without the largest and the smallest (the same paper).
    TrimmedMean,
    /// The update nearest to its neighbours (Blanchard et al. 2017, 1703.02757).
    Krum,
    /// The mean of the updates nearest to their neighbours (the same paper).
    MultiKrum,
    /// Of the updates that Krum chooses one by one, the mean of each value nearest to their median (El Mhamdi et al. 2018,
    /// 1802.07927).
    Bulyan,
    /// The weighted geometric median (Pillutla et al. 2022, 1912.13445).
    GeometricMedian,
}

impl Rule {
    /// Whether updates can weigh differently in it.
    pub fn is_weighted(self) -> bool {
        matches!(self, Self::Mean | Self::NormClipping | Self::GeometricMedian)
    }

    /// Whether it is told how many updates may be malicious.
    fn assumes_malicious(self) -> bool {
        matches!(self, Self::Krum | Self::MultiKrum | Self::Bulyan)
    }

    /// The fewest updates for which it is defined when so many are malicious.
    pub fn updates_min(self, malicious: usize) -> usize {
        match self {
            Self::Krum | Self::MultiKrum => 2 * malicious + 3,
            Self::Bulyan => 4 * malicious + 3,
            _ => 1,
        }
    }
}

/// The weight of a site's update.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Weighting {
    /// By the number of examples it trained on.
    Examples,
    /// By that number, but none more than a cap.
    Capped,
    /// The same for every site.
    Uniform,
}

/// How updates become the next state. What the rule or the strategy makes no use of is `None`; after reading, what it makes
/// use of is there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Aggregation {
    /// How the state moves.
    pub strategy: Strategy,
    /// η, the server's learning rate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<f64>,
    /// β, of the first moment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub momentum: Option<f64>,
    /// β₂, of the second moment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub second_momentum: Option<f64>,
    /// τ, how far the step of a small change is damped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tau: Option<f64>,
    /// Whether moments that start at zero are corrected for it; if not, the second starts at τ².
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bias_correction: Option<bool>,
    /// The most by which a strategy may enlarge a small change before the job is refused.
    pub max_amplification: f64,
    /// How updates are combined.
    pub rule: Rule,
    /// The weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weighting: Option<Weighting>,
    /// Most examples that count of a site; without it, three times the median of the round.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub examples_cap: Option<u64>,
    /// How many updates of a round may be malicious.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub malicious: Option<usize>,
    /// The share of the updates that is left out on each side of each value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trim: Option<f64>,
    /// The norm that updates are clipped to; without it, the median of the round's norms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub norm_bound: Option<f64>,
    /// Tensors whose names fit are not averaged: each site keeps its own, and the aggregator those of the first state. Batch norms (FedBN, Li et al. 2021, 2102.07623), or heads of one's own.
    #[serde(skip_serializing_if = "Patterns::is_empty")]
    pub exclude: Patterns,
}

impl Default for Aggregation {
    fn default() -> Self {
        Self {
            strategy: Strategy::Fedavg,
            learning_rate: None,
            momentum: None,
            second_momentum: None,
            tau: None,
            bias_correction: None,
            max_amplification: 10.0,
            rule: Rule::Mean,
            weighting: None,
            examples_cap: None,
            malicious: None,
            trim: None,
            norm_bound: None,
            exclude: Patterns::default(),
        }
    }
}

impl Aggregation {
    /// Writes the defaults of what is made use of.
    pub(super) fn complete(&mut self) {
        let strategy = self.strategy;
        if strategy.remembers() {
            // Adagrad's step remembers every round as it is.
            let momentum = if strategy == Strategy::Fedadagrad { 0.0 } else { 0.9 };
            self.momentum.get_or_insert(momentum);
        }
        if strategy.is_adaptive() {
            self.tau.get_or_insert(1e-3);
        }
        if strategy.forgets() {
            self.second_momentum.get_or_insert(0.99);
            self.bias_correction.get_or_insert(true);
        }
        // So that a small change that stays the same is applied as it is.
        let rate = match strategy {
            Strategy::Fedavg | Strategy::Fedbuff => 1.0,
            Strategy::Fedavgm => {
                1.0 - self.momentum.filter(|momentum| (0.0..1.0).contains(momentum)).unwrap_or_default()
            }
            _ => self.tau.unwrap_or_default(),
        };
        self.learning_rate.get_or_insert(rate);
        // A rule for sites that may be hostile does not go by the numbers that they claim, unless told; a buffer counts updates.
        let by_examples = self.rule == Rule::Mean && strategy != Strategy::Fedbuff;
        let weighting = if by_examples { Weighting::Examples } else { Weighting::Uniform };
        self.weighting.get_or_insert(weighting);
        if self.rule.assumes_malicious() {
            self.malicious.get_or_insert(1);
        }
        if self.rule == Rule::TrimmedMean {
            self.trim.get_or_insert(0.2);
        }
    }

    /// η, the server's learning rate.
    pub fn rate(&self) -> f64 {
        self.learning_rate.unwrap_or(1.0)
    }

    /// How much larger than a small change the strategy's step is in the end.
    fn amplification(&self) -> f64 {
        match self.strategy {
            Strategy::Fedavg | Strategy::Fedbuff => self.rate(),
            Strategy::Fedavgm => self.rate() / (1.0 - self.momentum.unwrap_or_default()),
            _ => self.rate() / self.tau.unwrap_or(1.0),
        }
    }

    pub(super) fn validate(&self, p: &mut Problems, rounds: &Rounds) {
        self.refuse_unused(p);
        self.exclude.validate(p, "aggregation.exclude");
        let rate = self.rate();
        p.check(rate.is_finite() && rate > 0.0, "aggregation.learning_rate", || {
            format!("found {rate}; expected more than 0")
        });
        for (field, value) in
            [("aggregation.momentum", self.momentum), ("aggregation.second_momentum", self.second_momentum)]
        {
            super::unit(p, field, value.unwrap_or_default(), false);
        }
        for (field, value) in [
            ("aggregation.tau", self.tau),
            ("aggregation.norm_bound", self.norm_bound),
            ("aggregation.max_amplification", Some(self.max_amplification)),
        ] {
            let value = value.unwrap_or(1.0);
            p.check(value.is_finite() && value > 0.0, field, || format!("found {value}; expected more than 0"));
        }
        let (amplification, most) = (self.amplification(), self.max_amplification);
        p.check(!amplification.is_finite() || amplification <= most * (1.0 + 1e-9), "aggregation.learning_rate", || {
            format!(
                "found {rate}, with which \"{}\" makes small changes up to {amplification:.0} times as large and can destroy \
                 a pre-trained model; expected at most {:.3e}, or a larger aggregation.max_amplification (it is {most})",
                self.strategy,
                rate * most / amplification
            )
        });
        if let Some(trim) = self.trim {
            p.check((0.0..0.5).contains(&trim), "aggregation.trim", || {
                format!("found {trim}; expected 0 or more and less than 0.5")
            });
        }
        if let Some(cap) = self.examples_cap {
            range(p, "aggregation.examples_cap", cap, 1, u64::MAX);
        }
        if let Some(malicious) = self.malicious {
            range(p, "aggregation.malicious", malicious, 0, 10_000);
            let needed = self.rule.updates_min(malicious.min(10_000));
            p.check(rounds.quorum >= needed, "rounds.quorum", || {
                format!(
                    "found {}; expected at least {needed}, the fewest updates for which aggregation.rule = \"{}\" is \
                     defined with aggregation.malicious = {malicious}",
                    rounds.quorum, self.rule
                )
            });
        }
    }

    /// What stands there and changes nothing is a mistake.
    fn refuse_unused(&self, p: &mut Problems) {
        let (strategy, rule, weighting) = (self.strategy, self.rule, self.weighting);
        let by_strategy = format!("aggregation.strategy = \"{strategy}\"");
        let by_rule = format!("aggregation.rule = \"{rule}\"");
        for (field, given, used, by) in [
            ("momentum", self.momentum.is_some(), strategy.remembers(), &by_strategy),
            ("second_momentum", self.second_momentum.is_some(), strategy.forgets(), &by_strategy),
            ("tau", self.tau.is_some(), strategy.is_adaptive(), &by_strategy),
            ("bias_correction", self.bias_correction.is_some(), strategy.forgets(), &by_strategy),
            ("malicious", self.malicious.is_some(), rule.assumes_malicious(), &by_rule),
            ("trim", self.trim.is_some(), rule == Rule::TrimmedMean, &by_rule),
            (
                "norm_bound",
                self.norm_bound.is_some(),
                matches!(rule, Rule::NormClipping | Rule::CenteredClipping),
                &by_rule,
            ),
            ("weighting", weighting.is_some_and(|given| given != Weighting::Uniform), rule.is_weighted(), &by_rule),
        ] {
            p.check(!given || used, &format!("aggregation.{field}"), || {
                format!("stands beside {by}, which makes no use of it; leave it out")
            });
        }
        let capped = weighting == Some(Weighting::Capped);
        p.check(self.examples_cap.is_none() || capped, "aggregation.examples_cap", || {
            "stands without aggregation.weighting = \"capped\", which alone makes use of it; set that, or leave this out"
                .into()
        });
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(out)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(out)
    }
}
