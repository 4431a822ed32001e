//! `hookgate tail`: live events, as `nats sub` prints them, or those that the stream holds.

use std::{
    borrow::Cow,
    collections::{BTreeMap, VecDeque},
    process::ExitCode,
    time::{Duration, SystemTime},
};

use anyhow::{Context, bail};
use hookgate::{
    app::operator,
    publisher::{
        history::{Start, Stored},
        live::LiveEvent,
    },
    settings::Settings,
    shutdown::Signals,
};
use serde::Serialize;
use serde_json::value::RawValue;

use super::{Output, print, store, table::counted, tell};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  hookgate tail                                what all routes publish from now on
  hookgate tail 'vmh.>' --count 1              the next event of flow vmh
  hookgate tail --last 20                      the last 20 events in the stream
  hookgate tail --since 1h                     those that were stored within the last hour
  hookgate tail --id 65f0c1                    every event of an entity that the stream still has
  hookgate tail --output json | jq .payload    for programs")]
pub(crate) struct TailArguments {
    /// Subject, wildcards allowed [default: the subjects of all routes].
    subject: Option<String>,
    /// End after this many events.
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Print what the stream holds since so long ago, and end.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    since: Option<Duration>,
    /// Print the last events that the stream holds, and end.
    #[arg(long, value_name = "N", conflicts_with = "since")]
    last: Option<usize>,
    /// Print what the stream holds of one entity, and end.
    #[arg(long, value_name = "ID")]
    id: Option<String>,
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
    let subjects = arguments.subject.clone().map_or(published, |subject| vec![subject]);
    if arguments.since.is_some() || arguments.last.is_some() || arguments.id.is_some() {
        return tokio::select! {
            ended = stored(&arguments, &subjects, settings, output) => ended,
            _signal = signals.next() => Ok(ExitCode::SUCCESS),
        };
    }
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
            Output::Text => as_text(&format!("[#{number}] Received"), &event),
            Output::Json => as_json(&event, None)?,
        };
        if !print(&text) {
            return Ok(ExitCode::SUCCESS);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What the streams hold.
async fn stored(
    arguments: &TailArguments,
    subjects: &[String],
    settings: &Settings,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let start = match (arguments.since, arguments.last, &arguments.id) {
        (Some(since), ..) => Start::Time(SystemTime::now().checked_sub(since).unwrap_or(SystemTime::UNIX_EPOCH)),
        // Of one entity: among all events.
        (None, Some(last), None) => Start::Last(last),
        _ => Start::First,
    };
    let history = operator::history(settings).await?;
    let mut events = history.events(subjects, start).await?;
    let (mut printed, mut last) = (0, VecDeque::new());
    let wanted = |event: &Stored| arguments.id.as_ref().is_none_or(|id| *id == event.id);
    while arguments.count.is_none_or(|count| printed < count) {
        let Some(event) = events.next().await? else { break };
        if !wanted(&event) {
            continue;
        }
        if let Some(most) = arguments.last {
            last.push_back(event);
            if last.len() > most {
                last.pop_front();
            }
        } else if show(&event, output)? {
            printed += 1;
        } else {
            return Ok(ExitCode::SUCCESS);
        }
    }
    for event in last.iter().take(arguments.count.map_or(usize::MAX, |count| count.try_into().unwrap_or(usize::MAX))) {
        if !show(event, output)? {
            return Ok(ExitCode::SUCCESS);
        }
        printed += 1;
    }
    if events.skipped() > 0 {
        let skipped = counted(usize::try_from(events.skipped()).unwrap_or(usize::MAX), "message", "messages");
        tell(&format!("hookgate: left out {skipped} that hookgate did not publish"));
    }
    if printed == 0 && output == Output::Text {
        tell("no such event in the stream");
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints an event of a stream. Returns false once standard output is closed.
fn show(event: &Stored, output: Output) -> anyhow::Result<bool> {
    let (sequence, time) = (event.sequence, humantime::format_rfc3339_millis(event.time).to_string());
    Ok(print(&match output {
        Output::Text => as_text(&format!("[#{sequence}] Stored {time} in {}", event.stream), &event.as_live()),
        Output::Json => as_json(&event.as_live(), Some(Place { stream: &event.stream, sequence, time }))?,
    }))
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

fn as_text(what: &str, event: &LiveEvent) -> String {
    let lines: Vec<_> = headers(event).map(|(name, value)| format!("{name}: {value}\n")).collect();
    let gap = if lines.is_empty() { "" } else { "\n" };
    let payload = String::from_utf8_lossy(&event.payload);
    format!("{what} on {:?}\n{}{gap}{payload}\n", event.subject, lines.concat())
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
    #[serde(flatten)]
    place: Option<Place<'a>>,
}

/// Where an event lies.
#[derive(Serialize)]
struct Place<'a> {
    stream: &'a str,
    sequence: u64,
    time: String,
}

fn as_json(event: &LiveEvent, place: Option<Place<'_>>) -> anyhow::Result<String> {
    let payload = match serde_json::from_slice(&event.payload) {
        Ok(json) => Payload::Json(json),
        Err(_) => Payload::Text(String::from_utf8_lossy(&event.payload)),
    };
    let line = PrintedMessage { subject: &event.subject, headers: headers(event).collect(), payload, place };
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
