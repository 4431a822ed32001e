//! What a stream holds: one bounded pass over the events of some subjects, and the message at a sequence.
//!
//! A pass ends at the last message that the stream had when it began. It reads with a consumer of its own, which
//! acknowledges nothing and which the server forgets. Whatever interrupts it (a lost connection, a restarted server, a
//! consumer that is gone) costs a new consumer behind the last message that came. That there is nothing more only the
//! count of a new consumer says: the server's running counts drift.

mod pull;
mod stored;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::{Duration, SystemTime},
};

use async_nats::{
    Client,
    jetstream::{ErrorCode, message::StreamMessage, stream::RawMessage},
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{sync::watch, time::Instant};

pub use self::stored::{AtSequence, Stored};
use self::{
    pull::{PATIENCE, Pulled, Reader},
    stored::Message,
};
use super::{
    api::{Api, ApiError},
    servers::{ConnectFailure, Servers},
    stream::{self, StreamError},
    stream_info::{StreamInfo, common_pattern, matches},
};

/// A pass that got nothing for so long gives up.
const STALL: Duration = Duration::from_secs(60);
/// Between two attempts to go on.
const PAUSE: Duration = Duration::from_millis(250);
/// How much further back each look for the last n messages goes.
const WIDEN: u64 = 4;

/// Where a pass begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// At the first message of the stream.
    First,
    /// At a sequence.
    Sequence(u64),
    /// At the first message that was stored at that time or later.
    Time(SystemTime),
    /// So many events before the end. The pass holds them in memory.
    Last(usize),
}

/// Why a stream can't be read.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectFailure),
    /// A permission is missing.
    #[error("{0}: grant it; docs/permissions.md has all that a command needs")]
    Denied(String),
    /// Nothing is stored of a subject.
    #[error("no stream covers subject {0:?}, so nothing is stored of it; `hookgate doctor` says what is")]
    NoStream(String),
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
    /// It is another stream now.
    #[error("stream {0:?} was deleted, made again or restored while it was read; start again")]
    Replaced(String),
    /// Nothing comes.
    #[error(
        "read stream {stream:?}: nothing came for {STALL:?} behind sequence {behind} (the pass ends at {end}): {problem}"
    )]
    Stalled {
        /// The stream.
        stream: String,
        /// The last sequence that was read.
        behind: u64,
        /// Where the pass ends.
        end: u64,
        /// What went wrong last.
        problem: String,
    },
}

/// A view of the streams of a NATS system.
pub struct History {
    client: Client,
    api: Api,
    denied: watch::Receiver<Option<String>>,
}

impl History {
    /// Connects for a command.
    ///
    /// # Errors
    /// If NATS can't be reached.
    pub async fn connect(servers: &Servers) -> Result<Self, HistoryError> {
        let (client, denied) = servers.connect_once().await?;
        Ok(Self { api: Api::over(client.clone()), client, denied })
    }

    /// Over a connection that is there already; `denied` is what the server denied on it.
    pub(super) fn over(client: Client, denied: watch::Receiver<Option<String>>) -> Self {
        Self { api: Api::over(client.clone()), client, denied }
    }

    /// The API over its connection.
    pub(super) const fn api(&self) -> &Api {
        &self.api
    }

    /// The streams that cover subjects, wildcards allowed, each with those it covers.
    ///
    /// # Errors
    /// If a subject has none, or NATS does not say.
    pub async fn streams(&self, subjects: &[String]) -> Result<BTreeMap<String, Vec<String>>, HistoryError> {
        let mut streams = BTreeMap::<String, Vec<String>>::new();
        for subject in subjects {
            let found = self.allowed(stream::names_of_covering(&self.api, subject)).await?.map_err(of_stream)?;
            if found.is_empty() {
                return Err(HistoryError::NoStream(subject.clone()));
            }
            for stream in found {
                streams.entry(stream).or_default().push(subject.clone());
            }
        }
        Ok(streams)
    }

    /// Begins a pass over the events of some subjects, wildcards allowed, in one stream.
    ///
    /// # Errors
    /// If there is no such stream, or NATS does not let it be read.
    pub async fn pass(&self, stream: &str, subjects: &[String], start: Start) -> Result<Pass<'_>, HistoryError> {
        let info = self.info(stream).await?.ok_or_else(|| HistoryError::NoStream(subjects.join(", ")))?;
        let mut pass = Pass {
            history: self,
            created: info.text("created").to_owned(),
            subjects: subjects.to_vec(),
            filter: common_pattern(subjects.iter().map(String::as_str)),
            bounds: Bounds::of(&info),
            start,
            behind: None,
            source: Source::Unopened,
            opened: false,
            progress: Instant::now(),
            patience: PATIENCE,
            skipped: 0,
            last: VecDeque::new(),
            stream: stream.into(),
        };
        // `WorkQueue` takes no second consumer, and under Interest one more would change what is kept.
        if pass.bounds.drops_acknowledged {
            pass.source = Source::OneByOne;
        }
        if let Start::Last(count) = start {
            pass.keep_last(count).await?;
        }
        Ok(pass)
    }

    /// One pass over all streams that cover some subjects, in the order in which the events were stored.
    ///
    /// # Errors
    /// As [`Self::streams`] and [`Self::pass`].
    pub async fn events(&self, subjects: &[String], start: Start) -> Result<Merged<'_>, HistoryError> {
        let mut passes = Vec::new();
        for (stream, subjects) in self.streams(subjects).await? {
            let mut pass = self.pass(&stream, &subjects, start).await?;
            passes.push((pass.next().await?, pass));
        }
        let mut merged = Merged(passes);
        if let Start::Last(count) = start {
            let held = merged.0.iter().map(|(next, pass)| usize::from(next.is_some()) + pass.last.len()).sum::<usize>();
            for _ in count..held {
                merged.next().await?;
            }
        }
        Ok(merged)
    }

    /// What lies at a sequence of a stream.
    ///
    /// # Errors
    /// If NATS does not say.
    pub async fn message(&self, stream: &str, sequence: u64) -> Result<AtSequence, HistoryError> {
        let found = match self.ask_for(stream, &json!({ "seq": sequence })).await? {
            Ok(found) => found,
            // The stream was deleted; or it is no sequence that a message can have.
            Err(error) if error.is(ErrorCode::STREAM_NOT_FOUND) || error.is(ErrorCode::BAD_REQUEST) => None,
            Err(error) => return Err(failed(stream, &error)),
        };
        // Anybody may publish what can't be read.
        Ok(match found.map(|message| StreamMessage::try_from(message).ok()) {
            None => AtSequence::Gone,
            Some(message) => match message.and_then(|message| Message::from(message).stored(&Arc::from(stream))) {
                None => AtSequence::Foreign,
                Some(event) => AtSequence::Event(Box::new(event)),
            },
        })
    }

    /// One message, if there is one.
    async fn get(&self, stream: &str, which: &Value) -> Result<Option<Message>, HistoryError> {
        let found = self.ask_for(stream, which).await?.map_err(|error| failed(stream, &error))?;
        let message = found.map(StreamMessage::try_from).transpose().map_err(|error| failed(stream, &error))?;
        Ok(message.map(Message::from))
    }

    /// One message as the server gives it, or what it says instead.
    async fn ask_for(&self, stream: &str, which: &Value) -> Result<Result<Option<RawMessage>, ApiError>, HistoryError> {
        #[derive(Deserialize)]
        struct Answer {
            message: RawMessage,
        }
        let answer = match self.allowed(self.api.ask(format!("STREAM.MSG.GET.{stream}"), which)).await? {
            Err(error) if error.is(ErrorCode::NO_MESSAGE_FOUND) => return Ok(Ok(None)),
            Err(error) => return Ok(Err(error)),
            Ok(answer) => answer,
        };
        let answer = Answer::deserialize(answer).map_err(|error| failed(stream, &error))?;
        Ok(Ok(Some(answer.message)))
    }

    async fn info(&self, stream: &str) -> Result<Option<StreamInfo>, HistoryError> {
        self.allowed(stream::info_of(&self.api, stream)).await?.map_err(of_stream)
    }

    /// Waits for an answer, unless the server denies something first.
    async fn allowed<T>(&self, answer: impl Future<Output = T>) -> Result<T, HistoryError> {
        let mut denied = self.denied.clone();
        let denial = async {
            // A consumer that may not be deleted is forgotten later.
            let matters =
                |denial: &Option<String>| denial.as_ref().is_some_and(|denial| !denial.contains(pull::DELETE));
            match denied.wait_for(matters).await.map(|denial| denial.clone()) {
                Ok(Some(denial)) => denial,
                // The connection is gone for good; the answer's time-out says so.
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            answer = answer => Ok(answer),
            denial = denial => Err(HistoryError::Denied(denial)),
        }
    }
}

fn failed(stream: &str, problem: &dyn std::fmt::Display) -> HistoryError {
    HistoryError::Api { operation: "read a message of", name: stream.to_owned(), problem: problem.to_string() }
}

fn of_stream(error: StreamError) -> HistoryError {
    match error {
        StreamError::Api { operation, name, error } => {
            HistoryError::Api { operation, name, problem: error.to_string() }
        }
        StreamError::Missing { subject } | StreamError::Foreign { subject, .. } => HistoryError::NoStream(subject),
    }
}

/// What a stream held when a pass began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Its first sequence.
    pub first_sequence: u64,
    /// When its first message was stored; `None` if it is empty.
    pub first_time: Option<SystemTime>,
    /// Its last sequence, where the pass ends.
    pub last_sequence: u64,
    /// Whether it drops what is acknowledged, so that an event that is not there may have been.
    pub drops_acknowledged: bool,
}

impl Bounds {
    fn of(info: &StreamInfo) -> Self {
        let number = |path: &str| u64::try_from(info.number(path)).unwrap_or_default();
        let time = humantime::parse_rfc3339(info.text("state.first_ts")).ok();
        Self {
            first_sequence: number("state.first_seq"),
            first_time: time.filter(|_| number("state.messages") > 0),
            last_sequence: number("state.last_seq"),
            drops_acknowledged: matches!(info.text("config.retention"), "workqueue" | "interest"),
        }
    }
}

/// Where the messages of a pass come from.
enum Source {
    Unopened,
    Consumer(Box<Reader>),
    OneByOne,
    Ended,
}

/// A pass over a stream.
pub struct Pass<'a> {
    history: &'a History,
    stream: Arc<str>,
    /// When the stream was made: another one of the same name has another time.
    created: String,
    subjects: Vec<String>,
    /// One pattern that covers all subjects: servers before 2.10 take no more.
    filter: Option<String>,
    start: Start,
    bounds: Bounds,
    /// The last sequence that came.
    behind: Option<u64>,
    source: Source,
    opened: bool,
    progress: Instant,
    /// How long the next consumer may say nothing.
    patience: Duration,
    skipped: u64,
    /// Of [`Start::Last`].
    last: VecDeque<Stored>,
}

impl Pass<'_> {
    /// What the stream held at the start.
    #[must_use]
    pub const fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// How many messages of the subjects were skipped, since they are not hookgate's.
    #[must_use]
    pub const fn skipped(&self) -> u64 {
        self.skipped
    }

    /// The last sequence that was read, for who wants to show how far it is.
    #[must_use]
    pub fn behind(&self) -> u64 {
        self.behind.unwrap_or(self.bounds.first_sequence.saturating_sub(1))
    }

    /// The next event; `None` at the end.
    ///
    /// # Errors
    /// If the stream is another one by now, or nothing came for a minute.
    pub async fn next(&mut self) -> Result<Option<Stored>, HistoryError> {
        match self.last.pop_front() {
            Some(event) => Ok(Some(event)),
            None => self.read().await,
        }
    }

    async fn read(&mut self) -> Result<Option<Stored>, HistoryError> {
        loop {
            let message = match &mut self.source {
                Source::Ended => return Ok(None),
                Source::Unopened => {
                    self.open().await?;
                    continue;
                }
                Source::OneByOne => match self.next_by_request().await? {
                    Some(message) => message,
                    None => continue,
                },
                Source::Consumer(reader) => match reader.next(&self.history.client).await {
                    Pulled::Message(message) => message,
                    Pulled::Nothing => {
                        let in_vain = reader.delivered == 0;
                        self.forget_consumer().await;
                        self.source = Source::Unopened;
                        if in_vain {
                            self.interrupted("the server counts messages and sends none".to_owned()).await?;
                        }
                        continue;
                    }
                    Pulled::Lost(problem) => {
                        if reader.delivered == 0 {
                            self.patience = (self.patience * 2).min(STALL / 2);
                        }
                        self.forget_consumer().await;
                        self.source = Source::Unopened;
                        self.interrupted(problem).await?;
                        continue;
                    }
                },
            };
            if message.sequence > self.bounds.last_sequence {
                self.end().await;
                return Ok(None);
            }
            self.behind = Some(message.sequence);
            (self.progress, self.patience) = (Instant::now(), PATIENCE);
            if message.sequence == self.bounds.last_sequence {
                self.end().await;
            }
            if matches!(self.start, Start::Time(start) if message.time < start)
                || !self.subjects.iter().any(|pattern| matches(pattern, &message.subject))
            {
                continue;
            }
            match message.stored(&self.stream) {
                Some(event) => return Ok(Some(event)),
                None => self.skipped += 1,
            }
        }
    }

    /// Reads to the end and keeps the last events.
    async fn keep_last(&mut self, count: usize) -> Result<(), HistoryError> {
        let mut window = (count as u64).max(1);
        while matches!(self.source, Source::Unopened) {
            let from = (self.bounds.last_sequence + 1).saturating_sub(window);
            self.start = Start::Sequence(from.max(self.bounds.first_sequence).max(1));
            self.open().await?;
            let enough = match &self.source {
                Source::Consumer(reader) => reader.pending >= count as u64,
                _ => false,
            };
            if !enough && from > self.bounds.first_sequence {
                self.forget_consumer().await;
                self.source = Source::Unopened;
                window = window.saturating_mul(WIDEN);
            }
        }
        while let Some(event) = self.read().await? {
            if self.last.len() == count {
                self.last.pop_front();
            }
            self.last.push_back(event);
        }
        self.last.truncate(count);
        Ok(())
    }

    /// Makes a consumer behind what came; without anything there, this is the end.
    async fn open(&mut self) -> Result<(), HistoryError> {
        if self.behind.unwrap_or(0) >= self.bounds.last_sequence {
            self.source = Source::Ended;
            return Ok(());
        }
        if std::mem::replace(&mut self.opened, true) && !self.is_the_same_stream().await? {
            return Err(HistoryError::Replaced(self.stream.to_string()));
        }
        match self.history.allowed(self.try_open()).await? {
            Ok(Some(reader)) => self.source = Source::Consumer(Box::new(reader)),
            Ok(None) => self.source = Source::Ended,
            Err(error) if error.is(ErrorCode::STREAM_NOT_FOUND) => {
                return Err(HistoryError::Replaced(self.stream.to_string()));
            }
            Err(error) if error.is_refusal() => {
                let (operation, name) = ("read the stream", self.stream.to_string());
                return Err(HistoryError::Api { operation, name, problem: error.to_string() });
            }
            Err(error) => self.interrupted(error.to_string()).await?,
        }
        Ok(())
    }

    async fn try_open(&self) -> Result<Option<Reader>, ApiError> {
        let from = match (self.behind, self.start) {
            (Some(behind), _) => json!({ "deliver_policy": "by_start_sequence", "opt_start_seq": behind + 1 }),
            (None, Start::Sequence(sequence)) => {
                json!({ "deliver_policy": "by_start_sequence", "opt_start_seq": sequence.max(1) })
            }
            (None, Start::Time(time)) => {
                let time = humantime::format_rfc3339_nanos(time).to_string();
                json!({ "deliver_policy": "by_start_time", "opt_start_time": time })
            }
            (None, Start::First | Start::Last(_)) => json!({ "deliver_policy": "all" }),
        };
        let History { api, client, .. } = self.history;
        let reader = Reader::open(api, client, &self.stream, self.filter.as_deref(), from, self.patience).await?;
        if reader.pending == 0 {
            reader.forget(client).await;
            return Ok(None);
        }
        Ok(Some(reader))
    }

    /// Whether the stream is the one that the pass began with. One whose end went back was restored.
    async fn is_the_same_stream(&self) -> Result<bool, HistoryError> {
        match self.history.info(&self.stream).await {
            Ok(Some(info)) => {
                let last = Bounds::of(&info).last_sequence;
                Ok(info.text("created") == self.created && last >= self.bounds.last_sequence)
            }
            Ok(None) => Ok(false),
            Err(error @ HistoryError::Denied(_)) => Err(error),
            // Not now; who opens the consumer will see.
            Err(_unanswered) => Ok(true),
        }
    }

    /// Something is in the way: waits a little, but not for ever.
    async fn interrupted(&self, problem: String) -> Result<(), HistoryError> {
        if self.progress.elapsed() > STALL {
            let (stream, behind, end) = (self.stream.to_string(), self.behind(), self.bounds.last_sequence);
            return Err(HistoryError::Stalled { stream, behind, end, problem });
        }
        tokio::time::sleep(PAUSE).await;
        Ok(())
    }

    /// The next message of the subjects, by a request of its own.
    async fn next_by_request(&mut self) -> Result<Option<Message>, HistoryError> {
        let from = match (self.behind, self.start) {
            (Some(behind), _) => behind + 1,
            (None, Start::Sequence(sequence)) => sequence,
            (None, _) => self.bounds.first_sequence,
        };
        let filter = self.filter.as_deref().unwrap_or(">");
        match self.history.get(&self.stream, &json!({ "seq": from.max(1), "next_by_subj": filter })).await {
            Ok(Some(message)) => Ok(Some(message)),
            Ok(None) => {
                self.source = Source::Ended;
                Ok(None)
            }
            Err(HistoryError::Api { problem, .. }) => {
                if !self.is_the_same_stream().await? {
                    return Err(HistoryError::Replaced(self.stream.to_string()));
                }
                self.interrupted(problem).await?;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    async fn end(&mut self) {
        self.forget_consumer().await;
        self.source = Source::Ended;
    }

    async fn forget_consumer(&self) {
        if let Source::Consumer(reader) = &self.source {
            reader.forget(&self.history.client).await;
        }
    }
}

/// Passes over several streams as one.
pub struct Merged<'a>(Vec<(Option<Stored>, Pass<'a>)>);

impl Merged<'_> {
    /// The next event; `None` at the end.
    ///
    /// # Errors
    /// As [`Pass::next`].
    pub async fn next(&mut self) -> Result<Option<Stored>, HistoryError> {
        let heads = self.0.iter_mut().filter(|(head, _)| head.is_some());
        let Some((head, pass)) = heads.min_by_key(|(head, _)| head.as_ref().map(|event| event.time)) else {
            return Ok(None);
        };
        let event = head.take();
        *head = pass.next().await?;
        Ok(event)
    }

    /// How many messages of the subjects were skipped, since they are not hookgate's.
    #[must_use]
    pub fn skipped(&self) -> u64 {
        self.0.iter().map(|(_, pass)| pass.skipped).sum()
    }
}
