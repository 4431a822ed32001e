//! Where the ids come from: the CRM's queue, its records, or a file.

use std::{
    collections::BTreeMap,
    io::BufRead,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use anyhow::{Context, bail};
use hashbrown::HashMap;
use hookgate::{
    batch::EntityId,
    espocrm::{ChangesOf, EspoCrm, FailedItem, PAGE},
    recovery::Sought,
    route::Route,
    settings::Settings,
};
use serde::Deserialize;

use super::{
    super::{progress::Progress, tell},
    times,
};

/// Where to look.
pub(super) enum Source {
    Failed,
    Changed { since: SystemTime, until: Option<SystemTime> },
    File(PathBuf),
}

/// What was found beside the ids.
#[derive(Default)]
pub(super) struct Found {
    pub(super) items: Items,
    /// What can never be an event, by reason.
    pub(super) skipped: BTreeMap<&'static str, usize>,
}

/// The items of the CRM's queue that ids came from, by route.
#[derive(Default)]
pub(super) struct Items(HashMap<String, HashMap<String, Vec<String>>>);

impl Items {
    fn add(&mut self, route: &Route, id: &str, item: String) {
        self.0.entry(route.name().to_owned()).or_default().entry(id.to_owned()).or_default().push(item);
    }

    /// The items of some ids.
    pub(super) fn of(&self, route: &Route, ids: &[String]) -> Vec<String> {
        let of_route = self.0.get(route.name());
        ids.iter().filter_map(|id| of_route?.get(id)).flatten().cloned().collect()
    }
}

impl Source {
    /// Reads all of it.
    pub(super) async fn read(
        &self,
        crm: Option<&EspoCrm>,
        settings: &Settings,
        only: &[String],
        sought: &mut Sought,
        progress: &Progress,
    ) -> anyhow::Result<Found> {
        let chosen = |route: &&Arc<Route>| only.is_empty() || only.iter().any(|name| name == route.name());
        let routes: Vec<_> = settings.routes.routes().iter().filter(chosen).collect();
        match (self, crm) {
            (Self::File(path), _) => read_file(path, &routes, !only.is_empty(), sought),
            (Self::Failed, Some(crm)) => read_failed(crm, &with_events(&routes)?, sought, progress).await,
            (Self::Changed { since, until }, Some(crm)) => {
                read_changed(crm, &with_events(&routes)?, (*since, *until), sought, progress).await
            }
            (Self::Failed | Self::Changed { .. }, None) => bail!("there is no CRM to ask"),
        }
    }
}

/// Those whose events in the CRM are known.
fn with_events<'a>(routes: &[&'a Arc<Route>]) -> anyhow::Result<Vec<(&'a Arc<Route>, &'a str)>> {
    let known: Vec<_> = routes.iter().filter_map(|route| Some((*route, route.espocrm_event()?))).collect();
    if known.is_empty() {
        bail!("no route has espocrm_event; set it to the event of its webhook, such as \"CBeteiligte.create\"");
    }
    for (place, (route, event)) in known.iter().enumerate() {
        if let Some((other, _)) = known[..place].iter().find(|(_, other)| other == event) {
            bail!("routes {other} and {route} have the same espocrm_event {event:?}; say --route for one of them");
        }
    }
    for route in routes.iter().filter(|route| route.espocrm_event().is_none()) {
        tell(&format!("hookgate: warning: route {route} has no espocrm_event, so it is left out"));
    }
    Ok(known)
}

async fn read_failed(
    crm: &EspoCrm,
    routes: &[(&Arc<Route>, &str)],
    sought: &mut Sought,
    progress: &Progress,
) -> anyhow::Result<Found> {
    let mut events: Vec<String> = routes.iter().map(|(_, event)| (*event).to_owned()).collect();
    events.sort_unstable();
    events.dedup();
    let bar = progress.count("failed items of the CRM", 0);
    let (mut found, mut behind) = (Found::default(), 0);
    loop {
        let page = crm.failed_items(&events, behind).await?;
        let more = page.len() >= PAGE;
        behind = page.last().map_or(behind, |item| item.number);
        bar.inc(page.len() as u64);
        for FailedItem { id: item, event, target_id, created_at, .. } in page {
            let Some(id) = target_id.as_deref().filter(|id| EntityId::parse(id).is_some()) else {
                *found.skipped.entry("items of the queue without a usable id").or_default() += 1;
                continue;
            };
            for (route, _) in routes.iter().filter(|(_, of_route)| *of_route == event) {
                sought.add(route, id, created_at);
                found.items.add(route, id, item.clone());
            }
        }
        if !more {
            bar.finish_and_clear();
            return Ok(found);
        }
    }
}

async fn read_changed(
    crm: &EspoCrm,
    routes: &[(&Arc<Route>, &str)],
    (since, until): (SystemTime, Option<SystemTime>),
    sought: &mut Sought,
    progress: &Progress,
) -> anyhow::Result<Found> {
    let mut found = Found::default();
    for (route, event) in routes {
        let of = changes_of(event).with_context(|| format!("route {route}: espocrm_event {event:?}"))?;
        let bar = progress.count(&format!("records of {event}"), 0);
        let mut changes = crm.changes(of, since, until);
        while let Some(page) = changes.next().await? {
            bar.inc(page.len() as u64);
            for change in page {
                if EntityId::parse(&change.id).is_some() {
                    sought.add(route, &change.id, Some(change.time));
                } else {
                    *found.skipped.entry("records without a usable id").or_default() += 1;
                }
            }
        }
        bar.finish_and_clear();
    }
    Ok(found)
}

/// Which records an event of the CRM is about.
fn changes_of(event: &str) -> anyhow::Result<ChangesOf> {
    let (entity_type, action) = event.split_once('.').context("is no event; write it as CBeteiligte.create")?;
    let entity_type = entity_type.to_owned();
    Ok(match action.split('.').next().unwrap_or_default() {
        "create" => ChangesOf::Created { entity_type },
        "update" | "fieldUpdate" => ChangesOf::Modified { entity_type },
        "delete" => ChangesOf::Deleted { entity_type },
        _ => bail!(
            "is about no action that leaves a trace in the CRM; leave this route out with --route, or use --failed"
        ),
    })
}

/// A line of a file. The names of the CRM's API are understood, too.
#[derive(Deserialize)]
struct Line {
    #[serde(default)]
    route: Option<String>,
    #[serde(default, alias = "targetId", alias = "id")]
    entity_id: Option<serde_json::Value>,
    #[serde(default, alias = "createdAt", alias = "modifiedAt")]
    time: Option<String>,
}

fn read_file(path: &Path, routes: &[&Arc<Route>], one_is_named: bool, sought: &mut Sought) -> anyhow::Result<Found> {
    let input: Box<dyn BufRead> = if path == Path::new("-") {
        Box::new(std::io::stdin().lock())
    } else {
        Box::new(std::io::BufReader::new(
            std::fs::File::open(path).with_context(|| format!("open {}", path.display()))?,
        ))
    };
    let mut found = Found::default();
    let default = (one_is_named && routes.len() == 1).then(|| routes[0]);
    for line in input.lines() {
        let line = line.with_context(|| format!("read {}", path.display()))?;
        if line.trim().is_empty() {
            continue;
        }
        if let Err(reason) = add_line(&line, routes, default, sought) {
            *found.skipped.entry(reason).or_default() += 1;
        }
    }
    Ok(found)
}

/// Or why it can be no event.
fn add_line(
    line: &str,
    routes: &[&Arc<Route>],
    default: Option<&Arc<Route>>,
    sought: &mut Sought,
) -> Result<(), &'static str> {
    let line: Line = serde_json::from_str(line).map_err(|_not_json| "lines that are no JSON object")?;
    let id = match &line.entity_id {
        Some(serde_json::Value::String(id)) => id.clone(),
        Some(serde_json::Value::Number(id)) if id.is_u64() || id.is_i64() => id.to_string(),
        _ => return Err("lines without a usable id"),
    };
    EntityId::parse(&id).ok_or("lines without a usable id")?;
    let route = match &line.route {
        Some(name) => routes.iter().find(|route| route.name() == name).copied(),
        None => default,
    };
    let route = route.ok_or("lines of no route; name it in each line, or one with --route")?;
    let time = match &line.time {
        Some(text) => Some(times::time(text).ok_or("lines whose time is none")?),
        None => None,
    };
    sought.add(route, &id, time);
    Ok(())
}
