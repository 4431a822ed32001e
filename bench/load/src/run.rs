//! The loop.

use std::{
    fs, io,
    time::{Duration, Instant},
};

use mio::{Events, Poll};

use crate::{
    arguments::Arguments,
    connection::Connection,
    tally::{Tally, Window},
};

/// How long answers are awaited after the last request; the CRM itself gives up after 10 s.
const DRAIN: Duration = Duration::from_secs(12);
/// Requests that are begun between two looks at what has arrived (open loop).
const BURST: usize = 64;

struct Run<'a> {
    arguments: &'a Arguments,
    poll: Poll,
    connections: Vec<Connection>,
    /// Connections without a request (open loop).
    idle: Vec<usize>,
    window: Window,
    /// Ids given out.
    count: u64,
    /// Requests on their way.
    busy: usize,
    tally: Tally,
}

/// Carries a run out; its summary.
pub(crate) fn run(arguments: &Arguments) -> io::Result<String> {
    let mut events = Events::with_capacity(1024);
    let mut buffer = vec![0; 64 * 1024];
    let poll = Poll::new()?;
    let open = |token| Connection::open(arguments.address, arguments.batch, token, poll.registry());
    let connections = (0..arguments.connections).map(open).collect::<io::Result<Vec<_>>>()?;
    let cpu_before = cpu()?;
    let begun = Instant::now();
    let window = Window { from: begun + arguments.settle, to: begun + arguments.time };
    let idle = (0..arguments.connections).rev().collect();
    let tally = Tally::default();
    let mut run = Run { arguments, poll, connections, idle, window, count: 0, busy: 0, tally };
    if arguments.rate.is_none() {
        (0..arguments.connections).for_each(|index| run.send(index, begun));
    }
    let mut due = 0_u64;
    loop {
        let now = Instant::now();
        if let Some(rate) = arguments.rate {
            due = fallen_due(rate, now.min(run.window.to) - begun).min(arguments.requests);
            for _ in 0..BURST {
                if run.tally.requests >= due || now >= run.window.to {
                    break;
                }
                let Some(index) = run.idle.pop() else { break };
                run.send(index, now);
            }
        }
        let sending = now < run.window.to && run.tally.requests < arguments.requests;
        if (!sending && run.busy == 0) || now >= run.window.to + DRAIN {
            break;
        }
        let patience = match arguments.rate {
            Some(_) if sending && run.tally.requests < due && !run.idle.is_empty() => Duration::ZERO,
            Some(_) if sending => Duration::from_millis(1),
            _ => Duration::from_millis(100),
        };
        match run.poll.poll(&mut events, Some(patience)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        }
        for event in &events {
            let index = event.token().0;
            if event.is_writable() {
                run.connections[index].write();
            }
            if event.is_readable() || event.is_read_closed() || event.is_error() {
                run.read(index, &mut buffer, event.is_read_closed());
            }
        }
    }
    let (ended, cpu_after) = (Instant::now(), cpu()?);
    run.tally.unanswered = run.busy as u64;
    run.tally.unsent = due.saturating_sub(run.tally.requests);
    let counted_over = run.window.to.min(ended) - run.window.from;
    Ok(run.tally.summary(counted_over, ended - begun, cpu_after.saturating_sub(cpu_before)))
}

impl Run<'_> {
    /// Gives a connection its next request.
    fn send(&mut self, index: usize, now: Instant) {
        let Self { arguments, connections, count, tally, .. } = self;
        let connection = &mut connections[index];
        let batch = connection.request.batch();
        // Of a batch every second record, of single records every second request.
        let repeated = match connection.accepted.end - connection.accepted.start {
            0 => 0,
            _ if !arguments.duplicates => 0,
            _ if batch == 1 => usize::from(!connection.fresh.is_empty()),
            accepted => usize::try_from(accepted).map_or(0, |accepted| accepted.min(batch / 2)),
        };
        let from = *count;
        *count += (batch - repeated) as u64;
        connection.fresh = from..*count;
        let (fresh, accepted) = (connection.fresh.clone(), connection.accepted.clone());
        for (place, id) in accepted.take(repeated).chain(fresh).enumerate() {
            connection.request.set_id(place, arguments.nonce, id);
        }
        tally.requests += 1;
        tally.fresh_sent += (batch - repeated) as u64;
        self.busy += 1;
        self.connections[index].send(now);
    }

    /// Takes what has arrived on a connection.
    fn read(&mut self, index: usize, buffer: &mut [u8], ends: bool) {
        let connection = &mut self.connections[index];
        let answer = match connection.read(buffer, ends) {
            Ok(None) => return,
            Ok(Some(answer)) => answer,
            Err(error) => return self.ended(index, &error),
        };
        let now = Instant::now();
        let fresh = connection.fresh.clone();
        let sent_at = connection.sent_at;
        self.busy -= 1;
        let accepted = self.tally.answered(&answer, fresh.end - fresh.start, sent_at, now, &self.window);
        if accepted && !fresh.is_empty() {
            connection.accepted = fresh;
        }
        if !answer.last || self.reopen(index) {
            self.next(index, now);
        }
    }

    /// The connection has ended by itself.
    fn ended(&mut self, index: usize, error: &io::Error) {
        let busy = self.connections[index].busy();
        if busy {
            self.busy -= 1;
            self.tally.broken += 1;
            if self.tally.broken == 1 {
                eprintln!("load: a connection ended before its answer: {error}");
            }
        }
        // One without a request is still among those that wait for one.
        if self.reopen(index) && busy {
            self.next(index, Instant::now());
        }
    }

    /// Connects again; whether that can be done.
    fn reopen(&mut self, index: usize) -> bool {
        // A server that is gone ends the run's connections one by one instead of being asked for ever.
        let again = self.tally.broken < 10 * self.connections.len() as u64;
        let open = again && self.connections[index].reopen(self.arguments.address, index, self.poll.registry()).is_ok();
        self.tally.dead += u64::from(!open);
        open
    }

    /// The connection is free for another request.
    fn next(&mut self, index: usize, now: Instant) {
        if self.arguments.rate.is_some() {
            self.idle.push(index);
        } else if now < self.window.to && self.tally.requests < self.arguments.requests {
            self.send(index, now);
        }
    }
}

/// Requests that have fallen due.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count of at most a few millions")]
fn fallen_due(rate: f64, since: Duration) -> u64 {
    (since.as_secs_f64() * rate) as u64
}

/// CPU time of this process, which has one thread.
fn cpu() -> io::Result<Duration> {
    let text = fs::read_to_string("/proc/self/schedstat")?;
    let nanoseconds = text.split_whitespace().next().and_then(|number| number.parse().ok());
    nanoseconds.map(Duration::from_nanos).ok_or_else(|| io::Error::other("/proc/self/schedstat can't be read"))
}
