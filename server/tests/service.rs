//! The aggregator as a service: the real program, real files, real signals, and sites that only speak the protocol.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use fedtune_tests::Federation;

/// A failure of storage is known within this time.
const KNOWN_WITHIN: Duration = Duration::from_secs(10);

/// Asks until the answer has this status; gives its body.
fn wait_for_status(federation: &Federation, path: &str, status: u16, within: Duration) -> String {
    let began = Instant::now();
    loop {
        let answer = federation.monitoring(path);
        if let Some((found, body)) = &answer
            && *found == status
        {
            return body.clone();
        }
        assert!(began.elapsed() < within, "no {status}: {answer:?}\n{}", federation.log_text("aggregator"));
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Every folder below and with this one.
fn folders(root: &Path) -> Vec<std::path::PathBuf> {
    let mut found = vec![root.to_path_buf()];
    let mut at = 0;
    while let Some(folder) = found.get(at).cloned() {
        found
            .extend(std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()));
        at += 1;
    }
    found
}

#[test]
fn readiness_fails_while_the_data_folder_is_read_only_and_recovers() {
    let federation = Federation::start_unprivileged();
    let data = folders(&federation.path("federation/data"));
    let set =
        |mode: u32| data.iter().for_each(|path| std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap());
    wait_for_status(&federation, "/readyz", 200, KNOWN_WITHIN);
    set(0o555);
    let body = wait_for_status(&federation, "/readyz", 503, KNOWN_WITHIN);
    assert!(body.contains("Permission denied"), "{body}");
    assert_eq!(federation.monitoring("/livez").unwrap().0, 200);
    set(0o755);
    wait_for_status(&federation, "/readyz", 200, KNOWN_WITHIN);
}
