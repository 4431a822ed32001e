//! Real servers, the real binary, and a raw HTTP client. A server that can't be started fails the test.

mod certificates;
mod collector;
mod command;
mod espocrm;
mod gate;
mod http;
mod http_server;
mod jwt;
mod nats;
pub(crate) mod privileged;
mod process;
mod redis;
mod redis_cluster;
mod redis_sentinel;
mod waiting;

use std::{ffi::OsStr, fmt::Write};

pub(crate) use self::{
    certificates::{Authority, Holds, Identity},
    collector::{Collector, Span},
    command::{Ran, run, start},
    espocrm::{ADMIN, API_KEY, EspoCrm, NAME, Read, crm_time},
    gate::{Gate, Tail, field},
    http::{Answer, Connection, post, post_and_stay, signed, try_exchange},
    http_server::HttpServer,
    jwt::Operator,
    nats::{Event, NatsCluster, NatsServer, monitored, recent_servers},
    process::{Port, Process, binary},
    redis::RedisServer,
    redis_cluster::RedisCluster,
    redis_sentinel::Sentinels,
    waiting::{eventually, in_time, within},
};

/// Path, subject and keys of the route that is served if none is configured.
pub(crate) const PATH: &str = "/vmh/webhook/beteiligte/create";
pub(crate) const SUBJECT: &str = "vmh.beteiligte.create";
pub(crate) const PENDING: &str = "vmh:beteiligte:create_pending";
pub(crate) const OUTBOX: &str = "{vmh:beteiligte:create_pending}:outbox";

/// The servers that hookgate works with.
pub(crate) struct World {
    pub(crate) redis: RedisServer,
    pub(crate) nats: NatsServer,
}

impl World {
    /// Both servers, with nothing in them.
    pub(crate) async fn start() -> Self {
        let (redis, nats) = if privileged::wanted() {
            privileged::start().await
        } else {
            tokio::join!(RedisServer::start(), NatsServer::start())
        };
        Self { redis, nats }
    }

    /// A hookgate between the servers that is ready; `settings` is TOML over the settings of all tests.
    pub(crate) async fn gate(&self, settings: &str) -> Gate {
        let gate = self.gate_unready(settings).await;
        gate.wait_ready().await;
        gate
    }

    /// The same as soon as it listens.
    pub(crate) async fn gate_unready(&self, settings: &str) -> Gate {
        Gate::start(&self.settings(), settings).await
    }

    /// One that dies at a named point: `point`, or `point:number` of the hit; or panics there: `panic@point`.
    #[allow(clippy::assertions_on_constants, reason = "it depends on how the tests are built")]
    pub(crate) async fn gate_armed(&self, settings: &str, point: &str) -> Gate {
        assert!(cfg!(feature = "failpoints"), "this needs --features failpoints");
        self.gate_in(settings, &[("HOOKGATE_FAILPOINT", point)]).await
    }

    /// A ready one with variables in its environment.
    pub(crate) async fn gate_in(&self, settings: &str, environment: &[(&str, impl AsRef<OsStr>)]) -> Gate {
        let gate = Gate::start_with(&self.settings(), settings, environment).await;
        gate.wait_ready().await;
        gate
    }

    /// Empties Redis: every id is new again.
    pub(crate) async fn forget(&self) {
        let mut connection = self.redis.connection().await;
        ::redis::cmd("FLUSHDB").query_async::<()>(&mut connection).await.expect("Redis forgets");
    }

    /// Where the servers are, as TOML.
    pub(crate) fn settings(&self) -> String {
        let (mut redis, mut nats) = (self.redis.url(), self.nats.url());
        if privileged::wanted() {
            (redis, nats) = (privileged::login(&redis), privileged::login(&nats));
        }
        format!("redis.url = \"{redis}\"\nnats.url = \"{nats}\"\n")
    }
}

/// A body with a record for each id.
pub(crate) fn batch<T: AsRef<str>>(ids: impl IntoIterator<Item = T>) -> String {
    let records = ids.into_iter().fold(String::new(), |mut text, id| {
        let comma = if text.is_empty() { "" } else { "," };
        write!(text, "{comma}{{\"id\":\"{}\",\"name\":\"Test\"}}", id.as_ref()).expect("a String takes everything");
        text
    });
    format!("[{records}]")
}
