//! A look at ids that claims nothing.

use futures_util::{FutureExt, future::BoxFuture};
use redis::Value;

use super::redis::Redis;
use crate::{
    delivery::StoreError,
    metrics::Operation,
    recovery::{PendingState, PendingStates},
    route::Route,
};

impl PendingStates for Redis {
    fn states<'a>(
        &'a self,
        route: &'a Route,
        ids: &'a [String],
    ) -> BoxFuture<'a, Result<Vec<PendingState>, StoreError>> {
        async move {
            if ids.is_empty() {
                return Ok(Vec::new());
            }
            let mut calls = redis::pipe();
            calls.cmd("SMISMEMBER").arg(route.pending_key()).arg(ids);
            calls.cmd("HMGET").arg(route.outbox_key()).arg(ids);
            let (pending, tokens): (Vec<bool>, Vec<Value>) =
                self.look(Operation::Operator, async |connection| calls.query_async(connection).await).await?;
            let state = |(pending, token): (bool, Value)| match (pending, token) {
                (_, Value::BulkString(_)) => PendingState::InFlight,
                (true, _) => PendingState::Done,
                (false, _) => PendingState::Absent,
            };
            Ok(pending.into_iter().zip(tokens).map(state).collect())
        }
        .boxed()
    }
}
