//! What is written to standard error. In JSON each line is one flat object: the fields of the line, and those of the
//! call it came of (`site`, `job`, `round`), side by side.

use std::fmt;
use std::io::IsTerminal;

use fedtune_config::server::{Log, LogFormat};
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::fmt::format::{JsonFields, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormattedFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::traces::Traces;

/// What is asked of the log cannot be done.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The level is no filter.
    #[error("log.level: found {level:?}: {source}")]
    Level {
        /// The level.
        level: String,
        /// What is wrong with it.
        source: ParseError,
    },
    /// Traces are asked for.
    #[error(
        "log.otlp: this fedtune-server was built without the feature `otel`; build it with \
         `cargo build --release -p fedtune-server --features otel`, or take log.otlp out"
    )]
    NoTraces,
    /// Where traces should go is no address.
    #[error("log.otlp: found {endpoint:?}: {reason}; expected an address such as \"http://127.0.0.1:4317\"")]
    Endpoint {
        /// The address.
        endpoint: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// Writes log lines and sends traces from now on, as `log` says. Needs a runtime.
///
/// # Errors
/// See [`LogError`].
pub fn init(log: &Log) -> Result<Traces, LogError> {
    let filter = EnvFilter::try_new(&log.level);
    let filter = filter.map_err(|source| LogError::Level { level: log.level.clone(), source })?;
    let (sending, traces) = match &log.otlp {
        Some(endpoint) => Traces::send_to(endpoint).map(|(sending, traces)| (Some(sending), traces))?,
        None => (None, Traces::default()),
    };
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = match log.format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).with_target(false).boxed(),
        LogFormat::Json => lines.fmt_fields(JsonFields::new()).event_format(Flat).boxed(),
    };
    tracing_subscriber::registry().with(sending).with(lines.with_filter(filter)).init();
    Ok(traces)
}

/// One JSON object a line. What the line says wins over what its call says.
#[derive(Debug)]
struct Flat;

impl<S> FormatEvent<S, JsonFields> for Flat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, JsonFields>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields::default();
        for span in context.event_scope().into_iter().flat_map(|scope| scope.from_root()) {
            let extensions = span.extensions();
            let known = extensions.get::<FormattedFields<JsonFields>>();
            if let Some(Value::Object(known)) = known.and_then(|known| serde_json::from_str(&known.fields).ok()) {
                fields.0.extend(known);
            }
        }
        event.record(&mut fields);
        let mut time = String::new();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        let metadata = event.metadata();
        let mut line = Map::new();
        line.insert("timestamp".into(), time.into());
        line.insert("level".into(), metadata.level().as_str().into());
        line.insert("target".into(), metadata.target().into());
        for (name, value) in fields.0 {
            line.entry(name).or_insert(value);
        }
        writeln!(writer, "{}", Value::Object(line))
    }
}

#[derive(Default)]
struct Fields(Map<String, Value>);

impl Fields {
    fn set(&mut self, field: &Field, value: impl Into<Value>) {
        self.0.insert(field.name().to_owned(), value.into());
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.set(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field, value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.set(field, format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests;
