//! Whether a NATS system keeps what it acknowledges, for `hookgate doctor`. Changes nothing there.

use super::{
    api::Api,
    judgement::largest_event,
    servers::Servers,
    stream::{self, StreamSettings},
};
use crate::{
    finding::{Finding, Level},
    route::RouteTable,
};

/// Looks at server, stream and settings. Whether events may be published shows only when one is: NATS has no
/// request for it, and a trial event would reach subscribers. Without a `stream` events are live only.
pub async fn inspect(servers: &Servers, stream: Option<&StreamSettings>, routes: &RouteTable) -> Vec<Finding> {
    let client = match servers.connect_once().await {
        Ok((client, _denied)) => client,
        Err(error) => return vec![Finding::failure("nats", error.to_string())],
    };
    let info = client.server_info();
    let mut findings = vec![Finding::ok("nats", format!("connected to {} ({})", servers.names(), info.version))];
    let needed = routes.routes().iter().map(|route| largest_event(route)).max().unwrap_or(0);
    if info.max_payload < needed {
        let text = format!(
            "{}: an event can take {needed} bytes, and a larger one is refused each time; set it to {needed} or more",
            info.max_payload
        );
        findings.push(Finding::failure("nats max_payload", text));
    }
    match stream {
        None => findings.push(Finding::warning(
            "nats delivery",
            "core: an event reaches whoever is subscribed at that moment, and nobody else",
        )),
        Some(settings) => streams(&Api::over(client), settings, routes, &mut findings).await,
    }
    findings
}

async fn streams(api: &Api, settings: &StreamSettings, routes: &RouteTable, findings: &mut Vec<Finding>) {
    let survey = match stream::survey(api, routes, []).await {
        Ok(survey) => survey,
        Err(error) => {
            let what = if error.is_no_jetstream() { "nats JetStream" } else { "nats streams" };
            findings.push(Finding::failure(what, error.to_string()));
            return;
        }
    };
    for route in routes.routes() {
        let what = format!("nats subject {}", route.subject());
        let covering = survey.streams.iter().find(|(_, (_, covered))| covered.iter().any(|other| *other == &**route));
        findings.push(match covering {
            Some((name, _)) => Finding::ok(what, format!("stream {name}")),
            None if settings.create => {
                Finding::ok(what, format!("no stream yet; hookgate will create {}", settings.name))
            }
            None => Finding::failure(what, "no stream covers it, and nats.stream.create is false"),
        });
    }
    let problems = survey.problems(settings);
    for name in survey.streams.keys().filter(|name| problems.iter().all(|(of, _)| of != name)) {
        findings.push(Finding::ok(format!("nats stream {name}"), KEEPS));
    }
    findings.extend(problems.into_iter().map(|(name, problem)| {
        let what = format!("nats stream {name}");
        match problem.level {
            Level::Failure => Finding::failure(what, problem.text),
            Level::Warning | Level::Ok => Finding::warning(what, problem.text),
        }
    }));
}

/// For a stream without a problem. No API shows how often a server syncs.
const KEEPS: &str = "keeps what it acknowledges while no server loses power; a server acknowledges before it syncs to disk (sync_interval, 2 minutes by default): \"sync_interval: always\" closes that";
