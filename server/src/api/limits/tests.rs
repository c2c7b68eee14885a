#![expect(clippy::unwrap_used, reason = "tests")]

use futures::FutureExt;
use proptest::prelude::*;

use super::*;

fn limits(streams_per_site: u32, bytes_per_second: u64, calls_per_second: u32) -> SiteLimits {
    SiteLimits::new(&Limits { streams_per_site, bytes_per_second, calls_per_second, ..Limits::default() })
}

fn site(name: &str) -> Identity {
    Identity::new(Role::Site, name).unwrap()
}

#[test]
fn streams_are_counted_by_site_and_given_back() {
    let limits = limits(2, 0, 0);
    let first = limits.stream(&site("north")).unwrap();
    let _second = limits.stream(&site("north")).unwrap();
    let refused = limits.stream(&site("north")).unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("north has 2 streams open (limits.streams_per_site)"), "{refused}");
    assert_eq!(refused.metadata().get("grpc-retry-pushback-ms").unwrap(), "5000");
    assert!(limits.stream(&site("south")).unwrap().is_some(), "another site has its own");
    drop(first);
    assert!(limits.stream(&site("north")).is_ok());
    let operator = Identity::new(Role::Operator, "operator").unwrap();
    let held: Vec<_> = (0..10).map(|_| limits.stream(&operator).unwrap()).collect();
    assert_eq!(held.len(), 10, "operators are not counted");
}

#[tokio::test]
async fn calls_wait_for_their_turn_and_are_refused_where_that_is_long() {
    let limits = limits(1, 0, 1);
    let north = site("north");
    // Two at once, then as many as fit in the longest wait. Nobody waits here.
    let answers: Vec<_> = (0..20).map(|_| limits.call(&north).now_or_never()).collect();
    assert!(answers[..2].iter().all(|answer| matches!(answer, Some(Ok(())))));
    let waiting = answers.iter().filter(|answer| answer.is_none()).count();
    assert!((5..=6).contains(&waiting), "{waiting}");
    let refused: Vec<Status> = answers.into_iter().flatten().filter_map(Result::err).collect();
    assert_eq!(refused.len(), 18 - waiting);
    assert_eq!(refused[0].code(), Code::ResourceExhausted);
    assert!(refused[0].message().contains("more than 1 calls a second"), "{}", refused[0]);
    assert!(limits.call(&site("south")).await.is_ok());
}

#[test]
fn no_rate_is_no_limit() {
    let mut bucket = Bucket::new(0.0, Instant::now());
    for _ in 0..1000 {
        assert_eq!(bucket.take(1e9, Instant::now()), Duration::ZERO);
    }
}

proptest! {
    /// Whoever waits as told never has more than the burst above the rate.
    #[test]
    fn what_is_taken_stays_below_the_rate(
        rate in 1.0..1e6_f64,
        steps in prop::collection::vec((0.0..2.0_f64, 0.0..3.0_f64), 1..60),
    ) {
        let began = Instant::now();
        let mut bucket = Bucket::new(rate, began);
        let (mut now, mut taken) = (began, 0.0);
        for (pause, share) in steps {
            now += Duration::from_secs_f64(pause);
            let amount = share * rate;
            now += bucket.take(amount, now);
            taken += amount;
            let allowed = rate * (BURST + (now - began).as_secs_f64());
            prop_assert!(taken <= allowed * (1.0 + 1e-6) + 1e-3, "{taken} of {allowed}");
        }
    }

    /// A call that is refused takes nothing from those that wait.
    #[test]
    fn a_refusal_takes_nothing(rate in 1.0..100.0_f64, calls in 1_usize..2000) {
        let now = Instant::now();
        let mut bucket = Bucket::new(rate, now);
        let taken = (0..calls).filter(|_| bucket.take_within(1.0, WAIT_MAX, now).is_ok()).count() as f64;
        prop_assert!(taken <= rate * (BURST + WAIT_MAX.as_secs_f64()) + 1.0);
        prop_assert!(bucket.wait(0.0) <= WAIT_MAX);
    }
}
