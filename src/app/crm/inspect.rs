//! What `doctor --espocrm` finds: whether the CRM's webhooks fit the routes, and what its queue holds.

use std::{
    net::IpAddr,
    time::{Duration, SystemTime},
};

use serde::Serialize;
use url::{Host, Url};

use crate::{
    espocrm::{Backlog, CrmError, CrmVersion, EspoCrm, Webhook},
    finding::{Finding, Level},
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
    /// How long the oldest event of each route has waited for the cron job; 0 if none waits.
    pub backlog_seconds: Vec<(String, u64)>,
    /// How many findings are failures: the CRM loses webhooks, or does not answer.
    pub failures: usize,
}

impl CrmNumbers {
    /// In the text format of Prometheus, for a Pushgateway or a text file collector.
    #[must_use]
    pub fn prometheus(&self) -> String {
        let mut lines = Vec::new();
        let mut gauge = |name: &str, help: &str, series: Vec<(String, u64)>| {
            if !series.is_empty() {
                lines.push(format!("# HELP {name} {help}"));
                lines.push(format!("# TYPE {name} gauge"));
                lines.extend(series.iter().map(|(labels, value)| format!("{name}{labels} {value}")));
            }
        };
        let of = |route: &str| format!("{{route=\"{route}\"}}");
        gauge(
            "hookgate_espocrm_failed_items",
            "Items of EspoCRM's webhook queue that it gave up on.",
            self.failed.iter().map(|(route, count)| (of(route), *count as u64)).collect(),
        );
        gauge(
            "hookgate_espocrm_backlog_age_seconds",
            "How long the oldest event of the route has waited for EspoCRM's cron job.",
            self.backlog_seconds.iter().map(|(route, seconds)| (of(route), *seconds)).collect(),
        );
        gauge(
            "hookgate_espocrm_failures",
            "What doctor finds in EspoCRM that loses webhooks, or keeps it from looking.",
            vec![(String::new(), self.failures as u64)],
        );
        lines.join("\n")
    }
}

/// Looks at the CRM.
pub async fn inspect(settings: &Settings, crm: &EspoCrm, is_admin: bool) -> (Vec<Finding>, CrmNumbers) {
    let (mut findings, mut numbers) = (Vec::new(), CrmNumbers::default());
    let mut looked = false;
    let version = version(&mut findings, crm).await;
    for route in settings.routes.routes() {
        let Some(event) = route.espocrm_event() else {
            let text = "espocrm_event is not set, so nothing of the CRM is compared with it; set it to the event of its webhook";
            findings.push(Finding::warning(format!("route {route}"), text));
            continue;
        };
        looked = true;
        let asking = Asking { crm, is_admin, version };
        of_route(&mut findings, &settings.verifiers, asking, route, event).await;
        if is_admin {
            failed_items(&mut findings, &mut numbers, crm, route, event).await;
            backlog(&mut findings, &mut numbers, crm, route, event).await;
        }
    }
    if !looked {
        findings.push(Finding::failure("espocrm", "no route has espocrm_event, so there is nothing to compare"));
    } else if !is_admin {
        let text = "failed items and backlog are for administrators only; set espocrm.user and espocrm.password_file to see them";
        findings.push(Finding::ok("espocrm queue", text));
    }
    clock(&mut findings, crm);
    numbers.failures = findings.iter().filter(|finding| finding.level == Level::Failure).count();
    (findings, numbers)
}

/// Whom to ask, as whom.
#[derive(Clone, Copy)]
struct Asking<'a> {
    crm: &'a EspoCrm,
    is_admin: bool,
    version: Option<CrmVersion>,
}

/// What can be said of the version alone. What has to be true of a webhook because of it is said of the webhook.
async fn version(findings: &mut Vec<Finding>, crm: &EspoCrm) -> Option<CrmVersion> {
    let what = "espocrm version";
    let version = match crm.version().await {
        Ok(Some(version)) => version,
        Ok(None) => {
            findings.push(Finding::ok(what, "the CRM does not name its version; what follows holds for all of them"));
            return None;
        }
        Err(error) => {
            findings.push(failure(what, &error));
            return None;
        }
    };
    findings.push(Finding::ok(
        what,
        if version >= CrmVersion::REFUSED_IS_FINAL {
            format!("{version}: a refused connection, an untrusted certificate and a name that does not resolve lose a batch at once; keep two replicas that listen")
        } else if version >= CrmVersion::DNS_IS_FINAL {
            format!("{version}: a name that does not resolve loses a batch at once, and /etc/hosts does not count; from 10 on so does a refused connection")
        } else if version >= CrmVersion::ALLOWED_LIST {
            format!("{version}: private addresses are called only if webhookAllowedAddressList has them; from 9.3.4 on a name that does not resolve loses a batch at once")
        } else {
            format!("{version}: before an upgrade to 9.3.2 or later, list private addresses in webhookAllowedAddressList")
        },
    ));
    Some(version)
}

async fn of_route(
    findings: &mut Vec<Finding>,
    verifiers: &Verifiers,
    Asking { crm, is_admin, version }: Asking<'_>,
    route: &Route,
    event: &str,
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
        if let (true, Some(user)) = (is_admin, &webhook.user_id) {
            let what = format!("espocrm user of webhook {}", webhook.id.escape_debug());
            rights(findings, what, "its user", crm.may_user_read(user, entity_type).await);
        }
        of_webhook(findings, verifiers, version, route, webhook).await;
    }
    missing_ids(findings, verifiers, route, &of_event);
    if !is_admin {
        let what = format!("espocrm role for {entity_type}");
        rights(findings, what, "the API user", crm.may_read(entity_type).await);
    }
}

/// The path that a webhook sends to.
fn path_of(webhook: &Webhook) -> Option<String> {
    Some(Url::parse(webhook.url.as_deref()?).ok()?.path().to_owned())
}

async fn of_webhook(
    findings: &mut Vec<Finding>,
    verifiers: &Verifiers,
    version: Option<CrmVersion>,
    route: &Route,
    webhook: &Webhook,
) {
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
    if updates && version.is_some_and(|version| version < CrmVersion::SKIP_OWN) {
        findings.push(Finding::warning(
            &*what,
            "if a consumer writes into the CRM, its change sends a webhook again, and this version has no skipOwn: let the consumer compare before it writes, or upgrade to EspoCRM 9.2",
        ));
    } else if updates && webhook.skip_own != Some(true) {
        findings.push(Finding::warning(
            &*what,
            "skipOwn is off: if a consumer writes into the CRM, its change sends a webhook again; let it write as the API user that owns this webhook, and set skipOwn (EspoCRM 9.2 and later)",
        ));
    }
    if let Some(url) = webhook.url.as_deref().and_then(|url| Url::parse(url).ok()) {
        address(findings, &what, &url, version).await;
    }
    if findings.len() == before {
        findings.push(Finding::ok(what, format!("active, and it sends to route {route}")));
    }
}

/// Whether EspoCRM from 9.3.2 on would call it.
async fn address(findings: &mut Vec<Finding>, what: &str, url: &Url, version: Option<CrmVersion>) {
    let Some(host) = url.host() else { return };
    let port = url.port_or_known_default().unwrap_or(80);
    // As the CRM compares it.
    let entry = format!("{host}:{port}");
    let addresses: Vec<IpAddr> = match host {
        Host::Ipv4(ip) => vec![ip.into()],
        Host::Ipv6(ip) => vec![ip.into()],
        Host::Domain(name) => {
            match tokio::net::lookup_host((name, port)).await {
                Ok(found) => found.map(|address| address.ip()).collect(),
                Err(error) => {
                    findings.push(Finding::warning(
                    what,
                    format!("its host {name} does not resolve from here ({error}); if it does not from the CRM either, {}", unresolved(version)),
                ));
                    return;
                }
            }
        }
    };
    if !matches!(host, Host::Domain(_)) {
        findings.push(if version.is_some_and(|version| version >= CrmVersion::REFUSED_IS_FINAL) {
            Finding::failure(
                what,
                "its URL holds an IP address: this version's job that sends all webhooks crashes if webhookAllowedAddressList has it; use a host name",
            )
        } else {
            Finding::warning(
                what,
                "its URL holds an IP address: in EspoCRM 10 an allowed one crashes the job that sends all webhooks; use a host name",
            )
        });
    }
    if addresses.iter().copied().any(is_private) {
        let when = match version {
            Some(version) if version >= CrmVersion::ALLOWED_LIST => format!("EspoCRM {version} calls it only"),
            Some(version) => format!("EspoCRM {version} calls it; from 9.3.2 on it is called only"),
            None => "EspoCRM from 9.3.2 on calls it only".to_owned(),
        };
        findings.push(Finding::warning(
            what,
            format!("its host is, or resolves from here to, a private address: {when} if webhookAllowedAddressList in data/config.php has '{entry}', letter by letter; without it every batch is lost"),
        ));
    }
}

/// What a name that does not resolve costs.
fn unresolved(version: Option<CrmVersion>) -> String {
    match version {
        Some(version) if version >= CrmVersion::DNS_IS_FINAL => format!("EspoCRM {version} loses each batch at once"),
        Some(version) => format!("EspoCRM {version} tries four times; from 9.3.4 on each batch is lost at once"),
        None => "each batch is lost, from EspoCRM 9.3.4 on at once".to_owned(),
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

/// What a user may read has to be all.
fn rights(findings: &mut Vec<Finding>, what: String, who: &str, level: Result<Option<String>, CrmError>) {
    findings.push(match level {
        Ok(Some(level)) if level == "all" => Finding::ok(what, format!("{who} may read all records")),
        Ok(Some(level)) => Finding::failure(
            what,
            format!("{who} may read {level:?}, not all: the CRM drops webhooks for every other record, without a trace; give its role read: all"),
        ),
        Ok(None) => Finding::warning(what, format!("the CRM does not say what {who} may read; it has to be all")),
        Err(error) => failure(what, &error),
    });
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

async fn backlog(findings: &mut Vec<Finding>, numbers: &mut CrmNumbers, crm: &EspoCrm, route: &Route, event: &str) {
    let what = format!("espocrm backlog {event}");
    let oldest = match crm.backlog(event).await {
        Ok(Backlog::NotShown) => {
            let text = "this version of the CRM does not show it, so there is no metric of it either";
            return findings.push(Finding::ok(what, text));
        }
        Ok(Backlog::Empty) => None,
        Ok(Backlog::Since(oldest)) => Some(oldest),
        Err(error) => return findings.push(failure(what, &error)),
    };
    let age = oldest.map_or(Duration::ZERO, |oldest| SystemTime::now().duration_since(oldest).unwrap_or_default());
    numbers.backlog_seconds.push((route.name().to_owned(), age.as_secs()));
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
