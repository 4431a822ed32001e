//! Whether a value makes sense, alone and beside the others. Each complaint names the layer it came from.

use std::{fmt::Display, time::Duration};

use serde::Serialize;
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

use super::{
    AuthSecrets, Layers, SettingsError, SettingsErrors,
    sections::{self, Auth, DeliveryMode, RouteSection, SchemeName},
};
use crate::{
    delivery::Durability,
    readiness::replicas::Replicas,
    redaction::without_credentials,
    route::{Life, Release, Route, RouteError, RouteSpec, RouteTable, WhilePending},
    secrets::{self, Secret, SecretFiles, Secrets},
    signature::{Scheme, Verifier, Verifiers},
    telemetry,
    traces::Collector,
};

/// A value as it is written in a file.
pub(super) fn in_toml(value: &impl Serialize) -> String {
    toml::Value::try_from(value).map_or_else(|_| "?".to_owned(), |value| value.to_string())
}

/// Collects what is wrong, each with the layer it came from.
pub(super) struct Check {
    layers: Layers,
    errors: Vec<SettingsError>,
    warnings: Vec<String>,
}

impl Check {
    pub(super) fn new(mut layers: Layers) -> Self {
        let (errors, warnings) = (layers.take_errors(), layers.take_warnings());
        Self { layers, errors, warnings }
    }

    /// The warnings, if nothing is wrong.
    pub(super) fn end(self) -> Result<Vec<String>, SettingsErrors> {
        if self.errors.is_empty() { Ok(self.warnings) } else { Err(self.into_errors()) }
    }

    pub(super) fn into_errors(self) -> SettingsErrors {
        SettingsErrors(self.errors)
    }

    /// Keeps what is wrong for the report.
    pub(super) fn note<T>(&mut self, result: Result<T, SettingsError>) -> Option<T> {
        result.map_err(|error| self.errors.push(error)).ok()
    }

    pub(super) fn refuse(&mut self, error: SettingsError) {
        self.errors.push(error);
    }

    pub(super) fn warn(&mut self, warning: String) {
        self.warnings.push(warning);
    }

    /// The layer that set a key last.
    pub(super) fn origin(&self, key: &str) -> String {
        self.layers.origin(key)
    }

    /// Whether these keys can be compared. The value of one that can't be read is the default here.
    pub(super) fn are_read(&self, keys: &[&str]) -> bool {
        self.layers.are_read(keys)
    }

    pub(super) fn value(&self, key: &'static str, value: impl std::fmt::Display, problem: String) -> SettingsError {
        SettingsError::Value { source_name: self.origin(key), key, value: value.to_string(), problem }
    }

    pub(super) fn range(&self, key: &'static str, value: usize, low: usize, high: usize) -> Result<(), SettingsError> {
        if (low..=high).contains(&value) {
            return Ok(());
        }
        Err(self.value(key, value, format!("is not between {low} and {high}")))
    }

    /// That one limit is at least as large as another.
    pub(super) fn at_least(
        &self,
        (key, value): (&'static str, usize),
        (low_key, low): (&str, usize),
    ) -> Result<(), SettingsError> {
        if value >= low || !self.are_read(&[key, low_key]) {
            return Ok(());
        }
        let problem = format!("is below {low_key} ({}: {low}); raise the one or lower the other", self.origin(low_key));
        Err(self.value(key, value, problem))
    }

    pub(super) fn positive(&self, key: &'static str, value: Duration) -> Result<(), SettingsError> {
        if value.is_zero() {
            return Err(self.value(key, "\"0s\"", "has to be longer than nothing".to_owned()));
        }
        Ok(())
    }

    pub(super) fn log_filter(&self, log: &sections::LogSection) -> Result<EnvFilter, SettingsError> {
        let wrong = |problem: String| {
            let allowed = "write levels (off, error, warn, info, debug, trace) and targets of hookgate, such as \"info,hookgate::entity=warn\"";
            self.value("log.filter", format!("{:?}", log.filter), format!("{problem}; {allowed}"))
        };
        let filter = telemetry::parse_filter(&log.filter).map_err(|error| wrong(error.to_string()))?;
        match unknown_word(&log.filter) {
            Some(word) => Err(wrong(format!("{word:?} is neither a level nor a target of hookgate"))),
            None if says_something_of_hookgate(&log.filter) => Ok(filter),
            None => Err(wrong(
                "it names neither a level nor a target of hookgate, so hookgate would log nothing".to_owned(),
            )),
        }
    }

    pub(super) fn collector(&self, tracing: &sections::TracingSection) -> Result<Option<Collector>, SettingsError> {
        let Some(endpoint) = &tracing.otlp_endpoint else { return Ok(None) };
        Collector::parse(endpoint).map(Some).map_err(|error| {
            let shown = format!("{:?}", without_credentials(endpoint));
            self.value("tracing.otlp_endpoint", shown, error.to_string())
        })
    }

    /// The other replicas, if they can be asked.
    pub(super) fn replicas(&self, admin: &sections::AdminSection) -> Result<Option<Replicas>, SettingsError> {
        let Some(replicas) = &admin.replicas else { return Ok(None) };
        Replicas::parse(replicas)
            .map(Some)
            .map_err(|error| self.value("admin.replicas", format!("{replicas:?}"), error.to_string()))
    }

    pub(super) fn stream(&mut self, stream: &sections::Stream) {
        self.stream_name("nats.stream.name", &stream.name);
        self.note(self.range("nats.stream.replicas", stream.replicas, 1, 5));
        let comparable = self.are_read(&["nats.stream.max_age", "nats.stream.duplicate_window"]);
        if comparable && !stream.max_age.0.is_zero() && stream.max_age.0 < stream.duplicate_window.0 {
            let problem = "is shorter than nats.stream.duplicate_window, which NATS refuses".to_owned();
            self.refuse(self.value("nats.stream.max_age", stream.max_age, problem));
        }
    }

    pub(super) fn stream_name(&mut self, key: &'static str, name: &str) {
        if !is_stream_name(name) {
            let problem = "is no name of a stream: visible ASCII without '.', '*', '>', '/' and '\\'".to_owned();
            self.refuse(self.value(key, format!("{name:?}"), problem));
        }
    }

    /// What names the service, the streams and the keys of this installation.
    pub(super) fn instance(&mut self, instance: &str) {
        let good = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        if instance.is_empty() || instance.len() > 64 || !instance.chars().all(good) {
            let problem =
                "is no name of an installation: 1 to 64 of letters a-z and A-Z, digits, '_' and '-'".to_owned();
            self.refuse(self.value("instance", format!("{instance:?}"), problem));
        }
    }

    pub(super) fn routes(&mut self, routes: &[RouteSection], around: Surroundings<'_>) -> Option<RouteTable> {
        let source_name = self.origin("routes");
        let wrong = |problem: String| SettingsError::Layer { source_name: source_name.clone(), problem };
        let table: Vec<_> = routes
            .iter()
            .map(|section| self.note(route(section, around).map_err(|error| wrong(error.to_string()))))
            .collect();
        let sound: Vec<_> = table.iter().flatten().cloned().collect();
        if sound.is_empty() && !(routes.is_empty() && self.are_read(&["routes"])) {
            // Each has its complaint.
            return None;
        }
        self.note(RouteTable::new(sound).map_err(|error| wrong(error.to_string())))
    }

    /// What each route asks of its senders, by the route's name, and the files behind it.
    pub(super) fn verifiers(&mut self, routes: &[RouteSection], secrets: AuthSecrets) -> (Verifiers, Vec<SecretFiles>) {
        let source_name = self.origin("routes");
        let (mut verifiers, mut files) = (Vec::new(), Vec::new());
        for section in routes {
            let name = section.name();
            let wrong = |problem: &dyn Display| SettingsError::Layer {
                source_name: source_name.clone(),
                problem: format!("route {name:?}: auth: {problem}"),
            };
            let mut entries: Vec<(Scheme, Secrets)> = Vec::new();
            for entry in &section.auth {
                let Some(scheme) = self.note(scheme(entry).map_err(|error| wrong(&error))) else { continue };
                if entries.iter().any(|(other, _)| *other == scheme) {
                    self.refuse(wrong(&AuthError::Twice(scheme)));
                    continue;
                }
                if entry.secret_files.is_empty() {
                    self.refuse(wrong(&AuthError::NoFile(scheme.name())));
                    continue;
                }
                if secrets == AuthSecrets::Leave {
                    entries.push((scheme, secrets::none()));
                    continue;
                }
                let owner = format!("route {name}, scheme {}", scheme.name());
                let fits = {
                    let scheme = scheme.clone();
                    move |secret: &Secret| scheme.check(secret)
                };
                match SecretFiles::open(owner, entry.secret_files.clone(), fits) {
                    Ok((opened, absent)) => {
                        for error in absent {
                            self.warn(format!("{source_name}: route {name:?}: auth: {error}; its secret is not accepted until the file holds one, another file of secret_files has one"));
                        }
                        entries.push((scheme, opened.secrets()));
                        files.push(opened);
                    }
                    Err(errors) => errors.iter().for_each(|error| self.refuse(wrong(error))),
                }
            }
            verifiers.push((name, Verifier::new(entries)));
        }
        (Verifiers::new(verifiers), files)
    }
}

/// What is wrong with a `[[routes]]` table.
#[derive(Debug, thiserror::Error)]
enum RouteSectionError {
    #[error("route {route:?}: {problem}")]
    Life { route: String, problem: LifeProblem },
    #[error(transparent)]
    Route(#[from] RouteError),
}

/// Keys of a route that contradict each other, or others.
#[derive(Debug, thiserror::Error)]
enum LifeProblem {
    #[error(
        "release = \"ack\" without consumers: nobody's acknowledgements would release an id; name them in consumers"
    )]
    NoConsumers,
    #[error(
        "release = \"ack\" with journal = false: the answers of the consumers are kept in the journal; leave journal out"
    )]
    AckWithoutJournal,
    #[error(
        "release = \"ack\" with nats.delivery = \"core\": without JetStream nothing is acknowledged; set release = \"explicit\""
    )]
    AckWithCore,
    #[error(
        "release = \"ack\" with redis.url = \"memory:\": what consumers answer is kept in Redis; set release = \"explicit\""
    )]
    AckInMemory,
    #[error(
        "while_pending = \"coalesce\" with redis.url = \"memory:\": marks are kept in Redis; set while_pending = \"publish\""
    )]
    CoalesceInMemory,
    #[error(
        "while_pending = \"coalesce\" with journal = false: the journal says which ids are marked again; leave journal out"
    )]
    CoalesceWithoutJournal,
    #[error(
        "while_pending = \"coalesce\" with redis.durability = \"none\": an answer may rest on the mark alone, which Redis could forget; set redis.durability to \"replica\" or \"aof\", or while_pending to \"publish\""
    )]
    CoalesceNotDurable,
    #[error("redeliver_after with journal = false: the journal says how old an id is; leave journal out")]
    RedeliverWithoutJournal,
    #[error("redeliver_after = \"0s\": every pending id would be published again at once; leave it out for never")]
    RedeliverAtOnce,
    #[error("coalesce_max_wait = \"0s\": a mark has to wait for the event before it; the default is \"10m\"")]
    NoWait,
    #[error(
        "consumers has {0:?}, which is no name of a consumer: visible ASCII without '.', '*', '>', '/', '\\', ',', ':' and ';', at most 255 bytes"
    )]
    ConsumerName(String),
    #[error("consumers has {0:?} twice")]
    ConsumerTwice(String),
    #[error(
        "flow {0:?} is also the instance: requests to release ids would go to a subject of its events; give the route another flow, or set instance"
    )]
    FlowIsInstance(String),
    #[error(
        "pending_key {0:?} begins like the keys that hookgate has once for all routes, as instance is {1:?}; choose another key, or set instance"
    )]
    KeyOfInstance(String, String),
}

/// The part of the configuration that a route has to fit to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Surroundings<'a> {
    pub(super) instance: &'a str,
    pub(super) delivery: DeliveryMode,
    pub(super) durability: Durability,
    pub(super) in_memory: bool,
}

fn route(section: &RouteSection, around: Surroundings<'_>) -> Result<Route, RouteSectionError> {
    let life = section.life();
    life_problem(section, &life, around)
        .map_or(Ok(()), |problem| Err(RouteSectionError::Life { route: section.name(), problem }))?;
    Ok(Route::new(&RouteSpec {
        flow: &section.flow,
        entity: &section.entity,
        action: &section.action,
        path: section.path.as_deref(),
        subject: section.subject.as_deref(),
        pending_key: section.pending_key.as_deref(),
        label: section.label.as_deref(),
        life,
        espocrm_event: section.espocrm_event.as_deref(),
        quarantine: section.quarantine,
    })?)
}

fn life_problem(section: &RouteSection, life: &Life, around: Surroundings<'_>) -> Option<LifeProblem> {
    let on_ack = life.release == Release::Ack;
    let coalesces = life.while_pending == WhilePending::Coalesce;
    let bad_name = |name: &&String| !is_stream_name(name) || name.contains([',', ':', ';']) || name.len() > 255;
    let twice = |(at, name): &(usize, &String)| life.consumers[..*at].contains(name);
    let is_of_instance = |key: &str| key.strip_prefix(around.instance).is_some_and(|rest| rest.starts_with(':'));
    Some(if section.flow == around.instance {
        LifeProblem::FlowIsInstance(section.flow.clone())
    } else if let Some(key) = section.pending_key.as_ref().filter(|key| is_of_instance(key)) {
        LifeProblem::KeyOfInstance(key.clone(), around.instance.to_owned())
    } else if let Some(name) = life.consumers.iter().find(bad_name) {
        LifeProblem::ConsumerName(name.clone())
    } else if let Some((_, name)) = life.consumers.iter().enumerate().find(twice) {
        LifeProblem::ConsumerTwice(name.clone())
    } else if on_ack && life.consumers.is_empty() {
        LifeProblem::NoConsumers
    } else if on_ack && !life.journal {
        LifeProblem::AckWithoutJournal
    } else if on_ack && around.delivery == DeliveryMode::Core {
        LifeProblem::AckWithCore
    } else if on_ack && around.in_memory {
        LifeProblem::AckInMemory
    } else if coalesces && around.in_memory {
        LifeProblem::CoalesceInMemory
    } else if coalesces && !life.journal {
        LifeProblem::CoalesceWithoutJournal
    } else if coalesces && around.durability == Durability::None {
        LifeProblem::CoalesceNotDurable
    } else if life.redeliver_after.is_some() && !life.journal {
        LifeProblem::RedeliverWithoutJournal
    } else if life.redeliver_after.is_some_and(|after| after.is_zero()) {
        LifeProblem::RedeliverAtOnce
    } else if life.coalesce_max_wait.is_zero() {
        LifeProblem::NoWait
    } else {
        return None;
    })
}

/// Whether NATS takes it as the name of a stream or a consumer.
pub(super) fn is_stream_name(name: &str) -> bool {
    let good = |c: char| c.is_ascii_graphic() && !matches!(c, '.' | '*' | '>' | '/' | '\\');
    !name.is_empty() && name.chars().all(good)
}

/// What is wrong with an entry of `auth`.
#[derive(Debug, thiserror::Error)]
enum AuthError {
    #[error("id {0:?} is no id of a webhook: it is empty or has a colon in it")]
    Id(String),
    #[error("scheme \"espocrm\" needs the id of the webhook, as EspoCRM shows it")]
    IdMissing,
    #[error("id {0:?} makes sense with scheme \"espocrm\" only; leave it out")]
    IdUnused(String),
    #[error("{0:?} is there twice; put all its files into one secret_files")]
    Twice(Scheme),
    #[error("scheme {0:?}: secret_files names no file, so nobody would be let in")]
    NoFile(&'static str),
}

fn scheme(entry: &Auth) -> Result<Scheme, AuthError> {
    match (entry.scheme, &entry.id) {
        (SchemeName::EspoCrm, Some(id)) if !id.is_empty() && !id.contains(':') => {
            Ok(Scheme::EspoCrm { id: id.clone() })
        }
        (SchemeName::EspoCrm, Some(id)) => Err(AuthError::Id(id.clone())),
        (SchemeName::EspoCrm, None) => Err(AuthError::IdMissing),
        (SchemeName::StandardWebhooks, None) => Ok(Scheme::StandardWebhooks),
        (SchemeName::GitHub, None) => Ok(Scheme::GitHub),
        (SchemeName::Bearer, None) => Ok(Scheme::Bearer),
        (_, Some(id)) => Err(AuthError::IdUnused(id.clone())),
    }
}

/// The directives of a log filter; a field of a span may hold commas in its brackets.
fn directives(filter: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0_usize;
    let comma = move |c: char| {
        match c {
            '[' | '{' => depth += 1,
            ']' | '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    };
    filter.split(comma).map(str::trim).filter(|directive| !directive.is_empty())
}

fn is_level(word: &str) -> bool {
    word.parse::<LevelFilter>().is_ok()
}

fn is_ours(target: &str) -> bool {
    target.strip_prefix("hookgate").is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// A single word that is neither: it would be taken for the target of a library.
fn unknown_word(filter: &str) -> Option<&str> {
    directives(filter).find(|word| !word.contains(['=', '[']) && !is_level(word) && !is_ours(word))
}

/// Whether some directive is about hookgate. One for a span is about all targets.
fn says_something_of_hookgate(filter: &str) -> bool {
    directives(filter).any(|directive| {
        let target = directive.split(['=', '[']).next().unwrap_or_default();
        is_level(directive) || is_ours(target) || target.is_empty()
    })
}
