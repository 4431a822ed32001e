//! The way of a line to standard error: many in one write, by a thread of their own.
//!
//! A write of its own for every line took as long as the rest of a small request. Lines wait 5 ms at most; an error
//! and everything before it is written before the program goes on, so that the last words of a process that
//! breaks down are there. What a `kill -9` can take is the lines of these 5 ms, and what nobody has read yet.

use std::{
    io::{self, Write},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

/// How long lines are gathered.
const GATHER: Duration = Duration::from_millis(5);
/// Bytes of lines that are waited with; whoever brings more writes, and waits for who reads.
const MOST: usize = 1024 * 1024;

/// Where lines go.
#[derive(Clone)]
pub(super) struct Lines(Arc<Shared>);

struct Shared {
    waiting: Mutex<Vec<u8>>,
    first: Condvar,
    /// Held while lines are written, so that they stay in their order.
    out: Mutex<Out>,
    /// Whether somebody writes what waits.
    gathers: bool,
}

struct Out {
    to: Box<dyn Write + Send>,
    /// What is being written; its memory is the next to be filled.
    lines: Vec<u8>,
}

impl Lines {
    /// Starts the thread; without one, every line is written at once.
    pub(super) fn to(to: impl Write + Send + 'static) -> Self {
        let shared = |gathers| Shared {
            waiting: Mutex::default(),
            first: Condvar::new(),
            out: Mutex::new(Out { to: Box::new(to), lines: Vec::new() }),
            gathers,
        };
        let shared = Arc::new(shared(true));
        let gathering = Arc::clone(&shared);
        match thread::Builder::new().name("log".to_owned()).spawn(move || gathering.gather()) {
            Ok(_runs_to_the_end) => Self(shared),
            Err(_no_thread) => {
                // The thread that never was has given its share back.
                let shared = Arc::into_inner(shared).map(|shared| Shared { gathers: false, ..shared });
                Self(Arc::new(shared.expect("nobody else has it")))
            }
        }
    }

    /// Takes a line; `at_once` it is written, with all before it.
    pub(super) fn take(&self, line: &[u8], at_once: bool) {
        self.0.take(line, at_once);
    }

    /// Writes everything that waits.
    pub(super) fn flush(&self) {
        self.0.flush();
    }
}

impl Shared {
    fn gather(&self) {
        loop {
            let waiting = lock(&self.waiting);
            drop(self.first.wait_while(waiting, |waiting| waiting.is_empty()).unwrap_or_else(PoisonError::into_inner));
            thread::sleep(GATHER);
            self.flush();
        }
    }

    fn take(&self, line: &[u8], at_once: bool) {
        let (first, full) = {
            let mut waiting = lock(&self.waiting);
            let first = waiting.is_empty();
            waiting.extend_from_slice(line);
            (first, waiting.len() > MOST)
        };
        if at_once || full || !self.gathers {
            self.flush();
        } else if first {
            self.first.notify_one();
        }
    }

    fn flush(&self) {
        let mut out = lock(&self.out);
        let Out { to, lines } = &mut *out;
        std::mem::swap(&mut *lock(&self.waiting), lines);
        write_whole(to.as_mut(), lines);
        lines.clear();
    }
}

/// Writes all, unless what is written to is gone: there is nobody to tell.
fn write_whole(to: &mut dyn Write, mut lines: &[u8]) {
    while !lines.is_empty() {
        match to.write(lines) {
            Ok(0) => return,
            Ok(written) => lines = &lines[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Somebody who shares it may have made it so.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(GATHER),
            Err(_gone) => return,
        }
    }
}

/// Nothing panics half-way through a change.
fn lock<T>(what: &Mutex<T>) -> MutexGuard<'_, T> {
    what.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { shared: &self.0, at_once: false }
    }

    fn make_writer_for(&'a self, event: &Metadata<'_>) -> Line<'a> {
        Line { shared: &self.0, at_once: *event.level() == Level::ERROR }
    }
}

/// Takes one line.
pub(super) struct Line<'a> {
    shared: &'a Shared,
    at_once: bool,
}

impl Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.shared.take(line, self.at_once);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Hands on every write.
    struct Writes(mpsc::Sender<Vec<u8>>);

    impl Write for Writes {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.send(bytes.to_vec()).map_err(io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_come_together_in_their_order_and_by_themselves() {
        let (sender, writes) = mpsc::channel();
        let lines = Lines::to(Writes(sender));
        let expected = ["the first\n", "another one\n", "and the last\n"].concat().repeat(30);
        for line in expected.split_inclusive('\n') {
            lines.make_writer().write_all(line.as_bytes()).expect("a line is taken");
        }
        let mut text = String::new();
        while text.len() < expected.len() {
            let write =
                writes.recv_timeout(Duration::from_secs(20)).expect("lines are written without being asked for");
            text.push_str(std::str::from_utf8(&write).expect("whole lines"));
        }
        assert_eq!(text, expected);
    }

    #[test]
    fn what_has_to_be_read_at_once_is_written_with_all_before_it() {
        let (sender, writes) = mpsc::channel();
        let lines = Lines::to(Writes(sender));
        lines.make_writer().write_all(b"before\n").expect("a line is taken");
        Line { at_once: true, ..lines.make_writer() }.write_all(b"the end\n").expect("a line is taken");
        // By whichever of the two threads: it is all there already.
        let text: Vec<u8> = writes.try_iter().flatten().collect();
        assert_eq!(text, b"before\nthe end\n");
    }
}
