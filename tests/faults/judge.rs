//! The judge of the fault suite: does each accepted webhook have its event? Pure; it knows no server.
//!
//! **Each accepted webhook has an event for its id, stored after its request was sent and at most [`IN_TIME`] after its
//! answer or the end of the last fault, whichever is later, unless the id was pending all the while and the mode is
//! `skip`.**
//!
//! An id counts as pending if it had an event before the request was sent, and no release that certainly came after
//! that event was certainly carried out before the request was sent. A release that overlaps the request excuses it: the
//! claim may have come first. A release without an answer may happen at any time, so it proves nothing.

use std::{
    collections::HashMap,
    fmt,
    time::{Duration, SystemTime},
};

/// How late an event may be.
pub(crate) const IN_TIME: Duration = Duration::from_secs(45);
/// The test and nats-server read the same clock, but a time service may set it back by milliseconds between two looks.
const TOLERANCE: Duration = Duration::from_millis(5);
/// No request and no release takes this long: what is older has only its newest entry left to count.
const SETTLED: Duration = Duration::from_secs(60);

/// What the route does with a webhook for a pending id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(dead_code, reason = "routes of the suite skip; the table of cases has both")]
pub(crate) enum WhilePending {
    /// It is a duplicate of the claim before.
    Skip,
    /// It has an event of its own.
    Publish,
}

/// From the beginning of something to its confirmed end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) from: SystemTime,
    pub(crate) to: SystemTime,
}

/// An accepted request: when it was sent and answered, and the ids that it brought.
#[derive(Debug, Clone)]
pub(crate) struct Webhook {
    pub(crate) ids: Vec<String>,
    pub(crate) time: Span,
}

/// What happened to one id.
#[derive(Debug, Clone, Default)]
struct Life {
    webhooks: Vec<Span>,
    /// When its events were stored, oldest first.
    events: Vec<SystemTime>,
    releases: Vec<Span>,
}

/// What happened to all ids.
#[derive(Debug, Clone, Default)]
pub(crate) struct History {
    lives: HashMap<String, Life>,
    /// When Redis lost everything: a release of each id.
    wipes: Vec<Span>,
}

/// An accepted webhook without its event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Violation {
    pub(crate) id: String,
    pub(crate) webhook: Span,
    pub(crate) what: What,
    before: Option<SystemTime>,
    release: Option<Span>,
}

/// What is wrong with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    /// No event was stored after it was sent.
    Swallowed,
    /// The first event after it was stored so long after its answer.
    Late(Duration),
}

impl Life {
    fn judge(&self, webhook: Span, mode: WhilePending, wipes: &[Span], due: SystemTime) -> Option<What> {
        let what = match self.events.iter().find(|stored| **stored + TOLERANCE >= webhook.from) {
            Some(stored) if *stored <= due => return None,
            Some(stored) => What::Late(stored.duration_since(webhook.to).unwrap_or_default()),
            None => What::Swallowed,
        };
        let duplicate = mode == WhilePending::Skip
            && self.before(webhook).is_some_and(|event| self.released(event, webhook, wipes).is_none());
        (!duplicate).then_some(what)
    }

    /// The last event that was stored before a request was sent.
    fn before(&self, webhook: Span) -> Option<SystemTime> {
        self.events.iter().rfind(|stored| **stored < webhook.from).copied()
    }

    /// A release that certainly lies between an event and a request.
    fn released(&self, event: SystemTime, webhook: Span, wipes: &[Span]) -> Option<Span> {
        let between = |release: &&Span| release.from > event + TOLERANCE && release.to < webhook.from;
        self.releases.iter().chain(wipes).find(between).copied()
    }

    /// Drops what cannot change a verdict any more; whether nothing is left.
    fn forget(
        &mut self,
        mode: WhilePending,
        wipes: &[Span],
        faults_ended: Option<SystemTime>,
        now: SystemTime,
    ) -> bool {
        let webhooks = std::mem::take(&mut self.webhooks);
        self.webhooks = webhooks
            .into_iter()
            .filter(|webhook| self.judge(*webhook, mode, wipes, due(*webhook, faults_ended)).is_some())
            .collect();
        if !self.webhooks.is_empty() {
            return false;
        }
        let old = now - SETTLED;
        let last_old = self.events.iter().rposition(|stored| *stored < old).unwrap_or(0);
        self.events.drain(..last_old);
        let last_old = self.releases.iter().rposition(|release| release.to < old).unwrap_or(0);
        self.releases.drain(..last_old);
        // A webhook from now on needs an event of its own, as for an id that nobody has heard of.
        match (self.events.last(), self.releases.last()) {
            (Some(stored), Some(release)) => {
                self.events.len() == 1 && release.to < old && release.from > *stored + TOLERANCE
            }
            (None, _) => true,
            (Some(_), None) => false,
        }
    }
}

/// When the event of a webhook has to be stored. Before the last fault has ended, any time is early enough.
fn due(webhook: Span, faults_ended: Option<SystemTime>) -> SystemTime {
    webhook.to.max(faults_ended.unwrap_or_else(SystemTime::now)) + IN_TIME
}

impl History {
    /// A request was accepted.
    pub(crate) fn webhook(&mut self, webhook: Webhook) {
        for id in webhook.ids {
            self.lives.entry(id).or_default().webhooks.push(webhook.time);
        }
    }

    /// An event is in the stream since then.
    pub(crate) fn event(&mut self, id: &str, stored: SystemTime) {
        let life = match self.lives.get_mut(id) {
            Some(life) => life,
            None => self.lives.entry(id.to_owned()).or_default(),
        };
        let place = life.events.partition_point(|before| *before <= stored);
        life.events.insert(place, stored);
    }

    /// A consumer released an id, and Redis confirmed it. One without an answer proves nothing.
    pub(crate) fn release(&mut self, id: &str, began: SystemTime, confirmed: Option<SystemTime>) {
        if let (Some(life), Some(to)) = (self.lives.get_mut(id), confirmed) {
            life.releases.push(Span { from: began, to });
        }
    }

    /// Redis lost everything.
    pub(crate) fn wipe(&mut self, time: Span) {
        self.wipes.push(time);
    }

    /// The webhooks without their event, if the last fault ended then.
    pub(crate) fn violations(&self, mode: WhilePending, faults_ended: SystemTime) -> Vec<Violation> {
        let mut violations = Vec::new();
        for (id, life) in &self.lives {
            for webhook in &life.webhooks {
                if let Some(what) = life.judge(*webhook, mode, &self.wipes, due(*webhook, Some(faults_ended))) {
                    let before = life.before(*webhook);
                    let release = before.and_then(|event| life.released(event, *webhook, &self.wipes));
                    violations.push(Violation { id: id.clone(), webhook: *webhook, what, before, release });
                }
            }
        }
        violations.sort_by_key(|violation| violation.webhook.from);
        violations
    }

    /// Drops what is judged: the verdict stays the same.
    pub(crate) fn forget(&mut self, mode: WhilePending, faults_ended: Option<SystemTime>, now: SystemTime) {
        let Self { lives, wipes } = self;
        lives.retain(|_, life| !life.forget(mode, wipes, faults_ended, now));
    }

    /// What is known of an id, for a person.
    pub(crate) fn story(&self, id: &str) -> String {
        let Some(life) = self.lives.get(id) else { return format!("{id}: what it had is judged and forgotten") };
        let event =
            life.events.last().map_or_else(|| "no event".to_owned(), |stored| format!("last event {}", at(*stored)));
        let release =
            life.releases.last().map_or_else(|| "no release".to_owned(), |release| format!("last release {release}"));
        format!("{id}: {event}, {release}")
    }
}

fn at(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string().split_off("2026-01-01T".len())
}

impl fmt::Display for Span {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} to {}", at(self.from), at(self.to))
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} accepted {}: ", self.id, self.webhook)?;
        match self.what {
            What::Swallowed => out.write_str("no event after it")?,
            What::Late(late) => write!(out, "its event came {late:.1?} after the answer")?,
        }
        match (self.before, self.release) {
            (Some(event), Some(release)) => write!(out, "; event before it {}, released {release}", at(event)),
            (Some(event), None) => write!(out, "; event before it {}", at(event)),
            (None, _) => out.write_str("; never an event before it"),
        }
    }
}
