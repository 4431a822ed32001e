//! One id's story: what Redis, the streams, the consumers and the dead letters know of it.
//!
//! What nobody keeps is said to be no longer known: who released an id, and how often an event was delivered.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::FutureExt;
use serde::Serialize;

use crate::{
    admin::pending_ids::Why,
    dead_letters::{DeadLetterStore, KeptLetter},
    event::Token,
    life::{Answer, JournalEntry, Known, LifeStore},
    publisher::{
        consumers::{ConsumerInfo, Consumers},
        history::{History, HistoryError, Start},
        servers::Servers,
    },
    route::Route,
};

/// Most events of one id that are told.
const EVENTS: usize = 100;
/// Newest dead letters that are looked through.
const LETTERS: usize = 1_000;
/// Reason of a letter about an event that a consumer gave up.
const GAVE_UP: &str = "gave_up";
/// Longest time of a request to the admin address.
const AT_ADMIN: Duration = Duration::from_secs(20);
/// Clocks of replicas and NATS may differ by so much.
const SKEW: Duration = Duration::from_secs(300);

/// What is known of an id on one route.
#[derive(Debug, Clone, Serialize, schemars::JsonSchema)]
pub struct Story {
    /// The route.
    pub route: String,
    /// The id.
    pub entity_id: String,
    /// Whether it is pending.
    pub pending: bool,
    /// When it was first claimed; unknown without a journal, or after it was released.
    pub first_claimed: Option<String>,
    /// The newest claim.
    pub token: Option<String>,
    /// NATS has not acknowledged the event of that claim.
    pub in_flight: bool,
    /// Sequence of the event of the newest claim, as the journal says.
    pub sequence: Option<u64>,
    /// How often it was published again without a webhook.
    pub redelivered: u32,
    /// When a webhook marked it, to be republished.
    pub marked: Option<String>,
    /// Its events in the streams, oldest first.
    pub events: Vec<StoredEvent>,
    /// From when on the streams were read; `None`: from their first message.
    pub events_since: Option<String>,
    /// What the consumers of the route did with the newest event.
    pub consumers: Vec<ConsumerStory>,
    /// Its dead letters.
    pub dead_letters: Vec<LetterOf>,
    /// What could not be looked at, and why.
    pub not_seen: Vec<String>,
    #[serde(skip)]
    journal: Option<JournalEntry>,
}

/// An event in a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct StoredEvent {
    /// The stream.
    pub stream: String,
    /// Its sequence there.
    pub sequence: u64,
    /// When it was stored.
    pub stored: String,
    /// Its claim.
    pub token: String,
    /// Its number, if it is a redelivery.
    pub redelivery: Option<u32>,
}

/// What a consumer did with an event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct ConsumerStory {
    /// The consumer.
    pub consumer: String,
    /// What it did.
    pub state: ConsumerState,
    /// Sequence of the event that this is about.
    pub sequence: Option<u64>,
}

/// How far a consumer is with an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ConsumerState {
    /// It acknowledged the event.
    Acknowledged,
    /// It terminated the event, or ran out of deliveries.
    GaveUp,
    /// It has not got the event yet.
    Waiting,
    /// It got the event. Whether it has acknowledged it, the server does not say while older ones are open.
    Delivered,
    /// It has nothing of the event left. Whether it acknowledged the event is no longer known.
    NothingLeft,
    /// No event is known.
    NoEvent,
    /// There is no such consumer.
    Missing,
}

/// A dead letter that names the id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct LetterOf {
    /// Its name.
    pub entry: String,
    /// When it was written.
    pub time: String,
    /// Why.
    pub reason: String,
    /// Who gave the event up, if that is the reason.
    pub consumer: Option<String>,
    /// After how many deliveries.
    pub deliveries: Option<u64>,
    /// The event.
    pub sequence: Option<u64>,
}

impl LetterOf {
    /// A letter of a route that names an id.
    fn new(kept: KeptLetter, id: &str) -> Option<Self> {
        let raw: serde_json::Value = serde_json::from_slice(&kept.letter.raw).ok()?;
        if raw["entity_id"] != id && raw["id"] != id {
            return None;
        }
        // Of another letter the content is a sender's, and is not shown.
        let gave_up = kept.letter.reason == GAVE_UP;
        let number = |member: &str| raw[member].as_u64().filter(|_| gave_up);
        Some(Self {
            consumer: raw["consumer"].as_str().filter(|_| gave_up).map(str::to_owned),
            deliveries: number("deliveries"),
            sequence: number("sequence"),
            entry: kept.entry,
            time: kept.letter.time,
            reason: kept.letter.reason,
        })
    }
}

/// Where stories are told from.
#[derive(Clone)]
pub struct StoryTeller {
    pub(super) servers: Servers,
    pub(super) life: Arc<dyn LifeStore>,
    pub(super) dead_letters: Arc<dyn DeadLetterStore>,
}

impl StoryTeller {
    /// For the admin address.
    pub(super) fn why(self) -> Why {
        Arc::new(move |route, id| {
            let teller = self.clone();
            async move {
                let stories = teller.tell(&[route], &id, None, AT_ADMIN).await;
                serde_json::to_value(stories.first()).expect("text and numbers always serialize")
            }
            .boxed()
        })
    }

    /// The story of an id on each of these routes. The streams are read from `since`; without it from the first claim, if
    /// the id is pending on all of them, else from their first message. At most for `limit`.
    pub async fn tell(
        &self,
        routes: &[Arc<Route>],
        id: &str,
        since: Option<SystemTime>,
        limit: Duration,
    ) -> Vec<Story> {
        let mut stories = Vec::new();
        for route in routes {
            stories.push(self.in_redis(route, id).await);
        }
        let claims: Option<Vec<_>> =
            stories.iter().map(|story| story.journal.as_ref().map(|entry| entry.first_claimed)).collect();
        let first_claim = claims.and_then(|claims| claims.into_iter().min()).and_then(|time| time.checked_sub(SKEW));
        let since = since.or(first_claim);
        let reading = self.read_streams(routes, id, since, &mut stories);
        let problem = match tokio::time::timeout(limit, reading).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_elapsed) => Some(format!("not read to their end within {limit:?}; the command `why` takes its time")),
        };
        for story in &mut stories {
            story.events_since = since.map(millis);
            story.not_seen.extend(problem.as_ref().map(|problem| format!("the streams: {problem}")));
        }
        self.ask_consumers(routes, &mut stories, limit).await;
        stories
    }

    /// Pending SET, outbox, journal, marks and dead letters.
    async fn in_redis(&self, route: &Arc<Route>, id: &str) -> Story {
        let mut not_seen = Vec::new();
        let known = self.life.known(route, &[id.to_owned()]).await.map(|known| known.into_iter().next());
        let known = known.unwrap_or_else(|error| {
            not_seen.push(format!("Redis: {error}"));
            None
        });
        let Known { pending, in_flight, journal, marked, .. } =
            known.unwrap_or(Known { id: id.to_owned(), pending: false, in_flight: None, journal: None, marked: None });
        // An entry of an id that was removed is a leftover.
        let journal = journal.filter(|_| pending).and_then(|text| JournalEntry::parse(&text));
        let dead_letters = self.letters_of(route, id).await.unwrap_or_else(|problem| {
            not_seen.push(format!("the dead letters: {problem}"));
            Vec::new()
        });
        let token = in_flight.clone().or_else(|| journal.as_ref().map(|entry| entry.token.to_string()));
        Story {
            route: route.name().to_owned(),
            entity_id: id.to_owned(),
            pending,
            first_claimed: journal.as_ref().map(|entry| millis(entry.first_claimed)),
            token,
            in_flight: in_flight.is_some(),
            sequence: journal.as_ref().and_then(|entry| entry.sequence),
            redelivered: journal.as_ref().map_or(0, |entry| entry.redelivered),
            marked: marked.map(|time| millis(SystemTime::UNIX_EPOCH + Duration::from_millis(time))),
            events: Vec::new(),
            events_since: None,
            consumers: Vec::new(),
            dead_letters,
            not_seen,
            journal,
        }
    }

    async fn letters_of(&self, route: &Route, id: &str) -> Result<Vec<LetterOf>, crate::delivery::StoreError> {
        let letters = self.dead_letters.letters(LETTERS, None).await?;
        let of_route = letters.into_iter().filter(|kept| kept.letter.route == route.name());
        let letters = of_route.filter_map(|kept| LetterOf::new(kept, id));
        Ok(letters.collect())
    }

    /// One pass over all streams for all routes.
    async fn read_streams(
        &self,
        routes: &[Arc<Route>],
        id: &str,
        since: Option<SystemTime>,
        stories: &mut [Story],
    ) -> Result<(), HistoryError> {
        let history = History::connect(&self.servers).await?;
        let mut subjects: Vec<_> = routes.iter().map(|route| route.subject().to_owned()).collect();
        subjects.sort();
        subjects.dedup();
        let mut events = history.events(&subjects, since.map_or(Start::First, Start::Time)).await?;
        while let Some(event) = events.next().await? {
            if event.id != id {
                continue;
            }
            // Routes can share a subject; the header says whose it is.
            let place = routes.iter().position(|route| {
                event.subject() == route.subject() && event.route().is_none_or(|name| name == route.name())
            });
            let Some(story) = place.map(|place| &mut stories[place]) else { continue };
            if story.events.len() == EVENTS {
                story.events.remove(0);
            }
            story.events.push(StoredEvent {
                stream: event.stream.to_string(),
                sequence: event.sequence,
                stored: millis(event.time),
                token: event.token.to_string(),
                redelivery: event.redelivery,
            });
        }
        Ok(())
    }

    async fn ask_consumers(&self, routes: &[Arc<Route>], stories: &mut [Story], limit: Duration) {
        if routes.iter().all(|route| route.life().consumers.is_empty()) {
            return;
        }
        let asking = async {
            let consumers = Consumers::connect(&self.servers).await.map_err(|error| error.to_string())?;
            let mut found = Vec::new();
            for route in routes {
                found.push(consumers.of(route).await.map_err(|error| error.to_string())?);
            }
            Ok::<_, String>(found)
        };
        let found = tokio::time::timeout(limit, asking).await.unwrap_or_else(|_elapsed| Err("no answer".to_owned()));
        match found {
            Ok(found) => {
                for ((route, infos), story) in routes.iter().zip(found).zip(stories) {
                    let named = route.life().consumers.iter().zip(infos);
                    story.consumers = named.map(|(name, info)| story.of_consumer(name, info.as_ref())).collect();
                }
            }
            Err(problem) => {
                for story in stories {
                    story.not_seen.push(format!("the consumers: {problem}"));
                }
            }
        }
    }
}

impl Story {
    /// The event of the newest claim.
    fn newest_sequence(&self) -> Option<u64> {
        let of_claim = self.events.iter().rev().find(|event| Some(&event.token) == self.token.as_ref());
        let newest = of_claim.or_else(|| self.events.last().filter(|_| self.token.is_none()));
        newest.map(|event| event.sequence).or(self.sequence)
    }

    fn of_consumer(&self, name: &str, info: Option<&ConsumerInfo>) -> ConsumerStory {
        let sequence = self.newest_sequence();
        let answer = self.journal.as_ref().and_then(|entry| entry.answer_of(name));
        let state = match (answer, info, sequence) {
            (Some(Answer::Acknowledged), ..) => ConsumerState::Acknowledged,
            (Some(Answer::GaveUp), ..) => ConsumerState::GaveUp,
            (None, None, _) => ConsumerState::Missing,
            (None, Some(_), None) => ConsumerState::NoEvent,
            (None, Some(info), Some(sequence)) if sequence > info.delivered() => ConsumerState::Waiting,
            (None, Some(info), Some(sequence)) if sequence <= info.floor() => ConsumerState::NothingLeft,
            (None, Some(_), Some(_)) => ConsumerState::Delivered,
        };
        ConsumerStory { consumer: name.to_owned(), state, sequence }
    }

    /// In words, a line each.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!("{} {}", self.route, self.entity_id.escape_debug())];
        let mut say = |what: &str, text: String| lines.push(format!("  {what:<13} {text}"));
        let unread = !self.not_seen.is_empty();
        match (self.pending, &self.first_claimed) {
            (true, Some(since)) => say("pending", format!("since {since}")),
            (true, None) => say("pending", "since when is not known: there is no journal entry".to_owned()),
            (false, _) if self.events.is_empty() && self.dead_letters.is_empty() && !unread => {
                say("pending", "no; if there ever was a webhook for it, that is no longer known".to_owned());
            }
            (false, _) => say("pending", "no; if it was released, by what is no longer known".to_owned()),
        }
        if let Some(token) = &self.token {
            let claimed = token.parse::<Token>().map(|token| millis(token.time())).unwrap_or_default();
            let state = if self.in_flight { "not acknowledged by NATS, in the outbox" } else { "acknowledged by NATS" };
            let sequence = self.sequence.map(|sequence| format!(" as sequence {sequence}")).unwrap_or_default();
            say("claim", format!("{token} of {claimed}: {state}{sequence}"));
        }
        if self.redelivered > 0 {
            say("redelivered", format!("{} times without a webhook", self.redelivered));
        }
        if let Some(marked) = &self.marked {
            say("marked", format!("{marked}: a webhook came meanwhile; it is republished after this event"));
        }
        for event in &self.events {
            let StoredEvent { stream, sequence, stored, token, redelivery } = event;
            let redelivery = redelivery.map(|number| format!(", redelivery {number}")).unwrap_or_default();
            say("event", format!("#{sequence} in {stream}, stored {stored}, token {token}{redelivery}"));
        }
        if self.events.is_empty() && !unread {
            let since = self.events_since.as_ref().map(|since| format!(" since {since}")).unwrap_or_default();
            say("event", format!("none in the streams{since}; older ones are no longer known"));
        }
        for consumer in &self.consumers {
            let of = consumer.sequence.map(|sequence| format!("#{sequence}")).unwrap_or_default();
            let text = match consumer.state {
                ConsumerState::Acknowledged => format!("has acknowledged {of}"),
                ConsumerState::GaveUp => format!("gave {of} up"),
                ConsumerState::Waiting => format!("has not got {of} yet"),
                ConsumerState::Delivered => {
                    format!("got {of}; whether it acknowledged it shows once all before it is acknowledged")
                }
                ConsumerState::NothingLeft => {
                    format!("has nothing of {of} left; how it ended, and after how many deliveries, is no longer known")
                }
                ConsumerState::NoEvent => "has no event of it that is known".to_owned(),
                ConsumerState::Missing => "is not there: hookgate consumers add makes it".to_owned(),
            };
            say("consumer", format!("{} {text}", consumer.consumer));
        }
        for letter in &self.dead_letters {
            let LetterOf { entry, time, reason, consumer, deliveries, sequence } = letter;
            let consumer = consumer.as_ref().map(|consumer| format!(" by {consumer}")).unwrap_or_default();
            let of = sequence.map(|sequence| format!(" #{sequence}")).unwrap_or_default();
            let after = deliveries.map(|number| format!(" after {number} deliveries")).unwrap_or_default();
            say("dead letter", format!("{entry} of {time}: {reason}{consumer}{of}{after}"));
        }
        for problem in &self.not_seen {
            say("not seen", problem.clone());
        }
        lines
    }

    /// Whether anything is known of it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.pending
            && self.token.is_none()
            && self.marked.is_none()
            && self.events.is_empty()
            && self.dead_letters.is_empty()
    }
}

fn millis(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}
