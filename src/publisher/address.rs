//! Where the events of a route go, and what their headers say: what is the same for all of them is made once.

use std::sync::{Arc, PoisonError, RwLock};

use async_nats::{HeaderMap, HeaderName, HeaderValue, Subject, header::NATS_MESSAGE_ID};
use hashbrown::HashMap;
use serde::{
    Deserialize,
    de::{IntoDeserializer, value},
};

use crate::{
    event::Token,
    route::{Route, RouteTable},
};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const ROUTE: HeaderName = HeaderName::from_static("Hookgate-Route");
const REDELIVERY: HeaderName = HeaderName::from_static("Hookgate-Redelivery");

/// The address of a route.
pub(super) struct Address {
    pub(super) subject: Subject,
    route: HeaderValue,
}

impl Address {
    fn of(route: &Route) -> Self {
        Self { subject: Subject::from(route.subject()), route: HeaderValue::from(route.name()) }
    }

    /// The headers of an event. Nothing a sender wrote enters them.
    pub(super) fn headers(&self, token: Token) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(NATS_MESSAGE_ID, plain(token.text()));
        headers.insert(TRACEPARENT, plain(token.traceparent()));
        headers.insert(ROUTE, self.route.clone());
        if let Some(number) = token.redelivery() {
            headers.insert(REDELIVERY, plain(number.to_string()));
        }
        headers
    }
}

/// A value of hex digits and dashes: in a message it is what `From` makes of it, which would look at each byte twice, for
/// the ends of lines. The client's `Deserialize` does not; should it ever, this is as right and only slower.
fn plain(text: String) -> HeaderValue {
    HeaderValue::deserialize(IntoDeserializer::<value::Error>::into_deserializer(text)).expect("a string is a string")
}

/// The addresses of all routes, by their names.
pub(super) struct RouteAddresses(RwLock<HashMap<String, Arc<Address>>>);

impl RouteAddresses {
    pub(super) fn of_all(table: &RouteTable) -> Self {
        let this = Self(RwLock::default());
        this.replace(table);
        this
    }

    /// From now on those of these routes are at hand.
    pub(super) fn replace(&self, table: &RouteTable) {
        let new = table.routes().iter().map(|route| (route.name().to_owned(), Arc::new(Address::of(route))));
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = new.collect();
    }

    /// That of a route, which may be none of the table: one that was removed, or had another subject before.
    pub(super) fn of(&self, route: &Route) -> Arc<Address> {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner).get(route.name()).map(Arc::clone);
        let known = known.filter(|address| address.subject.as_str() == route.subject());
        known.unwrap_or_else(|| Arc::new(Address::of(route)))
    }
}
