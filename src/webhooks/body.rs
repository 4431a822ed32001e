//! The body of a request, read within its limits of size, time and memory.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::{Buf, Bytes};
use futures_util::{FutureExt, Stream, StreamExt};
use tokio::time::{Instant, timeout_at};

use super::{
    Deferred, Webhooks,
    buffer::Buffer,
    request::{BodyReceived, Request},
};
use crate::{
    admission::{AdmissionError, Allowance, Limits, MemoryWait},
    reply::Refusal,
    signature::ClaimedSender,
};

/// Chunks of a body that may be of any size; beyond them chunks must average [`MIN_PIECE`] bytes. One chunk costs the
/// CPU of 50 body bytes. Not fewer: a sender that writes word by word would lose a good batch (50 records of 600 bytes
/// are some 4,000 words).
const FREE_PIECES: usize = 4096;
/// Bytes of the body for each further chunk.
const MIN_PIECE: usize = 10;
/// How long a body may take even if others wait for its memory; after that, the interval of checking whether they do.
const GRACE: Duration = Duration::from_millis(250);

/// Reads the body. Proves: all of it is here, in memory from the budget.
pub(super) fn body<S, B>((request, mut allowance): (Arc<Request>, Allowance), stream: S) -> Deferred<BodyReceived>
where
    S: Stream<Item = Result<B, warp::Error>> + Send + 'static,
    B: Buf + Send,
{
    async move {
        let limits = &request.webhooks.limits;
        match read(limits, &mut allowance, request.framing.length, stream).await {
            Ok(body) => {
                request.body_read(body.len());
                Ok(BodyReceived { request, allowance, body })
            }
            Err(refusal) => {
                if matches!(refusal, Refusal::BodyTooLarge { .. }) {
                    note_too_large(&request);
                }
                Err(request.reject(refusal))
            }
        }
    }
    .boxed()
}

/// 413 is final for EspoCRM: a letter says that a batch is missing. Strangers leave none.
fn note_too_large(request: &Request) {
    let Webhooks { verifiers, dead_letters, limits, .. } = &*request.webhooks;
    let webhook_id = match verifiers.of(&request.route).claimed(&request.headers) {
        ClaimedSender::Webhook(id) => Some(id),
        ClaimedSender::Anybody => None,
        ClaimedSender::Stranger => return,
    };
    dead_letters.note_too_large(&request.route, webhook_id, request.framing.length, limits.max_body_bytes());
}

async fn read<B: Buf>(
    limits: &Limits,
    allowance: &mut Allowance,
    length: Option<u64>,
    stream: impl Stream<Item = Result<B, warp::Error>>,
) -> Result<Bytes, Refusal> {
    let limit = limits.max_body_bytes();
    let announced = match length.map(usize::try_from) {
        None => None,
        Some(Ok(length)) if length <= limit => Some(length),
        Some(_) => return Err(Refusal::BodyTooLarge { limit }),
    };
    let until = allowance.reading_deadline().min(Instant::now() + limits.body_read_timeout());
    let waits_for_memory = AtomicBool::new(false);
    let reader = BodyReader {
        buffer: Buffer::new(announced.unwrap_or(limit)),
        allowance,
        limit,
        pieces: 0,
        waits: &waits_for_memory,
    };
    // A body that itself waits for memory is not evicted.
    let memory_is_needed = || !waits_for_memory.load(Ordering::Relaxed) && limits.is_short();
    match unless_slow(reader.read(stream), until, memory_is_needed).await {
        Ok(body) => body,
        Err(Slow::OutOfTime) => Err(Refusal::BodyTimeout),
        Err(Slow::MemoryNeeded) => Err(limits.no_budget().into()),
    }
}

/// A body of which more may come.
struct BodyReader<'a> {
    buffer: Buffer,
    allowance: &'a mut Allowance,
    /// Most bytes of a body.
    limit: usize,
    pieces: usize,
    /// Whether it waits for memory at the moment.
    waits: &'a AtomicBool,
}

impl BodyReader<'_> {
    async fn read<B: Buf>(mut self, stream: impl Stream<Item = Result<B, warp::Error>>) -> Result<Bytes, Refusal> {
        let mut stream = std::pin::pin!(stream);
        while let Some(chunk) = stream.next().await {
            let mut chunk = chunk.map_err(|error| Refusal::BodyUnreadable(root_cause(&error)))?;
            if self.buffer.len() + chunk.remaining() > self.limit {
                return Err(Refusal::BodyTooLarge { limit: self.limit });
            }
            while chunk.has_remaining() {
                let part = chunk.chunk();
                if let Err(error) = self.buffer.extend(self.allowance, part) {
                    // Boxed: the rare branch would enlarge every request's future.
                    Box::pin(self.extend_soon(part, error)).await?;
                }
                let length = part.len();
                chunk.advance(length);
            }
            self.pieces += 1;
            let (pieces, bytes) = (self.pieces, self.buffer.len());
            if pieces > FREE_PIECES + bytes / MIN_PIECE {
                return Err(Refusal::TooManyPieces { pieces, bytes });
            }
        }
        Ok(self.buffer.into())
    }

    /// Adds a part of a small body once there is memory for it. Large bodies do not wait.
    async fn extend_soon(&mut self, part: &[u8], error: AdmissionError) -> Result<(), AdmissionError> {
        let Some(wait) = self.memory_wait(part) else { return Err(error) };
        self.waits.store(true, Ordering::Relaxed);
        // Try first: memory may have become free before the wait began.
        while let Err(error) = self.buffer.extend(self.allowance, part) {
            if !wait.room().await {
                return Err(error);
            }
        }
        self.waits.store(false, Ordering::Relaxed);
        Ok(())
    }

    fn memory_wait(&self, part: &[u8]) -> Option<MemoryWait> {
        self.buffer.small_with(part.len()).and_then(|most| self.allowance.wait_for(most))
    }
}

/// Why hookgate stops waiting for a body.
enum Slow {
    OutOfTime,
    /// Small bodies wait for memory, and there is none.
    MemoryNeeded,
}

/// Waits for a body until `until`, after [`GRACE`] only as long as others do not need its memory.
async fn unless_slow<T>(
    body: impl Future<Output = T>,
    until: Instant,
    memory_is_needed: impl Fn() -> bool,
) -> Result<T, Slow> {
    // One time-out for all pieces: with one each, pieces of a byte would cost twice as much.
    let mut body = std::pin::pin!(body);
    let mut look = Instant::now() + GRACE;
    loop {
        match timeout_at(look.min(until), body.as_mut()).await {
            Ok(done) => return Ok(done),
            Err(_elapsed) if look >= until => return Err(Slow::OutOfTime),
            Err(_elapsed) if memory_is_needed() => return Err(Slow::MemoryNeeded),
            Err(_elapsed) => look += GRACE,
        }
    }
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
