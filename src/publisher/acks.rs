//! Reports of consumers: samples of acknowledgements, and advisories of what was given up. They are read from a stream
//! that keeps them, by a durable consumer that the replicas share.
//!
//! The server publishes each of them at most once (docs/consumers.md says when none comes). The stream is one that exists and
//! covers them, such as an archive of advisories, or one that is created here. All of it goes over a connection of its own: what
//! the server denies it says nothing of the events.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use async_nats::{
    Client,
    jetstream::{
        self, AckKind, ErrorCode, Message,
        consumer::{AckPolicy, DeliverPolicy, pull},
        stream::{Config, DiscardPolicy, RetentionPolicy, StorageType},
    },
};
use futures_util::{
    FutureExt, StreamExt,
    future::{BoxFuture, join_all},
    stream::{BoxStream, SelectAll, select_all},
};
use hashbrown::HashMap;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::{Mutex as AsyncMutex, Notify, watch};
use tracing::{info, warn};

use super::{
    MANAGED,
    api::Api,
    history::{self, History},
    servers::Servers,
    stream,
    stream_info::StreamInfo,
};
use crate::{
    life::{AckReport, Answer, AtSequence, Consumers, ConsumersError, Progress, ReportBatch, ReportedUntil},
    readiness::{Contact, Reporter},
    route::{Release, Route, RouteTable},
};

/// What a consumer acknowledged.
const ACK: &str = "$JS.EVENT.METRIC.CONSUMER.ACK";
/// What it terminated.
const TERMINATED: &str = "$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED";
/// What it ran out of deliveries for.
const MAX_DELIVERIES: &str = "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES";
/// All of them.
const EVERYTHING: &str = "$JS.EVENT.>";
/// Most reports in one batch.
const TOGETHER: usize = 500;
/// How long a batch may take to be carried out before NATS redelivers it, perhaps to another replica.
const ACK_WAIT: Duration = Duration::from_secs(60);
/// After what time NATS redelivers a batch that was put off.
const PUT_OFF: Duration = Duration::from_secs(5);
/// How long the stream that is made here keeps reports that nobody read.
const MAX_AGE: Duration = Duration::from_secs(24 * 3600);
/// Pause between two attempts to begin reading.
const PAUSE: Duration = Duration::from_secs(1);
/// Shortest time between two questions which streams hold the events; asked when a sample names another stream.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// Interval of checking that the streams which are read still cover the reports: events may go into another stream now.
const LOOK_AGAIN: Duration = Duration::from_secs(20);

/// How this installation reads them.
#[derive(Debug, Clone)]
pub struct AcksSettings {
    /// Names the durable consumer.
    pub instance: String,
    /// Name of the stream that is created where no other covers them.
    pub stream: String,
}

/// Reads the reports of consumers.
pub struct Acks {
    client: Client,
    history: History,
    /// What the server denied since it was asked anew.
    denial: Arc<watch::Sender<Option<String>>>,
    settings: AcksSettings,
    routes: Mutex<Vec<Arc<Route>>>,
    /// The routes are others now.
    changed: Notify,
    reader: AsyncMutex<Option<Reader>>,
    /// When it was looked whether that covers everything, since the routes changed.
    looked: Mutex<Option<Instant>>,
    /// Streams that are read.
    streams: Mutex<Vec<String>>,
    /// Streams that hold events of the routes.
    events: AsyncMutex<BTreeSet<String>>,
    /// When that was asked last, since the routes changed.
    asked: Mutex<Option<Instant>>,
    /// The messages of batches that are neither carried out nor put off, by the batch's number.
    open_batches: Mutex<HashMap<u64, Vec<Message>>>,
    next_number: AtomicU64,
    report: Reporter,
}

type Reader = futures_util::stream::ReadyChunks<SelectAll<BoxStream<'static, Result<Message, String>>>>;

impl Acks {
    /// Starts to connect. Nothing is read before [`Consumers::reports`] is called.
    ///
    /// # Errors
    /// If the client can't be set up at all.
    pub async fn open(
        servers: &Servers,
        settings: AcksSettings,
        table: &RouteTable,
    ) -> Result<Self, async_nats::ConnectError> {
        let denial = Arc::new(watch::Sender::new(None));
        let (denied, noted) = (denial.subscribe(), Arc::clone(&denial));
        let options = servers.options("hookgate acks").retry_on_initial_connect().event_callback(move |event| {
            if let async_nats::Event::ServerError(async_nats::ServerError::Other(text)) = event
                && super::diagnosis::is_denial(&text)
            {
                noted.send_replace(Some(text));
            }
            std::future::ready(())
        });
        let client = options.connect(servers.addresses.as_slice()).await?;
        Ok(Self {
            history: History::over(client.clone(), denied),
            client,
            denial,
            settings,
            routes: Mutex::new(released_on_ack(table)),
            changed: Notify::new(),
            reader: AsyncMutex::new(None),
            looked: Mutex::new(Some(Instant::now())),
            streams: Mutex::default(),
            events: AsyncMutex::default(),
            asked: Mutex::default(),
            open_batches: Mutex::default(),
            next_number: AtomicU64::new(0),
            report: Reporter::new("acks"),
        })
    }

    /// Reads the reports of these routes' consumers from now on.
    pub fn serve(&self, table: &RouteTable) {
        *locked(&self.routes) = released_on_ack(table);
        *locked(&self.asked) = None;
        *locked(&self.looked) = None;
        self.changed.notify_one();
    }

    fn routes(&self) -> Vec<Arc<Route>> {
        locked(&self.routes).clone()
    }

    /// Whether they can be read.
    #[must_use]
    pub fn contact(&self) -> watch::Receiver<Contact> {
        self.report.subscribe()
    }

    fn api(&self) -> &Api {
        self.history.api()
    }

    /// Replies to all messages of a batch. Returns why one of the replies could not be sent.
    async fn reply(&self, number: u64, reply: AckKind) -> Option<async_nats::Error> {
        let messages = locked(&self.open_batches).remove(&number).unwrap_or_default();
        let replies = messages.iter().map(|message| message.ack_with(reply));
        join_all(replies).await.into_iter().find_map(Result::err)
    }

    /// Whether events of the routes are in this stream. A mirror or an archive may have copies of them, and a consumer of the same
    /// name; what those answer says nothing here.
    async fn is_of_events(&self, stream: &str) -> Result<bool, ConsumersError> {
        let mut streams = self.events.lock().await;
        let is_due = |asked: Option<Instant>| asked.is_none_or(|asked| asked.elapsed() >= ASK_AGAIN);
        if !streams.contains(stream) && is_due(*locked(&self.asked)) {
            *locked(&self.asked) = Some(Instant::now());
            for route in &self.routes() {
                let names = stream::names_of_covering(self.api(), route.subject()).await;
                streams.extend(names.map_err(|error| {
                    *locked(&self.asked) = None;
                    ConsumersError(error.to_string())
                })?);
            }
        }
        Ok(streams.contains(stream))
    }

    /// Whether the streams that are read cover all reports; where they don't, reading has to begin again.
    async fn is_covered(&self) -> bool {
        match covering(self.api(), &self.routes(), &self.settings).await {
            Ok(covering) => {
                self.report.set(Contact::Up);
                let read = locked(&self.streams);
                covering.keys().eq(read.iter())
            }
            Err(contact) => {
                if matches!(contact, Contact::Refused(_)) {
                    self.report.set(contact);
                }
                true
            }
        }
    }

    /// Finds or makes the streams, and begins to read.
    async fn begin(&self) -> Result<Reader, Contact> {
        self.denial.send_replace(None);
        let covering = covering(self.api(), &self.routes(), &self.settings).await?;
        let mut sources = Vec::new();
        for (stream, info) in &covering {
            sources.push(self.source(stream, info).await?);
        }
        *locked(&self.streams) = covering.into_keys().collect();
        Ok(select_all(sources).ready_chunks(TOGETHER))
    }

    async fn source(
        &self,
        stream: &str,
        info: &StreamInfo,
    ) -> Result<BoxStream<'static, Result<Message, String>>, Contact> {
        let others = info
            .subjects()
            .iter()
            .any(|subject| ![ACK, TERMINATED, MAX_DELIVERIES].iter().any(|ours| subject.starts_with(ours)));
        let config = pull::Config {
            durable_name: Some(self.settings.instance.clone()),
            description: Some(MANAGED.to_owned()),
            deliver_policy: DeliverPolicy::All,
            ack_policy: AckPolicy::Explicit,
            ack_wait: ACK_WAIT,
            max_deliver: -1,
            max_ack_pending: 20_000,
            filter_subject: if others { EVERYTHING.to_owned() } else { String::new() },
            ..pull::Config::default()
        };
        let context = jetstream::new(self.client.clone());
        let failed = |what: &str, error: String| {
            Contact::Refused(format!(
                "{what} durable consumer {:?} of stream {stream:?}: {error}",
                self.settings.instance
            ))
        };
        let consumer = context.create_consumer_on_stream(config, stream).await;
        let consumer = consumer.map_err(|error| self.denied_or(failed("create", error.to_string())))?;
        let messages = consumer
            .stream()
            .max_messages_per_batch(TOGETHER)
            .expires(Duration::from_secs(30))
            .heartbeat(Duration::from_secs(5))
            .messages()
            .await
            .map_err(|error| self.denied_or(failed("read", error.to_string())))?;
        Ok(messages.map(|message| message.map_err(|error| error.to_string())).boxed())
    }

    /// What the server denied says more than a time-out.
    fn denied_or(&self, otherwise: Contact) -> Contact {
        match &*self.denial.borrow() {
            Some(denial) => Contact::Refused(format!(
                "{denial}: grant it; docs/permissions.md has all that release = \"ack\" needs"
            )),
            None => otherwise,
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn released_on_ack(table: &RouteTable) -> Vec<Arc<Route>> {
    let on_ack = |route: &&Arc<Route>| route.life().release == Release::Ack;
    table.routes().iter().filter(on_ack).cloned().collect()
}

/// The streams that keep the reports of the routes' consumers, by their names. One that is missing is made.
async fn covering(
    api: &Api,
    routes: &[Arc<Route>],
    settings: &AcksSettings,
) -> Result<BTreeMap<String, StreamInfo>, Contact> {
    let unreachable = |error: &dyn std::fmt::Display| Contact::Unreachable(error.to_string());
    let (mut found, mut missing, mut replicas) = (BTreeSet::new(), BTreeSet::new(), 1);
    let mut seen = BTreeSet::new();
    for route in routes {
        let streams = stream::names_of_covering(api, route.subject()).await.map_err(|error| unreachable(&error))?;
        let events = streams
            .first()
            .ok_or_else(|| Contact::Unreachable(format!("no stream covers subject {:?} yet", route.subject())))?;
        for consumer in &route.life().consumers {
            if !seen.insert((events.clone(), consumer.clone())) {
                continue;
            }
            for kind in [ACK, TERMINATED, MAX_DELIVERIES] {
                let subject = format!("{kind}.{events}.{consumer}");
                let covered = stream::names_of_covering(api, &subject).await.map_err(|error| unreachable(&error))?;
                if covered.is_empty() {
                    missing.insert(format!("{kind}.{events}.*"));
                    if let Some(info) = stream::info_of(api, events).await.map_err(|error| unreachable(&error))? {
                        replicas = replicas.max(usize::try_from(info.number("config.num_replicas")).unwrap_or(1));
                    }
                }
                found.extend(covered);
            }
        }
    }
    if !missing.is_empty() {
        make_stream(api, settings, missing, replicas).await?;
        found.insert(settings.stream.clone());
    }
    let mut covering = BTreeMap::new();
    for name in found {
        if let Some(info) = stream::info_of(api, &name).await.map_err(|error| unreachable(&error))? {
            covering.insert(name, info);
        }
    }
    Ok(covering)
}

/// Makes the stream, or adds subjects to it.
async fn make_stream(
    api: &Api,
    settings: &AcksSettings,
    subjects: BTreeSet<String>,
    replicas: usize,
) -> Result<(), Contact> {
    let name = &settings.stream;
    let refused = |what: &str, error: &super::api::ApiError| {
        let text = format!("{what} stream {name:?} for what consumers answer (nats.acks_stream): {error}");
        if error.is_refusal() { Contact::Refused(text) } else { Contact::Unreachable(text) }
    };
    let existing = stream::info_of(api, name).await.map_err(|error| Contact::Unreachable(error.to_string()))?;
    if let Some(info) = existing {
        if info.text("config.description") != MANAGED {
            return Err(Contact::Refused(format!(
                "stream {name:?} exists, is not hookgate's own and does not cover {}; add these subjects to it, or set nats.acks_stream to another name",
                subjects.into_iter().collect::<Vec<_>>().join(", ")
            )));
        }
        let mut all: BTreeSet<String> = info.subjects().into_iter().collect();
        all.extend(subjects);
        let mut config = info.config();
        config.insert("subjects".to_owned(), json!(all));
        let updated = api.ask(format!("STREAM.UPDATE.{name}"), &config).await;
        return updated.map(|_| ()).map_err(|error| refused("add subjects to", &error));
    }
    let config = Config {
        name: name.clone(),
        description: Some(MANAGED.to_owned()),
        subjects: subjects.into_iter().collect(),
        storage: StorageType::File,
        retention: RetentionPolicy::Limits,
        discard: DiscardPolicy::Old,
        num_replicas: replicas,
        max_age: MAX_AGE,
        ..Config::default()
    };
    match api.ask(format!("STREAM.CREATE.{name}"), &config).await {
        Ok(_) => {
            info!(stream = %name, subjects = config.subjects.join(","), "created the stream for what consumers answer");
            Ok(())
        }
        // Another replica was faster.
        Err(error) if error.is(ErrorCode::STREAM_NAME_EXIST) => Ok(()),
        Err(error) => Err(refused("create", &error)),
    }
}

/// A sample or an advisory.
#[derive(Deserialize)]
struct Said {
    stream: String,
    consumer: String,
    stream_seq: u64,
    #[serde(default)]
    deliveries: u64,
    #[serde(default)]
    timestamp: Option<String>,
}

/// The report in a message of the stream; `None` if it is about something else. The reason that a consumer gives may hold
/// personal data, and is not even read.
fn read(message: &Message) -> Option<AckReport> {
    let answer = if message.subject.starts_with(ACK) {
        Answer::Acknowledged
    } else if message.subject.starts_with(TERMINATED) || message.subject.starts_with(MAX_DELIVERIES) {
        Answer::GaveUp
    } else {
        return None;
    };
    let Said { stream, consumer, stream_seq, deliveries, timestamp } = serde_json::from_slice(&message.payload).ok()?;
    let time = timestamp.and_then(|time| humantime::parse_rfc3339_weak(&time).ok());
    Some(AckReport { stream, consumer, sequence: stream_seq, answer, deliveries, time })
}

impl Consumers for Acks {
    fn reports(&self) -> BoxFuture<'_, ReportBatch> {
        async move {
            let mut reader = self.reader.lock().await;
            loop {
                let looked = *locked(&self.looked);
                if reader.is_some() && looked.is_none_or(|looked| looked.elapsed() >= LOOK_AGAIN) {
                    *locked(&self.looked) = Some(Instant::now());
                    if !self.is_covered().await {
                        *reader = None;
                    }
                }
                if reader.is_none() {
                    match self.begin().await {
                        Ok(new) => {
                            *reader = Some(new);
                            self.report.set(Contact::Up);
                        }
                        Err(contact) => {
                            self.report.set(contact);
                            tokio::time::sleep(PAUSE).await;
                            continue;
                        }
                    }
                }
                let next = match reader.as_mut() {
                    Some(reader) => tokio::select! {
                        next = tokio::time::timeout(LOOK_AGAIN, reader.next()) => match next {
                            Ok(next) => next,
                            Err(_elapsed) => continue,
                        },
                        () = self.changed.notified() => continue,
                    },
                    None => None,
                };
                let (mut messages, mut problem) = (Vec::new(), next.is_none().then(|| "it ended".to_owned()));
                for message in next.into_iter().flatten() {
                    match message {
                        Ok(message) => messages.push(message),
                        Err(error) => problem = Some(error),
                    }
                }
                if let Some(problem) = problem {
                    // A deleted stream or consumer, or a lost connection: begin again.
                    warn!(%problem, "what consumers answer can't be read for the moment; reading begins again");
                    *reader = None;
                }
                if !messages.is_empty() {
                    let reports = messages.iter().filter_map(read).collect();
                    let number = self.next_number.fetch_add(1, Ordering::Relaxed);
                    locked(&self.open_batches).insert(number, messages);
                    return ReportBatch { reports, number };
                }
                if reader.is_none() {
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        .boxed()
    }

    fn carried_out(&self, number: u64) -> BoxFuture<'_, ()> {
        async move {
            if let Some(error) = self.reply(number, AckKind::Ack).await {
                warn!(%error, "what consumers answered was carried out, and will be read again");
            }
        }
        .boxed()
    }

    fn put_off(&self, number: u64) -> BoxFuture<'_, ()> {
        // If the reply gets lost, NATS redelivers the batch after `ACK_WAIT`.
        self.reply(number, AckKind::Nak(Some(PUT_OFF))).map(drop).boxed()
    }

    fn at<'a>(&'a self, stream: &'a str, sequence: u64) -> BoxFuture<'a, Result<AtSequence, ConsumersError>> {
        async move {
            if !self.is_of_events(stream).await? {
                return Ok(AtSequence::Foreign);
            }
            let found = self.history.message(stream, sequence).await;
            let found = found.map_err(|error| {
                self.denial.send_replace(None);
                ConsumersError(error.to_string())
            })?;
            Ok(match found {
                history::AtSequence::Event(event) => match event.route() {
                    Some(route) => AtSequence::Event {
                        route: route.to_owned(),
                        id: event.id.clone(),
                        token: event.token,
                        stored: event.time,
                    },
                    None => AtSequence::Foreign,
                },
                history::AtSequence::Foreign => AtSequence::Foreign,
                history::AtSequence::Gone => AtSequence::Gone,
            })
        }
        .boxed()
    }

    fn progress<'a>(&'a self, route: &'a Route) -> BoxFuture<'a, Result<Progress, ConsumersError>> {
        async move {
            let failed = |error: &dyn std::fmt::Display| ConsumersError(error.to_string());
            let names = stream::names_of_covering(self.api(), route.subject()).await.map_err(|error| failed(&error))?;
            let name =
                names.first().ok_or_else(|| ConsumersError(format!("no stream covers {:?}", route.subject())))?;
            let info = stream::info_of(self.api(), name).await.map_err(|error| failed(&error))?;
            // Before the consumers: what they have nothing left of is at most what the stream had then.
            let info = info.ok_or_else(|| ConsumersError(format!("there is no stream {name:?}")))?;
            let number = |path: &str| u64::try_from(info.number(path)).unwrap_or_default();
            let last = number("state.last_seq");
            let mut floors = Vec::new();
            for consumer in &route.life().consumers {
                match self.api().ask(format!("CONSUMER.INFO.{name}.{consumer}"), &json!({})).await {
                    Ok(answer) => floors.push((consumer.clone(), floor(&answer, last))),
                    Err(error) if error.is(ErrorCode::CONSUMER_NOT_FOUND) => {}
                    Err(error) => return Err(failed(&error)),
                }
            }
            Ok(Progress {
                stream: name.clone(),
                drops_answered: matches!(info.text("config.retention"), "workqueue" | "interest"),
                created: humantime::parse_rfc3339_weak(info.text("created")).unwrap_or(SystemTime::UNIX_EPOCH),
                first: number("state.first_seq"),
                last,
                floors,
            })
        }
        .boxed()
    }

    fn reported_until(&self) -> BoxFuture<'_, Result<ReportedUntil, ConsumersError>> {
        async move {
            let streams = locked(&self.streams).clone();
            if streams.is_empty() {
                return Err(ConsumersError("what consumers answer is not read yet".to_owned()));
            }
            let mut until = Vec::new();
            for name in streams {
                let info =
                    stream::info_of(self.api(), &name).await.map_err(|error| ConsumersError(error.to_string()))?;
                let info = info.ok_or_else(|| ConsumersError(format!("there is no stream {name:?}")))?;
                until.push((name, u64::try_from(info.number("state.last_seq")).unwrap_or_default()));
            }
            Ok(ReportedUntil(until))
        }
        .boxed()
    }

    fn is_carried_out<'a>(&'a self, until: &'a ReportedUntil) -> BoxFuture<'a, Result<bool, ConsumersError>> {
        async move {
            for (stream, sequence) in &until.0 {
                let request = format!("CONSUMER.INFO.{stream}.{}", self.settings.instance);
                let answer = self.api().ask(request, &json!({})).await;
                let answer = answer.map_err(|error| ConsumersError(error.to_string()))?;
                if floor(&answer, *sequence) < *sequence {
                    return Ok(false);
                }
            }
            Ok(true)
        }
        .boxed()
    }
}

/// Up to which sequence a consumer has nothing left; `last` if it has nothing at all. (After a restart the server's floor can go
/// back, and it does not pass what the consumer does not want.)
fn floor(info: &Value, last: u64) -> u64 {
    let number = |path: &str| info.pointer(path).and_then(Value::as_u64);
    match (number("/num_pending"), number("/num_ack_pending")) {
        (Some(0), Some(0)) => last.max(number("/ack_floor/stream_seq").unwrap_or_default()),
        _ => number("/ack_floor/stream_seq").unwrap_or_default(),
    }
}
