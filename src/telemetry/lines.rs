//! Writes log lines to standard error: a thread of its own puts many lines into one write.
//!
//! One write a line took as long as the rest of a small request. A line waits 5 ms at most. An error is written, with
//! all lines before it, before the program goes on: so a crash does not lose them. `kill -9` loses at most the lines of
//! the last 5 ms, and what the reader of standard error has not taken yet.
//!
//! If nobody reads standard error, requests are still answered: lines beyond the buffer are dropped and counted.

use std::{
    io::{self, Write},
    mem,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use tracing::{Level, Metadata, warn};
use tracing_subscriber::fmt::MakeWriter;

/// Longest time that a line waits for others.
const GATHER: Duration = Duration::from_millis(5);
/// Most bytes that wait; lines beyond are dropped.
const MAX_WAITING: usize = 1024 * 1024;
/// How long the program waits until an error is written.
const ERROR_PATIENCE: Duration = Duration::from_millis(100);
/// How long it waits at exit until the last lines are written.
const LAST_PATIENCE: Duration = Duration::from_secs(1);

/// Where lines go.
#[derive(Clone)]
pub(super) struct Lines(Arc<Shared>);

struct Shared {
    waiting: Mutex<Waiting>,
    /// Lines came, or became urgent.
    more: Condvar,
    /// Lines were written.
    done: Condvar,
    /// Where each caller writes itself, because no thread could be started.
    without_thread: Option<Mutex<Box<dyn Write + Send>>>,
}

#[derive(Default)]
struct Waiting {
    lines: Vec<u8>,
    /// Lines dropped because the buffer was full, since the last write.
    lost: u64,
    /// Number of the last round of writing that began.
    begun: u64,
    /// Number of the last round that ended.
    written: u64,
    /// Write now, without waiting for more lines.
    urgent: bool,
    /// Nobody reads standard error: nobody waits for the thread until it has written again.
    stuck: bool,
}

impl Lines {
    /// Starts the thread. If the system has none left, each line is written by its caller.
    pub(super) fn to(to: impl Write + Send + 'static) -> Self {
        let shared = |without_thread| Shared {
            waiting: Mutex::default(),
            more: Condvar::new(),
            done: Condvar::new(),
            without_thread,
        };
        let threaded = Arc::new(shared(None));
        let gathering = Arc::clone(&threaded);
        // Shared: a thread that fails to start would drop what was moved into it.
        let to: Arc<Mutex<Box<dyn Write + Send>>> = Arc::new(Mutex::new(Box::new(to)));
        let out = Arc::clone(&to);
        match thread::Builder::new().name("log".to_owned()).spawn(move || gathering.gather(lock(&out).as_mut())) {
            Ok(_runs_to_the_end) => Self(threaded),
            Err(_no_thread) => Self(Arc::new(shared(Arc::into_inner(to)))),
        }
    }

    /// Takes a line. `at_once`: returns when it is written, with all lines before it.
    pub(super) fn take(&self, line: &[u8], at_once: bool) {
        self.0.take(line, at_once);
    }

    /// Returns when all lines are written, or nobody reads standard error.
    pub(super) fn flush(&self) {
        self.0.flush(LAST_PATIENCE);
    }
}

impl Shared {
    fn gather(&self, to: &mut dyn Write) {
        let mut lines = Vec::new();
        loop {
            let lost = {
                let waiting = lock(&self.waiting);
                let waiting = unpoisoned(self.more.wait_while(waiting, |waiting| waiting.lines.is_empty()));
                let gathered = self.more.wait_timeout_while(waiting, GATHER, |waiting| !waiting.urgent);
                let (mut waiting, _elapsed) = unpoisoned(gathered);
                mem::swap(&mut waiting.lines, &mut lines);
                waiting.urgent = false;
                waiting.begun += 1;
                mem::take(&mut waiting.lost)
            };
            write_whole(to, &lines);
            lines.clear();
            {
                let mut waiting = lock(&self.waiting);
                waiting.written = waiting.begun;
                waiting.stuck = false;
            }
            self.done.notify_all();
            if lost > 0 {
                warn!(lost, "lines of the log were lost: standard error was not read fast enough");
            }
        }
    }

    fn take(&self, line: &[u8], at_once: bool) {
        if let Some(to) = &self.without_thread {
            write_whole(lock(to).as_mut(), line);
            return;
        }
        let first = {
            let mut waiting = lock(&self.waiting);
            let first = waiting.lines.is_empty();
            if waiting.lines.len() + line.len() > MAX_WAITING {
                waiting.lost += 1;
            } else {
                waiting.lines.extend_from_slice(line);
            }
            first
        };
        if at_once {
            self.flush(ERROR_PATIENCE);
        } else if first {
            self.more.notify_one();
        }
    }

    fn flush(&self, patience: Duration) {
        let mut waiting = lock(&self.waiting);
        let idle = waiting.lines.is_empty() && waiting.written == waiting.begun;
        if idle || waiting.stuck || self.without_thread.is_some() {
            return;
        }
        waiting.urgent = true;
        self.more.notify_one();
        // The lines that wait now belong to the next round.
        let round = waiting.begun + u64::from(!waiting.lines.is_empty());
        let written = self.done.wait_timeout_while(waiting, patience, |waiting| waiting.written < round);
        let (mut waiting, waited) = unpoisoned(written);
        waiting.stuck |= waited.timed_out();
    }
}

/// Writes all. Errors are ignored: there is no other place to report them.
fn write_whole(to: &mut dyn Write, mut lines: &[u8]) {
    while !lines.is_empty() {
        match to.write(lines) {
            Ok(0) => return,
            Ok(written) => lines = &lines[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Another process that shares standard error may have made it non-blocking.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(GATHER),
            Err(_gone) => return,
        }
    }
}

/// A poisoned lock is fine: no change can panic half-way.
fn lock<T>(what: &Mutex<T>) -> MutexGuard<'_, T> {
    unpoisoned(what.lock())
}

fn unpoisoned<T>(result: Result<T, PoisonError<T>>) -> T {
    result.unwrap_or_else(PoisonError::into_inner)
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

    /// Sends each write to the test.
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
    fn lines_are_written_in_order_without_a_flush() {
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
    fn an_error_is_written_at_once_with_all_lines_before_it() {
        let (sender, writes) = mpsc::channel();
        let lines = Lines::to(Writes(sender));
        lines.make_writer().write_all(b"before\n").expect("a line is taken");
        Line { at_once: true, ..lines.make_writer() }.write_all(b"the end\n").expect("a line is taken");
        // Written by one of the two threads before the call returned.
        let text: Vec<u8> = writes.try_iter().flatten().collect();
        assert_eq!(text, b"before\nthe end\n");
    }

    /// Blocks in each write until the test sends a message.
    struct Stuck(mpsc::Receiver<()>, mpsc::Sender<Vec<u8>>);

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.recv().map_err(io::Error::other)?;
            self.1.send(bytes.to_vec()).map_err(io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn nobody_waits_while_standard_error_is_not_read() {
        let ((go, told), (sender, writes)) = (mpsc::channel(), mpsc::channel());
        let lines = Lines::to(Stuck(told, sender));
        let line = [b"x".repeat(1023), b"\n".to_vec()].concat();
        // Ten times what the buffer holds, all urgent.
        for _ in 0..10 * MAX_WAITING / line.len() {
            lines.take(&line, true);
        }
        lines.flush();
        for _ in 0..3 {
            go.send(()).expect("the thread is there");
        }
        let mut written = 0;
        while written < MAX_WAITING {
            written += writes.recv_timeout(Duration::from_secs(20)).expect("what found room is written").len();
        }
        assert!(written <= 2 * MAX_WAITING, "{written}");
    }
}
