//! Dead letters in a Redis stream.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::{FutureExt, future::BoxFuture};
use redis::Cmd;

use super::{
    names::{Drawer, Names},
    redis::Redis,
    script::{DROP_LETTERS, KEEP_GIVEN_UP, KEEP_LETTERS, NOTE_LETTER},
};
use crate::{
    dead_letters::{
        DeadLetter, DeadLetterLimits, DeadLetterStore, GivenUp, GivenUpLetters, KeptLetter, ReplayNote, ReviewedLetter,
    },
    delivery::StoreError,
    metrics::Operation,
};

type Fields = (String, Vec<(String, Vec<u8>)>);

impl DeadLetterStore for Redis {
    fn keep<'a>(
        &'a self,
        letters: &'a [DeadLetter],
        limits: DeadLetterLimits,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let oldest = u64::try_from(now.saturating_sub(limits.max_age).as_millis()).unwrap_or(0);
        let bad = &self.names.bad;
        async move {
            // Should it take long, the connection is still good for claims.
            let _dropped: usize = self
                .look(&bad.letters, Operation::DeadLetters, async |connection| {
                    KEEP_LETTERS
                        .call(connection, |call| {
                            call.arg(3)
                                .arg(&bad.letters)
                                .arg(&bad.bytes)
                                .arg(&bad.notes)
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
            let reviewed = match entry {
                Some(entry) => self.review_one(entry).await?.into_iter().collect(),
                None => self.review(None, count).await?,
            };
            Ok(reviewed.into_iter().map(|reviewed| reviewed.kept).collect())
        }
        .boxed()
    }

    fn purge(&self) -> BoxFuture<'_, Result<usize, StoreError>> {
        async move {
            let mut dropped = 0;
            // Each on its own: they lie in two cluster slots.
            for drawer in self.names.drawers() {
                let Drawer { letters, bytes, notes, .. } = drawer;
                let mut together = redis::pipe();
                together.atomic().cmd("XLEN").arg(letters);
                for key in [letters, bytes, notes] {
                    together.cmd("DEL").arg(key).ignore();
                }
                if drawer.is_of_given_up() {
                    together.cmd("DEL").arg(&self.names.given_up_events).ignore();
                }
                let (count,): (usize,) = self
                    .ask(letters, Operation::Operator, async |connection| together.query_async(connection).await)
                    .await?;
                dropped += count;
            }
            Ok(dropped)
        }
        .boxed()
    }
}

impl GivenUpLetters for Redis {
    fn keep_given_up<'a>(
        &'a self,
        letters: &'a [GivenUp],
        limits: DeadLetterLimits,
    ) -> BoxFuture<'a, Result<Vec<bool>, StoreError>> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let oldest = u64::try_from(now.saturating_sub(limits.max_age).as_millis()).unwrap_or(0);
        let (drawer, events) = (&self.names.given_up, &self.names.given_up_events);
        let arguments = move |call: &mut Cmd| {
            call.arg(4).arg(&drawer.letters).arg(&drawer.bytes).arg(events).arg(&drawer.notes);
            call.arg(limits.max_entries).arg(oldest);
            for GivenUp { event, letter: DeadLetter { route, reason, time, raw } } in letters {
                call.arg(event).arg(route).arg(reason).arg(time).arg(raw.as_ref());
            }
        };
        async move {
            let digits: Vec<u8> = self
                .ask(&drawer.letters, Operation::DeadLetters, async |connection| {
                    KEEP_GIVEN_UP.call(connection, arguments).await
                })
                .await?;
            Ok(digits.into_iter().map(|digit| digit == b'1').collect())
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
        let mut all = Vec::new();
        for drawer in self.names.drawers() {
            all.extend(self.review_drawer(drawer, before, count).await?);
        }
        // Newest first; of those of one moment, the ones that were given up.
        all.sort_by_key(|reviewed| std::cmp::Reverse(self.names.order(&reviewed.kept.entry)));
        all.truncate(count);
        Ok(all)
    }

    async fn review_drawer(
        &self,
        drawer: &Drawer,
        before: Option<&str>,
        count: usize,
    ) -> Result<Vec<ReviewedLetter>, StoreError> {
        let mut call = redis::cmd("XREVRANGE");
        let end = before.map_or_else(
            || "+".to_owned(),
            |before| {
                let (of, name) = self.names.drawer_of(before);
                // Behind a given-up letter comes a bad one of the same name.
                let included = of.is_of_given_up() && !drawer.is_of_given_up();
                if included { name.to_owned() } else { format!("({name}") }
            },
        );
        call.arg(&drawer.letters).arg(end).arg("-").arg("COUNT").arg(count);
        let found: Vec<Fields> = self
            .ask(&drawer.letters, Operation::Operator, async |connection| call.query_async(connection).await)
            .await?;
        self.with_notes(drawer, found).await
    }

    /// The letter with a name.
    ///
    /// # Errors
    /// If Redis does not say.
    pub async fn review_one(&self, entry: &str) -> Result<Option<ReviewedLetter>, StoreError> {
        let (drawer, name) = self.names.drawer_of(entry);
        let mut call = redis::cmd("XREVRANGE");
        call.arg(&drawer.letters).arg(name).arg(name).arg("COUNT").arg(1);
        let found: Vec<Fields> = self
            .ask(&drawer.letters, Operation::Operator, async |connection| call.query_async(connection).await)
            .await?;
        Ok(self.with_notes(drawer, found).await?.pop())
    }

    async fn with_notes(&self, drawer: &Drawer, found: Vec<Fields>) -> Result<Vec<ReviewedLetter>, StoreError> {
        if found.is_empty() {
            return Ok(Vec::new());
        }
        let mut call = redis::cmd("HMGET");
        call.arg(&drawer.notes).arg(found.iter().map(|(entry, _)| entry.as_str()).collect::<Vec<_>>());
        let notes: Vec<Option<String>> = self
            .ask(&drawer.letters, Operation::Operator, async |connection| call.query_async(connection).await)
            .await?;
        let reviewed = found.into_iter().zip(notes).map(|(fields, note)| {
            let mut kept = read(fields);
            kept.entry.insert_str(0, drawer.prefix);
            ReviewedLetter { kept, note: note.and_then(|note| note.parse().ok()) }
        });
        Ok(reviewed.collect())
    }

    /// Notes what became of the replay of a letter, if it is still there.
    ///
    /// # Errors
    /// If Redis does not take it.
    pub async fn note_replay(&self, entry: &str, note: &ReplayNote) -> Result<(), StoreError> {
        let note = note.to_string();
        let (drawer, name) = self.names.drawer_of(entry);
        let arguments = |call: &mut Cmd| {
            call.arg(2).arg(&drawer.letters).arg(&drawer.notes).arg(name).arg(&note);
        };
        let _noted: usize = self
            .ask(&drawer.letters, Operation::Operator, async |connection| NOTE_LETTER.call(connection, arguments).await)
            .await?;
        Ok(())
    }

    /// Drops letters by their names; how many there were.
    ///
    /// # Errors
    /// If Redis does not take it.
    pub async fn drop_letters(&self, entries: &[String]) -> Result<usize, StoreError> {
        let mut dropped = 0;
        for drawer in self.names.drawers() {
            let all = entries.iter().map(|entry| self.names.drawer_of(entry));
            let of_drawer = all.filter(|(of, _)| of.prefix == drawer.prefix);
            let names: Vec<&str> = of_drawer.map(|(_, name)| name).collect();
            if names.is_empty() {
                continue;
            }
            let arguments = |call: &mut Cmd| {
                call.arg(3).arg(&drawer.letters).arg(&drawer.bytes).arg(&drawer.notes).arg(&names);
            };
            dropped += self
                .ask(&drawer.letters, Operation::Operator, async |connection| {
                    DROP_LETTERS.call::<usize>(connection, arguments).await
                })
                .await?;
        }
        Ok(dropped)
    }
}

impl Names {
    /// The order of letters in time.
    fn order(&self, entry: &str) -> (u64, u64, &'static str) {
        let (drawer, name) = self.drawer_of(entry);
        let (millis, number) = name.split_once('-').unwrap_or((name, "0"));
        (millis.parse().unwrap_or(0), number.parse().unwrap_or(0), drawer.prefix)
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
