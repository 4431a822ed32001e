//! Whether a NATS system keeps what it acknowledges, for `hookgate doctor`. Changes nothing there.

use std::collections::BTreeSet;

use super::{
    jetstream::context,
    servers::Servers,
    stream::{self, StreamSettings},
};
use crate::{finding::Finding, route::RouteTable};

/// Looks at server, stream and settings. Whether events may be published only a publisher hears: NATS has no question
/// for it, and an event to try with would reach whoever listens. Without a `stream` events are live only.
pub async fn inspect(servers: &Servers, stream: Option<&StreamSettings>, routes: &RouteTable) -> Vec<Finding> {
    let client = match servers.connect_once().await {
        Ok((client, _denied)) => client,
        Err(error) => return vec![Finding::failure("nats", error.to_string())],
    };
    let info = client.server_info();
    let mut findings = vec![Finding::ok("nats", format!("connected to {} ({})", servers.names(), info.version))];
    match (stream, info.jetstream) {
        (None, _) => findings.push(Finding::warning(
            "nats delivery",
            "core: an event reaches whoever is subscribed at that moment, and nobody else",
        )),
        (Some(_), false) => findings.push(Finding::failure(
            "nats JetStream",
            "is off: nothing would be stored; start the server with -js, or set nats.delivery = \"core\"",
        )),
        (Some(settings), true) => streams(&context(client), settings, routes, &mut findings).await,
    }
    findings
}

async fn streams(
    context: &async_nats::jetstream::Context,
    settings: &StreamSettings,
    routes: &RouteTable,
    findings: &mut Vec<Finding>,
) {
    let mut names = BTreeSet::new();
    for route in routes.routes() {
        let what = format!("nats subject {}", route.subject());
        findings.push(match stream::covering(context, route.subject()).await {
            Ok(Some(name)) => {
                let finding = Finding::ok(what, format!("stream {name}"));
                names.insert(name);
                finding
            }
            Ok(None) if settings.create => {
                Finding::ok(what, format!("no stream yet; hookgate will create {}", settings.name))
            }
            Ok(None) => Finding::failure(what, "no stream covers it, and nats.stream.create is false"),
            Err(error) => Finding::failure(what, error.to_string()),
        });
    }
    for name in names {
        let what = format!("nats stream {name}");
        match stream::info_of(context, &name).await {
            Ok(Some(info)) => {
                let problems = stream::unsafe_settings(&info.config);
                if problems.is_empty() {
                    findings.push(Finding::ok(what.clone(), "keeps what it acknowledges"));
                }
                findings.extend(problems.into_iter().map(|text| Finding::warning(what.clone(), text)));
                let limits = stream::fullness(&info.config, info.state.messages, info.state.bytes);
                findings.extend(limits.into_iter().map(|(full, text)| {
                    if full { Finding::failure(what.clone(), text) } else { Finding::warning(what.clone(), text) }
                }));
            }
            Ok(None) => {}
            Err(error) => findings.push(Finding::failure(what, error.to_string())),
        }
    }
}
