//! Publishing into a JetStream stream: an event counts once the stream has acknowledged it.

use std::{
    mem,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_nats::{Message, StatusCode};
use futures_util::{FutureExt, future::BoxFuture};
use serde::Deserialize;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, timeout_at},
};
use tokio_util::task::TaskTracker;

use super::{
    address::{Address, RouteAddresses},
    api::Api,
    connection::Connection,
    inbox::{Expected, Inbox},
    servers::Servers,
    stream::{self, StreamSettings},
    stream_watch::StreamWatch,
};
use crate::{
    delivery::{Ack, PublishError, Publisher},
    event::Event,
    failpoint,
    readiness::{Contact, Reporter},
    route::{Route, RouteTable},
    supervision::supervise,
};

/// How long the making of a stream may hold up a configuration.
const PROVIDE_WITHIN: Duration = Duration::from_secs(5);

/// Publishes with acknowledgement.
pub struct JetStream {
    connection: Connection,
    inbox: Inbox<Reply>,
    addresses: RouteAddresses,
    report: Reporter,
    usable: Arc<AtomicBool>,
    look_again: Arc<Notify>,
    stream: StreamSettings,
    /// Looked after by [`StreamWatch`].
    routes: watch::Sender<Arc<RouteTable>>,
}

impl JetStream {
    /// Starts to connect, and to look for a stream that covers the routes' subjects.
    ///
    /// # Errors
    /// If the client can't be set up at all.
    pub async fn open(
        servers: &Servers,
        stream: StreamSettings,
        routes: &RouteTable,
        tasks: &TaskTracker,
    ) -> Result<Self, async_nats::Error> {
        let connection = Connection::open(servers, tasks).await?;
        let inbox = Inbox::open(&connection, tasks, read_reply).await?;
        let this = Self {
            inbox,
            addresses: RouteAddresses::of_all(routes),
            connection,
            report: Reporter::new("nats"),
            usable: Arc::default(),
            look_again: Arc::default(),
            stream,
            routes: watch::Sender::new(Arc::new(routes.clone())),
        };
        let watch = StreamWatch {
            api: Api::over(this.connection.client.clone()),
            connection: this.connection.clone(),
            names: servers.names(),
            report: this.report.clone(),
            usable: Arc::clone(&this.usable),
            look_again: Arc::clone(&this.look_again),
            stream: this.stream.clone(),
            routes: this.routes.subscribe(),
        };
        tasks.spawn(async move { supervise!("the look at the stream", watch.run()) });
        Ok(this)
    }
}

impl JetStream {
    /// Sees to it that a stream covers these subjects, if NATS answers in time; else that is done once it does.
    ///
    /// # Errors
    /// What is in the way, and stays so until somebody mends it.
    pub async fn provide(&self, routes: &RouteTable) -> Result<(), String> {
        if self.usable().is_err() {
            return Ok(());
        }
        let api = Api::over(self.connection.client.clone());
        match tokio::time::timeout(PROVIDE_WITHIN, stream::ensure(&api, &self.stream, routes)).await {
            Ok(Err(error)) if error.is_refusal() => Err(error.to_string()),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Publishes for these routes from now on, and looks after their streams.
    pub fn serve(&self, routes: &Arc<RouteTable>) {
        self.addresses.replace(routes);
        self.routes.send_replace(Arc::clone(routes));
    }
}

/// Events that were not sent, and why.
type Unsent = Vec<(usize, PublishError)>;

impl JetStream {
    /// The number of the connection, if events can be stored over it.
    fn usable(&self) -> Result<u64, PublishError> {
        let epoch = self.connection.usable()?;
        if self.usable.load(Ordering::Relaxed) {
            return Ok(epoch);
        }
        let contact = self.report.subscribe();
        let problem = contact.borrow().problem().unwrap_or("starting").to_owned();
        Err(PublishError::Unavailable(problem))
    }

    /// Sends all events, without waiting for answers.
    async fn send(&self, address: &Address, events: &mut [Event], expected: &Expected<'_, Reply>) -> Unsent {
        let mut unsent = Vec::new();
        for (index, event) in events.iter_mut().enumerate() {
            let (subject, headers) = (address.subject.clone(), address.headers(event.token));
            let (reply, payload) = (expected.reply_subject(index), mem::take(&mut event.payload));
            let sent = self.connection.client.publish_with_reply_and_headers(subject, reply, headers, payload);
            if let Err(error) = sent.await {
                // This one, too large for the server perhaps; the others are on their way.
                unsent.push((index, PublishError::Refused(error.to_string())));
                expected.is_not_sent();
            }
        }
        failpoint::hit("after_publish");
        unsent
    }

    /// Sends all events and waits for their answers.
    async fn exchange(&self, route: &Route, events: &mut [Event], limit: Duration) -> Result<Outcomes, PublishError> {
        let until = Instant::now() + limit;
        let epoch = self.usable()?;
        let mut expected = self.inbox.expect(events.len(), epoch);
        let address = self.addresses.of(route);
        let sent = timeout_at(until, self.send(&address, events, &expected)).await;
        let unsent = sent.map_err(|_elapsed| PublishError::NoAck(limit))?;
        let _complete_or_late = timeout_at(until, expected.complete()).await;
        let answers = expected.answers();
        if unsent.len() < events.len() {
            self.connection.answered(epoch, answers.iter().any(Option::is_some));
        }
        let mut outcomes: Outcomes = answers
            .into_iter()
            .map(|answer| match answer {
                Some(reply) => reply.map_err(|refusal| refusal.on(route)),
                None => Err(PublishError::NoAck(limit)),
            })
            .collect();
        for (index, problem) in unsent {
            outcomes[index] = Err(problem);
        }
        Ok(outcomes)
    }

    /// What the answers say of stream and permissions.
    fn learn_from(&self, outcomes: &[Result<Ack, PublishError>], route: &Route) {
        // If the subject has another subscriber, NATS does not report that there is no stream.
        let silent = outcomes.iter().all(|outcome| matches!(outcome, Err(PublishError::NoAck(_))));
        if silent || outcomes.iter().any(|outcome| matches!(outcome, Err(PublishError::NoStream(_)))) {
            self.look_again.notify_one();
        }
        if outcomes.iter().any(Result::is_ok) {
            self.connection.permission_granted(|denial| denial.contains(&format!("\"{}\"", route.subject())));
        }
    }
}

impl Publisher for JetStream {
    fn publish<'a>(&'a self, route: &'a Route, mut events: Vec<Event>, limit: Duration) -> BoxFuture<'a, Outcomes> {
        async move {
            match self.exchange(route, &mut events, limit).await {
                Ok(outcomes) => {
                    self.learn_from(&outcomes, route);
                    outcomes
                }
                Err(error) => events.iter().map(|_| Err(error.clone())).collect(),
            }
        }
        .boxed()
    }

    fn contact(&self) -> watch::Receiver<Contact> {
        self.report.subscribe()
    }

    fn server_version(&self) -> Option<String> {
        self.connection.server_version()
    }
}

/// What came of each event.
type Outcomes = Vec<Result<Ack, PublishError>>;

/// What a stream answers to a published message.
#[derive(Deserialize)]
struct PubAck {
    /// Which stream it is; anything else that answers has none.
    #[serde(default)]
    stream: String,
    #[serde(default)]
    seq: u64,
    error: Option<AckError>,
}

#[derive(Deserialize)]
struct AckError {
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

/// What was answered to a published message.
type Reply = Result<Ack, NotStored>;

/// Why a message was not stored.
enum NotStored {
    NoStream,
    Refused(String),
}

impl NotStored {
    fn on(self, route: &Route) -> PublishError {
        match self {
            Self::NoStream => PublishError::NoStream(route.subject().to_owned()),
            Self::Refused(reason) => PublishError::Refused(reason),
        }
    }
}

fn read_reply(answer: &Message) -> Reply {
    if answer.status == Some(StatusCode::NO_RESPONDERS) {
        return Err(NotStored::NoStream);
    }
    let sequence = match serde_json::from_slice::<PubAck>(&answer.payload) {
        Ok(PubAck { stream, error: None, .. }) if stream.is_empty() => {
            Err("an answer that is no stream's; somebody else answers what is published to the subject".to_owned())
        }
        Ok(PubAck { seq, error: None, .. }) => Ok(seq),
        Ok(PubAck { error: Some(error), .. }) => Err(format!("{} (error code {})", error.description, error.err_code)),
        Err(error) => Err(format!("an acknowledgement that can't be read: {error}")),
    };
    let ack = sequence.and_then(|sequence| Ack::stored(sequence).ok_or("acknowledged without a sequence".to_owned()));
    ack.map_err(NotStored::Refused)
}
