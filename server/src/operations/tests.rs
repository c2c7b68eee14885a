#![expect(clippy::unwrap_used, reason = "tests")]

use std::net::SocketAddr;

use fedtune_config::server::{Limits, Sessions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::coordinator;
use crate::store::{Artifacts, Records};

/// Longer than any connection may last.
const PATIENCE: Duration = Duration::from_secs(20);

struct Rig {
    folder: tempfile::TempDir,
    operations: Operations,
    address: SocketAddr,
}

impl Rig {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::open(&folder.path().join("records.sqlite")).await.unwrap();
        let artifacts = Artifacts::open(folder.path()).unwrap();
        let (metrics, limits, sessions) = (Metrics::new(), Limits::default(), Sessions::default());
        let handle = coordinator::start(records.clone(), artifacts.clone(), limits, sessions, metrics.clone());
        let coordinator = handle.await.unwrap();
        let health = Health::start(records, artifacts, coordinator.clone(), metrics.clone());
        let operations = Operations { health, coordinator, metrics };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let served = operations.clone();
        tokio::spawn(async move { match served.serve(listener).await {} });
        Self { folder, operations, address }
    }

    /// Everything that comes back for these bytes.
    async fn said(&self, request: &[u8]) -> String {
        let talk = async {
            let mut stream = TcpStream::connect(self.address).await.unwrap();
            // The other side may have heard enough before all of it is sent.
            let _ = stream.write_all(request).await;
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer).await;
            String::from_utf8(answer).unwrap()
        };
        tokio::time::timeout(PATIENCE, talk).await.unwrap()
    }

    async fn get(&self, path: &str) -> (u16, String) {
        let said = self.said(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await;
        let (head, body) = said.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }
}

#[tokio::test]
async fn readiness_names_the_check_that_fails_and_liveness_does_not_mind() {
    let rig = Rig::start().await;
    rig.operations.health.settled().await;
    let (status, body) = rig.get("/readyz").await;
    let report: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &report["ready"]), (200, &true.into()), "{body}");
    let staging = rig.folder.path().join("staging");
    std::fs::remove_dir(&staging).unwrap();
    let mut reports = rig.operations.health.reports();
    tokio::time::timeout(PATIENCE, reports.wait_for(|report| !report.ready)).await.unwrap().unwrap();
    let (status, body) = rig.get("/readyz").await;
    let report: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(status, 503);
    let artifacts = report["checks"].as_array().unwrap().iter().find(|check| check["name"] == "artifacts").unwrap();
    assert!(artifacts["reason"].as_str().unwrap().contains("staging"), "{body}");
    assert_eq!(rig.get("/livez").await, (200, "alive\n".into()));
}

#[tokio::test]
async fn it_answers_get_of_what_it_has_and_nothing_else() {
    let rig = Rig::start().await;
    assert_eq!(rig.get("/livez?x=1").await.0, 200);
    let (status, body) = rig.get(&format!("/{}", "a".repeat(500))).await;
    assert_eq!(status, 404);
    assert!(body.len() < 200 && body.contains("/readyz"), "{body}");
    for method in ["POST", "PUT", "DELETE", "HEAD", "CONNECT"] {
        let said = rig.said(format!("{method} /livez HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await;
        assert!(said.starts_with("HTTP/1.1 405 ") && said.to_lowercase().contains("allow: get"), "{method}: {said}");
    }
    let said = rig.said(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 no HTTP at all \r\n\r\n").await;
    assert!(said.starts_with("HTTP/1.1 400 "), "{said}");
}

#[tokio::test]
async fn large_headers_are_refused_and_slow_ones_cut_off() {
    let rig = Rig::start().await;
    let large = format!("GET /livez HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "a".repeat(1 << 20));
    let said = rig.said(large.as_bytes()).await;
    assert!(!said.contains(" 200 "), "{said}");
    // Twice as many as are served at once, none of which ends its headers, stand in nobody's way for long.
    let mut slow = Vec::new();
    for i in 0..2 * CONNECTIONS_MAX {
        let mut stream = TcpStream::connect(rig.address).await.unwrap();
        // Every other one says nothing at all.
        if i % 2 == 0 {
            stream.write_all(b"GET /livez HTTP/1.1\r\n").await.unwrap();
        }
        slow.push(stream);
    }
    assert_eq!(rig.get("/livez").await.0, 200);
}
