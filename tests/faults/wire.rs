//! A proxy in this process between hookgate and a server, which can stall, cut, delay and drop.

use std::{
    io::{Error, Result},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp::OwnedReadHalf, tcp::OwnedWriteHalf},
    sync::watch,
    task::JoinSet,
};

/// How the wire behaves, for present and new connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// As a wire should.
    Pass,
    /// Each piece of data is late by this much, in both directions.
    Delay(Duration),
    /// Connections stay open, new ones are taken, and nothing comes through: packets are dropped.
    Stall,
    /// Connections are cut, and new ones are cut as soon as they are made.
    Cut,
    /// Requests go through and answers do not: the next bytes from the server are swallowed, and their
    /// connection is cut then. What was asked has been carried out.
    SwallowAnswers,
    /// Answers go through and requests do not, without anybody being told.
    SwallowRequests,
}

/// A wire to a server, until it is dropped.
pub(crate) struct Wire {
    address: SocketAddr,
    mode: Arc<watch::Sender<Mode>>,
    _task: JoinSet<()>,
}

impl Wire {
    /// Lays a wire to a server on this machine.
    pub(crate) async fn to(port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("there is a free port");
        let address = listener.local_addr().expect("it is bound");
        let mode = Arc::new(watch::Sender::new(Mode::Pass));
        let mut task = JoinSet::new();
        task.spawn(accept(listener, port, Arc::clone(&mode)));
        Self { address, mode, _task: task }
    }

    /// Where this end of it is.
    pub(crate) const fn port(&self) -> u16 {
        self.address.port()
    }

    /// Behaves like that from now on.
    pub(crate) fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }
}

async fn accept(listener: TcpListener, port: u16, mode: Arc<watch::Sender<Mode>>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((near, _)) = listener.accept().await else { return };
        while connections.try_join_next().is_some() {}
        if *mode.borrow() == Mode::Cut {
            continue;
        }
        let mode = mode.subscribe();
        connections.spawn(async move {
            // A server that is down shows as a connection that is cut at once.
            let Ok(far) = TcpStream::connect(("127.0.0.1", port)).await else { return };
            let (from_near, to_near) = near.into_split();
            let (from_far, to_far) = far.into_split();
            let cut = mode.clone();
            tokio::select! {
                _ended = carry(from_near, to_far, mode.clone(), false) => {}
                _ended = carry(from_far, to_near, mode, true) => {}
                () = until_cut(cut) => {}
            }
        });
    }
}

async fn until_cut(mut mode: watch::Receiver<Mode>) {
    if mode.wait_for(|mode| *mode == Mode::Cut).await.is_err() {
        std::future::pending::<()>().await;
    }
}

async fn carry(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut mode: watch::Receiver<Mode>,
    answers: bool,
) -> Result<()> {
    let mut piece = vec![0; 65536];
    loop {
        let length = from.read(&mut piece).await?;
        if length == 0 {
            return Ok(());
        }
        let now = *mode.wait_for(|mode| *mode != Mode::Stall).await.map_err(Error::other)?;
        match now {
            Mode::Delay(time) => tokio::time::sleep(time).await,
            Mode::SwallowAnswers if answers => return Ok(()),
            Mode::SwallowRequests if !answers => continue,
            _ => {}
        }
        to.write_all(&piece[..length]).await?;
    }
}
