//! hookgate: webhooks come in over HTTP, every entity id is claimed once in Redis, and each newly claimed
//! id goes out as one event on NATS.
//!
//! The way of the data is one line, each station a module that knows only its own thing:
//!
//! ```text
//! listener → webhooks → batch → pipeline: claim → publish → settle → receipt → reply
//!            (route)              pending ↑   publisher ↑   ↑ pending
//! ```
//!
//! | module | owns | must not know |
//! |---|---|---|
//! | [`route`] | paths, subjects, keys of a webhook | I/O |
//! | [`batch`] | bytes → distinct ids and rejected items | HTTP, I/O |
//! | [`event`] | token, payload, trace of a claim | I/O |
//! | [`pipeline`] | claim → publish → settle, and the two ports | HTTP, Redis, NATS |
//! | [`signature`] | bytes and headers → a body that may be processed | JSON, I/O |
//! | [`secrets`] | secrets in files that change | what they are for |
//! | [`breaker`] | whether it is worth waiting for the broker | I/O |
//! | [`pending`] | claims, in Redis or in memory | HTTP, NATS |
//! | [`publisher`] | events into JetStream or core NATS | HTTP, Redis |
//! | [`relay`] | publishes what stayed in the outbox | HTTP, Redis, NATS |
//! | [`dead_letters`] | rejected items and bodies, on their way to a person | HTTP, Redis |
//! | [`webhooks`] | the chain of filters that a webhook passes | Redis, NATS |
//! | [`admission`] | budget of memory, permits, deadlines | routes, batches, answers |
//! | [`reply`] | answers, the one match from outcome to status code | who answers |
//! | [`listener`] | connections: number, time-outs, end | webhooks |
//! | [`admin`] | probes, metrics, status and the page that shows it | webhooks |
//! | [`metrics`] | every series, its name, and the handles that count | – |
//! | [`readiness`] | what is known of the stores; when the process is ready | how it is found out |
//! | [`redaction`] | addresses without their passwords | – |
//! | [`files`] | how many files the process may open | what they are |
//! | [`tls`] | files of TLS, and what a failed handshake asks for | the stores |
//! | [`traces`] | spans, on their way to a collector | where they are measured |
//! | [`settings`] | layers → checked values; the only reader of the environment | – |
//! | [`shutdown`] | signals and phases | – |
//! | `supervision` | tasks that outlive a panic | what they do |
//! | [`app`] | puts all of this together; the only namer of concrete backends | – |
//!
//! What is promised, and why it holds, is in ARCHITECTURE.md.

pub mod admin;
pub mod admission;
pub mod app;
pub mod batch;
pub mod breaker;
pub mod dead_letters;
pub mod event;
pub mod failpoint;
pub mod files;
pub mod finding;
pub mod listener;
pub mod metrics;
pub mod pending;
pub mod pipeline;
pub mod publisher;
pub mod readiness;
pub mod redaction;
pub mod relay;
pub mod reply;
mod rfc3339;
pub mod route;
pub mod secrets;
pub mod settings;
pub mod shutdown;
pub mod signature;
mod supervision;
pub mod telemetry;
pub mod tls;
pub mod traces;
pub mod webhooks;
