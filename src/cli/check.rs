//! `hookgate check`: whether the configuration is valid, and what it amounts to.

use std::{process::ExitCode, time::Duration};

use anyhow::Context;
use hookgate::{
    app::operator,
    finding::{Finding, Level},
    route::Release,
    settings::{Settings, sections::Configuration},
};

use super::{Output, UNSIGNED, on_marks, print, store, tell};

/// How long a look at NATS may take. Where a configuration is checked, NATS is often out of reach.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is in force goes to standard output, as a configuration; all else to standard error.
pub(super) fn run(configuration: &Configuration, settings: &Settings, output: Output) -> anyhow::Result<ExitCode> {
    let shown = configuration.redacted();
    let text = match output {
        Output::Text => toml::to_string(&shown).context("print the configuration")?,
        Output::Json => serde_json::to_string(&shown).context("print the configuration")?,
    };
    print(text.trim_end());
    for route in settings.open_routes() {
        tell(&format!("hookgate: warning: route {route} {UNSIGNED}"));
    }
    for route in settings.marking_routes() {
        tell(&format!("hookgate: note: route {route} {}", on_marks(settings)));
    }
    let mut failed = false;
    for Finding { level, what, text } in store::block_on(demands(settings))? {
        match level {
            Level::Ok => {}
            Level::Warning => tell(&format!("hookgate: warning: {what}: {text}")),
            Level::Failure => {
                failed = true;
                tell(&format!("hookgate: {what}: {text}"));
            }
        }
    }
    if failed {
        tell("hookgate: the configuration is valid, but NATS is not set up for it");
        return Ok(ExitCode::FAILURE);
    }
    tell("hookgate: the configuration is valid");
    Ok(ExitCode::SUCCESS)
}

/// What the configuration demands of NATS, if NATS can be reached.
async fn demands(settings: &Settings) -> anyhow::Result<Vec<Finding>> {
    let problem = match tokio::time::timeout(PATIENCE, operator::broker_requirements(settings)).await {
        Ok(Ok(findings)) => return Ok(findings),
        Ok(Err(error)) => error.to_string(),
        Err(_elapsed) => format!("no answer within {PATIENCE:?}"),
    };
    let on_ack = settings.routes.routes().iter().any(|route| route.life().release == Release::Ack);
    let text = format!("the consumers were not looked at ({problem}); `hookgate doctor` looks at them");
    Ok(on_ack.then(|| Finding::warning("nats", text)).into_iter().collect())
}
