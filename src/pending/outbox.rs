//! The outboxes in Redis, as the relay and the operator see them; and the record of every route that ever
//! claimed, so that an outbox is found again after its route has left the configuration.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::{FutureExt, future::BoxFuture};
use redis::RedisError;
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::{
    address::{self, Claiming},
    connection::Connection,
    names::Names,
    redis::Redis,
    script::{self, LEASE, SETTLE},
};
use crate::{
    delivery::{Addresses, Settlement, StoreError},
    metrics::Operation,
    relay::{Entry, Outbox, PAGE, Page},
    route::{Route, RouteSpec},
};

/// What has to be known of a route to publish what is left in its outbox.
#[derive(Debug, Serialize, Deserialize)]
struct RouteRecord {
    flow: String,
    entity: String,
    action: String,
    path: String,
    subject: String,
}

/// The addresses that are recorded of the pending keys of these routes: those of 0.1.0, if it ever claimed under them.
pub(super) async fn recorded(
    connection: &mut Connection,
    names: &Names,
    routes: &[Arc<Claiming>],
) -> Result<Vec<Option<String>>, RedisError> {
    let mut call = redis::cmd("HMGET");
    call.arg(&names.routes);
    for claiming in routes {
        call.arg(claiming.route.pending_key());
    }
    let records: Vec<Option<Vec<u8>>> = call.query_async(connection).await?;
    let address = |(claiming, record): (&Arc<Claiming>, Option<Vec<u8>>)| {
        let route = read_record(claiming.route.pending_key(), &String::from_utf8_lossy(&record?))?;
        Some(address::text(&route))
    };
    Ok(routes.iter().zip(records).map(address).collect())
}

/// Writes a record: where 0.1.0, and who finds no other address, takes the entries of a route that was removed.
pub(super) async fn record(connection: &mut Connection, names: &Names, route: &Route) -> Result<(), RedisError> {
    let record = RouteRecord {
        flow: route.flow().to_owned(),
        entity: route.entity().to_owned(),
        action: route.action().to_owned(),
        path: route.path().to_owned(),
        subject: route.subject().to_owned(),
    };
    let record = serde_json::to_string(&record).expect("strings always serialize");
    redis::cmd("HSET").arg(&names.routes).arg(route.pending_key()).arg(record).query_async(connection).await
}

/// Whether they can be read, as the relay does to find what routes left behind that were removed.
pub(super) async fn may_read_records(connection: &mut Connection, names: &Names) -> Result<(), RedisError> {
    // Bytes: whether the values are text does not matter here.
    let _records: HashMap<Vec<u8>, Vec<u8>> = redis::cmd("HGETALL").arg(&names.routes).query_async(connection).await?;
    Ok(())
}

fn read_record(pending_key: &str, record: &str) -> Option<Route> {
    let RouteRecord { flow, entity, action, path, subject } = serde_json::from_str(record)
        .inspect_err(|error| warn!(pending_key, %error, "the record of a route can't be read"))
        .ok()?;
    let spec = RouteSpec {
        flow: &flow,
        entity: &entity,
        action: &action,
        path: Some(&path),
        subject: Some(&subject),
        pending_key: Some(pending_key),
        ..RouteSpec::default()
    };
    Route::new(&spec).inspect_err(|error| warn!(pending_key, %error, "the record of a route is of none")).ok()
}

/// Others may have written anything. A value that is not text has no token, and blocks no other entry.
fn entry(id: &[u8], token: &[u8]) -> Entry {
    let token = std::str::from_utf8(id).and_then(|_id| std::str::from_utf8(token)).unwrap_or_default();
    Entry { id: String::from_utf8_lossy(id).into_owned(), token: token.to_owned() }
}

impl Outbox for Redis {
    fn page<'a>(&'a self, route: &'a Route, cursor: u64) -> BoxFuture<'a, Result<Page, StoreError>> {
        async move {
            let mut call = redis::cmd("HSCAN");
            call.arg(route.outbox_key()).arg(cursor).arg("COUNT").arg(PAGE);
            let (next, flat): (u64, Vec<Vec<u8>>) = self
                .ask(route.pending_key(), Operation::Relay, async |connection| call.query_async(connection).await)
                .await?;
            let entries = flat.chunks_exact(2).map(|pair| entry(&pair[0], &pair[1])).collect();
            Ok(Page { entries, next })
        }
        .boxed()
    }

    fn count<'a>(&'a self, route: &'a Route) -> BoxFuture<'a, Result<usize, StoreError>> {
        async move {
            let mut call = redis::cmd("HLEN");
            call.arg(route.outbox_key());
            self.ask(route.pending_key(), Operation::Relay, async |connection| call.query_async(connection).await).await
        }
        .boxed()
    }

    fn lease<'a>(
        &'a self,
        route: &'a Route,
        holder: &'a str,
        duration: Duration,
    ) -> BoxFuture<'a, Result<bool, StoreError>> {
        async move {
            self.ask(route.pending_key(), Operation::Relay, async |connection| {
                LEASE
                    .call(connection, |call| {
                        let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
                        call.arg(1).arg(route.lease_key()).arg(holder).arg(millis);
                    })
                    .await
            })
            .await
        }
        .boxed()
    }

    fn settle_now<'a>(
        &'a self,
        route: &'a Route,
        settlements: &'a [Settlement],
    ) -> BoxFuture<'a, Result<usize, StoreError>> {
        async move {
            self.ask(route.pending_key(), Operation::Relay, async |connection| {
                SETTLE.call(connection, |call| script::settle(call, route, settlements)).await
            })
            .await
        }
        .boxed()
    }

    fn addresses<'a>(&'a self, route: &'a Route) -> BoxFuture<'a, Result<Addresses, StoreError>> {
        self.ask(route.pending_key(), Operation::Relay, async |connection| address::read(connection, route).await)
            .boxed()
    }

    fn recorded_routes(&self) -> BoxFuture<'_, Result<Vec<Route>, StoreError>> {
        async move {
            let mut call = redis::cmd("HGETALL");
            call.arg(&self.names.routes);
            let records: HashMap<Vec<u8>, Vec<u8>> = self
                .ask(&self.names.routes, Operation::Relay, async |connection| call.query_async(connection).await)
                .await?;
            // What is no text is no route either, and is named as what can be shown of it.
            let text = String::from_utf8_lossy;
            Ok(records.iter().filter_map(|(key, record)| read_record(&text(key), &text(record))).collect())
        }
        .boxed()
    }
}
