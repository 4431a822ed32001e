//! `hookgate check`: whether the configuration is valid, and what it amounts to.

use std::process::ExitCode;

use anyhow::Context;
use hookgate::settings::{Settings, sections::Configuration};

use super::{Output, UNSIGNED, print, tell};

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
    tell("hookgate: the configuration is valid");
    Ok(ExitCode::SUCCESS)
}
