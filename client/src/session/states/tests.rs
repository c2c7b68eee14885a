#![expect(clippy::unwrap_used, reason = "tests")]

use std::time::Duration;

use super::*;

struct Bench {
    folder: tempfile::TempDir,
    states: States,
}

fn bytes(state: u8) -> Vec<u8> {
    (0..300_000_u32).flat_map(|i| i.wrapping_mul(0x9e37_79b9).wrapping_add(state.into()).to_le_bytes()).collect()
}

fn artifact(bytes: &[u8]) -> ArtifactRef {
    ArtifactRef { digest: Digest::of(bytes), size: bytes.len() as u64 }
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let states = States::new(folder.path());
        Self { folder, states }
    }

    /// A state that came whole.
    fn whole(&self, state: u8) -> ArtifactRef {
        let bytes = bytes(state);
        let place = self.states.place(Digest::of(&bytes)).unwrap();
        std::fs::write(&place.whole, &bytes).unwrap();
        self.states.used(&place).unwrap();
        // Of another time, whatever the file system tells apart.
        let age = Duration::from_secs(1000 - u64::from(state));
        File::open(&place.whole).unwrap().set_modified(SystemTime::now() - age).unwrap();
        artifact(&bytes)
    }

    /// Where the next state will be, with its difference to the one before.
    fn difference(&self, before: u8, next: u8) -> (ArtifactRef, Place) {
        let (before, next) = (bytes(before), bytes(next));
        let place = self.states.place(Digest::of(&next)).unwrap();
        let file = File::create(&place.difference).unwrap();
        difference::encode(&before[..], &next[..], next.len() as u64, file).unwrap();
        (artifact(&next), place)
    }

    fn names(&self) -> Vec<String> {
        let files = std::fs::read_dir(self.folder.path().join("states")).unwrap();
        let mut names: Vec<String> = files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

#[test]
fn a_state_is_made_of_the_one_before_and_both_stay() {
    let bench = Bench::new();
    let before = bench.whole(1);
    let (next, place) = bench.difference(1, 2);
    let base = bench.states.base(&place, before).unwrap();
    // What a kill left of an earlier try.
    std::fs::write(place.whole.with_extension("made"), vec![1; 2_000_000]).unwrap();
    place.make(next, &base).unwrap();
    assert_eq!(std::fs::read(&place.whole).unwrap(), bytes(2));
    bench.states.used(&place).unwrap();
    let mut expected = [before, next].map(|state| state.digest.to_string());
    expected.sort();
    assert_eq!(bench.names(), expected);
    assert_eq!(bench.states.base(&place, before), None, "the next one is here already");
}

#[test]
fn a_damaged_base_makes_no_state_and_is_forgotten() {
    let bench = Bench::new();
    let before = bench.whole(1);
    let (next, place) = bench.difference(1, 2);
    let base = bench.states.base(&place, before).unwrap();
    let mut damaged = bytes(1);
    damaged[500_000] ^= 1;
    std::fs::write(&base, damaged).unwrap();
    let error = place.make(next, &base).unwrap_err();
    assert!(matches!(error, NotMade::Digest { expected, .. } if expected == next.digest), "{error}");
    assert!(!place.whole.exists());
    place.forget(&base);
    assert_eq!(bench.states.base(&place, before), None);
    let made = place.whole.with_extension("made").file_name().unwrap().to_str().unwrap().to_owned();
    assert_eq!(bench.names(), [made], "made anew, or removed with the next state");
}

#[test]
fn a_damaged_difference_and_one_to_another_state_make_none() {
    let bench = Bench::new();
    let (before, other) = (bench.whole(1), bench.whole(3));
    let (next, place) = bench.difference(1, 2);
    let base = bench.states.base(&place, before).unwrap();
    let sound = std::fs::read(&place.difference).unwrap();
    std::fs::write(&place.difference, &sound[..sound.len() - 1]).unwrap();
    let error = place.make(next, &base).unwrap_err();
    assert!(matches!(error, NotMade::Difference(DifferenceError::Short { .. })), "{error}");
    std::fs::write(&place.difference, &sound).unwrap();
    let error = place.make(next, &bench.states.base(&place, other).unwrap()).unwrap_err();
    assert!(matches!(error, NotMade::Digest { .. }), "{error}");
    place.make(next, &base).unwrap();
}

#[test]
fn a_base_that_is_not_whole_is_none_and_a_state_that_has_begun_to_come_whole_goes_on() {
    let bench = Bench::new();
    let before = bench.whole(1);
    let (_, place) = bench.difference(1, 2);
    assert_eq!(bench.states.base(&place, artifact(&bytes(7))), None, "not here");
    let base = bench.states.base(&place, before).unwrap();
    std::fs::write(place.whole.with_extension("part"), b"some").unwrap();
    assert_eq!(bench.states.base(&place, before), None);
    std::fs::remove_file(place.whole.with_extension("part")).unwrap();
    std::fs::write(base, b"short").unwrap();
    assert_eq!(bench.states.base(&place, before), None);
}

#[test]
fn the_last_states_stay_and_nothing_unfinished_of_others() {
    let bench = Bench::new();
    let states: Vec<ArtifactRef> = (1..=6).map(|state| bench.whole(state)).collect();
    let kept = |from: usize| {
        let mut names: Vec<String> = states[from..].iter().map(|state| state.digest.to_string()).collect();
        names.sort();
        names
    };
    assert_eq!(bench.names(), kept(2));
    bench.difference(6, 7);
    let (_, place) = bench.difference(6, 8);
    std::fs::write(place.whole.with_extension("part"), b"some").unwrap();
    let ours = bench.states.place(Digest::of(&bytes(8))).unwrap();
    assert!(ours.difference.exists() && ours.whole.with_extension("part").exists());
    assert_eq!(bench.names().len(), 6, "the four, and what there is of the eighth");
    bench.states.place(states[5].digest).unwrap();
    assert_eq!(bench.names(), kept(2));
    // Who is used again stays.
    bench.states.used(&bench.states.place(states[2].digest).unwrap()).unwrap();
    bench.whole(9);
    assert!(bench.names().contains(&states[2].digest.to_string()));
    assert!(!bench.names().contains(&states[3].digest.to_string()));
}
