//! The quarantine in Redis: a stream of what came, and a HASH of the bodies. Over a connection of its own: a body of some
//! megabytes would hold up the claims behind it.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures_util::{FutureExt, future::BoxFuture};
use redis::{Cmd, RedisError};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use super::{
    access::{Access, Found},
    connection::Connection,
    diagnosis::{is_elsewhere, words},
    link::{ConnectionCheck, Link},
    links::find,
    script::{DROP_CAPTURED, KEEP_CAPTURED, LEASE},
};
use crate::{
    delivery::StoreError,
    quarantine::{Captured, Held, Keeping, QuarantineLimits, QuarantineStore, headers_text, parse_headers},
    readiness::Reporter,
};

/// Time of one exchange, with a large body.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The quarantine of an installation.
pub struct RedisQuarantine {
    link: Link,
    keys: Keys,
    _tasks: TaskTracker,
}

/// All with one hash tag, so that they share a cluster slot.
struct Keys {
    entries: String,
    bodies: String,
    hashes: String,
    shares: String,
    lease: String,
}

impl RedisQuarantine {
    /// Starts to connect. `instance` names the installation.
    #[must_use]
    pub fn open(access: &Access, instance: &str) -> Self {
        let key = |name: &str| format!("{{{instance}:quarantine}}:{name}");
        let keys = Keys {
            entries: key("entries"),
            bodies: key("bodies"),
            hashes: key("hashes"),
            shares: key("shares"),
            lease: key("lease"),
        };
        let check: ConnectionCheck = match access.found() {
            Found::In(_) => find(&keys.entries),
            Found::Here | Found::By(_) => Arc::new(|_connection| async { Ok(None) }.boxed()),
        };
        let (link, keep) = Link::new(access.clone(), TIMEOUT, check, Reporter::new("redis"));
        let tasks = TaskTracker::new();
        tasks.spawn(keep);
        Self { link, keys, _tasks: tasks }
    }

    async fn ask<T>(
        &self,
        exchange: impl AsyncFnOnce(&mut Connection) -> Result<T, RedisError>,
    ) -> Result<T, StoreError> {
        let unknown = |problem: String| StoreError::Unknown(problem);
        let current = timeout(TIMEOUT, self.link.current_or_next()).await.unwrap_or(None);
        let mut current = current.ok_or_else(|| StoreError::Down(self.link.problem()))?;
        match timeout(TIMEOUT, exchange(&mut current.connection)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) if error.is_io_error() || is_elsewhere(&error) => {
                self.link.report_trouble(&current);
                Err(unknown(error.to_string()))
            }
            Ok(Err(error)) => Err(StoreError::Refused(words(&error))),
            Err(_elapsed) => {
                self.link.report_trouble(&current);
                Err(unknown(format!("no answer within {TIMEOUT:?}")))
            }
        }
    }

    fn keys(&self, call: &mut Cmd) {
        let Keys { entries, bodies, hashes, shares, .. } = &self.keys;
        call.arg(4).arg(entries).arg(bodies).arg(hashes).arg(shares);
    }
}

impl QuarantineStore for RedisQuarantine {
    fn keep<'a>(
        &'a self,
        captured: &'a Captured,
        share: QuarantineLimits,
    ) -> BoxFuture<'a, Result<Keeping, StoreError>> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let oldest = u64::try_from(now.saturating_sub(share.max_age).as_millis()).unwrap_or(0);
        let (hash, headers) = (captured.hash(), headers_text(&captured.headers));
        let time = humantime::format_rfc3339_millis(captured.time).to_string();
        async move {
            // First without the body: most come several times, and a full share needs none.
            for body in [None, Some(captured.body.as_ref())] {
                let arguments = |call: &mut Cmd| {
                    self.keys(call);
                    call.arg(&hash).arg(captured.share.text()).arg(share.max_entries).arg(share.max_bytes).arg(oldest);
                    call.arg(&captured.route).arg(&time).arg(&headers).arg(captured.body.len());
                    if let Some(body) = body {
                        call.arg(body);
                    }
                };
                let answer: String =
                    self.ask(async |connection| KEEP_CAPTURED.call(connection, arguments).await).await?;
                match answer.as_str() {
                    "k" => {}
                    "a" => return Ok(Keeping::Known),
                    "f" => return Ok(Keeping::Full),
                    other => return Err(StoreError::Refused(format!("the script gave the answer {other:?}"))),
                }
            }
            Ok(Keeping::Kept)
        }
        .boxed()
    }

    fn page<'a>(&'a self, behind: Option<&'a str>, count: usize) -> BoxFuture<'a, Result<Vec<Held>, StoreError>> {
        async move {
            let mut call = redis::cmd("XRANGE");
            let start = behind.map_or_else(|| "-".to_owned(), |behind| format!("({behind}"));
            call.arg(&self.keys.entries).arg(start).arg("+").arg("COUNT").arg(count);
            let found: Vec<(String, Vec<(String, String)>)> =
                self.ask(async |connection| call.query_async(connection).await).await?;
            Ok(found.into_iter().map(read).collect())
        }
        .boxed()
    }

    fn body<'a>(&'a self, entry: &'a str) -> BoxFuture<'a, Result<Option<Bytes>, StoreError>> {
        async move {
            let mut call = redis::cmd("HMGET");
            call.arg(&self.keys.bodies).arg(entry);
            let (body,): (Option<Vec<u8>>,) = self.ask(async |connection| call.query_async(connection).await).await?;
            Ok(body.map(Bytes::from))
        }
        .boxed()
    }

    fn remove<'a>(&'a self, entries: &'a [String]) -> BoxFuture<'a, Result<usize, StoreError>> {
        async move {
            let arguments = |call: &mut Cmd| {
                self.keys(call);
                call.arg(entries);
            };
            self.ask(async |connection| DROP_CAPTURED.call(connection, arguments).await).await
        }
        .boxed()
    }

    fn count(&self) -> BoxFuture<'_, Result<usize, StoreError>> {
        async move {
            let mut call = redis::cmd("XLEN");
            call.arg(&self.keys.entries);
            self.ask(async |connection| call.query_async(connection).await).await
        }
        .boxed()
    }

    fn lease<'a>(&'a self, holder: &'a str, duration: Duration) -> BoxFuture<'a, Result<bool, StoreError>> {
        async move {
            let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).max(1);
            let arguments = |call: &mut Cmd| {
                call.arg(1).arg(&self.keys.lease).arg(holder).arg(millis);
            };
            self.ask(async |connection| LEASE.call(connection, arguments).await).await
        }
        .boxed()
    }
}

fn read((entry, fields): (String, Vec<(String, String)>)) -> Held {
    let get = |name: &str| fields.iter().find(|(field, _)| field == name).map_or("", |(_, value)| value.as_str());
    Held {
        route: get("route").to_owned(),
        share: get("share").to_owned(),
        time: humantime::parse_rfc3339(get("time")).unwrap_or(SystemTime::UNIX_EPOCH),
        headers: parse_headers(get("headers")),
        bytes: get("bytes").parse().unwrap_or(0),
        entry,
    }
}
