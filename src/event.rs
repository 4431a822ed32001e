//! The event of a claim: token, payload and trace context. Pure.
//!
//! A message depends on route, id and token alone. So another replica that publishes it again minutes later sends the
//! same bytes, and JetStream drops them as a duplicate.

use std::{
    fmt,
    str::FromStr,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use uuid::{NoContext, Timestamp, Uuid, Version};

use crate::{batch::EntityId, rfc3339, route::Route};

/// Places in one batch. No request claims so many ids before its deadline.
const PLACES: usize = 10_000_000;
/// Attempts of one address.
const TRIES: usize = 10;

/// Which attempt of a claim proposes a token. Each attempt proposes tokens of its own: Redis may run a call long after
/// hookgate gave up on it, when a consumer has already released the id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempt(usize);

impl Attempt {
    /// The first attempt.
    pub const FIRST: Self = Self(0);
    /// The first attempt to claim an id whose mark is not as durable as `redis.durability` asks.
    pub const MARK_NOT_DURABLE: Self = Self(3);
    /// None: the event is published without a claim, so its token is never proposed.
    pub const UNCLAIMED: Self = Self(9);
    /// hookgate claims a pending id again, which nobody acknowledged. The index of such a token is the number of that claim.
    const REDELIVERY: usize = 7;
    /// hookgate claims an id that a webhook had marked.
    const MARKED: usize = 8;

    /// The same attempt, for the address with this number among those of its pending key: 0 to 9.
    ///
    /// # Panics
    /// Above 9: version 0.1.0 calls a token with more than nine digits damaged.
    #[must_use]
    pub fn at_address(self, number: usize) -> Self {
        assert!(number < 10, "an address has one digit");
        Self(number * TRIES + self.0 % TRIES)
    }

    /// The number of the address.
    #[must_use]
    pub const fn address(self) -> usize {
        self.0 / TRIES
    }

    /// The next attempt.
    ///
    /// # Panics
    /// After seven attempts.
    #[must_use]
    pub fn next(self) -> Self {
        assert!(self.0 % TRIES + 1 < Self::REDELIVERY, "a claim is tried a few times");
        Self(self.0 + 1)
    }
}

/// The common part of the tokens of one request: a version 7 UUID, made before the claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenSeed(Uuid);

impl TokenSeed {
    /// A new seed with the present time. Its random part makes it unique. `NoContext`: a counting context would keep
    /// the latest time for as long as the clock is set back.
    #[must_use]
    pub fn now() -> Self {
        Self(Uuid::new_v7(Timestamp::now(NoContext)))
    }

    /// The trace id of the request.
    #[must_use]
    pub const fn trace_id(self) -> u128 {
        self.0.as_u128()
    }

    /// The span id of one part of the request, at a place of the batch.
    #[must_use]
    pub fn span_id(self, part: &str, index: usize) -> u64 {
        span_id(format!("{self}/{part}/{index}").as_bytes())
    }

    /// The token of the `count`th redelivery of an id, for the address with this number. The seed is for this id alone.
    #[must_use]
    pub fn redelivery(self, address: usize, count: u32) -> Token {
        self.token(Attempt(Attempt::REDELIVERY).at_address(address), (count as usize).min(PLACES - 1))
    }

    /// The token of an id that was marked, for the address with this number. The seed is for this id alone.
    #[must_use]
    pub fn marked(self, address: usize) -> Token {
        self.token(Attempt(Attempt::MARKED).at_address(address), 0)
    }

    /// Whether hookgate can have made it: version 7, with a year of four digits, as RFC 3339 needs.
    fn has_a_time(self) -> bool {
        const YEAR_10000: u64 = 253_402_300_800;
        let time = self.0.get_timestamp().map(|stamp| stamp.to_unix());
        self.0.get_version() == Some(Version::SortRand) && time.is_some_and(|(seconds, _)| seconds < YEAR_10000)
    }

    /// The token that an attempt proposes for the id at a place of the batch.
    ///
    /// # Panics
    /// At the ten millionth place, which no request reaches before its deadline.
    #[must_use]
    pub const fn token(self, attempt: Attempt, place: usize) -> Token {
        assert!(place < PLACES, "a request has fewer ids");
        Token { seed: self, index: attempt.0 * PLACES + place }
    }
}

/// The trace id of the events: 32 hex digits.
impl fmt::Display for TokenSeed {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.0.simple().encode_lower(&mut [0; 32]))
    }
}

/// Identifies one claim, and is the `Nats-Msg-Id` of its event. Publishing the claim again uses the same token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token {
    seed: TokenSeed,
    /// Address, attempt and place in the batch: `(address * TRIES + attempt) * PLACES + place`.
    index: usize,
}

impl Token {
    /// The number behind the seed.
    #[must_use]
    pub const fn index(self) -> usize {
        self.index
    }

    /// The number of the address among those of the pending key: 0 to 9. Version 0.1.0 wrote none, which reads as 0.
    #[must_use]
    pub const fn address(self) -> usize {
        self.index / (PLACES * TRIES)
    }

    /// Which redelivery of its id this is, if it is one.
    #[must_use]
    pub const fn redelivery(self) -> Option<usize> {
        if self.index / PLACES % TRIES == Attempt::REDELIVERY { Some(self.index % PLACES) } else { None }
    }

    /// Whether the same request proposed both for the same id, perhaps in different attempts.
    #[must_use]
    pub fn is_of_same_request(self, other: Self) -> bool {
        self.seed == other.seed && self.index % PLACES == other.index % PLACES
    }

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

    /// The span id of the event: a hash of the token.
    #[must_use]
    pub fn span_id(self) -> u64 {
        self.with_bytes(span_id)
    }

    /// W3C trace context: the trace id of the seed, and the span id of the event.
    #[must_use]
    pub fn traceparent(self) -> String {
        let mut text = String::with_capacity(55);
        text.push_str("00-");
        text.push_str(self.seed.0.simple().encode_lower(&mut [0; 32]));
        text.push('-');
        let digits = Uuid::from_u128(u128::from(self.span_id()));
        text.push_str(&digits.simple().encode_lower(&mut [0; 32])[16..]);
        text.push_str("-01");
        text
    }

    /// The token as text.
    #[must_use]
    pub fn text(self) -> String {
        let mut digits = itoa::Buffer::new();
        let digits = digits.format(self.index);
        let mut text = String::with_capacity(33 + digits.len());
        text.push_str(self.seed.0.simple().encode_lower(&mut [0; 32]));
        text.push('-');
        text.push_str(digits);
        text
    }

    /// Calls `then` with the text of the token. On the stack: each event needs that text several times.
    pub(crate) fn with_bytes<T>(self, then: impl FnOnce(&[u8]) -> T) -> T {
        // 32 hex digits, '-', and at most 20 digits.
        let mut buffer = [0; 53];
        let mut digits = itoa::Buffer::new();
        let digits = digits.format(self.index).as_bytes();
        let length = 33 + digits.len();
        self.seed.0.simple().encode_lower(&mut buffer);
        buffer[32] = b'-';
        buffer[33..length].copy_from_slice(digits);
        then(&buffer[..length])
    }
}

impl fmt::Display for Token {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.text())
    }
}

/// The text is not a token: another program wrote it, or it is damaged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the token of a claim (a version 7 UUID as 32 hex digits, '-', a number)")]
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
            .filter(|token| token.seed.has_a_time() && token.with_bytes(|written| written == text.as_bytes()))
            .ok_or_else(|| NotAToken(text.to_owned()))
    }
}

/// FNV-1a with the last step of splitmix64, so that neighbours differ in all digits. Written out here: the result is
/// part of the wire format, and replicas of all versions must agree on it.
fn span_id(bytes: &[u8]) -> u64 {
    let hash = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    let hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    // All zeros would be no span id.
    (hash ^ (hash >> 31)).max(1)
}

/// An event, ready to be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The token of its claim.
    pub token: Token,
    /// JSON, see [`Events::event`].
    pub payload: Bytes,
}

/// Capacity for what follows the id: enough for any usual action.
const TAIL: usize = 96;

/// Makes the events of a route. Keeps the text behind the id, which events of one seed share.
pub struct Events<'a> {
    route: &'a Route,
    tail: Option<(TokenSeed, String)>,
}

impl<'a> Events<'a> {
    /// Makes the events of `route`.
    #[must_use]
    pub const fn of(route: &'a Route) -> Self {
        Self { route, tail: None }
    }

    /// The event of a claim: `{"entity_id":…,"action":…,"source":"webhook","timestamp":…}`. The timestamp is the time
    /// of the claim in RFC 3339, UTC, with milliseconds.
    ///
    /// # Panics
    /// Never: strings always serialize.
    #[must_use]
    pub fn event(&mut self, id: EntityId<'_>, token: Token) -> Event {
        const HEAD: &[u8] = b"{\"entity_id\":";
        let id = id.as_str();
        let tail = self.tail(token);
        let mut payload = Vec::with_capacity(HEAD.len() + id.len() + 2 + tail.len());
        payload.extend_from_slice(HEAD);
        serde_json::to_writer(&mut payload, id).expect("a string always serializes");
        payload.extend_from_slice(tail.as_bytes());
        Event { token, payload: payload.into() }
    }

    fn tail(&mut self, token: Token) -> &str {
        let known = self.tail.take().filter(|(seed, _)| *seed == token.seed);
        let (_, tail) = self.tail.insert(known.unwrap_or_else(|| {
            let mut tail = String::with_capacity(TAIL);
            tail.push_str(",\"action\":\"");
            // Letters, digits, '_' and '-' (route.rs): nothing to escape.
            tail.push_str(self.route.action());
            tail.push_str("\",\"source\":\"webhook\",\"timestamp\":\"");
            rfc3339::push_millis(&mut tail, token.time());
            tail.push_str("\"}");
            (token.seed, tail)
        }));
        tail
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hookgate_never_wrote_is_no_token() {
        let token = TokenSeed::now().token(Attempt::FIRST, 7).to_string();
        let last = "e677d21fdbff7000a000000000000000-0";
        assert_eq!(last.parse::<Token>().map(|token| token.to_string()), Ok(last.to_owned()));
        let with = |from: &str, to: &str| token.replacen(from, to, 1);
        for foreign in [
            String::new(),
            "x".to_owned(),
            "deadbeef-1".to_owned(),
            with("-", ""),
            with("-7", "-"),
            with("-7", "-+7"),
            with("-7", "-07"),
            with("-7", "-99999999999999999999999"),
            with("-7", "-7 "),
            token.to_uppercase().replace("-7", "-A"),
            // In the year 10000, of version 4, and in capitals.
            "e677d21fdc007000a000000000000000-0".to_owned(),
            "0197d21fdbff4000a000000000000000-0".to_owned(),
            "0197D21FDBFF7000A000000000000000-0".to_owned(),
        ] {
            assert_eq!(foreign.parse::<Token>(), Err(NotAToken(foreign.clone())));
        }
    }

    #[test]
    fn a_token_is_its_seed_and_its_place() {
        let seed = TokenSeed::now();
        for index in [0, 9, 10, 999, PLACES - 1] {
            let token = seed.token(Attempt::FIRST, index);
            let text = format!("{}-{index}", seed.0.simple());
            assert_eq!(token.to_string(), text);
            assert_eq!(text.parse(), Ok(token));
            assert_eq!(token.traceparent(), format!("00-{}-{:016x}-01", seed.0.simple(), span_id(text.as_bytes())));
        }
    }

    #[test]
    fn a_token_says_which_address_it_was_claimed_for() {
        let second = Attempt::FIRST.next().at_address(3);
        let token = TokenSeed::now().token(second, PLACES - 1);
        assert_eq!(token.to_string().split_off(33), "319999999", "0.1.0 reads nine digits");
        assert_eq!((token.address(), second.next().at_address(0)), (3, Attempt::FIRST.next().next()));
        assert_eq!(TokenSeed::now().token(Attempt::UNCLAIMED, PLACES - 1).address(), 0);
    }

    #[test]
    fn a_redelivery_says_which_it_is() {
        let seed = TokenSeed::now();
        let token = seed.redelivery(3, 12);
        assert_eq!(token.to_string().split_off(33), "370000012");
        assert_eq!((token.address(), token.redelivery()), (3, Some(12)));
        assert_eq!(seed.marked(0).to_string().split_off(33), "80000000");
        assert_eq!(seed.marked(9).redelivery(), None);
        assert_eq!(seed.token(Attempt::FIRST, 7).redelivery(), None);
    }

    #[test]
    fn each_try_has_a_token_of_its_own_in_the_same_trace() {
        let seed = TokenSeed::now();
        let attempts = [Attempt::FIRST, Attempt::FIRST.next(), Attempt::UNCLAIMED];
        let tokens = attempts.map(|attempt| seed.token(attempt, 7));
        assert_eq!(tokens.map(|token| token.to_string().split_off(33)), ["7", "10000007", "90000007"]);
        for token in tokens {
            assert_eq!(token.to_string().parse(), Ok(token));
            assert_eq!((token.trace_id(), token.time()), (seed, tokens[0].time()));
            assert!(token.is_of_same_request(tokens[0]));
            assert!(!token.is_of_same_request(seed.token(Attempt::FIRST, 8)), "another id");
            assert!(!token.is_of_same_request(TokenSeed::now().token(Attempt::FIRST, 7)), "another request");
        }
    }
}
