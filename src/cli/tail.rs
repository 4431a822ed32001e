//! `hookgate tail`: live events, as `nats sub` prints them.

use std::{borrow::Cow, collections::BTreeMap, process::ExitCode};

use anyhow::{Context, bail};
use async_nats::{Message, Subscriber};
use futures_util::{StreamExt, stream::select_all};
use hookgate::{settings::Settings, shutdown::Signals};
use serde::Serialize;
use serde_json::value::RawValue;

use super::{Output, print, store};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Subject, wildcards allowed [default: the subjects of all routes].
    subject: Option<String>,
    /// End after this many events.
    #[arg(long, value_name = "N")]
    count: Option<u64>,
}

pub(super) fn run(arguments: Arguments, settings: &Settings, output: Output) -> anyhow::Result<ExitCode> {
    store::block_on(tail(arguments, settings, output))
}

async fn tail(arguments: Arguments, settings: &Settings, output: Output) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::new().context("receive signals")?;
    let servers = &settings.nats;
    let (client, denied) = servers.connect_once().await.context("NATS")?;
    let subjects = match arguments.subject {
        Some(subject) => vec![subject],
        None => settings.routes.routes().iter().map(|route| route.subject().to_owned()).collect(),
    };
    let mut subscriptions: Vec<Subscriber> = Vec::new();
    for subject in &subjects {
        let subscription =
            client.subscribe(subject.clone()).await.with_context(|| format!("subscribe to {subject:?}"))?;
        subscriptions.push(subscription);
    }
    // Twice: what is denied comes before the first answer, but through another queue of the client.
    for _ in 0..2 {
        confirm(&client).await.map_err(|error| denied.borrow().clone().map_or(error, anyhow::Error::msg))?;
    }
    if let Some(denial) = &*denied.borrow() {
        bail!("{denial}; grant it, see k8s/privileges/nats.conf");
    }
    eprintln!("Subscribing on {}", subjects.join(", "));

    let mut events = select_all(subscriptions);
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

/// A message that comes round proves that the server has read the subscriptions before it.
async fn confirm(client: &async_nats::Client) -> anyhow::Result<()> {
    let inbox = client.new_inbox();
    let mut round = client.subscribe(inbox.clone()).await.context("subscribe to an inbox")?;
    client.publish(inbox, bytes::Bytes::new()).await.context("publish to an inbox")?;
    let limit = std::time::Duration::from_secs(5);
    match tokio::time::timeout(limit, round.next()).await {
        Ok(Some(_)) => Ok(()),
        _ => bail!("NATS did not confirm the subscription within {limit:?}; check its permissions"),
    }
}

fn headers(event: &Message) -> impl Iterator<Item = (String, String)> + '_ {
    event.headers.iter().flat_map(async_nats::HeaderMap::iter).flat_map(|(name, values)| {
        values.iter().map(move |value| (name.to_string(), value.as_str().escape_debug().to_string()))
    })
}

fn as_text(number: u64, event: &Message) -> String {
    let mut sorted: Vec<_> = headers(event).collect();
    sorted.sort();
    let lines: Vec<_> = sorted.into_iter().map(|(name, value)| format!("{name}: {value}\n")).collect();
    let gap = if lines.is_empty() { "" } else { "\n" };
    let payload = String::from_utf8_lossy(&event.payload);
    format!("[#{number}] Received on {:?}\n{}{gap}{payload}\n", event.subject.as_str(), lines.concat())
}

/// The payload stands as it is if it is JSON, else as a string.
#[derive(Serialize)]
#[serde(untagged)]
enum Payload<'a> {
    Json(&'a RawValue),
    Text(Cow<'a, str>),
}

#[derive(Serialize)]
struct Line<'a> {
    subject: &'a str,
    headers: BTreeMap<String, String>,
    payload: Payload<'a>,
}

fn as_json(event: &Message) -> anyhow::Result<String> {
    let payload = match serde_json::from_slice(&event.payload) {
        Ok(json) => Payload::Json(json),
        Err(_) => Payload::Text(String::from_utf8_lossy(&event.payload)),
    };
    let line = Line { subject: event.subject.as_str(), headers: headers(event).collect(), payload };
    serde_json::to_string(&line).context("print an event")
}
