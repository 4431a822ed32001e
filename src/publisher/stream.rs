//! The stream behind the subjects: found, or created, and never changed unless it is hookgate's own.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use async_nats::jetstream::{
    ErrorCode,
    stream::{Config, DiscardPolicy, RetentionPolicy, StorageType},
};
use serde_json::{Value, json};
use tracing::info;

use super::{
    MANAGED,
    api::{Api, ApiError},
    judgement::{self, Case, Problem},
    stream_info::StreamInfo,
};
use crate::route::{Route, RouteTable};

/// What to create when no stream covers a subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamSettings {
    /// Its name.
    pub name: String,
    /// Whether to create one at all.
    pub create: bool,
    /// Copies in a cluster.
    pub replicas: usize,
    /// How long messages are kept.
    pub max_age: Duration,
    /// How long a repeated `Nats-Msg-Id` is recognized.
    pub duplicate_window: Duration,
}

/// Why there is no stream to publish into.
#[derive(Debug, thiserror::Error)]
pub(super) enum StreamError {
    #[error(
        "no stream covers subject {subject:?}, and nats.stream.create is false; create one (nats stream add), or set nats.stream.create = true"
    )]
    Missing { subject: String },
    #[error(
        "stream {name:?} exists, is not hookgate's own and does not cover subject {subject:?}; add the subject to it, or set nats.stream.name to another name"
    )]
    Foreign { name: String, subject: String },
    #[error("{operation} {name:?}: {error}")]
    Api {
        operation: &'static str,
        name: String,
        #[source]
        error: ApiError,
    },
}

impl StreamError {
    fn api(operation: &'static str, name: &str, error: ApiError) -> Self {
        Self::Api { operation, name: name.to_owned(), error }
    }

    /// Whether waiting won't help.
    pub(super) const fn is_refusal(&self) -> bool {
        match self {
            Self::Missing { .. } | Self::Foreign { .. } => true,
            Self::Api { error, .. } => error.is_refusal(),
        }
    }

    /// Whether the streams were seen, and none of them is ours.
    pub(super) const fn is_absence(&self) -> bool {
        matches!(self, Self::Missing { .. } | Self::Foreign { .. })
    }

    /// Whether there is no JetStream for us at all.
    pub(super) const fn is_no_jetstream(&self) -> bool {
        matches!(self, Self::Api { error, .. } if error.is_no_jetstream())
    }
}

/// Which streams the routes' subjects lead into.
#[derive(Debug, Default)]
pub(super) struct Survey<'a> {
    /// By their names, with the routes whose subjects they cover.
    pub(super) streams: BTreeMap<String, (StreamInfo, Vec<&'a Route>)>,
    pub(super) uncovered: Vec<&'a Route>,
}

impl Survey<'_> {
    /// All that is wrong with the streams, by their names.
    pub(super) fn problems(&self, settings: &StreamSettings) -> Vec<(&str, Problem)> {
        let judged = self.streams.iter().flat_map(|(name, (info, routes))| {
            let problems = judgement::problems(&Case { info, settings, routes });
            problems.into_iter().map(|problem| (name.as_str(), problem))
        });
        judged.collect()
    }
}

/// Looks up the stream of each route. One that is `known` from before is looked at first, and asked for once.
pub(super) async fn survey<'a>(
    api: &Api,
    routes: &'a RouteTable,
    known: impl IntoIterator<Item = &str>,
) -> Result<Survey<'a>, StreamError> {
    let mut survey = Survey::default();
    for name in known {
        if let Some(info) = info_of(api, name).await? {
            survey.streams.insert(name.to_owned(), (info, Vec::new()));
        }
    }
    for route in routes.routes() {
        let covering = survey.streams.values_mut().find(|(info, _)| info.covers(route.subject()));
        if let Some((_, routes)) = covering {
            routes.push(route);
            continue;
        }
        let name = name_of_covering(api, route.subject()).await?;
        let info = match &name {
            Some(name) => info_of(api, name).await?,
            None => None,
        };
        match name.zip(info) {
            Some((name, info)) => survey.streams.entry(name).or_insert((info, Vec::new())).1.push(route),
            None => survey.uncovered.push(route),
        }
    }
    survey.streams.retain(|_, (_, routes)| !routes.is_empty());
    Ok(survey)
}

/// Sees to it that a stream covers the subject of each route; which ones did before.
pub(super) async fn ensure<'a>(
    api: &Api,
    settings: &StreamSettings,
    routes: &'a RouteTable,
) -> Result<Survey<'a>, StreamError> {
    let survey = survey(api, routes, []).await?;
    let Some(first) = survey.uncovered.first() else { return Ok(survey) };
    if !settings.create {
        return Err(StreamError::Missing { subject: first.subject().to_owned() });
    }
    let subjects = Subjects {
        wide: whole_flows(survey.uncovered.iter().map(|route| (route.flow(), route.subject()))),
        exact: survey.uncovered.iter().map(|route| route.subject().to_owned()).collect(),
    };
    match info_of(api, &settings.name).await? {
        None => create(api, settings, subjects).await?,
        Some(info) if info.text("config.description") == MANAGED => extend(api, &info, subjects).await?,
        Some(_) => {
            return Err(StreamError::Foreign { name: settings.name.clone(), subject: first.subject().to_owned() });
        }
    }
    Ok(survey)
}

/// What a stream is to cover.
struct Subjects {
    /// Whole flows.
    wide: BTreeSet<String>,
    /// Only what is published, where whole flows overlap another stream.
    exact: BTreeSet<String>,
}

/// The subjects `flow.>` of the flows that routes publish to under their names, and the other subjects as they
/// are. None of them covers another one, which NATS would refuse.
fn whole_flows<'a>(routes: impl Iterator<Item = (&'a str, &'a str)>) -> BTreeSet<String> {
    let wide: BTreeSet<String> = routes
        .map(|(flow, subject)| {
            let wildcard = format!("{flow}.");
            if subject.starts_with(&wildcard) { wildcard + ">" } else { subject.to_owned() }
        })
        .collect();
    let covered = |subject: &String| {
        let covers = |other: &String| other.strip_suffix('>').is_some_and(|prefix| subject.starts_with(prefix));
        wide.iter().any(|other| other != subject && covers(other))
    };
    wide.iter().filter(|subject| !covered(subject)).cloned().collect()
}

/// The name of the stream that a message to a subject goes into.
async fn name_of_covering(api: &Api, subject: &str) -> Result<Option<String>, StreamError> {
    Ok(names_of_covering(api, subject).await?.into_iter().next())
}

/// The names of the streams that messages to a subject, or to those that a pattern fits, go into.
pub(super) async fn names_of_covering(api: &Api, pattern: &str) -> Result<Vec<String>, StreamError> {
    let answer = api.ask("STREAM.NAMES".to_owned(), &json!({ "subject": pattern })).await;
    let answer = answer.map_err(|error| StreamError::api("look up the stream of", pattern, error))?;
    let names = answer.get("streams").and_then(Value::as_array);
    Ok(names.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect())
}

/// What is known of a stream, if there is one of this name.
pub(super) async fn info_of(api: &Api, name: &str) -> Result<Option<StreamInfo>, StreamError> {
    match api.ask(format!("STREAM.INFO.{name}"), &Value::Null).await {
        Ok(answer) => Ok(Some(StreamInfo::of(answer))),
        Err(error) if error.is(ErrorCode::STREAM_NOT_FOUND) => Ok(None),
        Err(error) => Err(StreamError::api("read the stream", name, error)),
    }
}

/// Creates the stream for whole flows, or for the exact subjects where that overlaps another stream.
async fn create(api: &Api, settings: &StreamSettings, subjects: Subjects) -> Result<(), StreamError> {
    let create = async |subjects: &BTreeSet<String>| {
        let config = Config {
            name: settings.name.clone(),
            description: Some(MANAGED.to_owned()),
            subjects: subjects.iter().cloned().collect(),
            storage: StorageType::File,
            retention: RetentionPolicy::Limits,
            discard: DiscardPolicy::New,
            num_replicas: settings.replicas,
            max_age: settings.max_age,
            duplicate_window: settings.duplicate_window,
            ..Config::default()
        };
        api.ask(format!("STREAM.CREATE.{}", settings.name), &config).await
    };
    let mut subjects_taken = subjects.wide;
    let mut result = create(&subjects_taken).await;
    if result.as_ref().is_err_and(|error| error.is(ErrorCode::STREAM_SUBJECT_OVERLAP)) {
        subjects_taken = subjects.exact;
        result = create(&subjects_taken).await;
    }
    result.map_err(|error| StreamError::api("create the stream", &settings.name, error))?;
    info!(stream = %settings.name, subjects = listed(&subjects_taken), "created the stream");
    Ok(())
}

/// Adds subjects to hookgate's own stream, and nothing else: each other setting goes back as it came.
async fn extend(api: &Api, info: &StreamInfo, subjects: Subjects) -> Result<(), StreamError> {
    let name = info.text("config.name");
    let extend = async |added: &BTreeSet<String>| {
        let mut all = info.subjects();
        all.extend(added.difference(&all.iter().cloned().collect()).cloned());
        let mut config = info.config();
        config.insert("subjects".to_owned(), json!(all));
        api.ask(format!("STREAM.UPDATE.{name}"), &config).await
    };
    let mut added = subjects.wide;
    let mut result = extend(&added).await;
    if result.is_err() {
        added = subjects.exact;
        result = extend(&added).await;
    }
    result.map_err(|error| StreamError::api("add subjects to the stream", name, error))?;
    info!(stream = %name, added = listed(&added), "added subjects to the stream");
    Ok(())
}

/// For the log.
fn listed(subjects: &BTreeSet<String>) -> String {
    subjects.iter().map(String::as_str).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_of_a_stream_do_not_cover_each_other() {
        let routes = [
            ("vmh", "vmh.contact.create"),
            ("vmh", "vmh.contact.update"),
            ("old", "vmh.contact.made"),
            ("old", "vmhs.contact"),
            ("vmh.sub", "vmh.sub.contact"),
        ];
        let subjects: Vec<_> = whole_flows(routes.into_iter()).into_iter().collect();
        assert_eq!(subjects, ["vmh.>", "vmhs.contact"]);
    }
}
