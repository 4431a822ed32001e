//! `hookgate tail`: live events, as `nats sub` prints them.

use std::{borrow::Cow, collections::BTreeMap, process::ExitCode};

use anyhow::{Context, bail};
use hookgate::{app::operator, publisher::live::LiveEvent, settings::Settings, shutdown::Signals};
use serde::Serialize;
use serde_json::value::RawValue;

use super::{Output, print, store, tell};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  hookgate tail                                what all routes publish
  hookgate tail 'vmh.>' --count 1              the next event of flow vmh
  hookgate tail --output json | jq .payload    for programs")]
pub(crate) struct TailArguments {
    /// Subject, wildcards allowed [default: the subjects of all routes].
    subject: Option<String>,
    /// End after this many events.
    #[arg(long, value_name = "N")]
    count: Option<u64>,
}

pub(super) fn run(arguments: TailArguments, settings: &Settings, output: Output) -> anyhow::Result<ExitCode> {
    store::block_on(tail(arguments, settings, output))
}

async fn tail(arguments: TailArguments, settings: &Settings, output: Output) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::new().context("receive signals")?;
    let published: Vec<_> = settings.routes.routes().iter().map(|route| route.subject().to_owned()).collect();
    if let Some(subject) =
        arguments.subject.as_deref().filter(|pattern| !published.iter().any(|one| covers(pattern, one)))
    {
        tell(&format!("hookgate: warning: no route publishes to {subject}; `hookgate routes` lists the subjects"));
    }
    let subjects = arguments.subject.map_or(published, |subject| vec![subject]);
    let mut events = operator::live_events(settings, &subjects).await?;
    tell(&format!("Subscribing on {}", subjects.join(", ")));
    tell("Waiting for events; Ctrl-C ends.");

    let mut number = 0;
    while arguments.count.is_none_or(|count| number < count) {
        let event = tokio::select! {
            event = events.next() => event,
            _signal = signals.next() => return Ok(ExitCode::SUCCESS),
        };
        let Some(event) = event else { bail!("the connection to NATS ended") };
        number += 1;
        let text = match output {
            Output::Text => as_text(number, &event),
            Output::Json => as_json(&event)?,
        };
        if !print(&text) {
            return Ok(ExitCode::SUCCESS);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether a pattern of NATS takes a subject in: `*` is one token, `>` all that follow.
fn covers(pattern: &str, subject: &str) -> bool {
    let mut subject = subject.split('.');
    for wanted in pattern.split('.') {
        match (wanted, subject.next()) {
            (">", Some(_)) => return true,
            ("*", Some(_)) => {}
            (wanted, Some(token)) if wanted == token => {}
            _ => return false,
        }
    }
    subject.next().is_none()
}

fn headers(event: &LiveEvent) -> impl Iterator<Item = (&str, String)> {
    event.headers.iter().map(|(name, value)| (name.as_str(), value.escape_debug().to_string()))
}

fn as_text(number: u64, event: &LiveEvent) -> String {
    let lines: Vec<_> = headers(event).map(|(name, value)| format!("{name}: {value}\n")).collect();
    let gap = if lines.is_empty() { "" } else { "\n" };
    let payload = String::from_utf8_lossy(&event.payload);
    format!("[#{number}] Received on {:?}\n{}{gap}{payload}\n", event.subject, lines.concat())
}

/// The payload stands as it is if it is JSON, else as a string.
#[derive(Serialize)]
#[serde(untagged)]
enum Payload<'a> {
    Json(&'a RawValue),
    Text(Cow<'a, str>),
}

#[derive(Serialize)]
struct PrintedMessage<'a> {
    subject: &'a str,
    headers: BTreeMap<&'a str, String>,
    payload: Payload<'a>,
}

fn as_json(event: &LiveEvent) -> anyhow::Result<String> {
    let payload = match serde_json::from_slice(&event.payload) {
        Ok(json) => Payload::Json(json),
        Err(_) => Payload::Text(String::from_utf8_lossy(&event.payload)),
    };
    let line = PrintedMessage { subject: &event.subject, headers: headers(event).collect(), payload };
    serde_json::to_string(&line).context("print an event")
}

#[cfg(test)]
mod tests {
    use super::covers;

    #[test]
    fn patterns_cover_subjects_as_in_nats() {
        for pattern in ["a.b.c", "a.*.c", "a.>", ">", "*.*.*"] {
            assert!(covers(pattern, "a.b.c"), "{pattern}");
        }
        for pattern in ["a.b", "a.b.c.d", "a.b.c.>", "*", "a.*", "b.>", ""] {
            assert!(!covers(pattern, "a.b.c"), "{pattern}");
        }
    }
}
