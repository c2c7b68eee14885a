#![expect(clippy::unwrap_used, reason = "tests")]

use super::super::tests::Bench;
use super::*;

const VALUES: usize = 100_000;

fn weights(moved_by: f32) -> Vec<f32> {
    // Of all magnitudes, each moved by a part of its own.
    let weight = |i: usize| (i as f32 * 0.37).sin() * 0.05;
    (0..VALUES).map(|i| weight(i) * (1.0 + moved_by * (i as f32 * 0.11).cos())).collect()
}

async fn staged(bench: &Bench) -> usize {
    bench.artifacts.remove_stale_uploads(u64::MAX).await.unwrap().len()
}

#[tokio::test]
async fn the_difference_makes_the_next_state_of_the_one_before() {
    let bench = Bench::new();
    let before = bench.put("before", &weights(0.0)).await;
    let next = bench.put("next", &weights(0.01)).await;
    let made = difference(&bench.artifacts, before, next, "difference").await.unwrap();
    assert!(made.size < next.size * 3 / 4, "{} of {}", made.size, next.size);
    let mut files = Vec::new();
    for artifact in [made, before, next] {
        files.push(bench.artifacts.read(artifact.digest, 0..artifact.size).await.unwrap());
    }
    let mut decoded = Vec::new();
    difference::decode(&files[0][..], &files[1][..], next.size, &mut decoded).unwrap();
    assert_eq!(decoded, files[2]);
    let again = difference(&bench.artifacts, before, next, "difference").await;
    assert_eq!(again, Some(made), "a pass that is repeated makes the same");
}

#[tokio::test]
async fn one_that_is_hardly_smaller_or_of_other_states_is_not_kept() {
    let bench = Bench::new();
    let before = bench.put("before", &weights(0.0)).await;
    let noise: Vec<f32> =
        (0..VALUES as u32).map(|i| f32::from_bits(i.wrapping_mul(2_654_435_761).rotate_left(i))).collect();
    let noise = bench.put("noise", &noise).await;
    assert_eq!(difference(&bench.artifacts, before, noise, "difference").await, None);
    assert_eq!(staged(&bench).await, 0, "nothing is left of it");
    let other = bench.put("other", &[1.0]).await;
    assert_eq!(difference(&bench.artifacts, before, other, "difference").await, None);
    assert_eq!(difference(&bench.artifacts, before, before, "difference").await, None);
}

#[tokio::test]
async fn one_that_cannot_be_made_is_none() {
    let bench = Bench::new();
    let next = bench.put("next", &weights(0.01)).await;
    let before = bench.put("before", &weights(0.0)).await;
    assert!(bench.artifacts.remove_unused(before.digest, u64::MAX).await.unwrap());
    assert_eq!(difference(&bench.artifacts, before, next, "difference").await, None);
    assert_eq!(staged(&bench).await, 0, "nothing is left of it");
}
