//! Whether a NATS system keeps what it acknowledges, for `hookgate doctor`. Changes nothing there.

use std::collections::BTreeSet;

use super::{
    jetstream::context,
    servers::Servers,
    stream::{self, StreamSettings},
};
use crate::{finding::Finding, route::RouteTable, settings::Delivery};

/// Looks at server, stream and settings.
pub async fn inspect(servers: &Servers, delivery: &Delivery, routes: &RouteTable) -> Vec<Finding> {
    let client = match servers.connect_once().await {
        Ok((client, _denied)) => client,
        Err(error) => return vec![Finding::failure("nats", error.to_string())],
    };
    let info = client.server_info();
    let mut findings = vec![Finding::ok("nats", format!("connected to {} ({})", servers.names(), info.version))];
    match (delivery, info.jetstream) {
        (Delivery::Core, _) => findings.push(Finding::warning(
            "nats delivery",
            "core: an event reaches whoever is subscribed at that moment, and nobody else",
        )),
        (Delivery::JetStream(_), false) => findings.push(Finding::failure(
            "nats JetStream",
            "is off: nothing would be stored; start the server with -js, or set nats.delivery = \"core\"",
        )),
        (Delivery::JetStream(settings), true) => streams(&context(client), settings, routes, &mut findings).await,
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
        match stream::config_of(context, &name).await {
            Ok(Some(config)) => {
                let problems = stream::unsafe_settings(&config);
                if problems.is_empty() {
                    findings.push(Finding::ok(format!("nats stream {name}"), "keeps what it acknowledges"));
                }
                findings.extend(problems.into_iter().map(|text| Finding::warning(format!("nats stream {name}"), text)));
            }
            Ok(None) => {}
            Err(error) => findings.push(Finding::failure(format!("nats stream {name}"), error.to_string())),
        }
    }
}
