//! The consumers of `examples/` as processes of their own, in three languages. They acknowledge, and hookgate releases the ids.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs::File,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use async_nats::Client;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{NatsServer, Process, eventually};

/// What a consumer is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Language {
    Rust,
    Python,
    Node,
}

/// An application: a durable consumer, and its processes, which share the results.
pub(crate) struct Application {
    name: &'static str,
    url: String,
    results: TempDir,
    processes: Vec<(Language, Option<Process>)>,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Builds and installs what the consumers need, once: outside the time that a scenario has.
pub(crate) fn prepare() {
    static PREPARED: OnceLock<()> = OnceLock::new();
    PREPARED.get_or_init(|| {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--locked", "--quiet", "--examples"]);
        if cfg!(feature = "failpoints") {
            // Else the library would be built once more.
            cargo.args(["--features", "failpoints"]);
        }
        let built = cargo.current_dir(root()).status().expect("there is a cargo");
        assert!(built.success(), "the consumers in Rust can't be built");
        let installed = Command::new(root().join("tests/consumers/install")).status().expect("there is a bash");
        assert!(installed.success(), "what the consumers in Python and Node.js need can't be installed");
    });
}

impl Language {
    fn start(self, application: &Application, log: File) -> Process {
        let tools = root().join("target/tools");
        let (program, argument): (OsString, Option<PathBuf>) = match self {
            Self::Rust => {
                let built = Path::new(env!("CARGO_BIN_EXE_hookgate")).parent().expect("it is in a folder");
                (built.join("examples/consumer-ack").into(), None)
            }
            Self::Python => ("python3".into(), Some(root().join("examples/python/ack.py"))),
            Self::Node => ("node".into(), Some(tools.join("consumers-node/ack.mjs"))),
        };
        Process::start(&program, |command| {
            command.args(argument);
            command.env("PYTHONPATH", tools.join("consumers-python")).env("NATS_URL", &application.url);
            command.env("CONSUMER", application.name).env("RESULTS", application.results.path());
            let errors = log.try_clone().expect("a file can be opened twice");
            command.stdin(Stdio::null()).stdout(log).stderr(errors);
        })
    }
}

impl Application {
    /// One that nobody has started yet, at any of several servers.
    pub(crate) fn new(name: &'static str, urls: &[String], languages: &[Language]) -> Self {
        let processes = languages.iter().map(|language| (*language, None)).collect();
        // The examples in Rust and Python take one address; it is the first.
        let url = urls[0].clone();
        Self { name, url, results: tempfile::tempdir().expect("a temporary folder can be made"), processes }
    }

    /// How many processes it has.
    pub(crate) fn size(&self) -> usize {
        self.processes.len()
    }

    /// Kills a process, if it runs, and starts it.
    pub(crate) fn start(&mut self, place: usize) {
        self.kill(place);
        let log = self.results.path().join(format!("log-{place}"));
        let log = File::options().create(true).append(true).open(log).expect("the folder is ours");
        let language = self.processes[place].0;
        self.processes[place].1 = Some(language.start(self, log));
    }

    /// Starts all of them.
    pub(crate) fn start_all(&mut self) {
        for place in 0..self.size() {
            self.start(place);
        }
    }

    pub(crate) fn kill(&mut self, place: usize) {
        if let Some(mut process) = self.processes[place].1.take() {
            process.kill();
        }
    }

    pub(crate) fn kill_all(&mut self) {
        for place in 0..self.size() {
            self.kill(place);
        }
    }

    /// Tokens of the events that it has processed.
    pub(crate) fn processed(&self) -> BTreeSet<String> {
        let files = std::fs::read_dir(self.results.path()).expect("the folder is ours").map_while(Result::ok);
        files.filter_map(|file| Some(file.file_name().to_str()?.strip_suffix(".json")?.to_owned())).collect()
    }

    /// Makes its durable consumer, or changes it.
    pub(crate) async fn make(&self, nats: &NatsServer, more: &Value) {
        make(&nats.client().await, self.name, more).await;
    }
}

/// Makes a durable consumer of hookgate's stream, or changes it, as soon as there is one.
pub(crate) async fn make(client: &Client, name: &str, more: &Value) {
    let mut config = json!({
        "durable_name": name, "ack_policy": "explicit", "ack_wait": 5_000_000_000_u64, "max_deliver": -1,
        "sample_freq": "100%", "deliver_policy": "all", "replay_policy": "instant",
    });
    config.as_object_mut().expect("it is one").extend(more.as_object().expect("it is one").clone());
    let request = json!({ "stream_name": "HOOKGATE", "config": config }).to_string();
    eventually("the consumer is made", async || {
        let subject = format!("$JS.API.CONSUMER.DURABLE.CREATE.HOOKGATE.{name}");
        let answer = client.request(subject, request.clone().into()).await.ok()?;
        (!String::from_utf8_lossy(&answer.payload).contains("\"error\"")).then_some(())
    })
    .await;
}
