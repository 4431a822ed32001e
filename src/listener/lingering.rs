//! The stream of a connection: detects a sender that hung up or takes no answer, and lingers before it closes.
//!
//! An answer that comes before the whole body was read (503 without a permit, 413) is lost if the connection is closed
//! at once: the system resets a connection that is closed with unread bytes, and the sender, in the middle of its
//! write, sees the reset instead of the answer. For `EspoCRM` 10 that is a final failure.
//!
//! The stream detects a sender that hangs up during its request. hyper would detect it by reading, which allocates 8
//! KiB per request.
//!
//! A write has a time-out: a sender that never reads its answers would hold its connection for good. hyper has a
//! time-out for heads only.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep},
};

use super::{
    ConnectionLimits,
    heads::{Ambiguous, Heads},
};

/// Bytes that are read and discarded at a time.
const SCRATCH: usize = 8 * 1024;

/// How much of a body is read and discarded after its answer.
///
/// The same limits as for a body that is accepted: a refused one must not cost more, and its sender must get the 503.
#[derive(Debug, Clone, Copy)]
pub struct LingerLimits {
    /// Most bytes.
    pub max_bytes: usize,
    /// Longest time.
    pub timeout: Duration,
}

/// Resolves once the other side has ended a stream. Reads nothing.
pub type HungUp<T> = fn(&T, &mut Context<'_>) -> Poll<()>;

/// For the system's streams.
pub(super) fn hung_up(stream: &TcpStream, cx: &mut Context<'_>) -> Poll<()> {
    match stream.poll_peek(cx, &mut ReadBuf::new(&mut [0])) {
        Poll::Ready(Ok(0) | Err(_)) => Poll::Ready(()),
        Poll::Ready(Ok(_)) | Poll::Pending => Poll::Pending,
    }
}

/// Counts the requests of one connection.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Requests whose head was read.
    begun: AtomicU64,
    /// The request being worked on, counted from 1. 0: none.
    at_work: AtomicU64,
}

impl Progress {
    /// A head was read. Returns the number of its request, counted from 0.
    pub(super) fn begin(&self) -> u64 {
        self.begun.fetch_add(1, Ordering::Relaxed)
    }

    /// Whether no head was read yet.
    pub(super) fn is_silent(&self) -> bool {
        self.begun.load(Ordering::Relaxed) == 0
    }

    /// Work on this request begins.
    pub(super) fn works_on(&self, number: u64) {
        self.at_work.store(number + 1, Ordering::Relaxed);
    }

    /// The request was answered.
    pub(super) fn rests(&self) {
        self.at_work.store(0, Ordering::Relaxed);
    }
}

/// A stream that lingers: after its shutdown it reads and discards until the sender ends too, within limits.
pub(super) struct LingeringStream<T> {
    stream: T,
    hung_up: HungUp<T>,
    progress: Arc<Progress>,
    heads: Heads,
    write_timeout: Duration,
    /// When a waiting write fails.
    stalled: Option<Pin<Box<Sleep>>>,
    limits: LingerLimits,
    /// When lingering ends.
    until: Option<Pin<Box<Sleep>>>,
    discarded: usize,
}

impl<T> LingeringStream<T> {
    pub(super) fn new(stream: T, hung_up: HungUp<T>, progress: Arc<Progress>, limits: &ConnectionLimits) -> Self {
        Self {
            stream,
            hung_up,
            progress,
            heads: Heads::new(),
            write_timeout: limits.write_timeout,
            stalled: None,
            limits: limits.linger,
            until: None,
            discarded: 0,
        }
    }

    /// Which of its requests has an ambiguous length.
    pub(super) fn ambiguous(&self) -> Ambiguous {
        self.heads.ambiguous()
    }

    /// Fails a write that waits for too long.
    fn watch<R>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<R>>) -> Poll<io::Result<R>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let timeout = self.write_timeout;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "nothing of the answer was taken")))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for LingeringStream<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        self.heads.follow(&buffer.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for LingeringStream<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.watch(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.watch(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        // hyper flushes each time that it polls a connection.
        let at_work = self.progress.at_work.load(Ordering::Relaxed);
        if at_work > 0 && self.heads.is_behind(at_work) && (self.hung_up)(&self.stream, cx).is_ready() {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::BrokenPipe, "hung up before its answer")));
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.until.is_none() {
            ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
        }
        let mut scratch = [0; SCRATCH];
        loop {
            let mut unread = ReadBuf::new(&mut scratch);
            match Pin::new(&mut this.stream).poll_read(cx, &mut unread) {
                Poll::Ready(Ok(())) if !unread.filled().is_empty() && this.discarded < this.limits.max_bytes => {
                    this.discarded += unread.filled().len();
                }
                // The sender has ended, the connection is gone, or the limit is reached.
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending => {
                    let time = this.limits.timeout;
                    let until =
                        this.until.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + time)));
                    return until.as_mut().poll(cx).map(Ok);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test]
    async fn a_sender_that_takes_no_answer_is_given_up() {
        let limits = ConnectionLimits { write_timeout: Duration::from_millis(20), ..ConnectionLimits::for_tests() };
        let (stream, _never_read) = tokio::io::duplex(16);
        let mut stream = LingeringStream::new(stream, |_, _| Poll::Pending, Arc::default(), &limits);
        let error = stream.write_all(&[0; 17]).await.expect_err("one byte finds no room");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn the_rest_of_a_body_is_discarded_after_the_answer() {
        let limits = ConnectionLimits::for_tests();
        let (stream, mut sender) = tokio::io::duplex(16);
        let mut stream = LingeringStream::new(stream, |_, _| Poll::Pending, Arc::default(), &limits);
        let sending = async {
            sender.write_all(&[0; 500]).await.expect("it is read on");
            sender.shutdown().await.expect("it is still there");
        };
        let (ended, ()) = tokio::join!(stream.shutdown(), sending);
        ended.expect("the sender ended in order");
        assert_eq!(stream.discarded, 500);
    }
}
