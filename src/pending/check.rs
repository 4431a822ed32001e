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
    link::{Check, takes_no_writes},
    outbox,
    redis::{Durability, Options},
    script::{self, CLAIM, PROBE},
};
use crate::{
    event::Attempt,
    route::{Route, RouteTable},
};

/// What a new connection has to be able to do: all that keeps events from being lost, on each route's keys. It
/// also leaves the script of the claim in Redis, and the record of the routes. Answers why Redis takes no writes now,
/// if that is so: what is in the outbox can still be published.
pub(super) fn check(routes: &RouteTable, options: Options) -> Check {
    let routes = routes.routes().to_vec();
    Arc::new(move |mut connection| {
        let routes = routes.clone();
        async move {
            // All at the same time: one after the other, many routes would take longer than there is.
            let checks = routes.iter().map(|route| check_route(connection.clone(), route, options));
            let mut refusal = try_join_all(checks).await?.into_iter().find(|refusal| !refusal.is_empty());
            if options.durability == Durability::Aof {
                let wait = redis::cmd("WAITAOF").arg(1).arg(0).arg(1).query_async::<Value>(&mut connection).await;
                let _no_writes = wait.map_err(without_waitaof)?;
            }
            if refusal.is_none() {
                match outbox::record(&mut connection, &routes).await {
                    Err(error) if takes_no_writes(&error) => refusal = Some(error.to_string()),
                    recorded => recorded?,
                }
            }
            outbox::may_read_records(&mut connection).await?;
            Ok(refusal)
        }
        .boxed()
    })
}

/// Why Redis takes no writes now; empty if it does.
async fn check_route(
    mut connection: MultiplexedConnection,
    route: &Route,
    options: Options,
) -> Result<String, RedisError> {
    let probe = |call: &mut Cmd| {
        call.arg(4).arg(route.pending_key()).arg(route.outbox_key()).arg(route.lease_key());
        call.arg(format!("{}:probe", route.lease_key()));
    };
    let arguments = |call: &mut Cmd| script::claim(call, route, options.outbox_limit, false, &[], Attempt::FIRST);
    let checked = async {
        let refusal = PROBE.call::<String>(&mut connection, probe).await?;
        CLAIM.call::<Vec<Value>>(&mut connection, arguments).await.map(|_no_states| refusal)
    };
    match checked.await {
        // The other routes can go on.
        Err(error) if error.code() == Some("WRONGTYPE") => {
            error!(%route, pending_key = route.pending_key(), outbox = route.outbox_key(), %error,
                "a key of this route is something else in Redis, so nothing can be claimed for it; rename that key, or set routes.pending_key");
            Ok(String::new())
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
