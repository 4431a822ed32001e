//! The end of a connection whose sender may still be sending.
//!
//! An answer that comes before the whole body was read (503 without a place, 413) is lost if the connection
//! is closed at once: the system resets a connection that is closed with unread bytes, and the sender, in the
//! middle of its write, sees the reset instead of the answer. For `EspoCRM` 10 that is a final failure.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep},
};

/// How long the rest of what a sender sends is read and thrown away.
const LINGER: Duration = Duration::from_millis(1500);
/// How much of it at most: a refused request must not cost more than one that is taken. A hundred times what
/// `EspoCRM` sends.
const MAX_DISCARDED: usize = 4 << 20;
/// How much of it at a time.
const SCRATCH: usize = 8 * 1024;

/// A connection that, once it is shut down, reads on until the other side has ended too, for a while.
pub(super) struct Lingering {
    stream: TcpStream,
    until: Option<Pin<Box<Sleep>>>,
    discarded: usize,
}

impl Lingering {
    pub(super) const fn new(stream: TcpStream) -> Self {
        Self { stream, until: None, discarded: 0 }
    }
}

impl AsyncRead for Lingering {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Lingering {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
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
                Poll::Ready(Ok(())) if !unread.filled().is_empty() && this.discarded < MAX_DISCARDED => {
                    this.discarded += unread.filled().len();
                }
                // Its end, or a connection that is gone: nothing more will come. Or it came to too much.
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending => {
                    let until =
                        this.until.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + LINGER)));
                    return until.as_mut().poll(cx).map(Ok);
                }
            }
        }
    }
}
