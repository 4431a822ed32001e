//! Shutting down: signals, and the phases that everything that serves looks at.
//!
//! A refused connection is final for some senders, so the listener closes last.

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};

/// How far the process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Everything is served.
    Serving,
    /// Everything is still served, and each answer closes its connection, so that senders and ingress move
    /// to other replicas.
    Leaving,
    /// Requests in flight are finished; new ones get 503.
    Refusing,
    /// The same, while what waits in the background is written: dead letters and spans.
    Flushing,
    /// Connections and listeners close.
    Closing,
}

/// The phase of the process, set by its owner and read everywhere.
#[derive(Debug)]
pub struct Shutdown(watch::Sender<Phase>);

impl Default for Shutdown {
    fn default() -> Self {
        Self(watch::Sender::new(Phase::Serving))
    }
}

impl Shutdown {
    /// Moves on to a phase.
    pub fn enter(&self, phase: Phase) {
        self.0.send_replace(phase);
    }

    /// To read the phase, and to wait for the next one.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Phase> {
        self.0.subscribe()
    }
}

/// SIGHUP, which asks to read the configuration again, from the moment this is made. Without this it ends the process.
#[derive(Debug)]
pub struct Hangups(Signal);

impl Hangups {
    /// Takes over the signal.
    ///
    /// # Errors
    /// If the operating system does not allow that.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self(signal(SignalKind::hangup())?))
    }

    /// Waits for the next signal.
    pub async fn next(&mut self) {
        self.0.recv().await;
    }
}

/// SIGTERM and SIGINT, from the moment this is made.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Takes over the two signals.
    ///
    /// # Errors
    /// If the operating system does not allow that.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for the next signal and returns its name.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
