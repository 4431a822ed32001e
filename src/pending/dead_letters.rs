//! Dead letters in a Redis stream.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::{FutureExt, future::BoxFuture};
use redis::Cmd;

use super::{
    redis::Redis,
    script::{DROP_LETTERS, KEEP_LETTERS, NOTE_LETTER},
};
use crate::{
    dead_letters::{DeadLetter, DeadLetterLimits, DeadLetterStore, KeptLetter, ReplayNote, ReviewedLetter},
    delivery::StoreError,
    metrics::Operation,
};

/// The stream.
const LETTERS: &str = "hookgate:dead_letters";
/// Its size, in the same cluster slot.
const BYTES: &str = "{hookgate:dead_letters}:bytes";
/// HASH name of a letter → what became of its last replay.
const NOTES: &str = "{hookgate:dead_letters}:notes";

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
                            call.arg(3)
                                .arg(LETTERS)
                                .arg(BYTES)
                                .arg(NOTES)
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
            together.cmd("DEL").arg(NOTES).ignore();
            let (count,): (usize,) =
                self.ask(Operation::Operator, async |connection| together.query_async(connection).await).await?;
            Ok(count)
        }
        .boxed()
    }
}

/// What operators do with letters.
impl Redis {
    /// Letters that are older than one with a name, newest first.
    ///
    /// # Errors
    /// If Redis does not say.
    pub async fn review(&self, before: Option<&str>, count: usize) -> Result<Vec<ReviewedLetter>, StoreError> {
        let mut call = redis::cmd("XREVRANGE");
        let end = before.map_or_else(|| "+".to_owned(), |before| format!("({before}"));
        call.arg(LETTERS).arg(end).arg("-").arg("COUNT").arg(count);
        let found: Vec<Fields> =
            self.ask(Operation::Operator, async |connection| call.query_async(connection).await).await?;
        self.with_notes(found).await
    }

    /// The letter with a name.
    ///
    /// # Errors
    /// If Redis does not say.
    pub async fn review_one(&self, entry: &str) -> Result<Option<ReviewedLetter>, StoreError> {
        let mut call = redis::cmd("XREVRANGE");
        call.arg(LETTERS).arg(entry).arg(entry).arg("COUNT").arg(1);
        let found: Vec<Fields> =
            self.ask(Operation::Operator, async |connection| call.query_async(connection).await).await?;
        Ok(self.with_notes(found).await?.pop())
    }

    async fn with_notes(&self, found: Vec<Fields>) -> Result<Vec<ReviewedLetter>, StoreError> {
        if found.is_empty() {
            return Ok(Vec::new());
        }
        let mut call = redis::cmd("HMGET");
        call.arg(NOTES).arg(found.iter().map(|(entry, _)| entry.as_str()).collect::<Vec<_>>());
        let notes: Vec<Option<String>> =
            self.ask(Operation::Operator, async |connection| call.query_async(connection).await).await?;
        let reviewed = found.into_iter().zip(notes);
        let reviewed = reviewed
            .map(|(fields, note)| ReviewedLetter { kept: read(fields), note: note.and_then(|note| note.parse().ok()) });
        Ok(reviewed.collect())
    }

    /// Notes what became of the replay of a letter, if it is still there.
    ///
    /// # Errors
    /// If Redis does not take it.
    pub async fn note_replay(&self, entry: &str, note: &ReplayNote) -> Result<(), StoreError> {
        let note = note.to_string();
        let arguments = |call: &mut Cmd| {
            call.arg(2).arg(LETTERS).arg(NOTES).arg(entry).arg(&note);
        };
        let _noted: usize =
            self.ask(Operation::Operator, async |connection| NOTE_LETTER.call(connection, arguments).await).await?;
        Ok(())
    }

    /// Drops letters by their names; how many there were.
    ///
    /// # Errors
    /// If Redis does not take it.
    pub async fn drop_letters(&self, entries: &[String]) -> Result<usize, StoreError> {
        let arguments = |call: &mut Cmd| {
            call.arg(3).arg(LETTERS).arg(BYTES).arg(NOTES).arg(entries);
        };
        self.ask(Operation::Operator, async |connection| DROP_LETTERS.call(connection, arguments).await).await
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
