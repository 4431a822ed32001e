//! Publishing without JetStream: an event counts once a message sent behind it on the same connection has
//! come back, so that the server has provably read it. A consumer that is not subscribed then misses it.

use std::time::Duration;

use futures_util::{FutureExt, future::BoxFuture};
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};
use tokio_util::task::TaskTracker;

use super::{address::RouteAddresses, connection::Connection, diagnosis, inbox::Inbox, servers::Servers};
use crate::{
    delivery::{Ack, PublishError, Publisher},
    event::Event,
    readiness::{Contact, Reporter},
    route::{Route, RouteTable},
    supervision::supervise,
};

/// Publishes to current subscribers.
pub struct Core {
    connection: Connection,
    /// Nothing is said in it: that it comes is enough.
    inbox: Inbox<()>,
    addresses: RouteAddresses,
    report: Reporter,
}

impl Core {
    /// Starts to connect.
    ///
    /// # Errors
    /// If the client can't be set up at all.
    pub async fn open(servers: &Servers, routes: &RouteTable, tasks: &TaskTracker) -> Result<Self, async_nats::Error> {
        let connection = Connection::open(servers, tasks).await?;
        let inbox = Inbox::open(&connection, tasks, |_round| ()).await?;
        let report = Reporter::new("nats");
        let (mut status, reporter, names) = (connection.status.clone(), report.clone(), servers.names());
        tasks.spawn(async move { supervise!("the watch over NATS", follow(&mut status, &reporter, &names)) });
        Ok(Self { connection, inbox, addresses: RouteAddresses::of_all(routes), report })
    }

    /// Publishes for these routes from now on.
    pub fn serve(&self, routes: &RouteTable) {
        self.addresses.replace(routes);
    }

    async fn publish(&self, route: &Route, events: Vec<Event>, limit: Duration) -> Result<(), PublishError> {
        let until = Instant::now() + limit;
        let epoch = self.connection.usable()?;
        let client = &self.connection.client;
        let address = self.addresses.of(route);
        let denials = self.connection.denials_of(route.subject());
        let send = async {
            for Event { token, payload } in events {
                client.publish_with_headers(address.subject.clone(), address.headers(token), payload).await?;
            }
            Ok::<_, async_nats::PublishError>(())
        };
        timeout_at(until, send)
            .await
            .map_err(|_elapsed| PublishError::NoAck(limit))?
            .map_err(|error| PublishError::Refused(error.to_string()))?;
        // Twice: a permission error comes before the first answer, but through another queue of the client.
        for _ in 0..2 {
            let mut round = self.inbox.expect(1, epoch);
            client
                .publish(round.reply_subject(0), bytes::Bytes::new())
                .await
                .map_err(|error| PublishError::Refused(error.to_string()))?;
            let _in_time = timeout_at(until, round.complete()).await;
            let answered = matches!(round.answers().as_slice(), [Some(())]);
            self.connection.answered(epoch, answered);
            if !answered {
                return Err(PublishError::NoAck(limit));
            }
        }
        // By the number of denials: the last text may be of another subject, or of a time before the permission was granted.
        let subject = route.subject();
        if denials.may_have_grown(self.connection.denials_of(subject)) {
            let denied = self.connection.status.borrow().denied.clone();
            let reason = denied.filter(|denied| denied.contains(&format!("\"{subject}\"")));
            return Err(PublishError::Refused(reason.unwrap_or_else(|| format!("publish to {subject:?} was denied"))));
        }
        if self.connection.status.borrow().epoch != epoch {
            return Err(PublishError::Unavailable("the connection was lost".to_owned()));
        }
        self.connection.permission_granted(|denial| denial.contains(&format!("\"{subject}\"")));
        Ok(())
    }
}

impl Publisher for Core {
    fn publish<'a>(
        &'a self,
        route: &'a Route,
        events: Vec<Event>,
        limit: Duration,
    ) -> BoxFuture<'a, Vec<Result<Ack, PublishError>>> {
        async move {
            let count = events.len();
            let outcome = self.publish(route, events, limit).await;
            (0..count).map(|_| outcome.clone().map(|()| Ack::passed())).collect()
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

/// Says how the connection is.
async fn follow(status: &mut watch::Receiver<super::connection::ConnectionStatus>, report: &Reporter, names: &str) {
    loop {
        let now = status.borrow_and_update().clone();
        report.set(match now.denial() {
            Some(denial) if now.contact == Contact::Up => diagnosis::denied(names, denial),
            _ => now.contact,
        });
        if status.changed().await.is_err() {
            return;
        }
    }
}
