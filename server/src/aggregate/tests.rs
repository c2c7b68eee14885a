#![expect(clippy::unwrap_used, reason = "tests")]

use fedtune_proto::layout::Layout;
use proptest::prelude::*;

use super::*;

struct Bench {
    _folder: tempfile::TempDir,
    artifacts: Artifacts,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let artifacts = Artifacts::open(folder.path()).unwrap();
        Self { _folder: folder, artifacts }
    }

    /// Stores values as one tensor `x`.
    async fn put(&self, name: &str, values: &[f32]) -> ArtifactRef {
        let shape = vec![values.len() as u64];
        let layout = Layout::of_tensors([("x".to_owned(), "F32".to_owned(), shape)]).unwrap();
        let mut writer = Writer::create(&self.artifacts, name).await.unwrap();
        writer.append(&layout.header()).await.unwrap();
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        writer.append(&bytes).await.unwrap();
        writer.finish(&self.artifacts).await.unwrap()
    }

    async fn values(&self, artifact: ArtifactRef) -> Vec<f32> {
        let layout = self.artifacts.layout(artifact).await.unwrap();
        let bytes = self.artifacts.read(artifact.digest, layout.data_start..layout.file_bytes).await.unwrap();
        bytes.as_chunks::<4>().0.iter().map(|value| f32::from_le_bytes(*value)).collect()
    }

    async fn fedavg(&self, state: ArtifactRef, updates: &[(ArtifactRef, u64)]) -> ArtifactRef {
        let updates = updates.iter().enumerate();
        let updates =
            updates.map(|(i, (update, weight))| (format!("site-{i}"), Weighted { update: *update, weight: *weight }));
        fedavg(&self.artifacts, state, &updates.collect(), "next").await.unwrap()
    }
}

/// The three rounds of the reference computation in numpy, weighted by examples and uniform.
#[tokio::test]
async fn three_rounds_give_the_reference_values() {
    let rounds: [[[f32; 4]; 3]; 3] = [
        [[0.1, 0.2, -0.3, 0.0], [0.3, -0.2, 0.1, 0.4], [-0.1, 0.4, 0.0, 0.2]],
        [[0.05, 0.1, -0.2, 0.1], [0.2, -0.1, 0.2, 0.3], [0.0, 0.3, 0.1, 0.1]],
        [[0.02, 0.1, -0.1, 0.0], [0.1, -0.1, 0.1, 0.2], [0.05, 0.2, 0.0, 0.1]],
    ];
    for (weights, expected) in
        [([10, 30, 60], [1.167, -1.54, 0.62, 0.52]), ([1, 1, 1], [1.24, -1.7, 0.466_666_67, 0.466_666_67])]
    {
        let bench = Bench::new();
        let mut state = bench.put("state", &[1.0, -2.0, 0.5, 0.0]).await;
        for deltas in rounds {
            let mut updates = Vec::new();
            for (delta, weight) in deltas.iter().zip(weights) {
                updates.push((bench.put("delta", delta).await, weight));
            }
            state = bench.fedavg(state, &updates).await;
        }
        for (found, expected) in bench.values(state).await.into_iter().zip(expected) {
            assert!((f64::from(found) - expected).abs() < 1e-6, "{found} is not {expected}");
        }
    }
}

#[tokio::test]
async fn one_site_gives_state_plus_delta_and_zero_deltas_change_no_bit() {
    let bench = Bench::new();
    let state: Vec<f32> = (0..1000).map(|i| (i as f32).sin() * 3.0).collect();
    let delta: Vec<f32> = (0..1000).map(|i| (i as f32).cos() * 1e-3).collect();
    let stored = bench.put("state", &state).await;
    let update = bench.put("delta", &delta).await;
    let next = bench.fedavg(stored, &[(update, 7_919)]).await;
    let sums: Vec<f32> = state.iter().zip(&delta).map(|(x, d)| x + d).collect();
    assert_eq!(bench.values(next).await, sums);
    let zero = bench.put("zero", &vec![0.0; 1000]).await;
    assert_eq!(bench.fedavg(stored, &[(zero, 3), (zero, 5)]).await, stored);
}

/// Issue: updates in 20 shuffled arrival orders give one digest. Arrival order is the order in which files are written
/// and inserted; the sum spans several windows.
#[tokio::test]
async fn twenty_arrival_orders_give_one_digest() {
    let bench = Bench::new();
    let length = 600_000;
    let wave = |seed: u32| -> Vec<f32> {
        (0..length)
            .map(|i: u32| ((i.wrapping_mul(seed.wrapping_mul(2_654_435_761)) >> 8) as f32 / 1e7 - 0.8) * 0.01)
            .collect()
    };
    let state = bench.put("state", &wave(99)).await;
    let mut sites: Vec<(String, Weighted)> = Vec::new();
    for site in 0..7 {
        let update = bench.put("delta", &wave(site + 1)).await;
        sites.push((format!("site-{site}"), Weighted { update, weight: 100 + 37 * u64::from(site) }));
    }
    let mut digests = std::collections::BTreeSet::new();
    for order in 0..20 {
        sites.rotate_left(order % 3 + 1);
        sites.swap(order % 7, (order * 5 + 2) % 7);
        let mut arrived = BTreeMap::new();
        for (site, weighted) in &sites {
            arrived.insert(site.clone(), *weighted);
        }
        digests.insert(fedavg(&bench.artifacts, state, &arrived, &format!("next-{order}")).await.unwrap().digest);
    }
    assert_eq!(digests.len(), 1);
}

#[tokio::test]
async fn a_sum_that_is_not_finite_is_no_state() {
    let bench = Bench::new();
    let state = bench.put("state", &[3e38]).await;
    let update = bench.put("a", &[3e38]).await;
    let updates = [("a".to_owned(), Weighted { update, weight: 1 })].into();
    let error = fedavg(&bench.artifacts, state, &updates, "next").await.unwrap_err();
    assert!(error.to_string().contains("not finite"), "{error}");
}

#[tokio::test]
async fn unfit_updates_are_named() {
    let bench = Bench::new();
    let state = bench.put("state", &[1.0, 2.0]).await;
    let check = async |update, examples| match check_update(&bench.artifacts, state, update, examples, 1000).await {
        Err(Rejection::Unfit(reason)) => reason,
        other => panic!("{other:?}"),
    };
    let good = bench.put("a", &[0.1, 0.2]).await;
    check_update(&bench.artifacts, state, good, 10, 1000).await.unwrap();
    assert!(check(good, 0).await.contains("0 examples"));
    assert!(check(good, 1_000_000_000_000).await.contains("expected 1 to 1000"));
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let update = bench.put("b", &[0.0, value]).await;
        assert!(check(update, 10).await.contains("NaN or infinite"));
    }
    let long = bench.put("c", &[0.0, 0.0, 0.0]).await;
    assert!(check(long, 10).await.contains("[3]; expected F32 [2]"));
    let mut junk = Writer::create(&bench.artifacts, "d").await.unwrap();
    junk.append(&[0xff; 100]).await.unwrap();
    let junk = junk.finish(&bench.artifacts).await.unwrap();
    assert!(check(junk, 10).await.contains("not a sound safetensors file"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    /// Multiplying every weight by the same number changes nothing.
    #[test]
    fn weights_are_relative(values in proptest::collection::vec((-1.0_f32..1.0, -1.0_f32..1.0), 1..50), a in 1_u64..1000, b in 1_u64..1000, scale in 1_u64..1000) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let bench = Bench::new();
            let (x, y): (Vec<f32>, Vec<f32>) = values.into_iter().unzip();
            let state = bench.put("s", &vec![0.0; x.len()]).await;
            let (x, y) = (bench.put("x", &x).await, bench.put("y", &y).await);
            let one = bench.fedavg(state, &[(x, a), (y, b)]).await;
            let scaled = bench.fedavg(state, &[(x, a * scale), (y, b * scale)]).await;
            // The division may round the last bit of an f64 otherwise; the f32 differ by at most one unit in the last place.
            for (one, scaled) in bench.values(one).await.into_iter().zip(bench.values(scaled).await) {
                prop_assert!((one - scaled).abs() <= f32::EPSILON * one.abs());
            }
            Ok(())
        })?;
    }
}
