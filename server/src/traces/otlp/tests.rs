#![expect(clippy::unwrap_used, reason = "tests")]

use std::io::Write;
use std::sync::{Arc, Mutex};

use opentelemetry_sdk::error::OTelSdkError;

use super::*;

/// A collector that answers as it is told.
#[derive(Debug)]
struct Scripted(Mutex<Vec<bool>>);

impl SpanExporter for Scripted {
    async fn export(&self, _: Vec<SpanData>) -> OTelSdkResult {
        let answers = self.0.lock().unwrap().pop().unwrap();
        if answers { Ok(()) } else { Err(OTelSdkError::InternalFailure("nobody is there".into())) }
    }
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn that_the_collector_is_away_is_said_once_and_that_it_is_back_too() {
    let script = [true, false, false, false, true, true, false, false];
    let exporter = Scripted(Mutex::new(script.into_iter().rev().collect()));
    let exporter = SaidOnce { exporter, endpoint: "http://127.0.0.1:4317".into(), away: AtomicBool::new(false) };
    let lines = Lines::default();
    let sink = lines.clone();
    let log = tracing_subscriber::fmt().with_ansi(false).with_writer(move || sink.clone()).finish();
    tracing::subscriber::with_default(log, || {
        for answers in script {
            let sent = futures::executor::block_on(exporter.export(Vec::new()));
            assert_eq!(sent.is_ok(), answers);
        }
    });
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    let levels: Vec<_> = text.lines().map(|line| line.split_whitespace().nth(1).unwrap()).collect();
    assert_eq!(levels, ["WARN", "INFO", "WARN"], "{text}");
    assert!(text.contains("nobody is there") && text.contains("http://127.0.0.1:4317"), "{text}");
}

#[tokio::test]
async fn an_endpoint_that_is_none_is_refused() {
    let refused = send_to("http://not a host").map(|_| ()).unwrap_err();
    assert!(refused.to_string().contains("log.otlp") && refused.to_string().contains("not a host"), "{refused}");
}
