//! What fuzzing found (`tests/fuzz`) goes through the same decoders here, by a stable compiler.

use std::collections::BTreeSet;
use std::fs;
use std::panic::catch_unwind;
use std::path::Path;

use fedtune_tests::repository;

#[path = "../fuzz/src/lib.rs"]
#[expect(unreachable_pub, reason = "a library of its own for the fuzz targets")]
mod fuzz;

fn names(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8")).collect()
}

#[test]
fn every_target_has_its_program_and_its_corpus() {
    let targets: BTreeSet<String> = fuzz::TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    let folder = repository().join("tests/fuzz");
    let programs = names(&folder.join("fuzz_targets"));
    assert_eq!(programs, targets.iter().map(|name| format!("{name}.rs")).collect());
    assert_eq!(names(&folder.join("corpus")), targets);
}

#[test]
fn no_input_of_the_corpus_does_harm() {
    let corpus = repository().join("tests/fuzz/corpus");
    let mut failed = Vec::new();
    for (name, target) in fuzz::TARGETS {
        let inputs = names(&corpus.join(name));
        assert!(!inputs.is_empty(), "{name} has no corpus");
        for input in inputs {
            let path = corpus.join(name).join(input);
            let bytes = fs::read(&path).expect("a file of the corpus");
            if catch_unwind(|| target(&bytes)).is_err() {
                failed.push(path);
            }
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}
