//! Whether a NATS system keeps what it acknowledges, for `hookgate doctor`. Changes nothing there.

use super::{
    api::Api,
    consumers,
    judgement::largest_event,
    servers::{ConnectFailure, Servers},
    stream::{self, StreamSettings},
    version,
};
use crate::{
    finding::{Finding, Level},
    route::RouteTable,
};

/// Looks at server, stream and settings. Whether events may be published shows only when one is: NATS has no
/// request for it, and a trial event would reach subscribers. Without a `stream` events are live only.
pub async fn inspect(
    servers: &Servers,
    stream: Option<&StreamSettings>,
    routes: &RouteTable,
    instance: &str,
) -> Vec<Finding> {
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
        Some(settings) => {
            let api = Api::over(client);
            streams(&api, &info.version, settings, routes, &mut findings).await;
            findings.extend(releases(&api, instance).await);
        }
    }
    findings
}

/// What the configuration demands of NATS beside a stream: consumers, and that requests to release ids reach hookgate.
/// For `hookgate check`, so all of it is about settings, and what can't be seen now is no failure.
///
/// # Errors
/// If NATS can't be reached.
pub async fn requirements(
    servers: &Servers,
    routes: &RouteTable,
    instance: &str,
) -> Result<Vec<Finding>, ConnectFailure> {
    let (client, _denied) = servers.connect_once().await?;
    let api = Api::over(client);
    let mut findings = match stream::survey(&api, routes, []).await {
        Ok(survey) => consumers::judge(&api, &survey).await,
        Err(error) => vec![Finding::warning("nats streams", error.to_string())],
    };
    findings.extend(releases(&api, instance).await);
    Ok(findings)
}

/// Whether a request to release ids reaches hookgate: a stream that covers the subject would answer it.
async fn releases(api: &Api, instance: &str) -> Option<Finding> {
    let subject = format!("{instance}.release");
    let names = stream::names_of_covering(api, &subject).await.ok()?;
    let name = names.first()?;
    let text = format!(
        "stream {name} covers it: a request to release an id is stored and answered by the stream, and releases nothing; take the subject out of the stream, or set another instance"
    );
    Some(Finding::failure(format!("nats subject {subject}"), text))
}

async fn streams(
    api: &Api,
    version: &str,
    settings: &StreamSettings,
    routes: &RouteTable,
    findings: &mut Vec<Finding>,
) {
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
    findings.extend(consumers::judge(api, &survey).await);
    for (name, (info, _)) in &survey.streams {
        let traps = version::traps(version, info).into_iter();
        findings.extend(traps.map(|text| Finding::warning(format!("nats stream {name}"), text)));
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
