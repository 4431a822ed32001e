//! A message of a stream, and whether it is an event of hookgate.

use std::{
    borrow::Cow,
    sync::Arc,
    time::{Duration, SystemTime},
};

use async_nats::{
    HeaderMap, Subject,
    header::NATS_MESSAGE_ID,
    jetstream::message::{Info, StreamMessage},
};
use bytes::Bytes;
use serde::Deserialize;

use super::super::live::LiveEvent;
use crate::event::Token;

/// How often an event was published again, for ids that nobody released.
const REDELIVERY: &str = "Hookgate-Redelivery";
/// The route, by its name.
const ROUTE: &str = "Hookgate-Route";

/// An event as it lies in a stream.
#[derive(Debug, Clone)]
pub struct Stored {
    /// The stream.
    pub stream: Arc<str>,
    /// Its sequence.
    pub sequence: u64,
    /// When the stream stored it.
    pub time: SystemTime,
    /// The token of its claim.
    pub token: Token,
    /// Its number, if it is a redelivery.
    pub redelivery: Option<u32>,
    /// The entity.
    pub id: String,
    message: Message,
}

/// What lies at a sequence.
#[derive(Debug, Clone)]
pub enum AtSequence {
    /// An event of hookgate.
    Event(Box<Stored>),
    /// A message of somebody else.
    Foreign,
    /// Nothing any more.
    Gone,
}

impl Stored {
    /// Its subject.
    #[must_use]
    pub fn subject(&self) -> &str {
        &self.message.subject
    }

    /// The name of its route.
    #[must_use]
    pub fn route(&self) -> Option<&str> {
        self.message.header(ROUTE)
    }

    /// The whole message, as a subscriber sees it.
    #[must_use]
    pub fn as_live(&self) -> LiveEvent {
        LiveEvent::new(&self.message.subject, self.message.headers.as_ref(), self.message.payload.clone())
    }
}

/// A message of a stream.
#[derive(Debug, Clone)]
pub(super) struct Message {
    pub(super) sequence: u64,
    pub(super) time: SystemTime,
    pub(super) subject: Subject,
    headers: Option<HeaderMap>,
    payload: Bytes,
}

impl Message {
    /// As a consumer gets it.
    pub(super) fn delivered(info: &Info<'_>, subject: Subject, headers: Option<HeaderMap>, payload: Bytes) -> Self {
        let (sequence, time) = (info.stream_sequence, system_time(info.published.unix_timestamp_nanos()));
        Self { sequence, time, subject, headers, payload }
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.as_ref()?.get(name).map(async_nats::HeaderValue::as_str)
    }

    /// As an event, if hookgate published it.
    pub(super) fn stored(self, stream: &Arc<str>) -> Option<Stored> {
        #[derive(Deserialize)]
        struct Payload<'a> {
            #[serde(borrow)]
            entity_id: Cow<'a, str>,
        }
        let token = self.headers.as_ref()?.get(NATS_MESSAGE_ID)?.as_str().parse().ok()?;
        let Payload { entity_id } = serde_json::from_slice(&self.payload).ok()?;
        Some(Stored {
            stream: Arc::clone(stream),
            sequence: self.sequence,
            time: self.time,
            token,
            redelivery: self.header(REDELIVERY).and_then(|number| number.parse().ok()),
            id: entity_id.into_owned(),
            message: self,
        })
    }
}

impl From<StreamMessage> for Message {
    fn from(message: StreamMessage) -> Self {
        let StreamMessage { subject, sequence, headers, payload, time } = message;
        let time = system_time(time.unix_timestamp_nanos());
        Self { sequence, time, subject, headers: Some(headers), payload }
    }
}

fn system_time(nanos: i128) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_nanos(u64::try_from(nanos).unwrap_or_default())
}
