//! Routes: which path leads to which subject and which pending SET. Pure: no I/O, no HTTP types, no Redis, no NATS.
//!
//! Three words make a [`Route`]: flow, entity and action. They fill the templates of path, subject and key; the
//! configuration may set each of these itself. A [`RouteTable`] holds checked routes only: NATS accepts their subjects,
//! their keys can be a cluster hash tag, and no two share a path, a pending key or a name.

mod life;

use std::{collections::HashMap, fmt, sync::Arc};

pub use self::life::{Life, OnGiveUp, Release, WhilePending};

/// One webhook: its path, the SET that its ids are claimed in, and the subject of its events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    name: String,
    flow: String,
    entity: String,
    action: String,
    path: String,
    subject: String,
    pending_key: String,
    outbox_key: String,
    lease_key: String,
    addresses_key: String,
    journal_key: String,
    marks_key: String,
    label: String,
    action_title: String,
    life: Life,
    espocrm_event: Option<String>,
    quarantine: bool,
}

/// A route as configured: three words, and the fields that differ from their templates.
#[derive(Debug, Clone, Default)]
pub struct RouteSpec<'a> {
    /// First word of path, subject and key: the process that the webhook belongs to.
    pub flow: &'a str,
    /// The kind of record, for example `beteiligte`.
    pub entity: &'a str,
    /// What happened to the record, for example `create`.
    pub action: &'a str,
    /// Exact path, undecoded; default `/{flow}/webhook/{entity}/{action}`.
    pub path: Option<&'a str>,
    /// NATS subject; default `{flow}.{entity}.{action}`.
    pub subject: Option<&'a str>,
    /// Redis key of the pending SET; default `{flow}:{entity}:{action}_pending`.
    pub pending_key: Option<&'a str>,
    /// Name in the log; default `{FLOW} Webhook {Entity} {Action}`.
    pub label: Option<&'a str>,
    /// What happens to its ids once they are claimed.
    pub life: Life,
    /// The event of `EspoCRM`'s webhook, such as `CBeteiligte.update`.
    pub espocrm_event: Option<&'a str>,
    /// Whether bodies whose signature was wrong are kept.
    pub quarantine: bool,
}

/// Why a route, or a table of them, is not valid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// A field of one route breaks a rule.
    #[error("route {route:?}: {field} {value:?} {problem}")]
    Field {
        /// Name of the route, `flow/entity/action`.
        route: String,
        /// Key of the configuration.
        field: &'static str,
        /// The offending value.
        value: String,
        /// What is wrong with it and what is allowed.
        problem: FieldProblem,
    },
    /// Two routes share what only one may have.
    #[error("routes {first:?} and {second:?} have the same {field} {value:?}; give one of them a {field} of its own")]
    Clash {
        /// Name of the earlier route.
        first: String,
        /// Name of the later route.
        second: String,
        /// What they share.
        field: &'static str,
        /// The shared value.
        value: String,
    },
    /// No route at all.
    #[error("no route is configured: add a [[routes]] table, or leave `routes` out to serve beteiligte/create")]
    Empty,
}

/// The rule that a field breaks. The text says what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FieldProblem {
    /// A word without letters.
    #[error("is empty; it needs at least one letter")]
    EmptyWord,
    /// A label without text.
    #[error("is empty; leave it out to get the default")]
    EmptyLabel,
    /// A subject with two dots in a row, or one at an end.
    #[error("has an empty token; tokens are separated by single dots")]
    EmptyToken,
    /// Too long, or too short.
    #[error("is {bytes} bytes long; {allowed} are allowed")]
    Length {
        /// Its length.
        bytes: usize,
        /// The limits.
        allowed: &'static str,
    },
    /// A path without its slash.
    #[error("does not begin with '/'")]
    NoSlash,
    /// A subject that NATS uses itself.
    #[error("belongs to NATS itself; choose a subject that begins neither with '$' nor with _INBOX")]
    ReservedByNats,
    /// A key that hookgate uses itself.
    #[error("begins with 'hookgate:', which hookgate keeps for itself")]
    ReservedByHookgate,
    /// A blank.
    #[error("has a blank at byte {at}; allowed: {allowed}")]
    Blank {
        /// Its place.
        at: usize,
        /// The characters that may stand there.
        allowed: &'static str,
    },
    /// Another character that is not allowed.
    #[error("has {character:?} at byte {at}; allowed: {allowed}")]
    Character {
        /// The character.
        character: char,
        /// Its place.
        at: usize,
        /// The characters that may stand there.
        allowed: &'static str,
    },
}

impl Route {
    /// Fills the templates and checks every field.
    ///
    /// # Errors
    /// The first field that breaks a rule, with the rule.
    pub fn new(spec: &RouteSpec<'_>) -> Result<Self, RouteError> {
        let RouteSpec { flow, entity, action, .. } = *spec;
        let name = format!("{flow}/{entity}/{action}");
        let check = |field: &'static str, value: &str, verdict: Result<(), FieldProblem>| {
            verdict.map_err(|problem| RouteError::Field {
                route: name.clone(),
                field,
                value: value.to_owned(),
                problem,
            })
        };
        for (field, word) in [("flow", flow), ("entity", entity), ("action", action)] {
            check(field, word, check_word(word))?;
        }
        let path = spec.path.map_or_else(|| format!("/{flow}/webhook/{entity}/{action}"), str::to_owned);
        let subject = spec.subject.map_or_else(|| format!("{flow}.{entity}.{action}"), str::to_owned);
        let pending_key = spec.pending_key.map_or_else(|| format!("{flow}:{entity}:{action}_pending"), str::to_owned);
        let label = spec.label.map_or_else(
            || format!("{} Webhook {} {}", flow.to_uppercase(), title(entity), title(action)),
            str::to_owned,
        );
        check("path", &path, check_path(&path))?;
        check("subject", &subject, check_subject(&subject))?;
        check("pending_key", &pending_key, check_key(&pending_key))?;
        check("label", &label, check_label(&label))?;
        Ok(Self {
            outbox_key: format!("{{{pending_key}}}:outbox"),
            lease_key: format!("{{{pending_key}}}:relay"),
            addresses_key: format!("{{{pending_key}}}:addresses"),
            journal_key: format!("{{{pending_key}}}:journal"),
            marks_key: format!("{{{pending_key}}}:marks"),
            action_title: title(action),
            flow: flow.to_owned(),
            entity: entity.to_owned(),
            action: action.to_owned(),
            name,
            path,
            subject,
            pending_key,
            label,
            life: spec.life.clone(),
            espocrm_event: spec.espocrm_event.map(str::to_owned),
            quarantine: spec.quarantine,
        })
    }

    /// Fields that no other route may share.
    fn identity(&self) -> [(&'static str, &str); 3] {
        [("path", &self.path), ("pending_key", &self.pending_key), ("name", &self.name)]
    }

    /// `flow/entity/action`: the route's name in logs, headers and on the command line.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// First word of the route's name.
    #[must_use]
    pub fn flow(&self) -> &str {
        &self.flow
    }

    /// The kind of record.
    #[must_use]
    pub fn entity(&self) -> &str {
        &self.entity
    }

    /// What happened to the record, as the event says it: for example `create`.
    #[must_use]
    pub fn action(&self) -> &str {
        &self.action
    }

    /// The action with a capital first letter, for the log.
    #[must_use]
    pub fn action_title(&self) -> &str {
        &self.action_title
    }

    /// Exact path, compared without decoding.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// NATS subject of the events.
    #[must_use]
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// Redis key of the SET of claimed ids.
    #[must_use]
    pub fn pending_key(&self) -> &str {
        &self.pending_key
    }

    /// Redis key of the outbox: a HASH id → token of the claims that NATS has not acknowledged yet. The pending key is
    /// its hash tag, so that both lie in one cluster slot.
    #[must_use]
    pub fn outbox_key(&self) -> &str {
        &self.outbox_key
    }

    /// Redis key of the lease that the relay of this outbox holds.
    #[must_use]
    pub fn lease_key(&self) -> &str {
        &self.lease_key
    }

    /// Redis key of the HASH number → address. It names every address that ever claimed under the pending key.
    #[must_use]
    pub fn addresses_key(&self) -> &str {
        &self.addresses_key
    }

    /// Redis key of the journal: a HASH id → what is known of the id while it is pending.
    #[must_use]
    pub fn journal_key(&self) -> &str {
        &self.journal_key
    }

    /// Redis key of the marks: a HASH id → when a webhook first marked it, in milliseconds.
    #[must_use]
    pub fn marks_key(&self) -> &str {
        &self.marks_key
    }

    /// What happens to its ids once they are claimed.
    #[must_use]
    pub const fn life(&self) -> &Life {
        &self.life
    }

    /// The event of `EspoCRM`'s webhook, such as `CBeteiligte.update`, if it is configured.
    #[must_use]
    pub fn espocrm_event(&self) -> Option<&str> {
        self.espocrm_event.as_deref()
    }

    /// Whether bodies whose signature was wrong are kept.
    #[must_use]
    pub const fn quarantine(&self) -> bool {
        self.quarantine
    }

    /// Whether the events of both routes have the same content and the same subject.
    #[must_use]
    pub fn is_same_address(&self, other: &Self) -> bool {
        self.name == other.name && self.subject == other.subject
    }

    /// Name of the webhook in the log.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.label
    }
}

impl fmt::Display for Route {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.name)
    }
}

/// All routes of a process, without conflicts.
#[derive(Debug, Clone)]
pub struct RouteTable {
    routes: Vec<Arc<Route>>,
    by_path: HashMap<String, Arc<Route>>,
}

impl RouteTable {
    /// Checks the routes for conflicts.
    ///
    /// # Errors
    /// [`RouteError::Clash`] if two routes share a name, a path or a pending key. [`RouteError::Empty`] without routes.
    pub fn new(routes: Vec<Route>) -> Result<Self, RouteError> {
        if routes.is_empty() {
            return Err(RouteError::Empty);
        }
        for (index, second) in routes.iter().enumerate() {
            for first in &routes[..index] {
                let shared = first.identity().into_iter().zip(second.identity()).find(|(mine, yours)| mine == yours);
                if let Some((_, (field, value))) = shared {
                    return Err(RouteError::Clash {
                        first: first.name.clone(),
                        second: second.name.clone(),
                        field,
                        value: value.to_owned(),
                    });
                }
            }
        }
        let routes: Vec<_> = routes.into_iter().map(Arc::new).collect();
        let by_path = routes.iter().map(|route| (route.path.clone(), Arc::clone(route))).collect();
        Ok(Self { routes, by_path })
    }

    /// The route with this path, compared without decoding.
    #[must_use]
    pub fn find(&self, path: &str) -> Option<&Arc<Route>> {
        self.by_path.get(path)
    }

    /// The routes in the order of the configuration.
    #[must_use]
    pub fn routes(&self) -> &[Arc<Route>] {
        &self.routes
    }
}

/// Upper-cases the first letter.
fn title(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

fn check_word(word: &str) -> Result<(), FieldProblem> {
    if word.is_empty() {
        return Err(FieldProblem::EmptyWord);
    }
    if word.len() > 64 {
        return Err(FieldProblem::Length { bytes: word.len(), allowed: "at most 64" });
    }
    allow(word, |c| c.is_ascii_alphanumeric() || c == '_' || c == '-', "letters a-z and A-Z, digits, '_' and '-'")
}

fn check_path(path: &str) -> Result<(), FieldProblem> {
    if !path.starts_with('/') {
        return Err(FieldProblem::NoSlash);
    }
    allow(path, |c| c.is_ascii_graphic() && c != '?' && c != '#', "visible ASCII without '?' and '#'")
}

fn check_subject(subject: &str) -> Result<(), FieldProblem> {
    if subject.len() > 255 {
        return Err(FieldProblem::Length { bytes: subject.len(), allowed: "at most 255" });
    }
    if subject.split('.').any(str::is_empty) {
        return Err(FieldProblem::EmptyToken);
    }
    if subject.starts_with('$') || subject.starts_with("_INBOX") {
        return Err(FieldProblem::ReservedByNats);
    }
    allow(subject, |c| c.is_ascii_graphic() && c != '*' && c != '>', "visible ASCII without the wildcards '*' and '>'")
}

fn check_key(key: &str) -> Result<(), FieldProblem> {
    if key.is_empty() || key.len() > 512 {
        return Err(FieldProblem::Length { bytes: key.len(), allowed: "1 to 512" });
    }
    if key.starts_with("hookgate:") {
        return Err(FieldProblem::ReservedByHookgate);
    }
    allow(
        key,
        |c| c.is_ascii_graphic() && c != '{' && c != '}',
        "visible ASCII without braces, which would move its outbox to another cluster slot",
    )
}

fn check_label(label: &str) -> Result<(), FieldProblem> {
    if label.is_empty() {
        return Err(FieldProblem::EmptyLabel);
    }
    allow(label, |c| !c.is_control(), "anything but control characters")
}

/// Names the first character that is not allowed, with its place.
fn allow(text: &str, good: impl Fn(char) -> bool, allowed: &'static str) -> Result<(), FieldProblem> {
    match text.char_indices().find(|(_, c)| !good(*c)) {
        None => Ok(()),
        Some((at, ' ')) => Err(FieldProblem::Blank { at, allowed }),
        Some((at, character)) => Err(FieldProblem::Character { character, at, allowed }),
    }
}
