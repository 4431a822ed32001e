//! Live events for `hookgate tail`: whatever is published from now on, as any subscriber of NATS sees it.

use std::time::Duration;

use async_nats::{Client, HeaderMap, Message, Subscriber};
use bytes::Bytes;
use futures_util::{
    StreamExt,
    stream::{SelectAll, select_all},
};

use super::servers::{ConnectFailure, Servers};

/// How long NATS may take to confirm a subscription.
const CONFIRM_WITHIN: Duration = Duration::from_secs(5);

/// Why nothing can be subscribed to.
#[derive(Debug, thiserror::Error)]
pub enum LiveError {
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectFailure),
    /// The client does not even ask.
    #[error("subscribe to {subject:?}: {problem}")]
    Subscribe {
        /// The subject.
        subject: String,
        /// What the client library says.
        problem: String,
    },
    /// NATS says no.
    #[error("{0}; grant it, see k8s/privileges/nats.conf")]
    Denied(String),
    /// No answer.
    #[error("NATS did not confirm the subscription within {CONFIRM_WITHIN:?}; check its permissions")]
    Unconfirmed,
}

/// An event as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveEvent {
    /// Its subject.
    pub subject: String,
    /// Its headers, sorted by name.
    pub headers: Vec<(String, String)>,
    /// Its payload.
    pub payload: Bytes,
}

/// Subscriptions that NATS has confirmed.
pub struct LiveEvents(SelectAll<Subscriber>);

impl LiveEvents {
    /// Subscribes to subjects, wildcards allowed.
    ///
    /// # Errors
    /// If NATS can't be reached, denies it, or does not answer.
    pub async fn subscribe(servers: &Servers, subjects: &[String]) -> Result<Self, LiveError> {
        let (client, denied) = servers.connect_once().await?;
        let mut subscriptions = Vec::new();
        for subject in subjects {
            let subscribed = client.subscribe(subject.clone()).await;
            let problem = |error: async_nats::SubscribeError| LiveError::Subscribe {
                subject: subject.clone(),
                problem: error.to_string(),
            };
            subscriptions.push(subscribed.map_err(problem)?);
        }
        // Twice: what is denied comes before the first answer, but through another queue of the client.
        for _ in 0..2 {
            if !confirm(&client).await {
                let denial = denied.borrow().clone();
                return Err(denial.map_or(LiveError::Unconfirmed, LiveError::Denied));
            }
        }
        if let Some(denial) = &*denied.borrow() {
            return Err(LiveError::Denied(denial.clone()));
        }
        Ok(Self(select_all(subscriptions)))
    }

    /// The next one; `None` once the connection has ended for good.
    pub async fn next(&mut self) -> Option<LiveEvent> {
        self.0.next().await.map(LiveEvent::from)
    }
}

/// A message that comes back proves that the server has read the subscriptions before it.
async fn confirm(client: &Client) -> bool {
    let inbox = client.new_inbox();
    let round = async {
        let mut round = client.subscribe(inbox.clone()).await.ok()?;
        client.publish(inbox, Bytes::new()).await.ok()?;
        round.next().await
    };
    matches!(tokio::time::timeout(CONFIRM_WITHIN, round).await, Ok(Some(_)))
}

impl LiveEvent {
    /// A message of these parts.
    pub(super) fn new(subject: &str, headers: Option<&HeaderMap>, payload: Bytes) -> Self {
        let values = headers.into_iter().flat_map(HeaderMap::iter);
        let mut headers: Vec<_> = values
            .flat_map(|(name, values)| values.iter().map(move |value| (name.to_string(), value.as_str().to_owned())))
            .collect();
        headers.sort();
        Self { subject: subject.to_owned(), headers, payload }
    }
}

impl From<Message> for LiveEvent {
    fn from(message: Message) -> Self {
        Self::new(&message.subject, message.headers.as_ref(), message.payload)
    }
}
