//! What a single update must not be able to do, asked of the checks and the rules directly.

use std::collections::BTreeMap;

use fedtune_config::job::Patterns;
use fedtune_proto::digest::{ArtifactRef, Digest};
use fedtune_server::aggregate::{
    AggregateError, Before, Bounds, Keep, Rejection, Weighted, aggregate, check_update, weights,
};
use fedtune_server::round::SiteShare;
use fedtune_server::round::admission;

use crate::federation::{Shelf, job, name};
use crate::network::{PARAMETERS, TENSORS};
use crate::thresholds::Check;

/// Examples a site may claim, here.
const EXAMPLES: u64 = 1000;

/// All of them.
pub(crate) async fn all() -> anyhow::Result<Vec<Check>> {
    let shelf = Shelf::new()?;
    let state = shelf.put(&[0.0; PARAMETERS]).await?;
    Ok(vec![
        not_finite(&shelf, state).await?,
        remarkable()?,
        scaled(&shelf, state).await?,
        claimed(&shelf, state).await?,
        malformed(&shelf, state).await?,
    ])
}

fn check(name: &str, expected: usize, missed: &[String]) -> Check {
    let found = if missed.is_empty() { format!("{expected} of {expected}") } else { missed.join("; ") };
    Check { name: name.into(), passed: missed.is_empty(), found }
}

/// Why an update is refused, if it is.
async fn refused(
    shelf: &Shelf,
    state: ArtifactRef,
    update: ArtifactRef,
    examples: u64,
) -> anyhow::Result<Option<String>> {
    let bounds = Bounds { examples: EXAMPLES, norm: f64::INFINITY, excluded: Patterns::default() };
    match check_update(&shelf.artifacts, state, update, examples, &bounds).await {
        Ok(_) => Ok(None),
        Err(Rejection::Unfit(reason)) => Ok(Some(reason)),
        Err(Rejection::Store(error)) => Err(error.into()),
    }
}

/// (iv): a value that is not finite, wherever it stands, is refused, and would make no state if it were not.
async fn not_finite(shelf: &Shelf, state: ArtifactRef) -> anyhow::Result<Check> {
    let mut missed = Vec::new();
    let (values, places) = ([f32::NAN, f32::INFINITY, f32::NEG_INFINITY], [0, PARAMETERS / 2, PARAMETERS - 1]);
    for value in values {
        for place in places {
            let mut update = vec![0.01; PARAMETERS];
            update[place] = value;
            let update = shelf.put(&update).await?;
            if refused(shelf, state, update, 1).await?.is_none_or(|reason| !reason.contains("NaN or infinite")) {
                missed.push(format!("{value} at {place} is not refused"));
            }
            let before = Before { state, moments: Vec::new(), step: 1 };
            let updates = [(name(0), Weighted::new(update, 1))].into();
            let mean = job(1, "")?.aggregation;
            let made = aggregate(&shelf.artifacts, &mean, &before, &updates, Keep::Nothing).await;
            if !matches!(made, Err(AggregateError::Store(_))) {
                missed.push(format!("{value} at {place} makes a state"));
            }
        }
    }
    Ok(check("(iv) a value that is not finite is refused, and makes no state", values.len() * places.len(), &missed))
}

/// (vii): who sends almost nothing is flagged, who sends nothing, a copy, or what is far too large is left out.
fn remarkable() -> anyhow::Result<Check> {
    let admission = job(1, "")?.admission;
    let update =
        |content: &str, norm| SiteShare::new(ArtifactRef { digest: Digest::of(content.as_bytes()), size: 1 }, 1, norm);
    let of = |last: &str, norm| {
        let mut updates: BTreeMap<_, _> = (0..8).map(|site| (name(site), update(&site.to_string(), 1.0))).collect();
        updates.insert(name(8), update(last, norm));
        admission::compare(&admission, &updates)
    };
    let mut missed = Vec::new();
    let cases = [
        ("almost nothing", "8", 0.9e-3, true),
        ("nothing", "8", 0.0, false),
        ("a copy", "3", 1.0, false),
        ("100 times", "8", 100.0, false),
    ];
    for (what, content, norm, flagged) in cases {
        let verdict = of(content, norm);
        let [flags, left_out] = [verdict.flags.into_keys().collect(), verdict.left_out.into_keys().collect::<Vec<_>>()];
        let (found, other) = if flagged { (flags, left_out) } else { (left_out, flags) };
        if found != [name(8)] || !other.is_empty() {
            missed.push(format!("{what} passes"));
        }
    }
    Ok(check(
        "(vii) almost nothing is flagged; nothing, a copy and 100 times the norm are left out",
        cases.len(),
        &missed,
    ))
}

/// (viii): an update that is 100 times too large moves the state by no more than its weight of the norm bound.
async fn scaled(shelf: &Shelf, state: ArtifactRef) -> anyhow::Result<Check> {
    let mut missed = Vec::new();
    let sites = 5;
    let bounds = [Some(0.5), None];
    for bound in bounds {
        let lines = bound.map_or(String::new(), |bound| format!("norm_bound = {bound}\n"));
        let by = job(sites, &format!("rule = \"norm-clipping\"\n{lines}"))?.aggregation;
        let mut updates = BTreeMap::new();
        let examples: Vec<u64> = (0..sites).map(|site| 10 * (site as u64 + 1)).collect();
        for (site, weight) in examples.iter().enumerate() {
            // Each along an axis of its own, of norm 1; the malicious one along the first.
            let mut values = vec![0.0; PARAMETERS];
            values[site] = if site == 0 { 100.0 } else { 1.0 };
            updates.insert(name(site), Weighted::new(shelf.put(&values).await?, *weight));
        }
        let before = Before { state, moments: Vec::new(), step: 1 };
        let after = aggregate(&shelf.artifacts, &by, &before, &updates, Keep::All("next")).await?;
        let moved = f64::from(shelf.values(after.state).await?[0]);
        let allowed = examples[0] as f64 / examples.iter().sum::<u64>() as f64 * bound.unwrap_or(1.0);
        if moved.is_nan() || moved > allowed * (1.0 + 1e-6) {
            missed.push(format!("moves the state by {moved:.4}, expected at most {allowed:.4}"));
        }
    }
    Ok(check("(viii) 100 times the norm has no more influence than the norm bound", bounds.len(), &missed))
}

/// (ix): more examples than a site can have are refused, and many count no more than three times the median.
async fn claimed(shelf: &Shelf, state: ArtifactRef) -> anyhow::Result<Check> {
    let mut missed = Vec::new();
    let update = shelf.put(&[0.01; PARAMETERS]).await?;
    let claims = [0, EXAMPLES + 1, u64::MAX];
    for examples in claims {
        if refused(shelf, state, update, examples).await?.is_none() {
            missed.push(format!("{examples} examples are accepted"));
        }
    }
    let examples = (0..5).map(|site| (name(site), if site == 0 { EXAMPLES } else { 10 })).collect();
    let capped = weights(&job(1, "weighting = \"capped\"")?.aggregation, &examples);
    if capped.get(&name(0)) != Some(&30) {
        missed.push(format!("the weight of {EXAMPLES} examples among sites of 10 is {:?}", capped.get(&name(0))));
    }
    Ok(check("(ix) claims of too many examples are refused, and capped", claims.len() + 1, &missed))
}

/// (x): what is no update of this state is refused without reading more than its header.
async fn malformed(shelf: &Shelf, state: ArtifactRef) -> anyhow::Result<Check> {
    let mut extra = TENSORS.to_vec();
    extra.push(("extra", &[1]));
    let mut shorter = TENSORS;
    shorter[3].1 = &[9];
    let mut renamed = TENSORS;
    renamed[0].0 = "hidden.wait";
    let header = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let huge = header(
        "{\"hidden.weight\":{\"dtype\":\"F32\",\"shape\":[1099511627776,64],\"data_offsets\":[0,281474976710656]}}",
    );
    let mut updates = vec![
        ("an extra tensor", shelf.put_tensors(&extra, &[0.01; PARAMETERS + 1]).await?),
        ("another shape", shelf.put_tensors(&shorter, &[0.01; PARAMETERS - 1]).await?),
        ("another name", shelf.put_tensors(&renamed, &[0.01; PARAMETERS]).await?),
        ("a tensor that is not all there", shelf.put_tensors(&TENSORS, &[0.01; PARAMETERS - 1]).await?),
    ];
    for (what, bytes) in [
        ("a tensor larger than its file", huge),
        ("a header larger than its file", u64::MAX.to_le_bytes().to_vec()),
        ("no header", vec![1, 2, 3]),
        ("nothing", Vec::new()),
    ] {
        updates.push((what, shelf.put_bytes(&[&bytes]).await?));
    }
    let mut missed = Vec::new();
    for (what, update) in &updates {
        if refused(shelf, state, *update, 1).await?.is_none() {
            missed.push(format!("{what} is accepted"));
        }
    }
    Ok(check("(x) what has other tensors than the state is refused", updates.len(), &missed))
}

#[cfg(test)]
mod tests {
    use crate::runtime;

    #[test]
    fn all_pass() {
        let checks = runtime().and_then(|runtime| runtime.block_on(super::all())).expect("probes that run");
        let missed: Vec<_> = checks.iter().filter(|check| !check.passed).collect();
        assert!(checks.len() == 5 && missed.is_empty(), "{missed:?}");
    }
}
