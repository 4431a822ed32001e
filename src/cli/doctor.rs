//! `hookgate doctor`: are the stores such that nothing is lost.

use std::{process::ExitCode, time::Duration};

use anyhow::{Context, bail};
use hookgate::{
    app::{self, operator},
    delivery::StoreError,
    finding::{Finding, Level},
    http_client::{HttpClient, RequestLimits},
    life::LifeCounts,
    route::{Release, Route},
    settings::{ClaimsIn, Settings},
    tls::TlsFiles,
};
use http::{Request, header};
use url::Url;

use super::{Output, UNSIGNED, on_marks, print, store, table::counted, tell};

const PUSH: RequestLimits =
    RequestLimits { connect: Duration::from_secs(5), total: Duration::from_secs(10), max_answer_bytes: 64 << 10 };

#[derive(Debug, clap::Args)]
#[command(after_help = "Exit code: 0 if all is well or only warned about, 1 if something fails.

Examples:
  hookgate doctor
  hookgate doctor --espocrm                    do the CRM's webhooks fit the routes, and did it give up on anything
  hookgate doctor --strict                     in a delivery: warnings fail too
  hookgate doctor --output json | jq 'select(.level != \"ok\")'")]
pub(crate) struct DoctorArguments {
    /// End with exit code 1 on warnings too.
    #[arg(long)]
    strict: bool,
    /// Look at the CRM instead: its webhooks, its queue, and whether they fit the routes.
    #[arg(long)]
    espocrm: bool,
    /// With --espocrm: print failed items and backlog as metrics, in the text format of Prometheus.
    #[arg(long, requires = "espocrm")]
    metrics: bool,
    /// With --metrics: put them into the Pushgateway at this address instead of printing them.
    #[arg(long, requires = "metrics", value_name = "URL")]
    push_to: Option<Url>,
}

pub(super) fn run(arguments: &DoctorArguments, settings: &Settings, output: Output) -> anyhow::Result<ExitCode> {
    if arguments.espocrm {
        return espocrm(arguments, settings, output);
    }
    let routes = counted(settings.routes.routes().len(), "route", "routes");
    let mut findings = vec![Finding::ok("configuration", routes)];
    findings.extend(settings.warnings.iter().map(|warning| Finding::warning("configuration", warning.as_str())));
    for route in settings.open_routes() {
        let text = format!("{UNSIGNED}; give it one (routes.auth), or let nobody but the CRM reach it");
        findings.push(Finding::warning(format!("route {route}"), text));
    }
    for route in settings.marking_routes() {
        findings.push(Finding::ok(format!("route {route}"), on_marks(settings)));
    }
    store::block_on(async {
        let (mut redis, nats) = tokio::join!(redis(settings), operator::inspect_broker(settings));
        findings.append(&mut redis);
        findings.extend(nats);
        Ok(())
    })?;
    report(&findings, arguments.strict, output)
}

/// The CRM instead of the stores.
fn espocrm(arguments: &DoctorArguments, settings: &Settings, output: Output) -> anyhow::Result<ExitCode> {
    let (findings, numbers) = store::block_on(async {
        let crm = app::crm::open(&settings.espocrm)?;
        Ok(app::crm::inspect(settings, &crm, settings.espocrm.user.is_some()).await)
    })?;
    if !arguments.metrics {
        return report(&findings, arguments.strict, output);
    }
    // Before the gateway is asked: it may be away as well.
    let failures: Vec<_> = findings.iter().filter(|finding| finding.level == Level::Failure).collect();
    for finding in &failures {
        tell(&format!("hookgate: {}: {}", finding.what, finding.text));
    }
    match &arguments.push_to {
        Some(gateway) => store::block_on(push(gateway, settings, format!("{}\n", numbers.prometheus())))?,
        None => {
            print(&numbers.prometheus());
        }
    }
    Ok(if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Replaces the group of these metrics in a Pushgateway.
async fn push(gateway: &Url, settings: &Settings, metrics: String) -> anyhow::Result<()> {
    let base = gateway.as_str().trim_end_matches('/');
    let address = format!("{base}/metrics/job/hookgate-espocrm/instance/{}", settings.instance);
    let request = Request::put(&address)
        .header(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")
        .body(metrics.into())
        .with_context(|| format!("--push-to {gateway} is no http or https address"))?;
    let files = TlsFiles { ca: settings.espocrm.ca_file.clone(), client: None };
    let client = HttpClient::new(&files, PUSH, None).context("read the certificates to trust")?;
    let answer = client.send(request).await?;
    if !answer.status().is_success() {
        bail!("put metrics into {address}: answered {}; check --push-to, which names a Pushgateway", answer.status());
    }
    Ok(())
}

fn report(findings: &[Finding], strict: bool, output: Output) -> anyhow::Result<ExitCode> {
    for finding in findings {
        print(&match output {
            Output::Json => serde_json::to_string(finding).context("print")?,
            Output::Text => {
                let mark = match finding.level {
                    Level::Ok => "ok  ",
                    Level::Warning => "WARN",
                    Level::Failure => "FAIL",
                };
                format!("{mark}  {}: {}", finding.what, finding.text)
            }
        });
    }
    let [ok, warnings, failures] = [Level::Ok, Level::Warning, Level::Failure]
        .map(|level| findings.iter().filter(|finding| finding.level == level).count());
    if output == Output::Text {
        let (warned, failed) = (counted(warnings, "warning", "warnings"), counted(failures, "failure", "failures"));
        print(&format!("\n{ok} ok, {warned}, {failed}"));
    }
    let failed = failures > 0 || strict && warnings > 0;
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

async fn redis(settings: &Settings) -> Vec<Finding> {
    if matches!(settings.claims_in, ClaimsIn::Memory) {
        let text =
            "redis.url is \"memory:\": claims are forgotten at exit and not shared between replicas; for trials only";
        return vec![Finding::failure("redis", text)];
    }
    let store = match store::open(settings).await {
        Ok(store) => store,
        Err(error) => return vec![Finding::failure("redis", format!("{error:#}"))],
    };
    let mut findings = vec![Finding::ok("redis", "connected; the claim script may run on the keys of every route")];
    findings.extend(store.inspect(settings).await);
    match store.outbox.recorded_routes().await {
        Ok(routes) => {
            for route in routes {
                let entries = store.outbox.count(&route).await;
                let configured =
                    settings.routes.routes().iter().any(|present| present.pending_key() == route.pending_key());
                findings.push(outbox(&route, configured, entries));
            }
        }
        Err(error) => findings.push(Finding::failure("outboxes", format!("can't list the routes: {error}"))),
    }
    for route in settings.routes.routes().iter().filter(|route| route.life().journal) {
        findings.extend(store.life.life_counts(route).await.ok().and_then(|counts| journal(route, counts)));
    }
    findings
}

/// Pending ids of which nothing is known: their claims are from before there was a journal, or of a replica of 0.1.0.
fn journal(route: &Route, counts: LifeCounts) -> Option<Finding> {
    let LifeCounts { pending, in_flight, journaled, .. } = counts;
    let unknown = pending.checked_sub(in_flight + journaled).filter(|unknown| *unknown > 0)?;
    let what = format!("journal {route}");
    let ids = counted(unknown, "pending id has", "pending ids have");
    let text = format!("{ids} no entry, as 0.1.0 claims them");
    Some(if route.life().release == Release::Ack {
        Finding::warning(
            what,
            format!("{text}: let no replica of 0.1.0 serve beside release = \"ack\"; each of these ids is republished"),
        )
    } else {
        Finding::ok(what, format!("{text}; replace every replica of 0.1.0 before you set release = \"ack\""))
    })
}

fn outbox(route: &Route, configured: bool, entries: Result<usize, StoreError>) -> Finding {
    let what = format!("outbox {route}");
    match (entries, configured) {
        (Err(error), _) => Finding::failure(what, format!("can't count {}: {error}", route.outbox_key())),
        (Ok(0), _) => Finding::ok(what, "empty"),
        (Ok(entries), true) => {
            let entries = counted(entries, "entry", "entries");
            Finding::ok(what, format!("{entries}: in flight, or left to the relay"))
        }
        (Ok(entries), false) => Finding::warning(
            what,
            format!(
                "{} of a route that is configured no more; the relay publishes to {}",
                counted(entries, "entry", "entries"),
                route.subject()
            ),
        ),
    }
}
