//! A short-lived consumer that acknowledges nothing, read in batches.

use std::{sync::atomic::Ordering, time::Duration};

use async_nats::{
    Client, StatusCode, Subscriber,
    jetstream::{self, Context},
};
use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    super::api::{Api, ApiError},
    stored::Message,
};

/// Messages of one request, and their bytes: what is in memory at most.
const BATCH: u32 = 1_000;
const BATCH_BYTES: u32 = 4 * 1024 * 1024;
/// How long the server keeps a request that it can't fill: what it had counted was purged. (`no_wait` would have 2.9
/// keep it without an end.) Shorter than [`PATIENCE`].
const EXPIRES: Duration = Duration::from_secs(2);
/// How often to look whether the connection is still the one that the request went over.
const LOOK: Duration = Duration::from_millis(250);
/// Without a word for so long, consumer, request or answer was lost: 2.9 answers nothing for a consumer that is gone.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);
/// When the server forgets a consumer that nobody reads.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(60);

/// Request of the API that removes a consumer.
pub(super) const DELETE: &str = "CONSUMER.DELETE";

/// A consumer of a pass.
pub(super) struct Reader {
    stream: String,
    name: String,
    /// What was there for it when it was made.
    pub(super) pending: u64,
    context: Context,
    messages: Subscriber,
    inbox: String,
    /// Number of the request that is under way. Newer servers say of each that it is over, perhaps while the next one is
    /// under way.
    request: u64,
    /// Messages so far: a gap in the consumer's count is a message that got lost on the way.
    pub(super) delivered: u64,
    /// The server counts no message behind the last one.
    exhausted: bool,
    /// Messages of the request that is under way, if one is.
    of_request: Option<u32>,
    /// How long to wait for a word. A server may search long for the next message of a filter.
    patience: Duration,
    /// How many connections there had been when it was sent.
    connects: u64,
    /// The next message is larger than a batch.
    large: bool,
}

/// What came of a look for the next message.
pub(super) enum Pulled {
    Message(Message),
    /// The server has no more, as far as it knows.
    Nothing,
    /// Why the next message may not come from this consumer.
    Lost(String),
}

impl Reader {
    /// Makes a consumer; `from` says where it begins, in the words of the API.
    pub(super) async fn open(
        api: &Api,
        client: &Client,
        stream: &str,
        filter: Option<&str>,
        from: Value,
        patience: Duration,
    ) -> Result<Self, ApiError> {
        let mut config = json!({
            "ack_policy": "none",
            "replay_policy": "instant",
            "mem_storage": true,
            "max_deliver": -1,
            "inactive_threshold": nanos(FORGOTTEN_AFTER),
            "filter_subject": filter.unwrap_or_default(),
        });
        let all = config.as_object_mut().expect("it is an object");
        all.extend(from.as_object().cloned().unwrap_or_default());
        let inbox = client.new_inbox();
        let subscribed = client.subscribe(format!("{inbox}.*")).await;
        let messages = subscribed.map_err(|error| ApiError::Unanswered(error.to_string()))?;
        let request = json!({ "stream_name": stream, "config": config });
        let answer = api.ask(format!("CONSUMER.CREATE.{stream}"), &request).await?;
        let name = answer.get("name").and_then(Value::as_str);
        let name = name.ok_or_else(|| ApiError::Unanswered("a consumer without a name".to_owned()))?;
        Ok(Self {
            stream: stream.to_owned(),
            name: name.to_owned(),
            pending: answer.get("num_pending").and_then(Value::as_u64).unwrap_or_default(),
            context: jetstream::new(client.clone()),
            messages,
            inbox,
            request: 0,
            delivered: 0,
            exhausted: false,
            of_request: None,
            patience,
            connects: 0,
            large: false,
        })
    }

    /// The next message.
    pub(super) async fn next(&mut self, client: &Client) -> Pulled {
        loop {
            if self.exhausted {
                return Pulled::Nothing;
            }
            if self.of_request.is_none()
                && let Err(problem) = self.request(client).await
            {
                return Pulled::Lost(problem);
            }
            let message = match self.receive(client).await {
                Ok(message) => message,
                Err(problem) => return Pulled::Lost(problem),
            };
            match message.status {
                None | Some(StatusCode::OK) => return self.take(message),
                // Of a request before.
                Some(_) if message.subject.as_str() != self.reply() => {}
                Some(status) => {
                    let so_far = self.of_request.take().unwrap_or_default();
                    let said = message.description.as_deref().unwrap_or_default();
                    // The request is over; what it was to bring the next one brings.
                    if so_far > 0 {
                        continue;
                    }
                    match status {
                        StatusCode::NOT_FOUND | StatusCode::TIMEOUT => return Pulled::Nothing,
                        _ if said.to_ascii_lowercase().contains("maxbytes") && !self.large => self.large = true,
                        StatusCode::NO_RESPONDERS => return Pulled::Lost("the consumer does not answer".to_owned()),
                        _ => return Pulled::Lost(format!("{said} ({status})")),
                    }
                }
            }
        }
    }

    /// Where the answers to the present request go.
    fn reply(&self) -> String {
        format!("{}.{}", self.inbox, self.request)
    }

    async fn receive(&mut self, client: &Client) -> Result<async_nats::Message, String> {
        let silent_since = Instant::now();
        loop {
            match tokio::time::timeout(LOOK, self.messages.next()).await {
                Ok(Some(message)) => return Ok(message),
                Ok(None) => return Err("the subscription ended".to_owned()),
                Err(_elapsed) if connects(client) != self.connects => return Err("the connection broke".to_owned()),
                Err(_elapsed) if silent_since.elapsed() > self.patience => {
                    return Err(format!("no answer within {:?}", self.patience));
                }
                Err(_elapsed) => {}
            }
        }
    }

    async fn request(&mut self, client: &Client) -> Result<(), String> {
        let mut request = json!({ "batch": BATCH, "expires": nanos(EXPIRES) });
        if self.large {
            request["batch"] = json!(1);
        } else {
            request["max_bytes"] = json!(BATCH_BYTES);
        }
        self.of_request = Some(0);
        self.request += 1;
        self.connects = connects(client);
        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{}.{}", self.stream, self.name);
        let sent = client.publish_with_reply(subject, self.reply(), request.to_string().into()).await;
        sent.map_err(|error| error.to_string())
    }

    fn take(&mut self, message: async_nats::Message) -> Pulled {
        let message = jetstream::Message { message, context: self.context.clone() };
        let Ok(info) = message.info() else { return Pulled::Lost("a message that no consumer sent".to_owned()) };
        self.delivered += 1;
        if info.consumer_sequence != self.delivered {
            return Pulled::Lost("a message got lost on the way".to_owned());
        }
        self.exhausted = info.pending == 0;
        let most = if self.large { 1 } else { BATCH };
        self.of_request = self.of_request.map(|so_far| so_far + 1).filter(|so_far| *so_far < most);
        if self.of_request.is_none() {
            self.large = false;
        }
        let async_nats::Message { subject, headers, payload, .. } = &message.message;
        Pulled::Message(Message::delivered(&info, subject.clone(), headers.clone(), payload.clone()))
    }

    /// Has the server forget the consumer soon. If it does not hear or may not, it will do so later by itself, so nobody
    /// waits for an answer.
    pub(super) async fn forget(&self, client: &Client) {
        let subject = format!("$JS.API.{DELETE}.{}.{}", self.stream, self.name);
        if client.publish_with_reply(subject, format!("{}.0", self.inbox), "{}".into()).await.is_ok() {
            let _later = tokio::time::timeout(LOOK, client.flush()).await;
        }
    }
}

/// How many connections there have been.
fn connects(client: &Client) -> u64 {
    client.statistics().connects.load(Ordering::Relaxed)
}

const fn nanos(duration: Duration) -> u64 {
    duration.as_secs() * 1_000_000_000
}
