//! Durable consumers of the streams: how far they are, and whether one can release ids by acknowledging events.

use std::{collections::BTreeMap, time::Duration};

use async_nats::jetstream::ErrorCode;
use serde_json::{Value, json};

use super::{
    api::{Api, ApiError},
    servers::{ConnectFailure, Servers},
    stream::{self, StreamError, Survey},
    stream_info::{common_pattern, matches},
    version::Version,
};
use crate::{
    finding::{Finding, Level},
    route::{Release, Route, RouteTable},
};

/// What a new consumer waits for an acknowledgement: at first, and after each delivery that went without.
const BACKOFF: [Duration; 3] = [Duration::from_secs(30), Duration::from_secs(120), Duration::from_secs(600)];
/// Since when a consumer can have more than one filter (older servers ignore them, and deliver everything), and a backoff
/// without a last delivery.
const SINCE_2_10: Version = Version::new(2, 10, 0);
/// How many routes a message names.
const NAMED: usize = 3;

/// A consumer, as the server describes it.
#[derive(Debug, Clone)]
pub struct ConsumerInfo {
    answer: Value,
}

impl ConsumerInfo {
    fn text(&self, path: &str) -> &str {
        self.answer.pointer(path).and_then(Value::as_str).unwrap_or_default()
    }

    fn number(&self, path: &str) -> u64 {
        self.answer.pointer(path).and_then(Value::as_u64).unwrap_or_default()
    }

    fn flag(&self, path: &str) -> bool {
        self.answer.pointer(path).and_then(Value::as_bool).unwrap_or_default()
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.text("/name")
    }

    /// Its stream.
    #[must_use]
    pub fn stream(&self) -> &str {
        self.text("/stream_name")
    }

    /// When it was made: another one of the same name has another time.
    #[must_use]
    pub fn created(&self) -> &str {
        self.text("/created")
    }

    /// Messages that it has not delivered yet.
    #[must_use]
    pub fn waiting(&self) -> u64 {
        self.number("/num_pending")
    }

    /// Messages that were delivered and not acknowledged.
    #[must_use]
    pub fn unacknowledged(&self) -> u64 {
        self.number("/num_ack_pending")
    }

    /// Those of them that were delivered more than once.
    #[must_use]
    pub fn redelivered(&self) -> u64 {
        self.number("/num_redelivered")
    }

    /// Sequence in the stream of the last message that it delivered.
    #[must_use]
    pub fn delivered(&self) -> u64 {
        self.number("/delivered/stream_seq")
    }

    /// Sequence in the stream up to which it has nothing open. Proves no acknowledgement: it passes what was terminated,
    /// purged or given up.
    #[must_use]
    pub fn floor(&self) -> u64 {
        self.number("/ack_floor/stream_seq")
    }

    /// Whether it stays when nobody is connected.
    #[must_use]
    pub fn is_durable(&self) -> bool {
        !self.text("/config/durable_name").is_empty()
    }

    fn filters(&self) -> Vec<&str> {
        let several = self.answer.pointer("/config/filter_subjects").and_then(Value::as_array);
        let all = several.into_iter().flatten().filter_map(Value::as_str);
        all.chain([self.text("/config/filter_subject")]).filter(|filter| !filter.is_empty()).collect()
    }

    /// Whether it gets what is stored of a subject.
    #[must_use]
    pub fn covers(&self, subject: &str) -> bool {
        let filters = self.filters();
        filters.is_empty() || filters.iter().any(|filter| matches(filter, subject))
    }

    /// How many of a hundred acknowledgements are announced.
    fn sampled(&self) -> u64 {
        let text = self.text("/config/sample_freq");
        text.trim_end_matches('%').trim().parse().unwrap_or_default()
    }

    /// What is wrong with it for routes that name it.
    #[must_use]
    pub fn problems(&self, routes: &[&Route]) -> Vec<(Level, String)> {
        let mut found = Vec::new();
        let releases: Vec<_> = routes.iter().copied().filter(|route| route.life().release == Release::Ack).collect();
        // Only where its acknowledgements release ids they have to be complete.
        let serious = if releases.is_empty() { Level::Warning } else { Level::Failure };
        let uncovered: Vec<_> = routes.iter().copied().filter(|route| !self.covers(route.subject())).collect();
        if !uncovered.is_empty() {
            let filters = self.filters().join(", ");
            let text = format!("it takes {filters} and so gets no event of {}; add their subjects", named(&uncovered));
            found.push((serious, text));
        }
        if !self.is_durable() {
            found.push((serious, "it is not durable: it is gone soon after its client; make it durable".to_owned()));
        }
        let (policy, sampled) = (self.text("/config/ack_policy"), self.sampled());
        if policy != "explicit" {
            let text = format!(
                "ack_policy is {policy}: an event is not acknowledged by itself; make the consumer again with explicit"
            );
            found.push((serious, text));
        }
        if sampled < 100 && !releases.is_empty() {
            let text = format!(
                "sample_freq is {sampled} %: an acknowledgement that is not announced releases nothing, so the id is published again; nats consumer edit {} {} --sample 100",
                self.stream(),
                self.name()
            );
            found.push((Level::Failure, text));
        }
        let deliveries = self.answer.pointer("/config/max_deliver").and_then(Value::as_i64).unwrap_or(-1);
        if deliveries > 0 {
            let text = format!(
                "max_deliver is {deliveries}: an event that was delivered so often is given up, whatever kept the consumer from it; set it to -1, and let the consumer terminate what it can't process"
            );
            found.push((Level::Warning, text));
        }
        if self.flag("/config/mem_storage") {
            let text = "mem_storage is on: a restart of the server forgets how far it is; make it again without";
            found.push((Level::Warning, text.to_owned()));
        }
        if self.number("/config/inactive_threshold") > 0 {
            let text =
                "inactive_threshold is set: the server deletes it when its clients are away for longer; unset it";
            found.push((Level::Warning, text.to_owned()));
        }
        if self.flag("/config/headers_only") {
            let text = "headers_only is on: it gets no entity id; turn it off";
            found.push((Level::Warning, text.to_owned()));
        }
        if self.flag("/paused") {
            found.push((Level::Warning, "it is paused: it gets nothing; nats consumer resume".to_owned()));
        }
        found
    }
}

/// Some routes for a message.
fn named(routes: &[&Route]) -> String {
    let names = routes.iter().take(NAMED).map(|route| route.name()).collect::<Vec<_>>().join(", ");
    match routes.len().saturating_sub(NAMED) {
        0 => names,
        more => format!("{names} and {more} more"),
    }
}

/// One consumer; `None` without it or its stream.
pub(super) async fn info_of(api: &Api, stream: &str, name: &str) -> Result<Option<ConsumerInfo>, ApiError> {
    match api.ask(format!("CONSUMER.INFO.{stream}.{name}"), &json!({})).await {
        Ok(answer) => Ok(Some(ConsumerInfo { answer })),
        Err(error) if error.is(ErrorCode::CONSUMER_NOT_FOUND) || error.is(ErrorCode::STREAM_NOT_FOUND) => Ok(None),
        Err(error) => Err(error),
    }
}

/// All consumers of a stream, page by page.
async fn all_of(api: &Api, stream: &str) -> Result<Vec<ConsumerInfo>, ApiError> {
    let mut all = Vec::new();
    loop {
        let mut page = api.ask(format!("CONSUMER.LIST.{stream}"), &json!({ "offset": all.len() })).await?;
        let total = page.get("total").and_then(Value::as_u64).unwrap_or_default();
        let consumers = page.get_mut("consumers").and_then(Value::as_array_mut).map(std::mem::take).unwrap_or_default();
        let before = all.len();
        all.extend(consumers.into_iter().map(|answer| ConsumerInfo { answer }));
        if all.len() == before || all.len() as u64 >= total {
            return Ok(all);
        }
    }
}

/// The consumers that routes name, by stream and name, with these routes. A consumer is looked up in the stream of the
/// route's subject.
pub(super) fn wanted<'a>(survey: &Survey<'a>) -> BTreeMap<(String, String), Vec<&'a Route>> {
    let mut wanted = BTreeMap::<_, Vec<_>>::new();
    for (stream, (_, routes)) in &survey.streams {
        for route in routes {
            for consumer in &route.life().consumers {
                wanted.entry((stream.clone(), consumer.clone())).or_default().push(*route);
            }
        }
    }
    wanted
}

/// What is wrong with the consumers that routes name.
pub(super) async fn judge(api: &Api, survey: &Survey<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for ((stream, name), routes) in wanted(survey) {
        let what = format!("nats consumer {name}");
        let releases = routes.iter().any(|route| route.life().release == Release::Ack);
        let info = match info_of(api, &stream, &name).await {
            Err(error) => {
                let text =
                    format!("can't look at it in stream {stream}: {error}; allow $JS.API.CONSUMER.INFO.{stream}.*");
                findings.push(Finding::warning(what, text));
                continue;
            }
            Ok(info) => info,
        };
        let Some(info) = info else {
            let first = routes.first().map_or("", |route| route.name());
            let text = format!(
                "stream {stream} has none of this name, so nothing of {} is processed; make it: hookgate consumers add {name} --route {first}",
                named(&routes)
            );
            findings.push(if releases { Finding::failure(what, text) } else { Finding::warning(what, text) });
            continue;
        };
        let problems = info.problems(&routes);
        if problems.is_empty() {
            let text = format!("{} waiting, {} unacknowledged", info.waiting(), info.unacknowledged());
            findings.push(Finding::ok(what.clone(), text));
        }
        findings.extend(problems.into_iter().map(|(level, text)| Finding { level, what: what.clone(), text }));
    }
    findings
}

/// Why there is no answer about consumers.
#[derive(Debug, thiserror::Error)]
pub enum ConsumersError {
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectFailure),
    /// A route without a stream.
    #[error(
        "no stream covers subject {subject:?} of route {route}; start hookgate once, or create one (nats stream add)"
    )]
    NoStream {
        /// The route.
        route: String,
        /// Its subject.
        subject: String,
    },
    /// Routes that one consumer can't serve.
    #[error("routes {first} and {second} lead into streams {one} and {other}: add a consumer to each")]
    SeveralStreams {
        /// A route.
        first: String,
        /// Another one.
        second: String,
        /// The stream of the first.
        one: String,
        /// The stream of the second.
        other: String,
    },
    /// A filter that leaves something out.
    #[error("filter {filter:?} does not cover subject {subject:?} of route {route}")]
    Filter {
        /// The filter.
        filter: String,
        /// The route.
        route: String,
        /// Its subject.
        subject: String,
    },
    /// There is one, and it is not right.
    #[error("stream {stream} has a consumer {name} already, which is left as it is: {problem}")]
    Present {
        /// The stream.
        stream: String,
        /// The consumer.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The API says no.
    #[error("{operation} {name:?}: {problem}")]
    Api {
        /// What was tried.
        operation: &'static str,
        /// With what.
        name: String,
        /// What the server says.
        problem: String,
    },
}

impl ConsumersError {
    fn api(operation: &'static str, name: &str, error: &ApiError) -> Self {
        Self::Api { operation, name: name.to_owned(), problem: error.to_string() }
    }

    fn stream(error: &StreamError) -> Self {
        Self::Api { operation: "look up", name: "streams of the routes".to_owned(), problem: error.to_string() }
    }
}

/// A row of the list.
pub struct Listed<'a> {
    /// The stream.
    pub stream: String,
    /// The consumer.
    pub name: String,
    /// Routes that name it.
    pub routes: Vec<&'a Route>,
    /// What the server says; `None` if there is no such consumer.
    pub info: Option<ConsumerInfo>,
    /// What is wrong with it.
    pub problems: Vec<String>,
}

/// What became of a consumer that was to be added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Added {
    /// The stream.
    pub stream: String,
    /// What it takes.
    pub filters: Vec<String>,
    /// Whether it was there before.
    pub was_there: bool,
    /// That it takes more than the routes' subjects.
    pub takes_more: bool,
}

/// The consumers of a NATS system.
pub struct Consumers {
    api: Api,
    version: Version,
}

impl Consumers {
    /// Connects for a command.
    ///
    /// # Errors
    /// If NATS can't be reached.
    pub async fn connect(servers: &Servers) -> Result<Self, ConsumersError> {
        let (client, _denied) = servers.connect_once().await?;
        Ok(Self { version: Version::parse(&client.server_info().version), api: Api::over(client) })
    }

    /// The durable consumers of all streams that routes lead into, and those that routes name and that are not there.
    ///
    /// # Errors
    /// If NATS does not say.
    pub async fn list<'a>(&self, routes: &'a RouteTable) -> Result<Vec<Listed<'a>>, ConsumersError> {
        let survey = stream::survey(&self.api, routes, []).await.map_err(|error| ConsumersError::stream(&error))?;
        let (mut wanted, mut rows) = (wanted(&survey), Vec::new());
        for stream in survey.streams.keys() {
            let all = all_of(&self.api, stream).await;
            let all = all.map_err(|error| ConsumersError::api("list the consumers of", stream, &error))?;
            for info in all.into_iter().filter(ConsumerInfo::is_durable) {
                let routes = wanted.remove(&(stream.clone(), info.name().to_owned())).unwrap_or_default();
                let problems = if routes.is_empty() { Vec::new() } else { info.problems(&routes) };
                rows.push(Listed {
                    stream: stream.clone(),
                    name: info.name().to_owned(),
                    routes,
                    problems: problems.into_iter().map(|(_, text)| text).collect(),
                    info: Some(info),
                });
            }
        }
        rows.extend(wanted.into_iter().map(|((stream, name), routes)| Listed {
            stream,
            name,
            routes,
            info: None,
            problems: vec!["it is not there".to_owned()],
        }));
        rows.sort_by(|one, other| (&one.stream, &one.name).cmp(&(&other.stream, &other.name)));
        Ok(rows)
    }

    /// The consumers that a route names, in their order.
    ///
    /// # Errors
    /// If no stream covers its subject, or NATS does not say.
    pub async fn of(&self, route: &Route) -> Result<Vec<Option<ConsumerInfo>>, ConsumersError> {
        let mut found = Vec::new();
        if route.life().consumers.is_empty() {
            return Ok(found);
        }
        let stream = self.stream_of(&[route]).await?;
        for name in &route.life().consumers {
            let info = info_of(&self.api, &stream, name).await;
            found.push(info.map_err(|error| ConsumersError::api("look at the consumer", name, &error))?);
        }
        Ok(found)
    }

    /// Makes a consumer for routes: durable, explicit, every acknowledgement announced, without a last delivery. One that
    /// is there already is left as it is.
    ///
    /// # Errors
    /// If the routes lead into several streams, or there is one that is not right.
    pub async fn add(&self, name: &str, routes: &[&Route], filter: Option<&str>) -> Result<Added, ConsumersError> {
        let stream = self.stream_of(routes).await?;
        let (filters, takes_more) = self.filters(routes, filter)?;
        let present = info_of(&self.api, &stream, name).await;
        let present = present.map_err(|error| ConsumersError::api("look for the consumer", name, &error))?;
        if let Some(info) = present {
            let problem = info.problems(routes).into_iter().map(|(_, text)| text).collect::<Vec<_>>().join("; ");
            if !problem.is_empty() || info.sampled() < 100 {
                let problem = if problem.is_empty() { "it does not sample at 100 %".to_owned() } else { problem };
                return Err(ConsumersError::Present { stream, name: name.to_owned(), problem });
            }
            let filters = info.filters().into_iter().map(str::to_owned).collect();
            return Ok(Added { stream, filters, was_there: true, takes_more: false });
        }
        let mut config = json!({
            "durable_name": name,
            "description": "made by hookgate consumers add",
            "deliver_policy": "all",
            "replay_policy": "instant",
            "ack_policy": "explicit",
            "ack_wait": nanos(BACKOFF[0]),
            "max_deliver": -1,
            "sample_freq": "100%",
        });
        if self.version >= SINCE_2_10 {
            config["backoff"] = json!(BACKOFF.map(nanos));
        }
        match filters.as_slice() {
            [one] => config["filter_subject"] = json!(one),
            several => config["filter_subjects"] = json!(several),
        }
        let request = json!({ "stream_name": stream, "config": config });
        let made = self.api.ask(format!("CONSUMER.DURABLE.CREATE.{stream}.{name}"), &request).await;
        made.map_err(|error| ConsumersError::api("create the consumer", name, &error))?;
        Ok(Added { stream, filters, was_there: false, takes_more })
    }

    /// The stream that all these routes lead into.
    async fn stream_of(&self, routes: &[&Route]) -> Result<String, ConsumersError> {
        let mut found: Option<(&Route, String)> = None;
        for route in routes {
            let names = stream::names_of_covering(&self.api, route.subject()).await;
            let names = names.map_err(|error| ConsumersError::stream(&error))?;
            let no_stream =
                || ConsumersError::NoStream { route: route.name().to_owned(), subject: route.subject().to_owned() };
            let name = names.into_iter().next().ok_or_else(no_stream)?;
            match &found {
                Some((first, one)) if *one != name => {
                    return Err(ConsumersError::SeveralStreams {
                        first: first.name().to_owned(),
                        second: route.name().to_owned(),
                        one: one.clone(),
                        other: name,
                    });
                }
                Some(_) => {}
                None => found = Some((route, name)),
            }
        }
        Ok(found.map(|(_, stream)| stream).unwrap_or_default())
    }

    /// What a consumer of routes takes, and whether that is more than their subjects.
    fn filters(&self, routes: &[&Route], filter: Option<&str>) -> Result<(Vec<String>, bool), ConsumersError> {
        if let Some(filter) = filter {
            if let Some(route) = routes.iter().find(|route| !matches(filter, route.subject())) {
                let (route, subject) = (route.name().to_owned(), route.subject().to_owned());
                return Err(ConsumersError::Filter { filter: filter.to_owned(), route, subject });
            }
            return Ok((vec![filter.to_owned()], false));
        }
        let mut subjects: Vec<_> = routes.iter().map(|route| route.subject().to_owned()).collect();
        subjects.sort();
        subjects.dedup();
        if subjects.len() == 1 || self.version >= SINCE_2_10 {
            return Ok((subjects, false));
        }
        let common = common_pattern(subjects.iter().map(String::as_str)).unwrap_or_else(|| ">".to_owned());
        Ok((vec![common], true))
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
