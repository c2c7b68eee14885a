//! Traces as a collector sees them: the real program, built with the feature `otel`, and a collector in this test.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::time::{Duration, Instant};

use fedtune_tests::{Federation, SyntheticSite, delta_file, model_folder, state_file, text};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

const PATIENCE: Duration = Duration::from_secs(60);

struct Collector(mpsc::UnboundedSender<Span>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for resource in request.into_inner().resource_spans {
            let names = resource.resource.unwrap().attributes;
            assert!(names.iter().any(|name| name.key == "service.name"), "{names:?}");
            for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                let _ = self.0.send(span);
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// The spans that came.
struct Seen {
    receiver: mpsc::UnboundedReceiver<Span>,
    spans: Vec<Span>,
}

impl Seen {
    /// Waits until a span of this name has these fields.
    fn wait_for(&mut self, name: &str, fields: &[(&str, &str)]) -> Span {
        let began = Instant::now();
        loop {
            while let Ok(span) = self.receiver.try_recv() {
                self.spans.push(span);
            }
            let has = |span: &&Span| fields.iter().all(|(key, wanted)| field(span, key).as_deref() == Some(*wanted));
            if let Some(span) = self.spans.iter().filter(|span| span.name == name).find(has) {
                return span.clone();
            }
            assert!(began.elapsed() < PATIENCE, "no {name} with {fields:?} in {:#?}", self.spans);
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn field(span: &Span, key: &str) -> Option<String> {
    let found = span.attributes.iter().find(|of| of.key == key)?.value.as_ref()?.value.as_ref()?;
    match found {
        Value::StringValue(text) => Some(text.clone()),
        Value::IntValue(number) => Some(number.to_string()),
        other => panic!("{key}: {other:?}"),
    }
}

/// Runs a job of two rounds to its end with one synthetic site. Gives the job's id.
fn run_job(federation: &Federation, runtime: &Runtime) -> String {
    let (bundle, work) = (federation.enrol("north", "site"), federation.path("north"));
    let address = federation.address().to_owned();
    runtime.spawn(async move {
        std::fs::create_dir_all(&work).unwrap();
        let state = state_file(&work.join("state"), 1000).unwrap();
        let update = delta_file(&work.join("update"), 1000, 7).unwrap();
        // Until the aggregator goes.
        let _ = SyntheticSite::connect(&address, &bundle).await.unwrap().serve(&state, &update, &work).await;
    });
    let job = model_folder(&federation.path("model"), 2, 1).unwrap();
    let job = federation.operator(&["job", "submit", text(&job)]).ok().stdout.trim().to_owned();
    federation.ended(&job, "completed");
    job
}

#[test]
fn a_collector_gets_rounds_with_their_pass_and_the_calls_worth_it() {
    let runtime = Runtime::new().unwrap();
    let (sender, receiver) = mpsc::unbounded_channel();
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let service = TraceServiceServer::new(Collector(sender));
    runtime.spawn(Server::builder().add_service(service).serve_with_incoming(TcpIncoming::from(listener)));
    let mut seen = Seen { receiver, spans: Vec::new() };
    // What is logged does not matter.
    let mut federation = Federation::start_with(&[("LOG__OTLP", &endpoint), ("LOG__LEVEL", "error")]);
    let job = run_job(&federation, &runtime);
    for round in ["1", "2"] {
        let span = seen.wait_for("round", &[("job", &job), ("round", round), ("attempt", "1")]);
        assert!(span.parent_span_id.is_empty() && span.end_time_unix_nano > span.start_time_unix_nano);
        let pass = seen.wait_for("aggregation", &[("job", &job), ("round", round)]);
        assert_eq!((pass.parent_span_id, pass.trace_id), (span.span_id, span.trace_id));
    }
    seen.wait_for("call", &[("method", "/fedtune.v1.Artifacts/Upload"), ("site", "north")]);
    seen.wait_for("call", &[("method", "/fedtune.v1.Artifacts/Download"), ("site", "north")]);
    let report = [("method", "/fedtune.v1.Federation/ReportResult"), ("job", &job), ("round", "2")];
    seen.wait_for("call", &report);
    // The session ends with the aggregator, which sends what is left.
    federation.signal_server("TERM");
    assert_eq!(federation.server_ended(), 0);
    let session = seen.wait_for("call", &[("method", "/fedtune.v1.Federation/OpenSession"), ("site", "north")]);
    let lasted = Duration::from_nanos(session.end_time_unix_nano - session.start_time_unix_nano);
    let pass = seen.wait_for("aggregation", &[("round", "2")]);
    assert!(session.end_time_unix_nano > pass.end_time_unix_nano, "{lasted:?}");
    let few = seen.spans.iter().all(|span| !field(span, "method").is_some_and(|of| of.ends_with("/Heartbeat")));
    assert!(few, "{:#?}", seen.spans);
}

#[test]
fn without_a_collector_everything_goes_on_and_it_is_said_once() {
    let runtime = Runtime::new().unwrap();
    // A port that nobody listens at any more.
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let mut federation = Federation::start_with(&[("LOG__OTLP", &endpoint)]);
    run_job(&federation, &runtime);
    let began = Instant::now();
    federation.signal_server("TERM");
    assert_eq!(federation.server_ended(), 0);
    assert!(began.elapsed() < PATIENCE);
    let log = federation.log_text("aggregator");
    assert_eq!(log.matches("log.otlp").count(), 1, "{log}");
}
