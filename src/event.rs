//! The event of a claim: its token, its payload and its headers. Pure, and the same for whoever publishes it.
//!
//! A message is a function of route, id and token and of nothing else, so that a retry by another replica,
//! minutes later, is byte for byte the same and JetStream drops it as a duplicate.

use std::{
    fmt::{self, Write},
    str::FromStr,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use serde::Serialize;
use uuid::{NoContext, Timestamp, Uuid};

use crate::{batch::EntityId, route::Route};

/// What the tokens of one call to the pending store have in common: a version 7 UUID, made before the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenSeed(Uuid);

impl TokenSeed {
    /// A seed nobody else has, with the present time. It is its random part that makes it unique: a context that
    /// only counts upwards would stay at the latest time it has seen for as long as a clock was set back.
    #[must_use]
    pub fn now() -> Self {
        Self(Uuid::new_v7(Timestamp::now(NoContext)))
    }

    /// The trace of everything that is done under this seed.
    #[must_use]
    pub const fn trace_id(self) -> u128 {
        self.0.as_u128()
    }

    /// The span of a part of that, at a place of the batch.
    #[must_use]
    pub fn span_id(self, part: &str, index: usize) -> u64 {
        span_id(format!("{self}/{part}/{index}").as_bytes())
    }

    /// The token of the id at a place of the batch.
    #[must_use]
    pub const fn token(self, index: usize) -> Token {
        Token { seed: self, index }
    }
}

/// The trace id of the events: 32 hex digits.
impl fmt::Display for TokenSeed {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.0.simple().encode_lower(&mut [0; 32]))
    }
}

/// The name of one claim: unique, repeated by every retry, and the `Nats-Msg-Id` of its event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    seed: TokenSeed,
    index: usize,
}

impl Token {
    /// When the claim was proposed.
    #[must_use]
    pub fn time(self) -> SystemTime {
        let (seconds, nanos) = self.seed.0.get_timestamp().map_or((0, 0), |stamp| stamp.to_unix());
        SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos)
    }

    /// The seed, which is the trace id of the event.
    #[must_use]
    pub const fn trace_id(self) -> TokenSeed {
        self.seed
    }

    /// The span in which the event came to be: a hash of the token.
    #[must_use]
    pub fn span_id(self) -> u64 {
        self.with_text(|token| span_id(token.as_bytes()))
    }

    /// W3C trace context: trace id from the seed, and that span.
    #[must_use]
    pub fn traceparent(self) -> String {
        let mut text = String::with_capacity(55);
        text.push_str("00-");
        text.push_str(self.seed.0.simple().encode_lower(&mut [0; 32]));
        // Writing to a String does not fail.
        let _infallible = write!(text, "-{:016x}-01", self.span_id());
        text
    }

    /// Hands on the token as text, without memory of its own: it is made several times for each event.
    fn with_text<T>(self, then: impl FnOnce(&str) -> T) -> T {
        // 32 hex digits, '-', and at most 20 digits.
        let mut buffer = [0; 53];
        let (hex, rest) = buffer.split_at_mut(32);
        self.seed.0.simple().encode_lower(hex);
        rest[0] = b'-';
        let mut digits = [0; 20];
        let (mut number, mut first) = (self.index, digits.len());
        loop {
            first -= 1;
            digits[first] = b'0' + u8::try_from(number % 10).expect("a digit is below 10");
            number /= 10;
            if number == 0 {
                break;
            }
        }
        let length = digits.len() - first;
        rest[1..=length].copy_from_slice(&digits[first..]);
        then(std::str::from_utf8(&buffer[..33 + length]).expect("digits and '-' are ASCII"))
    }
}

impl fmt::Display for Token {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.with_text(|token| out.write_str(token))
    }
}

/// The text is not a token: not written by hookgate, or damaged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the token of a claim (32 hex digits, '-', a number)")]
pub struct NotAToken(String);

impl FromStr for Token {
    type Err = NotAToken;

    fn from_str(text: &str) -> Result<Self, NotAToken> {
        text.split_once('-')
            .filter(|(seed, _)| seed.len() == 32)
            .and_then(|(seed, index)| {
                let seed = TokenSeed(Uuid::try_parse(seed).ok()?);
                Some(Self { seed, index: index.parse().ok()? })
            })
            .ok_or_else(|| NotAToken(text.to_owned()))
    }
}

/// FNV-1a with the last step of splitmix64, so that neighbours differ in all digits. Spelled out because
/// the result is part of the wire format: all replicas, of all versions, have to agree on it.
fn span_id(bytes: &[u8]) -> u64 {
    let hash = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    let hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    // All zeros would be no span id.
    (hash ^ (hash >> 31)).max(1)
}

/// An event, ready to be handed to a broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The claim it announces.
    pub token: Token,
    /// JSON, see [`Event::new`].
    pub payload: Bytes,
}

/// The members of the payload, in their order.
#[derive(Serialize)]
struct Payload<'a> {
    entity_id: &'a str,
    action: &'a str,
    source: &'static str,
    timestamp: &'a str,
}

/// The time of the events of one seed, as text: made once for all of them.
#[derive(Debug, Default)]
pub struct Timestamps(Option<(TokenSeed, String)>);

impl Timestamps {
    fn of(&mut self, token: Token) -> &str {
        let seed = token.seed;
        if self.0.as_ref().is_none_or(|(known, _)| *known != seed) {
            self.0 = Some((seed, humantime::format_rfc3339_millis(token.time()).to_string()));
        }
        self.0.as_ref().map_or("", |(_, text)| text)
    }
}

impl Event {
    /// The event of a claim: `{"entity_id":…,"action":…,"source":"webhook","timestamp":…}`, the time of the
    /// claim in RFC 3339, UTC, with milliseconds. Neighbours tend to share it: `timestamps` keeps the last one.
    ///
    /// # Panics
    /// Never: strings always serialize.
    #[must_use]
    pub fn new(route: &Route, id: EntityId<'_>, token: Token, timestamps: &mut Timestamps) -> Self {
        let payload = Payload {
            entity_id: id.as_str(),
            action: route.action(),
            source: "webhook",
            timestamp: timestamps.of(token),
        };
        let payload = serde_json::to_vec(&payload).expect("four strings always serialize");
        Self { token, payload: payload.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_its_seed_and_its_place() {
        let seed = TokenSeed::now();
        for index in [0, 9, 10, 999, usize::MAX] {
            let token = seed.token(index);
            let text = format!("{}-{index}", seed.0.simple());
            assert_eq!(token.to_string(), text);
            assert_eq!(text.parse(), Ok(token));
            assert_eq!(token.traceparent(), format!("00-{}-{:016x}-01", seed.0.simple(), span_id(text.as_bytes())));
        }
    }
}
