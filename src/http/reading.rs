//! The body of a request: its bytes, whether they may come in, and the ids in them. Within the limits of time and
//! memory; knows nothing of claims and events.

use std::{
    panic,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use bytes::{Buf, Bytes};
use futures_util::{Stream, StreamExt};
use tokio::time::{Instant, timeout_at};
use tokio_util::task::AbortOnDropHandle;
use warp::http::HeaderMap;

use super::{
    Refusal,
    body::Body,
    limits::{Admitted, Arriving, Held, Limits, Waiting},
};
use crate::{
    batch::{Batch, BatchError},
    failpoint,
    metrics::RouteMetrics,
    route::Route,
    signature::{Failure, Verified, Verifiers},
};

/// Longest body that is understood by the thread on which it arrived. A longer one is worth waking another for, and
/// would hold up all other requests of this one. `EspoCRM` sends 50 records at most, about 30 KB.
const MAX_AT_ONCE: usize = 64 * 1024;
/// Memory up to which a head is nothing beside what a connection takes anyway. That of `EspoCRM`'s is 4 KiB.
const SMALL_HEAD: usize = 8 * 1024;
/// What a head takes, over its bytes: what hyper has read, what it made of it, and the copy for the signature.
const HEAD_TIMES: usize = 3;
/// And for each of its lines: its places in the tables of both.
const HEAD_LINE: usize = 320;
/// Pieces of a body that may be of any size. Each takes as long as 50 bytes of an ordinary body do, whatever is in it.
/// But somebody may write word by word, and would lose a good batch: 50 records of 600 bytes are some 4,000 words.
const FREE_PIECES: usize = 4096;
/// Beyond, there may be one for so many bytes.
const MIN_PIECE: usize = 10;
/// How long a body may take whatever others wait for, and how long until it is asked again whether they do.
const GRACE: Duration = Duration::from_millis(250);

/// Whether a body is understood by another thread, so that its sender can hang up meanwhile.
pub(super) const fn is_large(body: &Bytes) -> bool {
    body.len() > MAX_AT_ONCE
}

/// Reads the body, within its limits of size, time and memory.
pub(super) async fn read_body(
    limits: &Limits,
    arriving: &mut Arriving,
    length: Option<u64>,
    body: impl Stream<Item = Result<impl Buf, warp::Error>>,
) -> Result<Bytes, Refusal> {
    let limit = limits.max_body_bytes;
    let too_large = || Refusal::BodyTooLarge { limit };
    let announced = match length.map(usize::try_from) {
        None => None,
        Some(Ok(length)) if length <= limit => Some(length),
        Some(_) => return Err(too_large()),
    };
    let until = arriving.reading_deadline.min(Instant::now() + limits.body_read_timeout);
    let mut body = std::pin::pin!(body);
    let mut bytes = Body::new(announced.unwrap_or(limit));
    let mut pieces = 0;
    let waits = AtomicBool::new(false);
    let all = async {
        while let Some(chunk) = body.next().await {
            let mut chunk = chunk.map_err(|error| Refusal::BodyUnreadable(root_cause(&error)))?;
            if bytes.len() + chunk.remaining() > limit {
                return Err(too_large());
            }
            while chunk.has_remaining() {
                let part = chunk.chunk();
                if let Err(refusal) = bytes.extend(&mut arriving.held, part) {
                    let small = bytes.small_with(part.len()).and_then(|most| arriving.held.wait(most));
                    let Some(waiting) = small else { return Err(refusal) };
                    // Boxed for the sake of all others.
                    waits.store(true, Ordering::Relaxed);
                    Box::pin(extend_soon(&mut bytes, &mut arriving.held, part, waiting)).await?;
                    waits.store(false, Ordering::Relaxed);
                }
                let length = part.len();
                chunk.advance(length);
            }
            pieces += 1;
            if pieces > FREE_PIECES + bytes.len() / MIN_PIECE {
                return Err(Refusal::TooManyPieces { pieces, bytes: bytes.len() });
            }
        }
        Ok(())
    };
    let is_short = || !waits.load(Ordering::Relaxed) && limits.is_short();
    unless_slow(all, until, is_short).await.map_err(|slow| match slow {
        Slow::OutOfTime => Refusal::BodyTimeout,
        Slow::InTheWay => limits.no_room(),
    })??;
    Ok(bytes.into())
}

/// Why somebody is not waited for any longer.
enum Slow {
    OutOfTime,
    InTheWay,
}

/// Waits for a body, until `until`; or until others wait for what it holds, once it has had its grace.
async fn unless_slow<T>(
    body: impl Future<Output = T>,
    until: Instant,
    is_in_the_way: impl Fn() -> bool,
) -> Result<T, Slow> {
    // One time-out for all of it: with one for each piece, those of a byte would cost twice as much.
    let mut body = std::pin::pin!(body);
    let mut look = Instant::now() + GRACE;
    loop {
        match timeout_at(look.min(until), body.as_mut()).await {
            Ok(done) => return Ok(done),
            Err(_elapsed) if look >= until => return Err(Slow::OutOfTime),
            Err(_elapsed) if is_in_the_way() => return Err(Slow::InTheWay),
            Err(_elapsed) => look += GRACE,
        }
    }
}

/// Adds a part of a body as soon as there is memory for it.
async fn extend_soon(bytes: &mut Body, held: &mut Held, part: &[u8], waiting: Waiting) -> Result<(), Refusal> {
    loop {
        // Again first: there may be room since.
        let Err(refusal) = bytes.extend(held, part) else { return Ok(()) };
        if !waiting.room().await {
            return Err(refusal);
        }
    }
}

/// Takes the memory of a long head, which stays for as long as its request, from the budget of all bodies.
pub(super) fn weigh_head(headers: &HeaderMap, held: &mut Held) -> Result<(), Refusal> {
    let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    let weight = HEAD_TIMES * bytes + HEAD_LINE * headers.len();
    if weight > SMALL_HEAD { held.reserve_for_anybody(weight) } else { Ok(()) }
}

/// Where a body has to pass.
pub(super) struct Entrance {
    pub(super) verifiers: Arc<Verifiers>,
    pub(super) route: Arc<Route>,
    pub(super) metrics: Arc<RouteMetrics>,
    pub(super) headers: HeaderMap,
}

/// A body that was let in.
pub(super) struct Understood {
    pub(super) admitted: Admitted,
    pub(super) body: Verified,
    pub(super) batch: Result<Batch, BatchError>,
}

impl Entrance {
    /// Sends a request away that shows no signature that could be good, before anything of its body is read.
    pub(super) fn announced(&self) -> Result<(), Refusal> {
        self.verifiers.of(&self.route).announced(&self.headers).map_err(|failure| self.unauthenticated(failure))
    }

    /// Lets the body in, or says why not, and reads its ids.
    pub(super) fn at_once(self, body: Bytes, mut admitted: Admitted) -> Result<Understood, Refusal> {
        let verifier = self.verifiers.of(&self.route);
        let body =
            verifier.verify(&self.headers, body, SystemTime::now()).map_err(|failure| self.unauthenticated(failure))?;
        let batch = decode(&body, &mut admitted)?;
        Ok(Understood { admitted, body, batch })
    }

    /// The same on a thread that serves nobody else, of which there are few.
    pub(super) async fn aside(self, body: Bytes, admitted: Admitted, limits: &Limits) -> Result<Understood, Refusal> {
        let until = admitted.arriving.reading_deadline;
        let late = || Refusal::Deadline(limits.request_deadline);
        let readers = Arc::clone(&limits.readers);
        let Ok(Ok(place)) = timeout_at(until, readers.acquire_owned()).await else { return Err(late()) };
        let work = tokio::task::spawn_blocking(move || {
            let understood = self.at_once(body, admitted);
            drop(place);
            understood
        });
        match timeout_at(until, AbortOnDropHandle::new(work)).await {
            Ok(Ok(understood)) => understood,
            // As if it had happened here.
            Ok(Err(ended)) if ended.is_panic() => panic::resume_unwind(ended.into_panic()),
            // The process is at its end.
            Ok(Err(_cancelled)) => Err(Refusal::Draining),
            Err(_elapsed) => Err(late()),
        }
    }

    fn unauthenticated(&self, failure: Failure) -> Refusal {
        self.metrics.unauthenticated(failure);
        let scheme = self.verifiers.of(&self.route).schemes().next().unwrap_or("none");
        Refusal::Unauthenticated { failure, scheme }
    }
}

/// Reads the ids of a body, in memory from the budget of all bodies; what only the reading takes goes back.
fn decode(body: &Verified, admitted: &mut Admitted) -> Result<Result<Batch, BatchError>, Refusal> {
    failpoint::panic_with("decode", body.bytes());
    let mut taken = 0;
    let batch = Batch::parse_within(body.bytes(), |bytes| {
        admitted.arriving.held.reserve(bytes)?;
        taken += bytes;
        Ok(())
    })?;
    let kept = batch.as_ref().map_or(0, Batch::allocated_bytes);
    admitted.arriving.held.release(taken.saturating_sub(kept));
    Ok(batch)
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
