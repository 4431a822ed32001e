//! What a new connection to Redis is asked before it is used: may it do everything that keeps events from being lost, and
//! can it now?
//!
//! A user without SADD would else be found by the first webhook, which would be published without a claim. The probe
//! runs on each route's keys (`probe.lua`). Shown by `tests/privileges.rs`, which takes one right away at a time.

use std::sync::Arc;

use futures_util::{FutureExt, future::try_join_all};
use redis::{Cmd, ErrorKind, RedisError, Value, aio::MultiplexedConnection};
use tracing::error;

use super::{
    address::{self, Claiming},
    diagnosis::{takes_no_writes, words},
    link::ConnectionCheck,
    names::Names,
    outbox,
    redis::{Durability, Options},
    script::{self, CLAIM, PROBE},
};
use crate::{event::Attempt, route::Route};

/// What a new connection has to be able to do: all that keeps events from being lost, on each route's keys. It
/// also leaves the script of the claim in Redis, and the addresses of the routes. Answers why Redis takes no writes now,
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
            let claims = claims
                .map(|(claiming, first)| check_claim(connection.clone(), &names, claiming, first.as_deref(), options));
            refusals.extend(try_join_all(claims).await?);
            if options.durability == Durability::Aof {
                let wait = redis::cmd("WAITAOF").arg(1).arg(0).arg(1).query_async::<Value>(&mut connection).await;
                let _no_writes = wait.map_err(without_waitaof)?;
            }
            outbox::may_read_records(&mut connection, &names).await?;
            Ok(refusals.into_iter().find(|refusal| !refusal.is_empty()))
        }
        .boxed()
    })
}

/// Why Redis takes no writes now; empty if it does.
async fn check_route(mut connection: MultiplexedConnection, route: &Route) -> Result<String, RedisError> {
    let probe = |call: &mut Cmd| {
        call.arg(4).arg(route.pending_key()).arg(route.outbox_key()).arg(route.lease_key());
        call.arg(format!("{}:probe", route.lease_key()));
    };
    unless_of_another_kind(route, PROBE.call::<String>(&mut connection, probe).await)
}

/// Why nothing can be claimed for this route now; empty if it can. The others can go on, and the outbox, too.
async fn check_claim(
    mut connection: MultiplexedConnection,
    names: &Names,
    claiming: &Claiming,
    first: Option<&str>,
    options: Options,
) -> Result<String, RedisError> {
    let route = &claiming.route;
    let checked = async {
        let (number, zero) = claiming.register(&mut connection, first).await?;
        if first.is_none() {
            let owner = address::route(zero.as_bytes(), route.pending_key());
            outbox::record(&mut connection, names, owner.as_ref().unwrap_or(route)).await?;
        }
        let arguments = |call: &mut Cmd| {
            script::claim(call, claiming, options.outbox_limit, false, &[], |_| Attempt::FIRST, number);
        };
        CLAIM.call::<Vec<Value>>(&mut connection, arguments).await.map(|_no_states| String::new())
    };
    match unless_of_another_kind(route, checked.await) {
        Err(error) if takes_no_writes(&error) => Ok(format!("route {route}: {}", words(&error))),
        checked => checked,
    }
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
