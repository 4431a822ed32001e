//! What a new connection to Redis is asked before it is used: may it do everything that keeps events from being lost, and
//! can it now?
//!
//! A user without SADD would else be found by the first webhook, which would be published without a claim. The probe
//! runs on each route's keys (`probe.lua`). Shown by `tests/privileges.rs`, which takes one right away at a time.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use futures_util::{FutureExt, future::try_join_all};
use redis::{Cmd, ErrorKind, RedisError, Value};
use tracing::error;

use super::{
    address::{self, Claiming},
    connection::Connection,
    diagnosis::{is_elsewhere, takes_no_writes, words},
    link::{ConnectionCheck, Link},
    names::Names,
    outbox,
    redis::{Checked, Durability, Options},
    script::{self, CLAIM, PROBE},
};
use crate::{event::Attempt, route::Route};

/// What a new connection has to be able to do: all that keeps events from being lost, on each route's keys. It
/// also leaves the script of the claim in Redis, and the addresses of the routes. Returns why Redis takes no writes now,
/// if that is so: what is in the outbox can still be published.
pub(super) fn check(routes: Vec<Arc<Claiming>>, names: Arc<Names>, options: Options) -> ConnectionCheck {
    Arc::new(move |mut connection| {
        let (routes, names) = (routes.clone(), Arc::clone(&names));
        async move {
            // All at the same time: one after the other, many routes would take longer than there is.
            let probes = routes.iter().map(|claiming| check_route(connection.clone(), &claiming.route));
            let mut refusals = try_join_all(probes).await?;
            let recorded = outbox::recorded(&mut connection, &names, &routes).await?;
            let claims = routes.iter().zip(&recorded);
            let claims = claims.map(|(claiming, first)| {
                let record = Record { first: first.as_deref(), to: first.is_none().then(|| connection.clone()) };
                check_claim(connection.clone(), &names, claiming, record, options)
            });
            refusals.extend(try_join_all(claims).await?);
            check_durability(&mut connection, options).await?;
            outbox::may_read_records(&mut connection, &names).await?;
            Ok(refusals.into_iter().find(|refusal| !refusal.is_empty()))
        }
        .boxed()
    })
}

/// The same for one route in a cluster, where the records of the routes may be on another node. Nothing is claimed before its
/// record has been written once: without it nobody would find the outbox of a route that leaves the configuration.
pub(super) fn check_in_cluster(
    claiming: &Arc<Claiming>,
    names: &Arc<Names>,
    options: Options,
    records: &Arc<Records>,
) -> ConnectionCheck {
    let (claiming, names, records) = (Arc::clone(claiming), Arc::clone(names), Arc::clone(records));
    Arc::new(move |mut connection| {
        let (claiming, names, records) = (Arc::clone(&claiming), Arc::clone(&names), Arc::clone(&records));
        async move {
            let route = &claiming.route;
            let refusal = check_route(connection.clone(), route).await?;
            if !refusal.is_empty() {
                // The rest would be refused, too, and after as long a wait: a link that takes no writes is asked again.
                return Ok(Some(refusal));
            }
            let (first, to) = if records.are_written(route) {
                (None, None)
            } else {
                let mut to = records.connection().await?;
                let recorded = outbox::recorded(&mut to, &names, &[Arc::clone(&claiming)]).await.map_err(of_records)?;
                let first = recorded.into_iter().next().flatten();
                if first.is_some() {
                    records.written(route);
                }
                let to = first.is_none().then_some(to);
                (first, to)
            };
            let writes = to.is_some();
            let record = Record { first: first.as_deref(), to };
            let refusal = check_claim(connection.clone(), &names, &claiming, record, options).await?;
            if writes && refusal.is_empty() {
                records.written(route);
            }
            check_durability(&mut connection, options).await?;
            Ok(Some(refusal).filter(|refusal| !refusal.is_empty()))
        }
        .boxed()
    })
}

/// What the connection to the records of the routes has to be able to do. The record of a route that claims is written again if a
/// failover lost it.
pub(super) fn check_records(checked: &Arc<Checked>, names: &Arc<Names>, records: &Arc<Records>) -> ConnectionCheck {
    let (checked, names, records) = (Arc::clone(checked), Arc::clone(names), Arc::clone(records));
    Arc::new(move |mut connection| {
        let (names, records) = (Arc::clone(&names), Arc::clone(&records));
        let routes = checked.lock().unwrap_or_else(PoisonError::into_inner).clone();
        async move {
            outbox::may_read_records(&mut connection, &names).await?;
            let recorded = outbox::recorded(&mut connection, &names, &routes).await?;
            for (claiming, recorded) in routes.iter().zip(recorded) {
                if recorded.is_none() && records.are_written(&claiming.route) {
                    outbox::record(&mut connection, &names, &claiming.route).await?;
                }
            }
            Ok(None)
        }
        .boxed()
    })
}

/// The records of the routes, in a cluster.
#[derive(Default)]
pub(super) struct Records {
    link: OnceLock<Arc<Link>>,
    written: Mutex<HashSet<String>>,
}

impl Records {
    /// Where they are.
    pub(super) fn are_at(&self, link: &Arc<Link>) {
        let _only_once = self.link.set(Arc::clone(link));
    }

    fn are_written(&self, route: &Route) -> bool {
        self.written.lock().unwrap_or_else(PoisonError::into_inner).contains(route.pending_key())
    }

    fn written(&self, route: &Route) {
        self.written.lock().unwrap_or_else(PoisonError::into_inner).insert(route.pending_key().to_owned());
    }

    /// A check has a time-out, so this waits as long as it takes.
    async fn connection(&self) -> Result<Connection, RedisError> {
        let link = self.link.get();
        let connected = async { link?.current_or_next().await };
        connected.await.map(|current| current.connection).ok_or_else(|| {
            let problem = link.map_or_else(String::new, |link| link.problem());
            RedisError::from((ErrorKind::Client, "the records of the routes can't be reached", problem))
        })
    }
}

/// They are on a node of their own: that the key has moved there says nothing of the route's connection.
fn of_records(error: RedisError) -> RedisError {
    if !is_elsewhere(&error) {
        return error;
    }
    RedisError::from((ErrorKind::Client, "the records of the routes are moving to another node", error.to_string()))
}

/// Which record there is of a route, and where to write one if there is none.
struct Record<'a> {
    /// The address in it.
    first: Option<&'a str>,
    to: Option<Connection>,
}

async fn check_durability(connection: &mut Connection, options: Options) -> Result<(), RedisError> {
    match options.durability {
        Durability::None => {}
        Durability::Replica => {
            // Only checks the permission: WAIT for 0 replicas returns at once.
            let _copies = redis::cmd("WAIT").arg(0).arg(1).query_async::<Value>(connection).await?;
        }
        Durability::Aof => {
            let wait = redis::cmd("WAITAOF").arg(1).arg(0).arg(1).query_async::<Value>(connection).await;
            let _no_writes = wait.map_err(without_waitaof)?;
        }
    }
    Ok(())
}

/// Why Redis takes no writes now; empty if it does.
async fn check_route(mut connection: Connection, route: &Route) -> Result<String, RedisError> {
    let probe = |call: &mut Cmd| {
        call.arg(4).arg(route.pending_key()).arg(route.outbox_key()).arg(route.lease_key());
        call.arg(format!("{}:probe", route.lease_key()));
    };
    let probed = PROBE.call::<String>(&mut connection, probe).await.map_err(|error| of_route(route, error));
    match unless_of_another_kind(route, probed) {
        // A slot is moving; other refusals are what the script answers.
        Err(error) if error.code() == Some("TRYAGAIN") => Ok(format!("route {route}: {}", words(&error))),
        checked => checked,
    }
}

/// Why nothing can be claimed for this route now; empty if it can. The others can go on, and the outbox, too.
async fn check_claim(
    mut connection: Connection,
    names: &Names,
    claiming: &Claiming,
    record: Record<'_>,
    options: Options,
) -> Result<String, RedisError> {
    let route = &claiming.route;
    let checked = async {
        let registered = claiming.register(&mut connection, record.first).await;
        let (number, zero) = registered.map_err(|error| of_route(route, error))?;
        if let Some(mut to) = record.to {
            let owner = address::route(zero.as_bytes(), route.pending_key());
            outbox::record(&mut to, names, owner.as_ref().unwrap_or(route)).await.map_err(of_records)?;
        }
        let arguments = |call: &mut Cmd| {
            script::claim(call, claiming, options.outbox_limit, false, &[], |_| Attempt::FIRST, number);
        };
        let claimed = CLAIM.call::<Vec<Value>>(&mut connection, arguments).await;
        claimed.map(|_no_states| String::new()).map_err(|error| of_route(route, error))
    };
    match unless_of_another_kind(route, checked.await) {
        Err(error) if takes_no_writes(&error) => Ok(format!("route {route}: {}", words(&error))),
        checked => checked,
    }
}

/// Redis names neither the route nor the key that it denies.
fn of_route(route: &Route, error: RedisError) -> RedisError {
    if error.code() != Some("NOPERM") {
        return error;
    }
    let (key, said) = (route.pending_key(), error.detail().unwrap_or_default().trim_end());
    RedisError::from((error.kind(), "denied", format!("route {route} (keys {key}, {{{key}}}:*): {said}")))
}

/// The other routes can go on without this one.
fn unless_of_another_kind<T: Default>(route: &Route, checked: Result<T, RedisError>) -> Result<T, RedisError> {
    match checked {
        Err(error) if error.code() == Some("WRONGTYPE") => {
            error!(%route, pending_key = route.pending_key(), outbox = route.outbox_key(), addresses = route.addresses_key(), %error,
                "a key of this route is something else in Redis, so nothing can be claimed for it; rename that key, or set routes.pending_key");
            Ok(T::default())
        }
        checked => checked,
    }
}

/// WAITAOF is unknown before Redis 7.2, refused without an append-only file, and may be denied to the user.
fn without_waitaof(error: RedisError) -> RedisError {
    if error.code() != Some("ERR") {
        return error;
    }
    let needed = "redis.durability = \"aof\" needs Redis 7.2 or newer with an append-only file (appendonly yes)";
    RedisError::from((ErrorKind::InvalidClientConfig, needed, error.to_string()))
}
