//! What Redis knows of ids beyond their claims: journal, marks, releases and answers.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::{FutureExt, future::BoxFuture};
use redis::{Cmd, Value};

use super::{
    address::Claiming,
    connection::Connection,
    redis::Redis,
    script::{ANSWER, LEASE, RECLAIM, RELEASE, Script, now_millis},
};
use crate::{
    delivery::StoreError,
    event::{Token, TokenSeed},
    life::{
        Answer, Answered, ConsumerAnswer, JournalPage, Journaled, Known, KnownPage, Leftover, LifeCounts, LifeStore,
        Listing, Reclaim, ReclaimWhy, ReleaseRequest, Released, ScanResult,
    },
    metrics::Operation,
    relay::Outbox,
    route::{OnGiveUp, Route},
};

/// A name and a value of a hash.
type Field = (Vec<u8>, Vec<u8>);

/// Ids of one call of a script: more would hold up the claims behind it.
const CALL: usize = 500;

impl Redis {
    /// Calls a script on the keys of a route, whose address has a number, and reads the letter for each id.
    async fn decide(
        &self,
        route: &Route,
        (claiming, number): &(Arc<Claiming>, usize),
        script: &Script,
        count: usize,
        arguments: impl Fn(&mut Cmd),
    ) -> Result<Vec<u8>, StoreError> {
        let letters: Vec<u8> = self
            .ask(route.pending_key(), Operation::Life, async |link| {
                script
                    .call(link, |call| {
                        keys(call, route);
                        call.arg(*number).arg(&claiming.address);
                        arguments(call);
                    })
                    .await
            })
            .await?;
        if letters.len() == count {
            return Ok(letters);
        }
        Err(StoreError::Refused(format!("a script gave {} answers for {count} ids", letters.len())))
    }

    /// The address of a route, and its number. One that is configured no more is given one now.
    async fn claiming(&self, route: &Route) -> Result<(Arc<Claiming>, usize), StoreError> {
        if let Ok(queues) = self.queues(route) {
            let claiming = Arc::clone(&queues.claiming);
            let number = claiming.number().ok_or_else(|| claiming.without_number())?;
            return Ok((claiming, number));
        }
        let claiming = Arc::new(Claiming::new(&Arc::new(route.clone())));
        let (number, _zero) =
            self.ask(route.pending_key(), Operation::Life, async |link| claiming.register(link, None).await).await?;
        Ok((claiming, number))
    }
}

/// All keys of a route that the scripts work on.
fn keys(call: &mut Cmd, route: &Route) {
    let journal = route.life().journal;
    call.arg(if journal { 6 } else { 5 });
    call.arg(route.pending_key()).arg(route.outbox_key()).arg(route.addresses_key());
    call.arg(route.journal_key()).arg(route.marks_key());
    if journal {
        call.arg(route.journal_key());
    }
}

fn unreadable(letter: u8) -> StoreError {
    StoreError::Refused(format!("a script gave the answer {:?}, which is none", char::from(letter)))
}

impl LifeStore for Redis {
    fn release<'a>(
        &'a self,
        route: &'a Arc<Route>,
        requests: &'a [ReleaseRequest],
    ) -> BoxFuture<'a, Result<Vec<Released>, StoreError>> {
        async move {
            let claiming = self.claiming(route).await?;
            let mut released = Vec::with_capacity(requests.len());
            for part in requests.chunks(CALL) {
                let next: Vec<Token> = part.iter().map(|_| TokenSeed::now().marked(claiming.1)).collect();
                let letters = self.decide(route, &claiming, &RELEASE, part.len(), |call| {
                    for (request, next) in part.iter().zip(&next) {
                        let token = request.token.map(Token::text).unwrap_or_default();
                        call.arg(&request.id).arg(token).arg(next.text());
                    }
                });
                for (letter, next) in letters.await?.into_iter().zip(next) {
                    released.push(match letter {
                        b'r' => Released::Released,
                        b'n' => Released::NotPending,
                        b'c' => Released::Republished(next),
                        letter => return Err(unreadable(letter)),
                    });
                }
            }
            Ok(released)
        }
        .boxed()
    }

    fn answer<'a>(
        &'a self,
        route: &'a Arc<Route>,
        answers: &'a [ConsumerAnswer],
    ) -> BoxFuture<'a, Result<Vec<Answered>, StoreError>> {
        async move {
            let life = route.life();
            let claiming = self.claiming(route).await?;
            let mut answered = Vec::with_capacity(answers.len());
            for part in answers.chunks(CALL) {
                let next: Vec<Token> = part.iter().map(|_| TokenSeed::now().marked(claiming.1)).collect();
                let letters = self.decide(route, &claiming, &ANSWER, part.len(), |call| {
                    call.arg(life.consumers.join(",")).arg(u8::from(life.on_give_up == OnGiveUp::Keep));
                    for (answer, next) in part.iter().zip(&next) {
                        call.arg(&answer.id).arg(answer.token.text()).arg(&answer.consumer);
                        call.arg(match answer.answer {
                            Answer::Acknowledged => "a",
                            Answer::GaveUp => "g",
                        });
                        call.arg(next.text());
                    }
                });
                for (letter, next) in letters.await?.into_iter().zip(next) {
                    answered.push(match letter {
                        b'r' => Answered::Released,
                        b'c' => Answered::Republished(next),
                        b'w' => Answered::Waits,
                        b'k' => Answered::Kept,
                        b'x' => Answered::Stale,
                        letter => return Err(unreadable(letter)),
                    });
                }
            }
            Ok(answered)
        }
        .boxed()
    }

    fn reclaim<'a>(
        &'a self,
        route: &'a Arc<Route>,
        reclaims: &'a [Reclaim],
    ) -> BoxFuture<'a, Result<Vec<Option<Token>>, StoreError>> {
        async move {
            let claiming = self.claiming(route).await?;
            let mut claimed = Vec::with_capacity(reclaims.len());
            for part in reclaims.chunks(CALL) {
                let next = part.iter().map(|reclaim| match reclaim.why {
                    ReclaimWhy::Redelivery { number: count, .. } => TokenSeed::now().redelivery(claiming.1, count),
                    ReclaimWhy::Marked { .. } => TokenSeed::now().marked(claiming.1),
                });
                let next: Vec<Token> = next.collect();
                let letters = self.decide(route, &claiming, &RECLAIM, part.len(), |call| {
                    for (Reclaim { id, why }, next) in part.iter().zip(&next) {
                        match why {
                            ReclaimWhy::Redelivery { seen, number } => {
                                call.arg(id).arg("e").arg(seen.as_deref().unwrap_or_default());
                                call.arg(next.text()).arg(number);
                            }
                            ReclaimWhy::Marked { until } => {
                                call.arg(id).arg("m").arg(until).arg(next.text()).arg("");
                            }
                        }
                    }
                });
                let letters = letters.await?.into_iter().zip(next);
                claimed.extend(letters.map(|(letter, next)| (letter == b'c').then_some(next)));
            }
            Ok(claimed)
        }
        .boxed()
    }

    fn forget<'a>(
        &'a self,
        route: &'a Arc<Route>,
        leftovers: &'a [Leftover],
    ) -> BoxFuture<'a, Result<usize, StoreError>> {
        async move {
            let claiming = self.claiming(route).await?;
            let mut dropped = 0;
            for part in leftovers.chunks(CALL) {
                let letters = self.decide(route, &claiming, &RECLAIM, part.len(), |call| {
                    for Leftover { id, seen } in part {
                        call.arg(id).arg("d").arg(seen).arg("").arg("");
                    }
                });
                dropped += letters.await?.into_iter().filter(|letter| *letter == b'd').count();
            }
            Ok(dropped)
        }
        .boxed()
    }

    fn known_page<'a>(
        &'a self,
        route: &'a Route,
        listing: Listing,
        cursor: u64,
        count: usize,
    ) -> BoxFuture<'a, Result<KnownPage, StoreError>> {
        let (scan, key) = match listing {
            Listing::Pending => ("SSCAN", route.pending_key()),
            Listing::Marks => ("HSCAN", route.marks_key()),
        };
        async move {
            self.look(route.pending_key(), Operation::Life, async |link| {
                let (next, found): (u64, Vec<Vec<u8>>) =
                    redis::cmd(scan).arg(key).arg(cursor).arg("COUNT").arg(count).query_async(link).await?;
                let step = if listing == Listing::Pending { 1 } else { 2 };
                // An id that is not text was not claimed by hookgate.
                let ids = found.chunks(step).filter_map(|entry| String::from_utf8(entry.first()?.clone()).ok());
                let ids: Vec<String> = ids.collect();
                Ok(KnownPage { ids: read_known(link, route, &ids).await?, next })
            })
            .await
        }
        .boxed()
    }

    fn journal_page<'a>(
        &'a self,
        route: &'a Route,
        cursor: u64,
        count: usize,
    ) -> BoxFuture<'a, Result<JournalPage, StoreError>> {
        async move {
            self.look(route.pending_key(), Operation::Life, async |link| {
                let mut scan = redis::cmd("HSCAN");
                scan.arg(route.journal_key()).arg(cursor).arg("COUNT").arg(count);
                let (next, found): (u64, Vec<Field>) = scan.query_async(link).await?;
                // An id that is not text was not claimed by hookgate.
                let entries = found.into_iter().filter_map(|(id, entry)| {
                    Some(Journaled { id: String::from_utf8(id).ok()?, entry, pending: false })
                });
                let mut entries: Vec<_> = entries.collect();
                if !entries.is_empty() {
                    let mut call = redis::cmd("SMISMEMBER");
                    call.arg(route.pending_key());
                    for Journaled { id, .. } in &entries {
                        call.arg(id);
                    }
                    let pending: Vec<bool> = call.query_async(link).await?;
                    for (entry, pending) in entries.iter_mut().zip(pending) {
                        entry.pending = pending;
                    }
                }
                Ok(JournalPage { entries, next })
            })
            .await
        }
        .boxed()
    }

    fn known<'a>(&'a self, route: &'a Route, ids: &'a [String]) -> BoxFuture<'a, Result<Vec<Known>, StoreError>> {
        async move { self.look(route.pending_key(), Operation::Life, async |link| read_known(link, route, ids).await).await }.boxed()
    }

    fn life_lease<'a>(
        &'a self,
        route: &'a Route,
        work: &'a str,
        holder: &'a str,
        duration: Duration,
    ) -> BoxFuture<'a, Result<bool, StoreError>> {
        async move {
            let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).max(1);
            self.ask(route.pending_key(), Operation::Life, async |link| {
                LEASE
                    .call(link, |call| {
                        call.arg(1).arg(format!("{{{}}}:{work}", route.pending_key())).arg(holder).arg(millis);
                    })
                    .await
            })
            .await
        }
        .boxed()
    }

    fn life_counts<'a>(&'a self, route: &'a Route) -> BoxFuture<'a, Result<LifeCounts, StoreError>> {
        async move {
            let mut calls = redis::pipe();
            calls.cmd("SCARD").arg(route.pending_key());
            for key in [route.outbox_key(), route.journal_key(), route.marks_key()] {
                calls.cmd("HLEN").arg(key);
            }
            let (pending, in_flight, journaled, marked) =
                self.look(route.pending_key(), Operation::Life, async |link| calls.query_async(link).await).await?;
            Ok(LifeCounts { pending, in_flight, journaled, marked })
        }
        .boxed()
    }

    fn recorded(&self) -> BoxFuture<'_, Result<Vec<Arc<Route>>, StoreError>> {
        async move { Ok(self.recorded_routes().await?.into_iter().map(Arc::new).collect()) }.boxed()
    }

    fn scan_result<'a>(&'a self, route: &'a Route) -> BoxFuture<'a, Result<Option<ScanResult>, StoreError>> {
        async move {
            let text: Option<String> = self
                .look(route.pending_key(), Operation::Life, async |link| {
                    redis::cmd("GET").arg(scan_key(route)).query_async(link).await
                })
                .await?;
            Ok(text.as_deref().and_then(read_scan_result))
        }
        .boxed()
    }

    fn keep_scan_result<'a>(
        &'a self,
        route: &'a Route,
        result: &'a ScanResult,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        async move {
            let text = write_scan_result(result);
            self.ask(route.pending_key(), Operation::Life, async |link| {
                redis::cmd("SET").arg(scan_key(route)).arg(&text).query_async(link).await
            })
            .await
        }
        .boxed()
    }
}

fn scan_key(route: &Route) -> String {
    format!("{{{}}}:scan", route.pending_key())
}

/// `oldest;pending;ended;seen`: times in milliseconds, and nothing where there is none.
fn write_scan_result(result: &ScanResult) -> String {
    let millis = |time: Option<SystemTime>| {
        let millis = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
        time.map(|time| millis(time).to_string()).unwrap_or_default()
    };
    let seen = result.seen.map(|seen| seen.to_string()).unwrap_or_default();
    format!("{};{};{};{seen}", millis(result.oldest), result.pending, millis(result.ended))
}

fn read_scan_result(text: &str) -> Option<ScanResult> {
    let mut parts = text.split(';');
    let mut number = || match parts.next()? {
        "" => Some(None),
        number => number.parse::<u64>().ok().map(Some),
    };
    let time = |millis: Option<u64>| SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(millis?));
    Some(ScanResult {
        oldest: time(number()?),
        pending: usize::try_from(number()??).ok()?,
        ended: time(number()?),
        seen: number()?.and_then(|seen| usize::try_from(seen).ok()),
    })
}

/// Everything that is known of these ids, in one round trip.
async fn read_known(link: &mut Connection, route: &Route, ids: &[String]) -> Result<Vec<Known>, redis::RedisError> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let mut calls = redis::pipe();
    calls.cmd("SMISMEMBER").arg(route.pending_key()).arg(ids);
    for key in [route.outbox_key(), route.journal_key(), route.marks_key()] {
        calls.cmd("HMGET").arg(key).arg(ids);
    }
    let (pending, tokens, entries, marks): (Vec<bool>, Vec<Value>, Vec<Value>, Vec<Value>) =
        calls.query_async(link).await?;
    let found = ids.iter().zip(pending).zip(tokens).zip(entries).zip(marks);
    Ok(found
        .map(|((((id, pending), token), entry), mark)| Known {
            id: id.clone(),
            pending,
            in_flight: text(&token),
            journal: bytes(entry),
            // What others wrote is no time; such a mark is as old as can be.
            marked: text(&mark).map(|millis| millis.parse().unwrap_or(0).min(now_millis())),
        })
        .collect())
}

fn bytes(value: Value) -> Option<Vec<u8>> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        _ => None,
    }
}

/// What is not text was not written by hookgate, and equals nothing.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::BulkString(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_result_of_a_look_is_read_as_it_is_written() {
        let at = |millis| Some(SystemTime::UNIX_EPOCH + Duration::from_millis(millis));
        for result in [
            ScanResult::default(),
            ScanResult { oldest: at(1), pending: 2, ended: at(3), seen: Some(4) },
            ScanResult { oldest: at(1), pending: 2, ended: at(3), seen: None },
        ] {
            assert_eq!(read_scan_result(&write_scan_result(&result)), Some(result));
        }
        for foreign in ["", "1", "1;2", "x;2;3;4", "1;;3;4"] {
            assert_eq!(read_scan_result(foreign), None, "{foreign}");
        }
    }
}
