//! Publishing into a JetStream stream: an event counts once the stream has acknowledged it.

use std::{
    mem,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_nats::{Message, StatusCode, jetstream};
use futures_util::{FutureExt, future::BoxFuture};
use serde::Deserialize;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, timeout_at},
};
use tokio_util::task::TaskTracker;

use super::{
    Ack, PublishError,
    address::Addresses,
    connection::{self, Connection},
    inbox::Inbox,
    servers::Servers,
    stream::{self, StreamSettings},
};
use crate::{
    event::Event,
    failpoint,
    pipeline::Publisher,
    readiness::{Contact, Reporter},
    route::{Route, RouteTable},
    supervision::keep_on,
};

/// The stream is looked at again at most this often.
const LOOK_PAUSE: Duration = Duration::from_secs(5);
/// While nobody could say whether there is one.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Limit of one request to the JetStream API.
const API_TIMEOUT: Duration = Duration::from_secs(2);

/// Publishes with acknowledgement.
pub struct JetStream {
    connection: Connection,
    inbox: Inbox<Reply>,
    addresses: Addresses,
    report: Reporter,
    usable: Arc<AtomicBool>,
    look_again: Arc<Notify>,
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
            addresses: Addresses::of_all(routes),
            connection,
            report: Reporter::new("nats"),
            usable: Arc::default(),
            look_again: Arc::default(),
        };
        let keeper = Keeper {
            context: context(this.connection.client.clone()),
            connection: this.connection.clone(),
            names: servers.names(),
            report: this.report.clone(),
            usable: Arc::clone(&this.usable),
            look_again: Arc::clone(&this.look_again),
            stream,
            routes: routes.clone(),
        };
        tasks.spawn(async move { keep_on!("the look at the stream", keeper.run()) });
        Ok(this)
    }
}

impl Publisher for JetStream {
    fn publish<'a>(
        &'a self,
        route: &'a Route,
        mut events: Vec<Event>,
        limit: Duration,
    ) -> BoxFuture<'a, Vec<Result<Ack, PublishError>>> {
        async move {
            let until = Instant::now() + limit;
            let count = events.len();
            let all = |error: PublishError| (0..count).map(|_| Err(error.clone())).collect();
            let epoch = match self.connection.usable() {
                Ok(epoch) => epoch,
                Err(problem) => return all(PublishError::Unavailable(problem)),
            };
            if !self.usable.load(Ordering::Relaxed) {
                let contact = self.report.subscribe();
                let problem = contact.borrow().problem().unwrap_or("starting").to_owned();
                return all(PublishError::Unavailable(problem));
            }
            let mut expected = self.inbox.expect(count, epoch);
            let mut is_sent = false;
            let address = self.addresses.of(route);
            let mut unsent = Vec::new();
            let exchange = async {
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
                is_sent = true;
                expected.complete().await;
            };
            match timeout_at(until, exchange).await {
                Ok(()) => {}
                Err(_elapsed) if is_sent => {}
                Err(_elapsed) => return all(PublishError::NoAck(limit)),
            }
            let answers = expected.answers();
            if unsent.len() < count {
                self.connection.heard(epoch, answers.iter().any(Option::is_some));
            }
            let mut outcomes: Vec<_> = answers
                .into_iter()
                .map(|answer| match answer {
                    Some(reply) => reply.map_err(|refusal| refusal.on(route)),
                    None => Err(PublishError::NoAck(limit)),
                })
                .collect();
            for (index, problem) in unsent {
                outcomes[index] = Err(problem);
            }
            // Where somebody else listens to the subject, nobody says that there is no stream.
            let silent = outcomes.iter().all(|outcome| matches!(outcome, Err(PublishError::NoAck(_))));
            if silent || outcomes.iter().any(|outcome| matches!(outcome, Err(PublishError::NoStream(_)))) {
                self.look_again.notify_one();
            }
            if outcomes.iter().any(Result::is_ok) {
                self.connection.granted(|denial| denial.contains(&format!("\"{}\"", route.subject())));
            }
            outcomes
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

/// The JetStream API over a connection.
pub(super) fn context(client: async_nats::Client) -> jetstream::Context {
    jetstream::context::ContextBuilder::new().timeout(API_TIMEOUT).build(client)
}

/// What a stream answers to a published message.
#[derive(Deserialize)]
struct PubAck {
    /// Which stream it is; anything else that answers has none.
    #[serde(default)]
    stream: String,
    #[serde(default)]
    seq: u64,
    error: Option<ApiError>,
}

#[derive(Deserialize)]
struct ApiError {
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

/// What was answered to a published message.
type Reply = Result<Ack, Refusal>;

/// Why a message was not stored.
enum Refusal {
    NoStream,
    Refused(String),
}

impl Refusal {
    fn on(self, route: &Route) -> PublishError {
        match self {
            Self::NoStream => PublishError::NoStream(route.subject().to_owned()),
            Self::Refused(reason) => PublishError::Refused(reason),
        }
    }
}

fn read_reply(answer: &Message) -> Reply {
    if answer.status == Some(StatusCode::NO_RESPONDERS) {
        return Err(Refusal::NoStream);
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
    ack.map_err(Refusal::Refused)
}

/// Keeps an eye on connection and stream, and says how they are.
struct Keeper {
    context: jetstream::Context,
    connection: Connection,
    names: String,
    report: Reporter,
    usable: Arc<AtomicBool>,
    look_again: Arc<Notify>,
    stream: StreamSettings,
    routes: RouteTable,
}

impl Keeper {
    async fn run(&self) {
        let mut status = self.connection.status.clone();
        let mut warned = stream::Warned::default();
        loop {
            let now = status.borrow_and_update().clone();
            let pause = if now.contact == Contact::Up {
                let (contact, pause) = self.look(&mut warned).await;
                // What the look found may be outdated by the end of the connection.
                if *status.borrow() == now || contact != Contact::Up {
                    self.report.set(contact);
                }
                pause
            } else {
                self.report.set(now.contact);
                None
            };
            let looked = Instant::now();
            let changed = tokio::select! {
                changed = status.changed() => changed.is_ok(),
                () = self.look_again.notified() => {
                    tokio::time::sleep_until(looked + LOOK_PAUSE).await;
                    true
                }
                () = tokio::time::sleep(pause.unwrap_or(Duration::MAX)) => true,
            };
            if !changed {
                return;
            }
        }
    }

    /// Whether events can be published now, and when to look again if they can't.
    async fn look(&self, warned: &mut stream::Warned) -> (Contact, Option<Duration>) {
        let info = self.connection.client.server_info();
        self.usable.store(info.jetstream, Ordering::Relaxed);
        if !info.jetstream {
            let problem = format!(
                "{}: the server runs without JetStream, so nothing would be stored; start it with -js, or set nats.delivery = \"core\" if live delivery is enough",
                self.names
            );
            return (Contact::Refused(problem), Some(RETRY_PAUSE));
        }
        let found = stream::ensure(&self.context, &self.stream, &self.routes, warned).await;
        if found.is_ok() {
            self.connection.granted(|denial| denial.contains("\"$JS.API."));
        }
        let denial = self.connection.status.borrow().denial().map(str::to_owned);
        match (found, denial) {
            (Ok(()), None) => (Contact::Up, None),
            (_, Some(denial)) => (connection::denied(&self.names, &denial), Some(RETRY_PAUSE)),
            (Err(error), None) => {
                let problem = format!("{}: {error}", self.names);
                let contact =
                    if error.is_refusal() { Contact::Refused(problem) } else { Contact::Unreachable(problem) };
                (contact, Some(if error.is_absence() { LOOK_PAUSE } else { RETRY_PAUSE }))
            }
        }
    }
}
