//! Where the entries of a pending key go. An entry goes to the address it was claimed for (subject, route name, action),
//! whatever the configuration says now.
//!
//! Every address that ever claimed under a pending key has a number in the HASH `{key}:addresses`, and a token carries that
//! number: the hundred-millions of its index (`register.lua`). If no stream covers the subject, the entry stays, and the log
//! says subject and number. A stream of any name that covers it brings the entry out.
//!
//! - A 0.1.0 replica writes no number, which reads as number 0: the address in `hookgate:routes`, where new replicas change
//!   nothing that is there. It publishes every entry of its pending key to its own subject.
//! - If 0.1.0 is started with another address for a key, number 0 becomes that address, with a warning.
//! - A pending key has ten numbers. After that, one that no entry of the outbox needs is used again. While there is none, the
//!   route claims nothing, as if Redis took no writes; the relay frees numbers.

use std::{
    hash::{BuildHasher, RandomState},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use redis::{RedisError, Value};
use serde::{Deserialize, Serialize};
use tracing::{error, warn};

use super::{connection::Connection, diagnosis::takes_no_writes, script::REGISTER};
use crate::{
    delivery::{Addresses, StoreError},
    route::{Route, RouteSpec},
};

/// What has to be known to publish an entry.
#[derive(Debug, Serialize, Deserialize)]
struct AddressRecord {
    flow: String,
    entity: String,
    action: String,
    subject: String,
}

/// The address of a route as it is written into Redis.
pub(super) fn text(route: &Route) -> String {
    let record = AddressRecord {
        flow: route.flow().to_owned(),
        entity: route.entity().to_owned(),
        action: route.action().to_owned(),
        subject: route.subject().to_owned(),
    };
    serde_json::to_string(&record).expect("strings always serialize")
}

/// A route that claims, and the number of its address.
pub(super) struct Claiming {
    pub(super) route: Arc<Route>,
    /// Its address.
    pub(super) address: String,
    number: AtomicUsize,
}

/// Above all numbers.
const NO_NUMBER: usize = usize::MAX;

impl Claiming {
    pub(super) fn new(route: &Arc<Route>) -> Self {
        Self { route: Arc::clone(route), address: text(route), number: AtomicUsize::new(NO_NUMBER) }
    }

    /// As it was registered last; none while it can't be: another address may have any number then.
    pub(super) fn number(&self) -> Option<usize> {
        Some(self.number.load(Ordering::SeqCst)).filter(|number| *number != NO_NUMBER)
    }

    /// Why nothing is claimed while there is no number.
    pub(super) fn without_number(&self) -> StoreError {
        let Self { route, .. } = self;
        StoreError::NoWrites(format!(
            "route {route} claims nothing: its address is not registered in {} yet, because Redis takes no writes now or all 10 addresses there are in use; that is tried again once a second; hookgate outbox list shows what has to be published first",
            route.addresses_key()
        ))
    }

    /// Finds or gives the number. `first` is the address of claims without one, as 0.1.0 recorded it, if it did. Returns
    /// the number, and that address.
    pub(super) async fn register(
        &self,
        connection: &mut Connection,
        first: Option<&str>,
    ) -> Result<(usize, String), RedisError> {
        let Self { route, address, number } = self;
        let answer = REGISTER.call::<Vec<Value>>(connection, |call| {
            call.arg(2).arg(route.addresses_key()).arg(route.outbox_key());
            call.arg(first.unwrap_or_default()).arg(address).arg(RandomState::new().hash_one(()) % 9);
        });
        let answer = answer.await.inspect_err(|error| {
            if takes_no_writes(error) {
                number.store(NO_NUMBER, Ordering::SeqCst);
            }
        })?;
        let mut answer = answer.into_iter();
        let given = redis::from_redis_value(answer.next().unwrap_or(Value::Nil))?;
        let first: String = redis::from_redis_value(answer.next().unwrap_or(Value::Nil))?;
        if let Some(before) = answer.next() {
            let before: String = redis::from_redis_value(before)?;
            warn!(%route, pending_key = route.pending_key(), before, now = first,
                "a replica of hookgate 0.1.0 claims under this key for another address than before: entries without a number go to that one now");
        }
        number.store(given, Ordering::SeqCst);
        Ok((given, first))
    }
}

/// The route that an address is of.
pub(super) fn route(address: &[u8], pending_key: &str) -> Option<Route> {
    let AddressRecord { flow, entity, action, subject } = serde_json::from_slice(address).ok()?;
    let spec = RouteSpec {
        flow: &flow,
        entity: &entity,
        action: &action,
        subject: Some(&subject),
        pending_key: Some(pending_key),
        ..RouteSpec::default()
    };
    Route::new(&spec).ok()
}

/// The addresses of a pending key.
pub(super) async fn read(connection: &mut Connection, served: &Route) -> Result<Addresses, RedisError> {
    let records: Vec<(Vec<u8>, Vec<u8>)> =
        redis::cmd("HGETALL").arg(served.addresses_key()).query_async(connection).await?;
    let read = |(number, record): &(Vec<u8>, Vec<u8>)| {
        let number = std::str::from_utf8(number).ok()?.parse().ok()?;
        Some((number, Arc::new(route(record, served.pending_key())?)))
    };
    let known = records.iter().filter_map(|record| {
        let address = read(record);
        if address.is_none() {
            error!(route = %served, addresses = served.addresses_key(), number = ?String::from_utf8_lossy(&record.0),
                "an address can't be read, so entries that were claimed for it go to the subject of the route; it was not written by hookgate");
        }
        address
    });
    Ok(known.collect())
}
