//! The log: one event a line, as text or as JSON, on standard error.

mod json;
mod lines;

use std::{io::IsTerminal, panic::PanicHookInfo};

use tracing::error;
use tracing_subscriber::{
    EnvFilter, Registry, filter::ParseError, fmt, layer::SubscriberExt, reload, util::SubscriberInitExt,
};

use self::{json::Json, lines::Lines};

/// How the log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize, serde::Serialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Text on a terminal, else JSON.
    Auto,
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// The NATS client writes a line for each failed attempt. hookgate says the same once, in the words of its settings.
const QUIET: &str = "async_nats=off";

/// Reads filter directives, such as `info,hookgate::entity=warn`.
///
/// # Errors
/// If they are none.
pub fn parse_filter(directives: &str) -> Result<EnvFilter, ParseError> {
    EnvFilter::builder().parse(format!("{QUIET},{directives}"))
}

/// The log of the process, to be held until its end: then everything that was said is written.
#[must_use = "the last lines are written when this is dropped"]
pub struct Log {
    lines: Lines,
    filter: reload::Handle<EnvFilter, Registry>,
}

impl Log {
    /// What is to be logged from now on.
    #[must_use]
    pub fn filter(&self) -> LogFilter {
        LogFilter(self.filter.clone())
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.lines.flush();
    }
}

/// Changes what is logged while the process runs.
#[derive(Debug, Clone)]
pub struct LogFilter(reload::Handle<EnvFilter, Registry>);

impl LogFilter {
    /// From now on this is logged.
    pub fn set(&self, filter: EnvFilter) {
        if let Err(error) = self.0.reload(filter) {
            error!(%error, "the log filter can't be changed");
        }
    }
}

/// Sends the log of the whole process to standard error, panics included.
pub fn init(format: Format, filter: EnvFilter) -> Log {
    let terminal = std::io::stderr().is_terminal();
    let lines = Lines::to(std::io::stderr());
    let json = match format {
        Format::Auto => !terminal,
        Format::Json => true,
        Format::Text => false,
    };
    let (filter, handle) = reload::Layer::new(filter);
    let registry = tracing_subscriber::registry().with(filter);
    if json {
        registry.with(Json(lines.clone())).init();
    } else {
        registry.with(fmt::layer().with_writer(lines.clone()).with_ansi(terminal)).init();
    }
    std::panic::set_hook(Box::new(log_panic));
    Log { lines, filter: handle }
}

/// One line like any other. A message that was put together at that moment may hold what was being worked on
/// (text that was cut at a wrong place shows itself), so only one that stands in the source is repeated.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let message = panic.payload().downcast_ref::<&'static str>().unwrap_or(&"(its message may hold data)");
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    error!("panicked at {place}: {message}");
}
