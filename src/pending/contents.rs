//! How much Redis holds, asked beside the claims: it costs the same for any number of ids, and a Redis that
//! refuses or hangs affects nothing else.

use std::sync::Arc;

use futures_util::{FutureExt, future::BoxFuture};
use redis::Value;

use super::redis::Redis;
use crate::{
    delivery::{RouteContents, StoreContents, StoreError},
    metrics::Operation,
    route::Route,
};

impl StoreContents for Redis {
    fn contents<'a>(&'a self, routes: &'a [Arc<Route>]) -> BoxFuture<'a, Result<Vec<RouteContents>, StoreError>> {
        async move {
            // In a cluster the keys of two routes are on two nodes.
            let at_once = if self.links.is_cluster() { 1 } else { routes.len().max(1) };
            let mut counts: Vec<usize> = Vec::with_capacity(routes.len() * 2);
            for routes in routes.chunks(at_once) {
                let mut together = redis::pipe();
                for route in routes {
                    together.cmd("SCARD").arg(route.pending_key()).cmd("HLEN").arg(route.outbox_key());
                }
                let key = routes[0].pending_key();
                let counted: Vec<usize> =
                    self.look(key, Operation::Count, async |connection| together.query_async(connection).await).await?;
                counts.extend(counted);
            }
            Ok(counts.chunks_exact(2).map(|pair| RouteContents { pending: pair[0], outbox: pair[1] }).collect())
        }
        .boxed()
    }

    /// From HELLO, which needs no permission of its own; unknown before Redis 6.
    fn server_version(&self) -> BoxFuture<'_, Option<String>> {
        async move {
            let hello = redis::cmd("HELLO");
            let answer: Result<Vec<Value>, _> = self
                .look(&self.names.routes, Operation::Count, async |connection| hello.query_async(connection).await)
                .await;
            let mut words = answer.ok()?.into_iter();
            let text = |value: &Value| match value {
                Value::BulkString(bytes) => String::from_utf8(bytes.clone()).ok(),
                Value::SimpleString(text) => Some(text.clone()),
                _ => None,
            };
            words.find(|word| text(word).as_deref() == Some("version"))?;
            text(&words.next()?)
        }
        .boxed()
    }
}
