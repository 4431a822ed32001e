//! The stream behind the subjects: found, or created, and never changed unless it is hookgate's own.

use std::{
    collections::{BTreeSet, HashSet},
    time::Duration,
};

use async_nats::jetstream::{
    Context, ErrorCode,
    context::{CreateStreamError, CreateStreamErrorKind, GetStreamByNameErrorKind, GetStreamErrorKind},
    stream::{Config, DiscardPolicy, Info, RetentionPolicy, StorageType},
};
use tracing::{info, warn};

use crate::route::RouteTable;

/// Marks the streams that hookgate made, the only ones that it adds subjects to.
const MANAGED: &str = "managed by hookgate";

/// Shortest duplicate window that covers the sender's retries and a relay without a warning.
const SAFE_DUPLICATE_WINDOW: Duration = Duration::from_secs(120);

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
    #[error("{operation} {name:?}: {problem}")]
    Api { operation: &'static str, name: String, problem: String, refused: bool },
}

impl StreamError {
    /// Whether waiting won't help.
    pub(super) const fn is_refusal(&self) -> bool {
        self.is_absence() || matches!(self, Self::Api { refused: true, .. })
    }

    /// Whether the streams were seen, and none of them is ours.
    pub(super) const fn is_absence(&self) -> bool {
        matches!(self, Self::Missing { .. } | Self::Foreign { .. })
    }
}

/// The warnings that were given, so that each is given once.
pub(super) type Warned = HashSet<String>;

/// Sees to it that a stream covers the subject of each route.
pub(super) async fn ensure(
    context: &Context,
    settings: &StreamSettings,
    routes: &RouteTable,
    warned: &mut Warned,
) -> Result<(), StreamError> {
    let mut found = BTreeSet::new();
    let mut uncovered = Vec::new();
    for route in routes.routes() {
        match covering(context, route.subject()).await? {
            Some(name) => {
                found.insert(name);
            }
            None => uncovered.push(route),
        }
    }
    for name in found {
        if let Some(config) = config_of(context, &name).await? {
            for problem in unsafe_settings(&config) {
                if warned.insert(format!("{name}: {problem}")) {
                    warn!(stream = %name, %problem, "stream has a setting that can lose or duplicate events; it is left as it is");
                }
            }
        }
    }
    let Some(first) = uncovered.first() else { return Ok(()) };
    if !settings.create {
        return Err(StreamError::Missing { subject: first.subject().to_owned() });
    }
    let exact: BTreeSet<String> = uncovered.iter().map(|route| route.subject().to_owned()).collect();
    let wide = whole_flows(uncovered.iter().map(|route| (route.flow(), route.subject())));
    match config_of(context, &settings.name).await? {
        None => create(context, settings, wide, exact).await,
        Some(config) if config.description.as_deref() == Some(MANAGED) => extend(context, config, wide, exact).await,
        Some(_) => Err(StreamError::Foreign { name: settings.name.clone(), subject: first.subject().to_owned() }),
    }
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
pub(super) async fn covering(context: &Context, subject: &str) -> Result<Option<String>, StreamError> {
    match context.stream_by_subject(subject).await {
        Ok(name) => Ok(Some(name)),
        Err(error) if error.kind() == GetStreamByNameErrorKind::NotFound => Ok(None),
        Err(error) => Err(StreamError::Api {
            operation: "look up the stream of",
            name: subject.to_owned(),
            problem: error.to_string(),
            refused: false,
        }),
    }
}

/// The configuration of a stream, if there is one of this name.
async fn config_of(context: &Context, name: &str) -> Result<Option<Config>, StreamError> {
    Ok(info_of(context, name).await?.map(|info| info.config))
}

/// What is known of a stream, if there is one of this name.
pub(super) async fn info_of(context: &Context, name: &str) -> Result<Option<Info>, StreamError> {
    match context.get_stream(name).await {
        Ok(stream) => Ok(Some(stream.cached_info().clone())),
        Err(error) => match error.kind() {
            GetStreamErrorKind::JetStream(inner) if inner.error_code() == ErrorCode::STREAM_NOT_FOUND => Ok(None),
            _ => Err(StreamError::Api {
                operation: "read the stream",
                name: name.to_owned(),
                problem: error.to_string(),
                refused: false,
            }),
        },
    }
}

/// Creates the stream for whole flows, or for the exact subjects where that overlaps another stream.
async fn create(
    context: &Context,
    settings: &StreamSettings,
    wide: BTreeSet<String>,
    exact: BTreeSet<String>,
) -> Result<(), StreamError> {
    let config = |subjects: &BTreeSet<String>| Config {
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
    let mut subjects = wide;
    let mut result = context.create_stream(config(&subjects)).await;
    if result.as_ref().is_err_and(overlaps) {
        subjects = exact;
        result = context.create_stream(config(&subjects)).await;
    }
    match result {
        Ok(_) => {
            info!(stream = %settings.name, ?subjects, "created the stream");
            Ok(())
        }
        Err(error) => Err(api_error("create the stream", &settings.name, &error)),
    }
}

/// Adds subjects to hookgate's own stream, and nothing else.
async fn extend(
    context: &Context,
    config: Config,
    wide: BTreeSet<String>,
    exact: BTreeSet<String>,
) -> Result<(), StreamError> {
    let with = |added: &BTreeSet<String>| {
        let mut config = config.clone();
        config
            .subjects
            .extend(added.iter().filter(|subject| !config.subjects.contains(subject)).cloned().collect::<Vec<_>>());
        config
    };
    let mut added = wide;
    let mut result = context.update_stream(with(&added)).await;
    if result.is_err() {
        added = exact;
        result = context.update_stream(with(&added)).await;
    }
    match result {
        Ok(_) => {
            info!(stream = %config.name, ?added, "added subjects to the stream");
            Ok(())
        }
        Err(error) => Err(api_error("add subjects to the stream", &config.name, &error)),
    }
}

fn overlaps(error: &CreateStreamError) -> bool {
    matches!(error.kind(), CreateStreamErrorKind::JetStream(inner) if inner.error_code() == ErrorCode::STREAM_SUBJECT_OVERLAP)
}

fn api_error(operation: &'static str, name: &str, error: &CreateStreamError) -> StreamError {
    let refused = matches!(error.kind(), CreateStreamErrorKind::JetStream(_));
    StreamError::Api { operation, name: name.to_owned(), problem: error.to_string(), refused }
}

/// How much of a limit is left when it is time to say so: a tenth.
const NEARLY: u64 = 10;

/// The limits that a stream has reached, or nearly so, at which it takes nothing more; whether it is full.
pub(super) fn fullness(config: &Config, messages: u64, bytes: u64) -> Vec<(bool, String)> {
    // Under the other policy old events make room.
    if config.discard != DiscardPolicy::New {
        return Vec::new();
    }
    let limits =
        [("messages", "max_msgs", messages, config.max_messages), ("bytes", "max_bytes", bytes, config.max_bytes)];
    let limits = limits.into_iter().filter_map(|(what, key, now, limit)| {
        let limit = u64::try_from(limit).ok().filter(|limit| *limit > 0)?;
        (now >= limit - limit / NEARLY).then(|| {
            let text = format!(
                "{now} of {limit} {what} ({key}): at the limit it refuses every event, and senders get 503; raise it, or purge what has been processed (nats stream purge --keep or --seq)"
            );
            // A last message may not fit although a few bytes are left.
            (now >= limit - limit / 1000, text)
        })
    });
    limits.collect()
}

/// What is dangerous about a stream that hookgate uses as it is.
pub(super) fn unsafe_settings(config: &Config) -> Vec<String> {
    let mut problems = Vec::new();
    let mut note = |applies: bool, problem: &str| {
        if applies {
            problems.push(problem.to_owned());
        }
    };
    note(config.no_ack, "no_ack is on: nothing is acknowledged, so every request gets 503");
    note(config.sealed, "it is sealed: it takes no messages, so every request gets 503");
    note(
        config.storage == StorageType::Memory,
        "storage is memory: a restart of the server loses what was acknowledged",
    );
    note(
        config.retention == RetentionPolicy::Interest,
        "retention is interest: an event that no consumer waits for is dropped",
    );
    note(
        config.discard == DiscardPolicy::Old
            && (config.max_messages > 0 || config.max_bytes > 0 || config.max_messages_per_subject > 0),
        "discard is old with a limit on messages or bytes: at the limit the oldest events are dropped, processed or not",
    );
    note(
        config.duplicate_window < SAFE_DUPLICATE_WINDOW,
        "duplicate_window is shorter than 2 minutes: a late retry can become a second message",
    );
    note(
        !config.max_age.is_zero() && config.max_age < Duration::from_secs(86_400),
        "max_age is shorter than a day: events that are not consumed until then are dropped",
    );
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn safe() -> Config {
        Config {
            storage: StorageType::File,
            discard: DiscardPolicy::New,
            duplicate_window: Duration::from_secs(900),
            max_age: Duration::from_secs(7 * 86_400),
            ..Config::default()
        }
    }

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

    #[test]
    fn what_hookgate_creates_is_safe() {
        assert_eq!(unsafe_settings(&safe()), Vec::<String>::new());
    }

    #[test]
    fn a_stream_that_fills_up_is_named_before_it_is_full() {
        let limited = Config { max_messages: 1000, max_bytes: 1_000_000, ..safe() };
        let levels = |config: &Config, messages, bytes| -> Vec<bool> {
            fullness(config, messages, bytes).into_iter().map(|(full, _)| full).collect()
        };
        assert_eq!(levels(&limited, 899, 0), [false; 0]);
        assert_eq!(levels(&limited, 900, 0), [false]);
        assert_eq!(levels(&limited, 1000, 999_500), [true, true]);
        assert_eq!(levels(&Config { max_messages: 1, ..safe() }, 1, 0), [true]);
        assert_eq!(levels(&Config { max_messages: 1, ..safe() }, 0, 0), [false; 0]);
        assert_eq!(levels(&safe(), u64::MAX, u64::MAX), [false; 0]);
        let old = Config { discard: DiscardPolicy::Old, ..limited };
        assert_eq!(levels(&old, 1000, 1_000_000), [false; 0], "it makes room");
    }

    #[test]
    fn each_dangerous_setting_is_named() {
        type Change = fn(&mut Config);
        let cases: [(&str, Change); 8] = [
            ("no_ack", |config| config.no_ack = true),
            ("sealed", |config| config.sealed = true),
            ("storage", |config| config.storage = StorageType::Memory),
            ("retention", |config| config.retention = RetentionPolicy::Interest),
            ("discard", |config| {
                config.discard = DiscardPolicy::Old;
                config.max_messages = 1000;
            }),
            ("discard", |config| {
                config.discard = DiscardPolicy::Old;
                config.max_messages_per_subject = 1;
            }),
            ("duplicate_window", |config| config.duplicate_window = Duration::from_secs(1)),
            ("max_age", |config| config.max_age = Duration::from_secs(60)),
        ];
        for (named, change) in cases {
            let mut config = safe();
            change(&mut config);
            let problems = unsafe_settings(&config);
            assert!(matches!(problems.as_slice(), [one] if one.contains(named)), "{named}: {problems:?}");
        }
    }
}
