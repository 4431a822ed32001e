//! What each setting of a stream can cost. hookgate uses streams of others as they are, so it says so.
//!
//! A failure drops, refuses or hides events within `max_age` while no machine fails and no setting changes (a
//! killed server process is no machine failure). A warning can cost events under other conditions.

use serde_json::Value;

use super::{
    MANAGED, StreamSettings,
    peers::Peers,
    stream_info::{StreamInfo, matches},
};
use crate::{batch::MAX_ID_BYTES, finding::Level, route::Route};

/// Shortest duplicate window that covers the sender's retries and a relay.
const SAFE_DUPLICATE_WINDOW: u64 = 120 * NANOS;
/// A consumer that is away for longer misses events.
const SAFE_MAX_AGE: u64 = 86_400 * NANOS;
const NANOS: u64 = 1_000_000_000;
/// How much of a limit is left when it is time to say so: a tenth.
const NEARLY: u64 = 10;
/// Bytes of an event besides its id, its action and its route: names of fields and headers, token, trace, time, and
/// one more header.
const OTHER_BYTES: usize = 320;

/// What is wrong with a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    /// The field of `STREAM.INFO` that says so.
    pub(super) field: String,
    pub(super) level: Level,
    /// What it costs, and what to do.
    pub(super) text: String,
}

/// A stream, and what hookgate publishes into it.
pub(super) struct Case<'a> {
    pub(super) info: &'a StreamInfo,
    /// What the configuration says of hookgate's own stream.
    pub(super) settings: &'a StreamSettings,
    /// The routes whose subjects it covers.
    pub(super) routes: &'a [&'a Route],
}

type Verdict = Option<(Level, String)>;

/// Fields of `STREAM.INFO`, and what their values cost.
struct Rule {
    /// The first one names the problem.
    reads: &'static [&'static str],
    judge: fn(&Case<'_>) -> Verdict,
}

const RULES: &[Rule] = &[
    Rule { reads: &["config.no_ack"], judge: no_ack },
    Rule { reads: &["config.sealed"], judge: sealed },
    Rule { reads: &["config.mirror"], judge: mirror },
    Rule { reads: &["config.allow_msg_counter"], judge: counter },
    Rule { reads: &["config.storage"], judge: storage },
    Rule { reads: &["config.persist_mode"], judge: persist_mode },
    Rule { reads: &["config.retention", "state.consumer_count"], judge: retention },
    Rule { reads: &["config.max_msgs", "config.discard"], judge: |case| limit(case, "max_msgs") },
    Rule { reads: &["config.max_bytes"], judge: |case| limit(case, "max_bytes") },
    Rule { reads: &["state.messages"], judge: |case| fullness(case, "messages", "max_msgs") },
    Rule { reads: &["state.bytes"], judge: |case| fullness(case, "bytes", "max_bytes") },
    Rule { reads: &["config.max_msgs_per_subject", "config.discard_new_per_subject"], judge: per_subject },
    Rule { reads: &["config.max_msg_size"], judge: message_size },
    Rule {
        reads: &["config.subject_transform", "config.subject_transform.src", "config.subject_transform.dest"],
        judge: subject_transform,
    },
    Rule { reads: &["config.max_age"], judge: max_age },
    Rule { reads: &["config.duplicate_window", "config.sources"], judge: duplicate_window },
    Rule { reads: &["config.num_replicas", "config.description"], judge: copies },
    Rule { reads: &["cluster.replicas"], judge: copies_away },
    Rule { reads: &["config.allow_rollup_hdrs"], judge: rollup },
    Rule { reads: &["config.subject_delete_marker_ttl"], judge: delete_markers },
    Rule { reads: &["config.consumer_limits.inactive_threshold"], judge: inactive_consumers },
    Rule { reads: &["state.lost"], judge: lost },
];

/// Fields that cost no event whatever they say; below those that end in `.*`, all.
const HARMLESS: &[&str] = &[
    // Who and where it is.
    "config.name",
    "config.subjects",
    "config.metadata.*",
    "config.template_owner",
    "config.placement.*",
    "config.first_seq",
    // How it is stored, and read.
    "config.compression",
    "config.allow_direct",
    "config.mirror_direct",
    // Copies go to other subjects, or come from other streams: what hookgate publishes is stored all the same.
    "config.republish.*",
    "config.sources.*",
    "config.mirror.*",
    // Keep people from removing events.
    "config.deny_delete",
    "config.deny_purge",
    // Keep consumers from coming, or slow them down; the events stay.
    "config.max_consumers",
    "config.consumer_limits.max_ack_pending",
    // For messages with headers that hookgate does not send.
    "config.allow_msg_ttl",
    "config.allow_msg_schedules",
    "config.allow_atomic",
    "config.allow_batched",
    // How it is now.
    "state.first_seq",
    "state.first_ts",
    "state.last_seq",
    "state.last_ts",
    "state.num_subjects",
    "state.subjects.*",
    "state.num_deleted",
    "state.deleted.*",
    "cluster.*",
    "mirror.*",
    "sources.*",
    "alternates.*",
    "created",
    "did_create",
    "domain",
    "ts",
    "type",
    "total",
    "offset",
    "limit",
];

/// Whether hookgate knows what a field of `STREAM.INFO` means, by its path: `config.placement.tags`.
#[must_use]
pub fn is_known(path: &str) -> bool {
    // A field that has others below it stands without them when it is empty.
    let is_part_of =
        |field: &str| field.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    let of_rules = RULES.iter().flat_map(|rule| rule.reads).any(|field| is_part_of(field));
    let is_harmless = |field: &str| {
        let below = field.strip_suffix(".*");
        below.map_or(field == path, |parent| {
            path.strip_prefix(parent).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        })
    };
    of_rules || HARMLESS.iter().any(|field| is_harmless(field))
}

/// All that is wrong with a stream.
pub(super) fn problems(case: &Case<'_>) -> Vec<Problem> {
    let judged = RULES.iter().filter_map(|rule| {
        let (level, text) = (rule.judge)(case)?;
        Some(Problem { field: rule.reads[0].to_owned(), level, text })
    });
    judged.chain(unknown(case)).collect()
}

/// Settings of newer servers that are in use.
fn unknown(case: &Case<'_>) -> Vec<Problem> {
    let is_set = |value: &Value| match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_i64() != Some(0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
    };
    let config = case.info.config();
    let fields = config.iter().filter(|(_, value)| is_set(value));
    let unknown =
        fields.map(|(name, value)| (format!("config.{name}"), name, value)).filter(|(path, ..)| !is_known(path));
    let problem = |(field, name, value): (String, &String, &Value)| Problem {
        text: format!(
            "{name} is {value}: this version of hookgate does not know what that costs; see the documentation of NATS"
        ),
        level: Level::Warning,
        field,
    };
    unknown.map(problem).collect()
}

#[expect(clippy::unnecessary_wraps, reason = "the verdict of a rule")]
fn failure(text: impl Into<String>) -> Verdict {
    Some((Level::Failure, text.into()))
}

#[expect(clippy::unnecessary_wraps, reason = "the verdict of a rule")]
fn warning(text: impl Into<String>) -> Verdict {
    Some((Level::Warning, text.into()))
}

fn no_ack(case: &Case<'_>) -> Verdict {
    case.info.flag("config.no_ack").then_some(())?;
    failure("no_ack is on: nothing is acknowledged, so every request gets 503; turn it off")
}

fn sealed(case: &Case<'_>) -> Verdict {
    case.info.flag("config.sealed").then_some(())?;
    failure("it is sealed: it takes no messages, so every request gets 503; have another stream cover the subjects")
}

fn mirror(case: &Case<'_>) -> Verdict {
    case.info.field("config.mirror").filter(|mirror| !mirror.is_null())?;
    failure("it is a mirror: it takes messages from another stream alone; have another stream cover the subjects")
}

fn counter(case: &Case<'_>) -> Verdict {
    case.info.flag("config.allow_msg_counter").then_some(())?;
    failure(
        "allow_msg_counter is on: it refuses messages that count nothing, so every request gets 503; have another stream cover the subjects",
    )
}

fn storage(case: &Case<'_>) -> Verdict {
    (case.info.text("config.storage") == "memory").then_some(())?;
    if case.info.number("config.num_replicas") > 1 {
        return warning("storage is memory: servers that stop at the same time lose what was acknowledged; use file");
    }
    failure("storage is memory: a restart of the server loses what was acknowledged; use file")
}

fn persist_mode(case: &Case<'_>) -> Verdict {
    (case.info.text("config.persist_mode") == "async").then_some(())?;
    failure(
        "persist_mode is async: it acknowledges before it writes, so a server process that is killed loses what was acknowledged; use the default",
    )
}

fn retention(case: &Case<'_>) -> Verdict {
    match case.info.text("config.retention") {
        "interest" if case.info.number("state.consumer_count") == 0 => failure(
            "retention is interest, and there is no consumer: every event is acknowledged and dropped; create the consumers first, or use limits",
        ),
        "interest" => warning(
            "retention is interest: an event is dropped unless a consumer's filter covers its subject, and a repeat that comes after a restart of the server, when its first message was consumed, is a duplicate; check the consumers, or use limits",
        ),
        "workqueue" => warning(
            "retention is workqueue: after a restart of the server, a repeat of an event that was consumed is a duplicate; let consumers bear it, or use limits",
        ),
        _ => None,
    }
}

fn limit(case: &Case<'_>, key: &str) -> Verdict {
    let limit = case.info.limit(&format!("config.{key}"))?;
    if case.info.text("config.discard") == "new" {
        return warning(format!("{key} is {limit}: when it is reached, every event is refused, and senders get 503"));
    }
    failure(format!(
        "{key} is {limit} and discard is old: at the limit the oldest events are dropped, processed or not; set discard to new, or {key} to -1"
    ))
}

/// A stream that takes nothing more, or soon: under the other policy old events make room.
fn fullness(case: &Case<'_>, what: &str, key: &str) -> Verdict {
    let limit = case.info.limit(&format!("config.{key}"))?;
    let now = u64::try_from(case.info.number(&format!("state.{what}"))).unwrap_or(0);
    (case.info.text("config.discard") == "new" && now >= limit - limit / NEARLY).then_some(())?;
    let text = format!(
        "{now} of {limit} {what} ({key}): at the limit it refuses every event, and senders get 503; raise it, or purge what has been processed (nats stream purge --keep or --seq)"
    );
    // A last message may not fit although a few bytes are left.
    if now >= limit - limit / 1000 { failure(text) } else { warning(text) }
}

/// Whatever `discard` says, the oldest event of the subject goes, unless `discard_new_per_subject` is on.
fn per_subject(case: &Case<'_>) -> Verdict {
    let limit = case.info.limit("config.max_msgs_per_subject")?;
    if case.info.flag("config.discard_new_per_subject") {
        return failure(format!(
            "discard_new_per_subject is on and max_msgs_per_subject is {limit}: all events of a route have one subject, so more of them are refused, and senders get 503; set max_msgs_per_subject to -1"
        ));
    }
    failure(format!(
        "max_msgs_per_subject is {limit}: all events of a route have one subject, so the oldest ones are dropped, processed or not; set it to -1"
    ))
}

fn message_size(case: &Case<'_>) -> Verdict {
    let limit = case.info.limit("config.max_msg_size")?;
    let needed = case.routes.iter().map(|route| largest_event(route)).max()?;
    (limit < needed as u64).then_some(())?;
    failure(format!(
        "max_msg_size is {limit}: an event can take {needed} bytes, and a larger one is refused each time; set it to -1, or to {needed} or more"
    ))
}

/// Most bytes of a message of a route, with its headers: each byte of the id can be one that JSON escapes.
pub(super) fn largest_event(route: &Route) -> usize {
    2 * MAX_ID_BYTES + route.name().len() + route.action().len() + OTHER_BYTES
}

fn subject_transform(case: &Case<'_>) -> Verdict {
    case.info.field("config.subject_transform").filter(|transform| !transform.is_null())?;
    let from = case.info.text("config.subject_transform.src");
    let to = case.info.text("config.subject_transform.dest");
    // Without a source, all.
    let is_moved = |route: &&&Route| from.is_empty() || matches(from, route.subject());
    let moved = case.routes.iter().find(is_moved)?.subject();
    failure(format!(
        "subject_transform stores {from:?} as {to:?}: no consumer that filters by {moved:?} gets an event; remove it"
    ))
}

fn max_age(case: &Case<'_>) -> Verdict {
    case.info.limit("config.max_age").filter(|age| *age < SAFE_MAX_AGE)?;
    warning("max_age is shorter than a day: events that are not consumed until then are dropped")
}

fn duplicate_window(case: &Case<'_>) -> Verdict {
    let window = case.info.limit("config.duplicate_window").unwrap_or(0);
    (window < SAFE_DUPLICATE_WINDOW).then_some(())?;
    warning("duplicate_window is shorter than 2 minutes: a late retry can become a second message")
}

/// hookgate sets the number of copies when it makes its stream, and never changes it.
fn copies(case: &Case<'_>) -> Verdict {
    (case.info.text("config.description") == MANAGED).then_some(())?;
    let (wanted, name) = (case.settings.replicas, case.info.text("config.name"));
    let copies = usize::try_from(case.info.number("config.num_replicas")).unwrap_or(0);
    (copies < wanted).then_some(())?;
    warning(format!(
        "nats.stream.replicas is {wanted}, and the stream, which is there already, has {copies}; hookgate does not change that: nats stream edit {name} --replicas {wanted}"
    ))
}

/// While the others are a majority, events are stored; what is missing then is the next failure.
fn copies_away(case: &Case<'_>) -> Verdict {
    let peers = Peers::of(case.info.field("cluster.replicas"));
    let problems = peers.problems()?;
    let (there, all, majority) = (peers.there(), peers.all(), peers.majority());
    let text = format!("copy on {problems}; {there} of {all} copies are there");
    if there < majority {
        return failure(format!("{text}, and it takes no event with fewer than {majority}: senders get 503"));
    }
    let then = if there == majority {
        ", and with one fewer it takes no event: see that the server runs and reaches the others"
    } else {
        ": see that the server runs and reaches the others"
    };
    warning(format!("{text}{then}"))
}

fn rollup(case: &Case<'_>) -> Verdict {
    case.info.flag("config.allow_rollup_hdrs").then_some(())?;
    warning(
        "allow_rollup_hdrs is on: a message with Nats-Rollup replaces all others of its subject, or of the stream, processed or not; let nobody else publish to these subjects",
    )
}

fn delete_markers(case: &Case<'_>) -> Verdict {
    case.info.limit("config.subject_delete_marker_ttl")?;
    warning(
        "subject_delete_marker_ttl is set: when the last event of a subject expires, consumers get a message without payload (Nats-Marker-Reason); let them skip it",
    )
}

fn inactive_consumers(case: &Case<'_>) -> Verdict {
    let threshold = case.info.limit("config.consumer_limits.inactive_threshold")?;
    let text = format!(
        "consumer_limits.inactive_threshold is {} s: a consumer that is away for longer is deleted with its place",
        threshold / NANOS
    );
    if case.info.text("config.retention") == "interest" {
        return failure(format!("{text}, and under interest its events are dropped; set it to 0"));
    }
    warning(format!("{text}; set it to 0"))
}

fn lost(case: &Case<'_>) -> Verdict {
    let lost = case.info.field("state.lost").filter(|lost| !lost.is_null())?;
    failure(format!("the server says that it lost messages of the stream: {lost}; see its log, and send them again"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::{
        batch::EntityId,
        event::{Attempt, Events, TokenSeed},
        publisher::address::RouteAddresses,
        route::{RouteSpec, RouteTable},
    };

    fn settings() -> StreamSettings {
        StreamSettings {
            name: "HOOKGATE".to_owned(),
            create: true,
            replicas: 1,
            max_age: Duration::from_secs(7 * 86_400),
            duplicate_window: Duration::from_secs(900),
        }
    }

    fn route() -> Route {
        Route::new(&RouteSpec { flow: "vmh", entity: "contact", action: "create", ..RouteSpec::default() })
            .expect("valid")
    }

    /// The levels of what is wrong with a safe stream after a change, by their fields.
    fn levels(changes: &[(&str, Value)]) -> Vec<(String, Level)> {
        let mut info = json!({
            "config": {
                "subjects": ["vmh.>"], "storage": "file", "discard": "new", "num_replicas": 1,
                "duplicate_window": 900 * NANOS, "max_age": 7 * SAFE_MAX_AGE,
            },
            "state": { "messages": 0, "bytes": 0, "consumer_count": 0 },
        });
        for (path, value) in changes {
            let (parent, key) = path.split_once('.').expect("a path");
            info[parent][key] = value.clone();
        }
        let route = route();
        let (info, settings) = (StreamInfo::of(info), settings());
        let found = problems(&Case { info: &info, settings: &settings, routes: &[&route] });
        found.into_iter().map(|problem| (problem.field, problem.level)).collect()
    }

    fn only(changes: &[(&str, Value)]) -> Option<Level> {
        match levels(changes).as_slice() {
            [] => None,
            [(_, level)] => Some(*level),
            more => panic!("{changes:?}: {more:?}"),
        }
    }

    #[test]
    fn what_hookgate_creates_is_safe() {
        assert_eq!(levels(&[]), []);
    }

    #[test]
    fn a_stream_that_fills_up_is_named_before_it_is_full() {
        let full = |limit: u64, now: u64| {
            let found = levels(&[("config.max_msgs", json!(limit)), ("state.messages", json!(now))]);
            found.into_iter().find(|(field, _)| field == "state.messages").map(|(_, level)| level)
        };
        assert_eq!(full(1000, 899), None);
        assert_eq!(full(1000, 900), Some(Level::Warning));
        assert_eq!(full(1000, 1000), Some(Level::Failure));
        assert_eq!(full(1, 0), None);
        assert_eq!(full(1, 1), Some(Level::Failure));
        let bytes = [("config.max_bytes", json!(1_000_000)), ("state.bytes", json!(999_500))];
        assert!(levels(&bytes).contains(&("state.bytes".to_owned(), Level::Failure)));
    }

    #[test]
    fn copies_in_memory_survive_the_restart_of_one_server() {
        let memory = ("config.storage", json!("memory"));
        assert_eq!(only(std::slice::from_ref(&memory)), Some(Level::Failure));
        assert_eq!(only(&[memory, ("config.num_replicas", json!(3))]), Some(Level::Warning));
    }

    #[test]
    fn the_events_of_a_consumer_that_is_deleted_are_dropped_under_interest() {
        let limits = ("config.consumer_limits", json!({ "inactive_threshold": NANOS }));
        assert_eq!(only(std::slice::from_ref(&limits)), Some(Level::Warning));
        let interest = [limits, ("config.retention", json!("interest")), ("state.consumer_count", json!(1))];
        assert!(levels(&interest).iter().any(|(_, level)| *level == Level::Failure));
    }

    #[test]
    fn a_setting_that_nobody_here_knows_is_named_while_it_is_in_use() {
        for unset in [json!(false), json!(0), json!(""), json!([]), json!({}), Value::Null] {
            assert_eq!(only(&[("config.allow_tomorrow", unset)]), None);
        }
        assert_eq!(
            levels(&[("config.allow_tomorrow", json!(true))]),
            [("config.allow_tomorrow".to_owned(), Level::Warning)]
        );
    }

    #[test]
    fn lost_messages_are_a_failure() {
        assert_eq!(only(&[("state.lost", json!({ "msgs": [3], "bytes": 80 }))]), Some(Level::Failure));
    }

    #[test]
    fn a_copy_that_is_away_is_named_while_a_majority_is_there() {
        let found = |replicas: Value| {
            let mut info = json!({ "config": { "discard": "new", "duplicate_window": 900 * NANOS }, "state": {} });
            info["cluster"] = json!({ "name": "c", "leader": "n1", "replicas": replicas });
            let (info, settings) = (StreamInfo::of(info), settings());
            problems(&Case { info: &info, settings: &settings, routes: &[&route()] }).pop().map(|problem| {
                assert_eq!(problem.field, "cluster.replicas");
                (problem.level, problem.text)
            })
        };
        let well = json!({ "name": "n3", "current": true, "active": 1 });
        let away = json!({ "name": "n2", "current": false, "offline": true, "active": 20 * NANOS, "lag": 3 });
        let behind = json!({ "name": "n2", "current": false, "active": 1, "lag": 4096 });
        assert_eq!(found(json!([])), None);
        assert_eq!(found(Value::Null), None);
        assert_eq!(found(json!([well, well])), None);
        let (level, text) = found(json!([away, well])).expect("it is said");
        assert_eq!(level, Level::Warning);
        assert!(text.starts_with("copy on \"n2\" is offline (last heard 20 s ago); 2 of 3 copies are there"), "{text}");
        assert!(text.contains("with one fewer it takes no event"), "{text}");
        let (level, text) = found(json!([behind, well])).expect("it is said");
        assert!(level == Level::Warning && text.contains("4096 operations behind; 3 of 3 copies"), "{text}");
        let (level, text) = found(json!([away])).expect("it is said");
        assert!(level == Level::Failure && text.contains("senders get 503"), "{text}");
        let (level, text) = found(json!([away, well, well, well])).expect("it is said");
        assert!(level == Level::Warning && !text.contains("one fewer"), "{text}");
    }

    #[test]
    fn the_largest_event_fits() {
        let route = route();
        let id = "\"".repeat(MAX_ID_BYTES);
        let token = TokenSeed::now().token(Attempt::UNCLAIMED, 9_999_999);
        let event = Events::of(&route).event(EntityId::parse(&id).expect("valid"), token);
        let table = RouteTable::new(vec![route.clone()]).expect("valid");
        let headers = RouteAddresses::of_all(&table).of(&route).headers(token);
        let headers: usize =
            headers.iter().map(|(name, value)| format!("{name}: {}\r\n", value[0].as_str()).len()).sum();
        let size = "NATS/1.0\r\n\r\n".len() + headers + event.payload.len();
        let limit = largest_event(&route);
        assert!(size <= limit && limit < size + 100, "{size} of {limit}");
    }
}
