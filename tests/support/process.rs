//! A child process that never outlives its test.

use std::{
    ffi::{OsStr, OsString},
    hash::{BuildHasher, Hasher, RandomState},
    net::{TcpListener, UdpSocket},
    process::{Child, Command, ExitStatus},
    time::{Duration, Instant},
};

use super::eventually;

/// A running program; killed when dropped.
pub(crate) struct Process {
    name: String,
    child: Child,
}

impl Process {
    /// Starts a program so that the kernel kills it when the test dies, however it dies.
    pub(crate) fn start(program: &OsStr, set_up: impl FnOnce(&mut Command)) -> Self {
        let name = program.to_string_lossy().into_owned();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program);
        set_up(&mut command);
        let child = command.spawn().unwrap_or_else(|error| panic!("start {name} by setpriv: {error}"));
        Self { name, child }
    }

    /// The child itself, for its pipes.
    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal by its name (STOP, CONT, TERM). The shell knows how to; Rust would need unsafe code.
    pub(crate) fn signal(&self, signal: &str) {
        let status = Command::new("sh")
            .args(["-c", "kill -s \"$1\" \"$2\"", "sh", signal, &self.id().to_string()])
            .status()
            .expect("every system has a shell");
        assert!(status.success(), "send SIG{signal} to {}: {status}", self.name);
    }

    /// Stops it, and returns when it has stopped: its threads do so one after the other, and until then one
    /// of them may still answer somebody.
    pub(crate) fn freeze(&self) {
        self.signal("STOP");
        let end = Instant::now() + Duration::from_secs(10);
        while !self.is_stopped() {
            assert!(Instant::now() < end, "{} does not stop", self.name);
            std::thread::yield_now();
        }
    }

    fn is_stopped(&self) -> bool {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.id())).expect("it runs");
        threads.map_while(Result::ok).all(|thread| {
            // "pid (name) state ...", and a thread that has gone meanwhile answers nobody.
            let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            stat.rsplit(')').next().is_none_or(|rest| rest.is_empty() || rest.starts_with(" T"))
        })
    }

    /// Ends it by SIGKILL, also if it is stopped, and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap_or_else(|error| panic!("kill {}: {error}", self.name));
        self.child.wait().unwrap_or_else(|error| panic!("wait for {}: {error}", self.name));
    }

    /// How it ended, if it did.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap_or_else(|error| panic!("look at {}: {error}", self.name))
    }

    /// Waits for its end.
    pub(crate) async fn end(&mut self) -> ExitStatus {
        let what = format!("{} ends", self.name);
        eventually(&what, async || self.ended()).await
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ended().is_none() {
            self.kill();
        }
    }
}

/// The binary of a server: from a variable, or from the path.
pub(crate) fn binary(variable: &str, default: impl Into<OsString>) -> OsString {
    #[expect(clippy::disallowed_methods, reason = "says which server to test with; no setting of hookgate")]
    std::env::var_os(variable).unwrap_or_else(|| default.into())
}

/// A TCP port that no other test takes, also while nobody listens on it.
pub(crate) struct Port {
    pub(crate) number: u16,
    /// Of the same number, and of no other use: it is free again when the test ends, however it ends.
    _reservation: UdpSocket,
}

impl Port {
    /// Finds one below the range of outgoing connections: from there a client that tries to reach a server
    /// that is down could be given the server's own port, and keep it from coming back.
    pub(crate) fn reserve() -> Self {
        loop {
            let random = RandomState::new().build_hasher().finish() % 12_000;
            let number = 20_000 + u16::try_from(random).expect("a number below 12,000");
            if let Ok(reservation) = UdpSocket::bind(("127.0.0.1", number))
                && TcpListener::bind(("127.0.0.1", number)).is_ok()
            {
                return Self { number, _reservation: reservation };
            }
        }
    }
}
