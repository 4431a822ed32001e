//! The bytes of a connection: what is read is looked at, what is written has to be taken, and the end is gentle.
//!
//! An answer that comes before the whole body was read (503 without a place, 413) is lost if the connection
//! is closed at once: the system resets a connection that is closed with unread bytes, and the sender, in the
//! middle of its write, sees the reset instead of the answer. For `EspoCRM` 10 that is a final failure.
//!
//! Whether the other side has hung up while a request is worked on is asked here: hyper would find out by reading, into
//! 8 KiB of new memory for every request, for the old one holds its head.
//!
//! Whoever asks and asks and never reads an answer would hold its connection for good; hyper has a time-out for
//! heads alone.

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

use super::heads::{Ambiguous, Heads};

/// How much of what nobody wants is read at a time.
const SCRATCH: usize = 8 * 1024;
/// How long the other side may take nothing of what is written.
const STALL: Duration = Duration::from_secs(10);

/// What is read of a sender that was answered before its end, and thrown away.
///
/// As much as of a request that is taken: it must not cost more, and whoever sends a body that could have been taken has
/// to hear that it shall come back.
#[derive(Debug, Clone, Copy)]
pub struct Unwanted {
    /// Most bytes.
    pub max_bytes: usize,
    /// Longest time.
    pub timeout: Duration,
}

/// Resolves when nothing will come over a stream any more; reads nothing.
pub type HungUp<T> = fn(&T, &mut Context<'_>) -> Poll<()>;

/// That of the system's streams.
pub(super) fn hung_up(stream: &TcpStream, cx: &mut Context<'_>) -> Poll<()> {
    match stream.poll_peek(cx, &mut ReadBuf::new(&mut [0])) {
        Poll::Ready(Ok(0) | Err(_)) => Poll::Ready(()),
        Poll::Ready(Ok(_)) | Poll::Pending => Poll::Pending,
    }
}

/// A connection that, once it is shut down, reads on until the other side has ended too, for a while.
pub(super) struct Wire<T> {
    stream: T,
    hung_up: HungUp<T>,
    /// Which request is being worked on, counted from 1; 0 if none is.
    at_work: Arc<AtomicU64>,
    heads: Heads,
    stalled: Option<Pin<Box<Sleep>>>,
    unwanted: Unwanted,
    until: Option<Pin<Box<Sleep>>>,
    discarded: usize,
}

impl<T> Wire<T> {
    pub(super) fn new(stream: T, hung_up: HungUp<T>, at_work: Arc<AtomicU64>, unwanted: Unwanted) -> Self {
        Self { stream, hung_up, at_work, heads: Heads::new(), stalled: None, unwanted, until: None, discarded: 0 }
    }

    /// Which of its requests can't be trusted in their length.
    pub(super) fn ambiguous(&self) -> Ambiguous {
        self.heads.ambiguous()
    }

    /// Gives up on a write that waits for too long.
    fn watch<R>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<R>>) -> Poll<io::Result<R>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(STALL)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "nothing of the answer was taken")))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Wire<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        self.heads.follow(&buffer.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Wire<T> {
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
        // Asked for by hyper each time it looks after a connection.
        let at_work = self.at_work.load(Ordering::Relaxed);
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
                Poll::Ready(Ok(())) if !unread.filled().is_empty() && this.discarded < this.unwanted.max_bytes => {
                    this.discarded += unread.filled().len();
                }
                // Its end, or a connection that is gone: nothing more will come. Or it came to too much.
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending => {
                    let time = this.unwanted.timeout;
                    let until =
                        this.until.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + time)));
                    return until.as_mut().poll(cx).map(Ok);
                }
            }
        }
    }
}
