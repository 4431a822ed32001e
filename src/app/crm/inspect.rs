//! What `doctor --espocrm` finds: whether the CRM's webhooks fit the routes, and what its queue holds.

use std::{
    net::IpAddr,
    time::{Duration, SystemTime},
};

use serde::Serialize;
use url::{Host, Url};

use crate::{
    espocrm::{CrmError, EspoCrm, Webhook},
    finding::Finding,
    route::Route,
    settings::Settings,
    signature::Verifiers,
};

/// Failed items are counted up to here.
const MOST_COUNTED: usize = 10_000;
/// An event that waits for longer says that the CRM is behind: its cron job runs every 2 minutes.
const BEHIND: Duration = Duration::from_secs(30 * 60);
/// Clocks that are further apart make `reconcile` refuse.
const APART: Duration = Duration::from_secs(300);

/// What the CRM's queue holds, for programs. A member is missing where the user may not see it.
#[derive(Debug, Default, Serialize)]
pub struct CrmNumbers {
    /// Failed items of each route.
    pub failed: Vec<(String, usize)>,
    /// How long the oldest event has waited for the cron job; 0 if none waits.
    pub backlog_seconds: Option<u64>,
}

impl CrmNumbers {
    /// In the text format of Prometheus, for a Pushgateway or a text file collector.
    #[must_use]
    pub fn prometheus(&self) -> String {
        let mut lines = Vec::new();
        if !self.failed.is_empty() {
            let name = "hookgate_espocrm_failed_items";
            lines.push(format!("# HELP {name} Items of EspoCRM's webhook queue that it gave up on."));
            lines.push(format!("# TYPE {name} gauge"));
            lines.extend(self.failed.iter().map(|(route, count)| format!("{name}{{route=\"{route}\"}} {count}")));
        }
        if let Some(seconds) = self.backlog_seconds {
            let name = "hookgate_espocrm_backlog_age_seconds";
            lines.push(format!("# HELP {name} How long the oldest event of EspoCRM has waited for its cron job."));
            lines.push(format!("# TYPE {name} gauge"));
            lines.push(format!("{name} {seconds}"));
        }
        lines.join("\n")
    }
}

/// Looks at the CRM.
pub async fn inspect(settings: &Settings, crm: &EspoCrm, is_admin: bool) -> (Vec<Finding>, CrmNumbers) {
    let (mut findings, mut numbers) = (Vec::new(), CrmNumbers::default());
    let mut looked = false;
    for route in settings.routes.routes() {
        let Some(event) = route.espocrm_event() else {
            let text = "espocrm_event is not set, so nothing of the CRM is compared with it; set it to the event of its webhook";
            findings.push(Finding::warning(format!("route {route}"), text));
            continue;
        };
        looked = true;
        of_route(&mut findings, &settings.verifiers, crm, route, event, is_admin).await;
        if is_admin {
            failed_items(&mut findings, &mut numbers, crm, route, event).await;
        }
    }
    if !looked {
        findings.push(Finding::failure("espocrm", "no route has espocrm_event, so there is nothing to compare"));
    } else if is_admin {
        backlog(&mut findings, &mut numbers, crm).await;
    } else {
        let text = "failed items and backlog are for administrators only; set espocrm.user and espocrm.password_file to see them";
        findings.push(Finding::ok("espocrm queue", text));
    }
    clock(&mut findings, crm);
    (findings, numbers)
}

async fn of_route(
    findings: &mut Vec<Finding>,
    verifiers: &Verifiers,
    crm: &EspoCrm,
    route: &Route,
    event: &str,
    is_admin: bool,
) {
    let what = format!("espocrm webhook {event}");
    let entity_type = event.split('.').next().unwrap_or(event);
    let webhooks = match crm.webhooks(entity_type).await {
        Ok(webhooks) => webhooks,
        Err(error) => return findings.push(failure(what, &error)),
    };
    let of_event: Vec<_> = webhooks.into_iter().filter(|webhook| webhook.event.as_deref() == Some(event)).collect();
    if of_event.is_empty() {
        let seen = if is_admin { "" } else { " (an API user sees only its own)" };
        findings
            .push(Finding::failure(&*what, format!("the CRM has no such webhook{seen}: route {route} gets nothing")));
    }
    let here: Vec<&Webhook> =
        of_event.iter().filter(|webhook| path_of(webhook) == Some(route.path().to_owned())).collect();
    if here.is_empty() && !of_event.is_empty() {
        findings.push(Finding::failure(
            what.clone(),
            format!("no webhook of this event sends to {}, the path of route {route}; check its URL", route.path()),
        ));
    }
    if !here.is_empty() && !here.iter().any(|webhook| webhook.is_active) {
        findings.push(Finding::failure(
            what.clone(),
            "it is inactive: what happens meanwhile is never sent; activate it, then run `hookgate reconcile --since` for the time before".to_owned(),
        ));
    }
    for webhook in here.iter().filter(|webhook| webhook.is_active) {
        of_webhook(findings, verifiers, route, webhook).await;
    }
    missing_ids(findings, verifiers, route, &of_event);
    if !is_admin {
        rights(findings, crm, entity_type).await;
    }
}

/// The path that a webhook sends to.
fn path_of(webhook: &Webhook) -> Option<String> {
    Some(Url::parse(webhook.url.as_deref()?).ok()?.path().to_owned())
}

async fn of_webhook(findings: &mut Vec<Finding>, verifiers: &Verifiers, route: &Route, webhook: &Webhook) {
    let what = format!("espocrm webhook {}", webhook.id.escape_debug());
    let before = findings.len();
    let mut ids = verifiers.webhook_ids(route).peekable();
    if ids.peek().is_some() && !ids.any(|id| id == webhook.id) {
        findings.push(Finding::failure(
            &*what,
            format!("it sends to route {route}, whose auth does not name this id: all it sends is answered 401; add an entry with this id and its secret key"),
        ));
    }
    let updates = matches!(route.action(), "update" | "fieldUpdate");
    if updates && webhook.skip_own == Some(false) {
        findings.push(Finding::warning(
            &*what,
            "skipOwn is off: if a consumer writes into the CRM, its change sends a webhook again; let it write as the API user that owns this webhook, and set skipOwn (EspoCRM 9.2 and later)",
        ));
    }
    if let Some(url) = webhook.url.as_deref().and_then(|url| Url::parse(url).ok()) {
        address(findings, &what, &url).await;
    }
    if findings.len() == before {
        findings.push(Finding::ok(what, format!("active, and it sends to route {route}")));
    }
}

/// Whether EspoCRM from 9.3.2 on would call it.
async fn address(findings: &mut Vec<Finding>, what: &str, url: &Url) {
    let Some(host) = url.host() else { return };
    let port = url.port_or_known_default().unwrap_or(80);
    // As the CRM compares it.
    let entry = format!("{host}:{port}");
    let addresses: Vec<IpAddr> = match host {
        Host::Ipv4(ip) => vec![ip.into()],
        Host::Ipv6(ip) => vec![ip.into()],
        Host::Domain(name) => match tokio::net::lookup_host((name, port)).await {
            Ok(found) => found.map(|address| address.ip()).collect(),
            Err(error) => {
                findings.push(Finding::warning(
                    what,
                    format!("its host {name} does not resolve from here ({error}); for EspoCRM 9.3 and later a name that does not resolve is final for the batch"),
                ));
                return;
            }
        },
    };
    if !matches!(host, Host::Domain(_)) {
        findings.push(Finding::warning(
            what,
            "its URL holds an IP address: on EspoCRM's development branch (10) an allowed one crashes the job that sends all webhooks; use a host name",
        ));
    }
    if addresses.iter().copied().any(is_private) {
        findings.push(Finding::warning(
            what,
            format!("its host is, or resolves from here to, a private address: EspoCRM from 9.3.2 on calls it only if webhookAllowedAddressList in data/config.php has '{entry}', letter by letter; without it every batch is lost"),
        ));
    }
}

/// What EspoCRM takes for internal.
fn is_private(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.is_private() || ip.is_loopback() || ip.is_link_local() || ip.is_unspecified(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unspecified() || ip.is_unique_local() || ip.is_unicast_link_local(),
    }
}

/// Ids of `auth` that no webhook of the event has.
fn missing_ids(findings: &mut Vec<Finding>, verifiers: &Verifiers, route: &Route, webhooks: &[Webhook]) {
    for id in verifiers.webhook_ids(route).filter(|id| webhooks.iter().all(|webhook| webhook.id != *id)) {
        findings.push(Finding::warning(
            format!("route {route}"),
            format!("auth names webhook id {id:?}, which the CRM does not show for this event; remove the entry if that webhook is gone"),
        ));
    }
}

async fn rights(findings: &mut Vec<Finding>, crm: &EspoCrm, entity_type: &str) {
    let what = format!("espocrm role for {entity_type}");
    match crm.may_read(entity_type).await {
        Ok(Some(level)) if level == "all" => findings.push(Finding::ok(what, "the API user may read all records")),
        Ok(Some(level)) => findings.push(Finding::failure(
            what,
            format!("the API user may read {level:?}, not all: the CRM drops webhooks for every other record, without a trace; give its role read: all"),
        )),
        Ok(None) => findings.push(Finding::warning(what, "the CRM does not say what the API user may read; it has to be all")),
        Err(error) => findings.push(failure(what, &error)),
    }
}

async fn failed_items(
    findings: &mut Vec<Finding>,
    numbers: &mut CrmNumbers,
    crm: &EspoCrm,
    route: &Route,
    event: &str,
) {
    let what = format!("espocrm failed items {event}");
    match crm.count_failed(&[event.to_owned()], MOST_COUNTED).await {
        Ok(count) => {
            numbers.failed.push((route.name().to_owned(), count));
            findings.push(match count {
                0 => Finding::ok(what, "none"),
                count => Finding::warning(
                    what,
                    format!("{count}: the CRM gave them up; `hookgate reconcile --failed --dry-run` says which of them have no event"),
                ),
            });
        }
        Err(error) => findings.push(failure(what, &error)),
    }
}

async fn backlog(findings: &mut Vec<Finding>, numbers: &mut CrmNumbers, crm: &EspoCrm) {
    let what = "espocrm backlog";
    match crm.oldest_waiting().await {
        Ok(oldest) => {
            let age =
                oldest.map_or(Duration::ZERO, |oldest| SystemTime::now().duration_since(oldest).unwrap_or_default());
            numbers.backlog_seconds = Some(age.as_secs());
            let shown = humantime::format_duration(Duration::from_secs(age.as_secs()));
            findings.push(if oldest.is_none() {
                Finding::ok(what, "no event waits")
            } else if age < BEHIND {
                Finding::ok(what, format!("the oldest event has waited for {shown}"))
            } else {
                Finding::warning(
                    what,
                    format!("the oldest event has waited for {shown}: does the cron job \"Process Webhook Queue\" run? It takes 20 events every 2 minutes unless webhookQueueEventPortionSize says more"),
                )
            });
        }
        Err(error) => findings.push(failure(what, &error)),
    }
}

fn clock(findings: &mut Vec<Finding>, crm: &EspoCrm) {
    let Some(clock) = crm.clock() else { return };
    let apart = humantime::format_duration(Duration::from_secs(clock.apart.as_secs()));
    let direction = if clock.ahead { "ahead of" } else { "behind" };
    let what = "espocrm clock";
    findings.push(if clock.apart > APART {
        Finding::warning(
            what,
            format!(
                "it is {apart} {direction} this one, so `hookgate reconcile` refuses to compare times; mend the clocks"
            ),
        )
    } else {
        Finding::ok(what, format!("it is {apart} {direction} this one"))
    });
}

fn failure(what: impl Into<String>, error: &CrmError) -> Finding {
    Finding::failure(what, error.to_string())
}
