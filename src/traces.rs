//! OpenTelemetry spans, one for each step of a webhook. Without a collector no span is made.
//!
//! ```text
//! POST /vmh/webhook/beteiligte/create      server     trace id: the seed of the tokens
//! ├── claim                                internal
//! ├── create vmh.beteiligte.create         producer   one per event; its message carries this span
//! └── send vmh.beteiligte.create           client     one per step; links to the events
//!
//! send vmh.beteiligte.create (relay)       client     a trace of its own; links to the events
//! ```
//!
//! Every span id is derived from the seed. So every replica publishes the same message, and the id of a parent is known
//! before its span ends. An incoming `traceparent` becomes a link, never the parent: anybody can send one. Names
//! follow the semantic conventions for HTTP and messaging. No span holds a record, an address or a path that is not
//! configured.

mod export;

use std::{
    borrow::Cow,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Instant, SystemTime},
};

use opentelemetry::{
    InstrumentationScope, KeyValue,
    trace::{Link, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState},
};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use tokio::sync::mpsc;

pub use self::export::{Collector, CollectorError};
use crate::{
    event::{Token, TokenSeed},
    route::Route,
};

/// Takes spans. The default drops them.
#[derive(Debug, Clone, Default)]
pub struct Tracer(Option<Arc<Queue>>);

#[derive(Debug)]
struct Queue {
    spans: mpsc::Sender<SpanData>,
    dropped: AtomicU64,
    scope: InstrumentationScope,
}

/// When a step began.
#[derive(Debug, Clone, Copy)]
pub struct Began {
    time: SystemTime,
    instant: Instant,
}

/// A request that was answered.
#[derive(Debug)]
pub struct ReceivedSpan<'a> {
    /// The seed of its tokens; a new one if it got none.
    pub seed: TokenSeed,
    /// The webhook.
    pub route: &'a Route,
    /// Its method; `_OTHER` if it is not a usual one.
    pub method: &'static str,
    /// Its status code.
    pub status: u16,
    /// Machine-readable name of the refusal, if it was one.
    pub error: Option<&'static str>,
    /// Size of the body, if all of it arrived.
    pub body_bytes: Option<usize>,
    /// Its `traceparent` header.
    pub traceparent: Option<Traceparent>,
}

/// A call that claims ids.
#[derive(Debug)]
pub struct ClaimSpan<'a> {
    /// The seed of the tokens.
    pub seed: TokenSeed,
    /// Place of the first id in the batch.
    pub start: usize,
    /// The webhook.
    pub route: &'a Route,
    /// Ids in the call.
    pub ids: usize,
    /// Ids that were claimed now.
    pub new: usize,
    /// Ids that were claimed before and are not acknowledged yet.
    pub in_flight: usize,
    /// Why the store did not answer.
    pub problem: Option<String>,
}

/// Events that were published, acknowledged or not.
#[derive(Debug)]
pub struct Sent<'a> {
    /// The seed of the request and the place of its first event; `None` for the relay.
    pub request: Option<(TokenSeed, usize)>,
    /// The webhook.
    pub route: &'a Route,
    /// The tokens of the events.
    pub tokens: Vec<Token>,
    /// Attempts so far.
    pub attempts: usize,
    /// Why some are not acknowledged, if so.
    pub problem: Option<String>,
}

/// The W3C trace context of a request. Read here: opentelemetry's propagator takes what the specification refuses, such
/// as ids that are too short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traceparent {
    trace_id: u128,
    span_id: u64,
    flags: u8,
}

/// The header is not valid. The request is traced as without one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a W3C traceparent")]
pub struct NotATraceparent;

impl FromStr for Traceparent {
    type Err = NotATraceparent;

    fn from_str(header: &str) -> Result<Self, NotATraceparent> {
        Self::parse(header).ok_or(NotATraceparent)
    }
}

impl Traceparent {
    fn parse(text: &str) -> Option<Self> {
        let hex = |text: &str, length: usize| {
            text.len() == length && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        };
        let mut parts = text.split('-');
        let (version, trace_id, span_id, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        // Later versions may have more parts; this one has not.
        let valid = hex(version, 2) && version != "ff" && (version != "00" || parts.next().is_none());
        if !(valid && hex(trace_id, 32) && hex(span_id, 16) && hex(flags, 2)) {
            return None;
        }
        let trace_id = u128::from_str_radix(trace_id, 16).ok().filter(|id| *id != 0)?;
        let span_id = u64::from_str_radix(span_id, 16).ok().filter(|id| *id != 0)?;
        Some(Self { trace_id, span_id, flags: u8::from_str_radix(flags, 16).ok()? })
    }

    fn context(self) -> SpanContext {
        let (trace, span) = (TraceId::from(self.trace_id), SpanId::from(self.span_id));
        SpanContext::new(trace, span, TraceFlags::new(self.flags), true, TraceState::NONE)
    }
}

impl Tracer {
    /// Begins a step; `None` without a collector.
    #[must_use]
    pub fn begin(&self) -> Option<Began> {
        self.0.as_ref().map(|_| Began { time: SystemTime::now(), instant: Instant::now() })
    }

    /// Records a request that was answered.
    pub fn received(&self, began: Option<Began>, received: &ReceivedSpan<'_>) {
        let Some((queue, began)) = self.0.as_ref().zip(began) else { return };
        let ReceivedSpan { seed, route, method, status, error, body_bytes, traceparent } = received;
        let mut attributes = vec![
            KeyValue::new("http.request.method", *method),
            KeyValue::new("http.route", route.path().to_owned()),
            KeyValue::new("url.path", route.path().to_owned()),
            KeyValue::new("url.scheme", "http"),
            KeyValue::new("http.response.status_code", i64::from(*status)),
            KeyValue::new("hookgate.route", route.name().to_owned()),
        ];
        attributes.extend(body_bytes.map(|bytes| KeyValue::new("http.request.body.size", count(bytes))));
        attributes.extend(error.map(|error| KeyValue::new("error.type", error)));
        // A mistake of the sender is not an error of this span.
        let problem = error.filter(|_| *status >= 500).map(str::to_owned);
        queue.record(TraceSpan {
            context: context(*seed, seed.span_id("receive", 0)),
            parent: None,
            kind: SpanKind::Server,
            name: format!("{method} {}", route.path()),
            began,
            attributes,
            links: traceparent.map(Traceparent::context).into_iter().collect(),
            problem,
        });
    }

    /// Records a call that claims ids.
    pub fn claimed(&self, began: Option<Began>, claimed: ClaimSpan<'_>) {
        let Some((queue, began)) = self.0.as_ref().zip(began) else { return };
        let ClaimSpan { seed, start, route, ids, new, in_flight, problem } = claimed;
        queue.record(TraceSpan {
            context: context(seed, seed.span_id("claim", start)),
            parent: Some(seed.span_id("receive", 0)),
            kind: SpanKind::Internal,
            name: "claim".to_owned(),
            began,
            attributes: vec![
                KeyValue::new("hookgate.route", route.name().to_owned()),
                KeyValue::new("hookgate.ids", count(ids)),
                KeyValue::new("hookgate.ids.new", count(new)),
                KeyValue::new("hookgate.ids.in_flight", count(in_flight)),
            ],
            links: Vec::new(),
            problem,
        });
    }

    /// Records events that were published.
    pub fn sent(&self, began: Option<Began>, sent: Sent<'_>) {
        let Some((queue, began)) = self.0.as_ref().zip(began) else { return };
        let Sent { request, route, tokens, attempts, problem } = sent;
        let destination = || KeyValue::new("messaging.destination.name", route.subject().to_owned());
        let system = || KeyValue::new("messaging.system", "nats");
        let links = tokens.iter().map(|token| context(token.trace_id(), token.span_id())).collect();
        let mut attributes = vec![
            system(),
            destination(),
            KeyValue::new("messaging.operation.type", "send"),
            KeyValue::new("messaging.operation.name", "publish"),
            KeyValue::new("messaging.batch.message_count", count(tokens.len())),
            KeyValue::new("hookgate.route", route.name().to_owned()),
            KeyValue::new("hookgate.attempts", count(attempts)),
            KeyValue::new("hookgate.via", if request.is_some() { "request" } else { "relay" }),
        ];
        attributes.extend(problem.as_ref().map(|_| KeyValue::new("error.type", "not_published")));
        let (seed, start) = request.unwrap_or_else(|| (TokenSeed::now(), 0));
        let parent = request.map(|(seed, _)| seed.span_id("receive", 0));
        // Only for events that this request claimed: another request's events have their spans in its trace.
        let own = request.map(|(seed, _)| seed);
        for token in tokens.iter().filter(|token| own == Some(token.trace_id())) {
            queue.record(TraceSpan {
                context: context(token.trace_id(), token.span_id()),
                parent,
                kind: SpanKind::Producer,
                name: format!("create {}", route.subject()),
                began,
                attributes: vec![
                    system(),
                    destination(),
                    KeyValue::new("messaging.operation.type", "create"),
                    KeyValue::new("messaging.operation.name", "create"),
                    KeyValue::new("messaging.message.id", token.to_string()),
                ],
                links: Vec::new(),
                problem: None,
            });
        }
        queue.record(TraceSpan {
            context: context(seed, seed.span_id("send", start)),
            parent,
            kind: SpanKind::Client,
            name: format!("send {}", route.subject()),
            began,
            attributes,
            links,
            problem,
        });
    }
}

/// A span that ends now.
struct TraceSpan {
    context: SpanContext,
    parent: Option<u64>,
    kind: SpanKind,
    name: String,
    began: Began,
    attributes: Vec<KeyValue>,
    links: Vec<SpanContext>,
    problem: Option<String>,
}

impl Queue {
    /// Never waits. A full queue drops the span and counts it.
    fn record(&self, span: TraceSpan) {
        let TraceSpan { context, parent, kind, name, began, attributes, links, problem } = span;
        let mut all_links = SpanLinks::default();
        all_links.links = links.into_iter().map(|context| Link::new(context, Vec::new(), 0)).collect();
        let span = SpanData {
            span_context: context,
            parent_span_id: parent.map_or(SpanId::INVALID, SpanId::from),
            parent_span_is_remote: false,
            span_kind: kind,
            name: Cow::Owned(name),
            start_time: began.time,
            // From the monotonic clock: a clock that is set back would give a negative length.
            end_time: began.time + began.instant.elapsed(),
            attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: all_links,
            status: problem.map_or(Status::Unset, Status::error),
            instrumentation_scope: self.scope.clone(),
        };
        if self.spans.try_send(span).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn context(trace: TokenSeed, span: u64) -> SpanContext {
    let (trace, span) = (TraceId::from(trace.trace_id()), SpanId::from(span));
    SpanContext::new(trace, span, TraceFlags::SAMPLED, false, TraceState::NONE)
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::Traceparent;

    #[test]
    fn a_traceparent_is_taken_or_left() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let expected = Traceparent {
            trace_id: 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c,
            span_id: 0xb7ad_6b71_6920_3331,
            flags: 1,
        };
        assert_eq!(Traceparent::parse(good), Some(expected));
        let later = format!("cc{}-what-comes-later", &good[2..]);
        assert_eq!(Traceparent::parse(&later), Some(expected), "a later version");
        let bad = [
            String::new(),
            "x".repeat(55),
            good[..54].to_owned(),
            format!("{good}-more"),
            format!("{good} "),
            good.to_uppercase(),
            good.replace("b7ad6b7169203331", "0000000000000000"),
            good.replace("0af7651916cd43dd8448eb211c80319c", "00000000000000000000000000000000"),
            format!("ff{}", &good[2..]),
            good.replace('-', "_"),
            good.replacen('0', "+", 1),
        ];
        for header in bad {
            assert_eq!(Traceparent::parse(&header), None, "{header:?}");
        }
    }
}
