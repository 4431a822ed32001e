//! Whether answers arrive on a connection that looks well, and what to do if not.
//!
//! A server that reloads its permissions ends subscriptions that are no longer allowed, and says so once. When they
//! are allowed again, only a new connection subscribes again. Other failures may come without any message.

use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

use super::connection::Connection;
use crate::readiness::Contact;

/// After the server ended the subscription to our inbox: how often a new connection tries to subscribe again.
const LISTEN_AGAIN: Duration = Duration::from_secs(5);
/// How long nothing that is sent may be answered on a connection that looks well, before another one is tried.
const SILENCE: Duration = Duration::from_secs(10);

impl Connection {
    /// Whether anything that was sent together on a connection has been answered, be it with an error.
    pub(super) fn answered(&self, epoch: u64, answered: bool) {
        self.unanswered.send_if_modified(|since| {
            let before = since.filter(|(of, _)| *of == epoch);
            let now = if answered { None } else { before.or_else(|| Some((epoch, Instant::now()))) };
            std::mem::replace(since, now) != now
        });
    }

    /// Makes a new connection, with its subscriptions, where no answer can come or none has come for long.
    pub(super) async fn ack_watchdog(&self) {
        let (mut status, mut unanswered) = (self.status.clone(), self.unanswered.subscribe());
        let mut inbox_denied_since = None;
        loop {
            let now = status.borrow_and_update().clone();
            let unheard_since = unanswered.borrow_and_update().filter(|(epoch, _)| *epoch == now.epoch);
            inbox_denied_since = now.inbox_denied.as_ref().map(|_| inbox_denied_since.unwrap_or_else(Instant::now));
            let due = match (inbox_denied_since, unheard_since) {
                _ if now.contact != Contact::Up => None,
                (Some(since), _) => Some(since + LISTEN_AGAIN),
                // What is denied is not answered either, and another connection would be denied the same.
                _ if now.denied.is_some() => None,
                (None, since) => since.map(|(_, since)| since + SILENCE),
            };
            let wait = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            let goes_on = tokio::select! {
                changed = status.changed() => changed.is_ok(),
                changed = unanswered.changed() => changed.is_ok(),
                () = wait => {
                    if now.inbox_denied.is_none() {
                        warn!("NATS has answered nothing for {SILENCE:?} on a connection that looks well; trying a new one");
                    }
                    inbox_denied_since = None;
                    self.unanswered.send_replace(None);
                    self.client.force_reconnect().await.is_ok()
                }
            };
            if !goes_on {
                return;
            }
        }
    }
}
