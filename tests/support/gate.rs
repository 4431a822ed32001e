//! The real binary: started from files, watched through its log and its ports.

use std::{
    ffi::OsStr,
    io::{BufRead, BufReader, Read},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;

use super::{Answer, Connection, PATH, eventually, http, process::Process};

/// Settings of all tests: free ports, a log that can be read back, a short drain, and
/// no relay, so that what the sender's own retry repairs is repaired by nothing else.
const SETTINGS: &str = r#"
server.listen = "127.0.0.1:0"
server.drain_delay = "100ms"
admin.listen = "127.0.0.1:0"
log.format = "json"
outbox.relay_after = "1h"
"#;

/// A running `hookgate serve`.
pub(crate) struct Gate {
    process: Process,
    log: Output,
    webhooks: SocketAddr,
    probes: SocketAddr,
    may_panic: bool,
    files: TempDir,
}

impl Gate {
    /// Starts it with layers of settings, later ones winning, and waits until it listens.
    pub(crate) async fn start(servers: &str, settings: &str) -> Self {
        Self::start_with::<&str>(servers, settings, &[]).await
    }

    /// The same with variables in its environment.
    pub(crate) async fn start_with<T: AsRef<OsStr>>(servers: &str, settings: &str, environment: &[(&str, T)]) -> Self {
        Self::launch(env!("CARGO_BIN_EXE_hookgate").as_ref(), servers, settings, environment).await
    }

    /// Another program than the one under test, such as an older version.
    pub(crate) async fn start_program(program: &Path, servers: &str, settings: &str) -> Self {
        Self::launch::<&str>(program.as_ref(), servers, settings, &[]).await
    }

    async fn launch<T: AsRef<OsStr>>(
        program: &OsStr,
        servers: &str,
        settings: &str,
        environment: &[(&str, T)],
    ) -> Self {
        let files = tempfile::tempdir().expect("a temporary folder can be made");
        let mut process = Process::start(program, |command| {
            configure(command, &files, &[SETTINGS, servers, settings]);
            command.envs(environment.iter().map(|(name, value)| (name, value)));
            command.arg("serve").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        });
        let log = Output::of(process.child().stderr.take().expect("stderr is a pipe"));
        let addresses = eventually("hookgate listens", async || {
            let lines = log.lines();
            let address = |message| {
                let line = lines.iter().find(|line| line.contains(message))?;
                field(line, "address")?.parse::<SocketAddr>().ok()
            };
            let ended = process.ended();
            assert!(ended.is_none(), "hookgate ended with {ended:?}:\n{}", log.text());
            Some((address("listening for webhooks")?, address("listening for probes")?))
        });
        let (webhooks, probes) = addresses.await;
        Self { process, log, webhooks, probes, may_panic: false, files }
    }

    /// The file of the settings that it was started with.
    pub(crate) fn file(&self) -> PathBuf {
        self.files.path().join("layer-2.toml")
    }

    /// Puts other settings into that file, which it may read at any time.
    pub(crate) fn configure(&self, settings: &str) {
        let new = self.files.path().join("new.toml");
        std::fs::write(&new, settings).expect("the folder is ours");
        std::fs::rename(&new, self.file()).expect("the folder is ours");
    }

    /// A panic is what the test is about.
    pub(crate) const fn may_panic(&mut self) {
        self.may_panic = true;
    }

    /// Where webhooks go.
    pub(crate) const fn address(&self) -> SocketAddr {
        self.webhooks
    }

    /// Where an operator asks.
    pub(crate) const fn probes(&self) -> SocketAddr {
        self.probes
    }

    /// Sends a body to the route of the tests.
    pub(crate) async fn post(&self, body: impl AsRef<[u8]>) -> Answer {
        self.post_to(PATH, body).await
    }

    pub(crate) async fn post_to(&self, path: &str, body: impl AsRef<[u8]>) -> Answer {
        self.exchange(&http::post(path, body.as_ref())).await
    }

    /// Sends bytes on a new connection and reads one answer.
    pub(crate) async fn exchange(&self, request: &[u8]) -> Answer {
        http::try_exchange(self.webhooks, request).await.expect("there is an answer")
    }

    /// Sends bytes on a new connection, which then waits for the answer.
    pub(crate) async fn send(&self, request: &[u8]) -> Connection {
        let mut connection = Connection::open(self.webhooks).await.expect("hookgate listens");
        connection.send(request).await.expect("hookgate reads");
        connection
    }

    /// The same with a request for one new id, which is worked on from then on: as long as NATS is frozen.
    pub(crate) async fn busy_with(&self, request: &[u8]) -> Connection {
        let connection = self.send(request).await;
        self.wait_log("1 neue IDs").await;
        connection
    }

    /// Sends a body until the answer is 200, as a sender does.
    pub(crate) async fn deliver(&self, body: impl AsRef<[u8]>) -> Answer {
        let body = body.as_ref();
        eventually("the batch is taken", async || {
            let answer = self.post(body).await;
            assert!(matches!(answer.status, 200 | 503), "{}: {}", answer.status, answer.text());
            (answer.status == 200).then_some(answer)
        })
        .await
    }

    /// Asks the operator's address.
    pub(crate) async fn probe(&self, path: &str) -> Answer {
        let request = format!("GET {path} HTTP/1.1\r\nHost: hookgate.test\r\nConnection: close\r\n\r\n");
        http::try_exchange(self.probes, request.as_bytes()).await.expect("there is an answer")
    }

    /// A request to the admin address with the token of the operators, if there is one.
    pub(crate) async fn operate(&self, method: &str, path: &str, token: &str) -> Answer {
        let token = if token.is_empty() { String::new() } else { format!("Authorization: Bearer {token}\r\n") };
        let request = format!("{method} {path} HTTP/1.1\r\nHost: hookgate.test\r\n{token}Connection: close\r\n\r\n");
        http::try_exchange(self.probes, request.as_bytes()).await.expect("there is an answer")
    }

    pub(crate) async fn wait_ready(&self) {
        eventually("hookgate is ready", async || (self.probe("/readyz").await.status == 200).then_some(())).await;
    }

    /// Waits until a store (`redis`, `nats`) is in a state (`up`, `unreachable`, `refused`), and says what
    /// is wrong with it.
    pub(crate) async fn wait_store(&self, store: &str, state: &str) -> String {
        eventually(&format!("{store} is {state}"), async || {
            let now = self.probe("/readyz").await.json();
            let problem = || now[store]["problem"].as_str().unwrap_or_default().to_owned();
            (now[store]["state"] == state).then(problem)
        })
        .await
    }

    /// Takes leave and gives the log. Before the end, a line of a moment ago may still be in the pipe.
    pub(crate) async fn log(&mut self) -> Vec<String> {
        if self.process.ended().is_none() {
            self.signal("TERM");
        }
        self.end().await;
        self.log.lines()
    }

    /// Waits for a line that holds a text.
    pub(crate) async fn wait_log(&self, text: &str) -> String {
        eventually(&format!("{text:?} is in the log"), async || {
            self.log.lines().into_iter().find(|line| line.contains(text))
        })
        .await
    }

    /// A line that holds a text, if it is there by now.
    pub(crate) fn log_line(&self, text: &str) -> Option<String> {
        self.log.lines().into_iter().find(|line| line.contains(text))
    }

    /// How many lines hold a text by now.
    pub(crate) fn log_count(&self, text: &str) -> usize {
        self.log.lines().iter().filter(|line| line.contains(text)).count()
    }

    pub(crate) fn signal(&self, signal: &str) {
        self.process.signal(signal);
    }

    /// Ends it as the kernel does that runs out of memory.
    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    /// How it ended, if it did.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.process.ended()
    }

    /// Waits for its end, and for the last line of its log.
    pub(crate) async fn end(&mut self) -> ExitStatus {
        let status = self.process.end().await;
        self.log.finish();
        status
    }

    /// Takes leave as a pod does.
    pub(crate) async fn terminate(&mut self) -> ExitStatus {
        self.signal("TERM");
        self.end().await
    }

    /// Memory in use, in bytes.
    pub(crate) fn resident_bytes(&self) -> usize {
        self.status_bytes("VmRSS:")
    }

    /// The most that it ever used, in bytes.
    pub(crate) fn peak_resident_bytes(&self) -> usize {
        self.status_bytes("VmHWM:")
    }

    /// Time that its threads have spent on a CPU.
    pub(crate) fn cpu(&self) -> Duration {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.process.id())).expect("it runs");
        // "nanoseconds on a CPU, nanoseconds waiting, …", a file a thread.
        let spent = tasks.map_while(Result::ok).map(|task| {
            let stat = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            stat.split(' ').next().and_then(|nanoseconds| nanoseconds.parse().ok()).unwrap_or(0)
        });
        Duration::from_nanos(spent.sum())
    }

    fn status_bytes(&self, name: &str) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("Linux says so");
        1024 * line.trim().trim_end_matches(" kB").parse::<usize>().expect("it is a number")
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of hookgate:\n{}", self.log.text());
        } else if !self.may_panic {
            assert!(!self.log.text().contains("panicked at"), "hookgate panicked:\n{}", self.log.text());
        }
    }
}

/// A running `hookgate tail`.
pub(crate) struct Tail {
    process: Process,
    output: Output,
    remarks: Output,
    _files: TempDir,
}

impl Tail {
    /// Starts it, and waits until it is subscribed.
    pub(crate) async fn start(settings: &str, arguments: &[&str]) -> Self {
        let this = Self::start_any(settings, arguments).await;
        assert!(this.listens(), "{}", this.remarks());
        this
    }

    /// Starts it, and waits until it is subscribed or has ended.
    pub(crate) async fn start_any(settings: &str, arguments: &[&str]) -> Self {
        let files = tempfile::tempdir().expect("a temporary folder can be made");
        let mut process = Process::start(env!("CARGO_BIN_EXE_hookgate").as_ref(), |command| {
            configure(command, &files, &[SETTINGS, settings]);
            command.arg("tail").args(arguments);
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        });
        let output = Output::of(process.child().stdout.take().expect("stdout is a pipe"));
        let remarks = Output::of(process.child().stderr.take().expect("stderr is a pipe"));
        eventually("tail is subscribed", async || {
            (remarks.text().contains("Subscribing on ") || process.ended().is_some()).then_some(())
        })
        .await;
        Self { process, output, remarks, _files: files }
    }

    /// Whether it is subscribed.
    pub(crate) fn listens(&self) -> bool {
        self.remarks().contains("Subscribing on ")
    }

    /// What it says to the side.
    pub(crate) fn remarks(&self) -> String {
        self.remarks.text()
    }

    /// Waits until it ends by itself; what it printed.
    pub(crate) async fn end(mut self) -> (ExitStatus, String) {
        let status = self.process.end().await;
        self.output.finish();
        (status, self.output.text())
    }

    /// Ends it as Ctrl-C does.
    pub(crate) async fn interrupt(self) -> (ExitStatus, String) {
        self.process.signal("INT");
        self.end().await
    }
}

/// Writes each layer to a file of its own, and keeps the layers of whoever runs the tests out.
pub(super) fn configure(command: &mut Command, files: &TempDir, layers: &[&str]) {
    for (index, layer) in layers.iter().enumerate() {
        let file: PathBuf = files.path().join(format!("layer-{index}.toml"));
        std::fs::write(&file, layer).expect("the folder is ours");
        command.arg("--config").arg(file);
    }
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("HOOKGATE_")) {
        command.env_remove(name);
    }
}

/// A field of a log line, in JSON or as text.
pub(crate) fn field(line: &str, name: &str) -> Option<String> {
    match serde_json::from_str::<Value>(line) {
        Ok(record) => record[name].as_str().map(str::to_owned),
        Err(_) => line.split(' ').find_map(|word| word.strip_prefix(&format!("{name}="))).map(str::to_owned),
    }
}

/// What a process prints, collected by a thread until the process ends.
struct Output {
    lines: Arc<Mutex<Vec<String>>>,
    reader: Option<JoinHandle<()>>,
}

impl Output {
    fn of(pipe: impl Read + Send + 'static) -> Self {
        let lines = Arc::<Mutex<Vec<String>>>::default();
        let collected = Arc::clone(&lines);
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8(line).expect("hookgate prints UTF-8");
                collected.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            }
        });
        Self { lines, reader: Some(reader) }
    }

    fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn text(&self) -> String {
        self.lines().join("\n")
    }

    /// Waits for the last line of a process that has ended.
    fn finish(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.join().expect("hookgate prints UTF-8");
        }
    }
}
