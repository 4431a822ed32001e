//! The way of a line to standard error: many in one write, by a thread of their own.
//!
//! A write of its own for every line took as long as the rest of a small request. Lines wait 5 ms at most; an error
//! and everything before it is written before the program goes on, so that a crash does not lose them. A `kill -9`
//! loses at most the lines of these 5 ms, and those that the reader of standard error has not taken yet.
//!
//! Only this thread writes. If standard error is not read, requests are answered all the same, and lines are dropped
//! and counted.

use std::{
    io::{self, Write},
    mem,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use tracing::{Level, Metadata, warn};
use tracing_subscriber::fmt::MakeWriter;

/// How long lines are gathered.
const GATHER: Duration = Duration::from_millis(5);
/// Bytes of lines that wait at most.
const MOST: usize = 1024 * 1024;
/// How long an error is waited with for its being written.
const PATIENCE: Duration = Duration::from_millis(100);
/// And the last lines of a process.
const LAST_PATIENCE: Duration = Duration::from_secs(1);

/// Where lines go.
#[derive(Clone)]
pub(super) struct Lines(Arc<Shared>);

struct Shared {
    waiting: Mutex<Waiting>,
    /// There is something to write, or it is urgent now.
    more: Condvar,
    /// Something was written.
    done: Condvar,
    /// What is written to, where there is no thread that does it.
    alone: Option<Mutex<Box<dyn Write + Send>>>,
}

#[derive(Default)]
struct Waiting {
    lines: Vec<u8>,
    /// Lines dropped because the buffer was full, since the last write.
    lost: u64,
    /// Times that lines were handed to the thread, and those of which all is written.
    begun: u64,
    written: u64,
    /// Not to be gathered with others first.
    urgent: bool,
    /// Standard error is not being read: don't wait for the writer until it is.
    stuck: bool,
}

impl Lines {
    /// Starts the thread; without one, every line is written at once.
    pub(super) fn to(to: impl Write + Send + 'static) -> Self {
        let shared = |alone| Shared { waiting: Mutex::default(), more: Condvar::new(), done: Condvar::new(), alone };
        let threaded = Arc::new(shared(None));
        let gathering = Arc::clone(&threaded);
        // Not moved into a thread that may never be.
        let to: Arc<Mutex<Box<dyn Write + Send>>> = Arc::new(Mutex::new(Box::new(to)));
        let out = Arc::clone(&to);
        match thread::Builder::new().name("log".to_owned()).spawn(move || gathering.gather(lock(&out).as_mut())) {
            Ok(_runs_to_the_end) => Self(threaded),
            Err(_no_thread) => Self(Arc::new(shared(Arc::into_inner(to)))),
        }
    }

    /// Takes a line; `at_once` it is written, with all before it.
    pub(super) fn take(&self, line: &[u8], at_once: bool) {
        self.0.take(line, at_once);
    }

    /// Writes everything that waits, unless standard error is not being read.
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
        if let Some(to) = &self.alone {
            write_whole(lock(to).as_mut(), line);
            return;
        }
        let first = {
            let mut waiting = lock(&self.waiting);
            let first = waiting.lines.is_empty();
            if waiting.lines.len() + line.len() > MOST {
                waiting.lost += 1;
            } else {
                waiting.lines.extend_from_slice(line);
            }
            first
        };
        if at_once {
            self.flush(PATIENCE);
        } else if first {
            self.more.notify_one();
        }
    }

    fn flush(&self, patience: Duration) {
        let mut waiting = lock(&self.waiting);
        let idle = waiting.lines.is_empty() && waiting.written == waiting.begun;
        if idle || waiting.stuck || self.alone.is_some() {
            return;
        }
        waiting.urgent = true;
        self.more.notify_one();
        // What waits now is written by the next round, or by the one after it if one is under way.
        let round = waiting.begun + u64::from(!waiting.lines.is_empty());
        let written = self.done.wait_timeout_while(waiting, patience, |waiting| waiting.written < round);
        let (mut waiting, waited) = unpoisoned(written);
        waiting.stuck |= waited.timed_out();
    }
}

/// Writes all. An error is ignored: there is no other place to report it.
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

    /// Takes one write for each message on the channel.
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
    fn nobody_waits_for_one_who_does_not_read() {
        let ((go, told), (sender, writes)) = (mpsc::channel(), mpsc::channel());
        let lines = Lines::to(Stuck(told, sender));
        let line = [b"x".repeat(1023), b"\n".to_vec()].concat();
        // Far more than the buffer holds, and all of them urgent.
        for _ in 0..10 * MOST / line.len() {
            lines.take(&line, true);
        }
        lines.flush();
        for _ in 0..3 {
            go.send(()).expect("the thread is there");
        }
        let mut written = 0;
        while written < MOST {
            written += writes.recv_timeout(Duration::from_secs(20)).expect("what found room is written").len();
        }
        assert!(written <= 2 * MOST, "{written}");
    }
}
