//! Dead letters in a Redis stream.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::{FutureExt, future::BoxFuture};

use super::{redis::Redis, script::KEEP_LETTERS};
use crate::{
    dead_letters::{DeadLetter, DeadLetterLimits, DeadLetterStore, KeptLetter},
    delivery::StoreError,
    metrics::Operation,
};

/// The stream.
const LETTERS: &str = "hookgate:dead_letters";
/// Its size, in the same cluster slot.
const BYTES: &str = "{hookgate:dead_letters}:bytes";

type Fields = (String, Vec<(String, Vec<u8>)>);

impl DeadLetterStore for Redis {
    fn keep<'a>(
        &'a self,
        letters: &'a [DeadLetter],
        limits: DeadLetterLimits,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let oldest = u64::try_from(now.saturating_sub(limits.max_age).as_millis()).unwrap_or(0);
        async move {
            // Should it take long, the connection is still good for claims.
            let _dropped: usize = self
                .look(Operation::DeadLetters, async |connection| {
                    KEEP_LETTERS
                        .call(connection, |call| {
                            call.arg(2)
                                .arg(LETTERS)
                                .arg(BYTES)
                                .arg(limits.max_entries)
                                .arg(limits.max_bytes)
                                .arg(oldest);
                            for DeadLetter { route, reason, time, raw } in letters {
                                call.arg(route).arg(reason).arg(time).arg(raw.as_ref());
                            }
                        })
                        .await
                })
                .await?;
            Ok(())
        }
        .boxed()
    }

    fn letters<'a>(
        &'a self,
        count: usize,
        entry: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Vec<KeptLetter>, StoreError>> {
        async move {
            let mut call = redis::cmd("XREVRANGE");
            call.arg(LETTERS).arg(entry.unwrap_or("+")).arg(entry.unwrap_or("-")).arg("COUNT").arg(count);
            let found: Vec<Fields> =
                self.ask(Operation::Operator, async |connection| call.query_async(connection).await).await?;
            Ok(found.into_iter().map(read).collect())
        }
        .boxed()
    }

    fn purge(&self) -> BoxFuture<'_, Result<usize, StoreError>> {
        async move {
            let mut together = redis::pipe();
            together.atomic().cmd("XLEN").arg(LETTERS).cmd("DEL").arg(LETTERS).ignore().cmd("DEL").arg(BYTES).ignore();
            let (count,): (usize,) =
                self.ask(Operation::Operator, async |connection| together.query_async(connection).await).await?;
            Ok(count)
        }
        .boxed()
    }
}

fn read((entry, fields): Fields) -> KeptLetter {
    let get = |name: &str| fields.iter().find(|(field, _)| field == name).map(|(_, value)| value.clone());
    let text = |name: &str| String::from_utf8_lossy(&get(name).unwrap_or_default()).into_owned();
    KeptLetter {
        entry,
        letter: DeadLetter {
            route: text("route"),
            reason: text("reason"),
            time: text("time"),
            raw: Bytes::from(get("raw").unwrap_or_default()),
        },
    }
}
