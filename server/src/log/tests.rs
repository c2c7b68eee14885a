#![expect(clippy::unwrap_used, reason = "tests")]

use std::io::Write;
use std::sync::{Arc, Mutex};

use tracing::field::Empty;
use tracing::{error_span, info, warn};

use super::*;

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

/// What is written while `work` runs, line by line.
fn written(work: impl FnOnce()) -> Vec<Map<String, Value>> {
    let lines = Lines::default();
    let sink = lines.clone();
    let log =
        tracing_subscriber::fmt().fmt_fields(JsonFields::new()).event_format(Flat).with_writer(move || sink.clone());
    tracing::subscriber::with_default(log.finish(), work);
    let bytes = lines.0.lock().unwrap().clone();
    String::from_utf8(bytes).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_line_has_the_fields_of_its_call_beside_its_own() {
    let lines = written(|| {
        let call = error_span!("call", site = "north", job = Empty, round = Empty);
        let _inside = call.enter();
        info!("before");
        call.record("job", "j1");
        call.record("round", 3);
        let _deeper = error_span!("pass", attempt = 2).entered();
        warn!(site = "south", loss = 0.5, "after");
    });
    assert_eq!((&lines[0]["site"], &lines[0]["message"]), (&"north".into(), &"before".into()));
    assert!(!lines[0].contains_key("job"));
    let after = &lines[1];
    assert_eq!((&after["job"], &after["round"], &after["attempt"]), (&"j1".into(), &3.into(), &2.into()));
    assert_eq!((&after["site"], &after["loss"], &after["level"]), (&"south".into(), &0.5.into(), &"WARN".into()));
    assert!(after["timestamp"].as_str().unwrap().ends_with('Z'));
}

#[test]
fn what_a_site_says_cannot_make_a_line_or_a_field() {
    let reason = "no\n{\"level\":\"ERROR\",\"message\":\"forged\"}\u{1b}[31m";
    let lines = written(|| info!(reason, level = "TRACE", numbers = ?[1, 2], not_a_number = f64::NAN, "said"));
    assert_eq!(lines.len(), 1);
    assert_eq!(lines[0]["reason"], reason);
    assert_eq!(lines[0]["level"], "INFO", "what the line is cannot be said by it");
    assert_eq!((&lines[0]["numbers"], &lines[0]["not_a_number"]), (&"[1, 2]".into(), &Value::Null));
}
