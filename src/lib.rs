//! hookgate: webhooks come in over HTTP, every entity id is claimed once in Redis, and each newly claimed
//! id goes out as one event on NATS.
//!
//! A webhook goes one way: [`listener`] → [`webhooks`] (route, precheck, body, permit, verify, decode) → [`delivery`] (claim →
//! publish → ack → settle) → [`reply`]. Delivery works through ports, which [`pending`] (Redis) and [`publisher`] (NATS)
//! implement. [`relay`] delivers what stayed in the outbox. Only [`app`] puts these together.
//!
//! ```
//! use hookgate::{batch::Batch, event::{Attempt, Events, TokenSeed}, route::{Route, RouteSpec}};
//!
//! let spec = RouteSpec { flow: "vmh", entity: "beteiligte", action: "create", ..RouteSpec::default() };
//! let route = Route::new(&spec)?;
//! let batch = Batch::parse(&br#"[{"id": "entity-123"}]"#[..])?;
//! let token = TokenSeed::now().token(Attempt::FIRST, 0);
//! let event = Events::of(&route).event(batch.id(0), token);
//! assert!(event.payload.starts_with(br#"{"entity_id":"entity-123","action":"create","source":"webhook""#));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The map of all modules, their layers and what each may use is in ARCHITECTURE.md; `tests/architecture.rs` compares it
//! with the imports.

pub mod admin;
pub mod admission;
pub mod app;
pub mod batch;
pub mod breaker;
pub mod dead_letters;
pub mod delivery;
pub mod espocrm;
pub mod event;
pub mod failpoint;
pub mod files;
pub mod finding;
pub mod http_client;
pub mod life;
pub mod listener;
pub mod metrics;
pub mod nats_login;
pub mod pending;
pub mod publisher;
pub mod quarantine;
pub mod readiness;
pub mod recovery;
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
