//! A NATS server of the test's own, and a look at what is in its streams.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use async_nats::{
    Client, ConnectOptions, HeaderMap,
    jetstream::{
        self,
        consumer::{AckPolicy, pull},
        context::GetStreamErrorKind,
        stream::Config,
    },
};
use futures_util::TryStreamExt;
use serde_json::Value;
use tempfile::TempDir;
use tokio::{io::AsyncReadExt, net::TcpStream};

use super::{
    Answer, Connection, eventually,
    process::{Port, Process, binary},
};

/// Ports to try, in case something that is no test takes one between looking and binding.
const ATTEMPTS: usize = 10;
/// Names the server to test with.
const SERVER: &str = "HOOKGATE_NATS_SERVER";
/// The stream that hookgate makes if nothing else is configured.
const STREAM: &str = "HOOKGATE";
/// Messages to ask for at once.
const FETCHED: usize = 5_000;

thread_local! {
    /// Of which version the servers of this thread are, if not the usual one.
    static PROGRAM: RefCell<Option<PathBuf>> = const { RefCell::new(None) };
}

/// Has this thread start servers of a recent version from now on, unless `HOOKGATE_NATS_SERVER` names one: older ones lose
/// what they acknowledged.
pub(crate) fn recent_servers() {
    if !binary(SERVER, "").is_empty() {
        return;
    }
    let fetch = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/servers/fetch");
    let fetched = Command::new(fetch).arg("nats").output().expect("there is a bash");
    assert!(fetched.status.success(), "no recent nats-server: {}", String::from_utf8_lossy(&fetched.stderr));
    let path = String::from_utf8(fetched.stdout).expect("it prints a path");
    PROGRAM.set(Some(PathBuf::from(path.trim_end())));
}

/// How the tests themselves connect, where not everybody is let in.
pub(crate) type Entrance = Arc<dyn Fn() -> ConnectOptions + Send + Sync>;

/// How a server is started.
#[derive(Clone)]
struct Mode {
    jetstream: bool,
    /// With the configuration file in its folder.
    configured: bool,
    /// Settings of `JetStream` in that file, beside the folder.
    store: &'static str,
    login: Option<(&'static str, &'static str)>,
    entrance: Option<Entrance>,
}

impl Mode {
    const fn new(jetstream: bool) -> Self {
        Self { jetstream, configured: false, store: "", login: None, entrance: None }
    }

    fn configured(jetstream: bool) -> Self {
        Self { configured: true, ..Self::new(jetstream) }
    }
}

/// A running server and its data.
pub(crate) struct NatsServer {
    process: Process,
    port: Port,
    mode: Mode,
    data: TempDir,
}

impl NatsServer {
    /// With `JetStream`.
    pub(crate) async fn start() -> Self {
        Self::start_as(Mode::new(true)).await
    }

    /// Without `JetStream`, which is the server's default.
    pub(crate) async fn without_jetstream() -> Self {
        Self::start_as(Mode::new(false)).await
    }

    /// With `JetStream`, and with one user.
    pub(crate) async fn with_user(name: &'static str, password: &'static str) -> Self {
        Self::start_as(Mode { login: Some((name, password)), ..Mode::new(true) }).await
    }

    /// With `JetStream`, and with the text of a configuration file that lets everybody in as an operator.
    pub(crate) async fn configured(text: &str) -> Self {
        Self::storing(text, "").await
    }

    /// The same with settings of `JetStream`: `sync_interval: always`.
    pub(crate) async fn storing(text: &str, store: &'static str) -> Self {
        let data = tempfile::tempdir().expect("a temporary folder can be made");
        write_config(&data, store, text);
        Self::start_in(data, Mode { store, ..Mode::configured(true) }).await
    }

    /// The same without `JetStream`, as a server of a cluster whose others have it.
    pub(crate) async fn configured_without_jetstream(text: &str) -> Self {
        let data = tempfile::tempdir().expect("a temporary folder can be made");
        let text = format!("server_name: \"{}\"\n{text}", name(&data));
        std::fs::write(config_file(&data), text).expect("the folder is ours");
        Self::start_in(data, Mode::configured(false)).await
    }

    /// The same for a configuration that lets the tests in by an entrance of their own.
    pub(crate) async fn guarded(text: &str, entrance: impl Fn() -> ConnectOptions + Send + Sync + 'static) -> Self {
        let data = tempfile::tempdir().expect("a temporary folder can be made");
        write_config(&data, "", text);
        let entrance: Option<Entrance> = Some(Arc::new(entrance));
        Self::start_in(data, Mode { entrance, ..Mode::configured(true) }).await
    }

    async fn start_as(mode: Mode) -> Self {
        Self::start_in(tempfile::tempdir().expect("a temporary folder can be made"), mode).await
    }

    async fn start_in(mut data: TempDir, mode: Mode) -> Self {
        for _ in 0..ATTEMPTS {
            let port = Port::reserve();
            let mut server = Self { process: launch(&data, port.number, &mode), port, mode: mode.clone(), data };
            if server.answers().await {
                return server;
            }
            data = server.data;
        }
        panic!("nats-server did not start on any of {ATTEMPTS} ports:\n{}", log(&data));
    }

    /// Starts it again after a kill, on the same port with the same data.
    pub(crate) async fn start_again(&mut self) {
        self.process = launch(&self.data, self.port.number, &self.mode);
        assert!(self.answers().await, "nats-server did not start again:\n{}", log(&self.data));
    }

    /// The same after a kill, now with `JetStream`.
    pub(crate) async fn start_again_with_jetstream(&mut self) {
        self.mode.jetstream = true;
        self.start_again().await;
    }

    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    pub(crate) fn freeze(&self) {
        self.process.freeze();
    }

    pub(crate) fn thaw(&self) {
        self.process.signal("CONT");
    }

    /// Has it read another configuration; it does so a moment later.
    pub(crate) fn configure(&self, text: &str) {
        write_config(&self.data, self.mode.store, text);
        self.process.signal("HUP");
    }

    /// Sends it into lame-duck mode, and waits until it is gone.
    pub(crate) async fn lame_duck(&mut self) {
        self.process.signal("USR2");
        self.process.end().await;
    }

    pub(crate) const fn port(&self) -> u16 {
        self.port.number
    }

    /// Without credentials.
    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port.number)
    }

    pub(crate) async fn client(&self) -> Client {
        let options = match (&self.mode.entrance, self.mode.login) {
            (Some(entrance), _) => entrance(),
            (None, Some((name, password))) => {
                ConnectOptions::with_user_and_password(name.to_owned(), password.to_owned())
            }
            (None, None) => ConnectOptions::new(),
        };
        options.connect(self.url()).await.expect("NATS takes connections")
    }

    /// A client, if the server is there and lets everybody in.
    pub(crate) async fn try_client(&self) -> Option<Client> {
        async_nats::connect(self.url()).await.ok()
    }

    /// Its name in a cluster.
    pub(crate) fn name(&self) -> String {
        name(&self.data)
    }

    pub(crate) async fn jetstream(&self) -> jetstream::Context {
        jetstream::new(self.client().await)
    }

    /// The settings of a stream, if there is one of this name.
    pub(crate) async fn stream(&self, name: &str) -> Option<Config> {
        match self.jetstream().await.get_stream(name).await {
            Ok(stream) => Some(stream.cached_info().config.clone()),
            Err(error) if matches!(error.kind(), GetStreamErrorKind::JetStream(_)) => None,
            Err(error) => panic!("look up stream {name:?}: {error}"),
        }
    }

    /// Asks the `JetStream` API as it is on the wire: this client does not know each field of newer servers.
    pub(crate) async fn api(&self, request: &str, payload: &Value) -> Value {
        let answer = self.jetstream().await.request(request.to_owned(), payload).await;
        answer.unwrap_or_else(|error| panic!("{request}: {error}"))
    }

    /// Makes or changes a stream, with these settings over the others. Servers up to 2.11 ignore a field that they don't know, and 2.12 refuses it: it is left out then.
    async fn configured_as(&self, request: &str, mut config: Value, settings: &Value) -> Value {
        let settings = settings.as_object().expect("settings are an object").clone();
        config.as_object_mut().expect("it is one").extend(settings);
        loop {
            let answer = self.api(request, &config).await;
            if answer["error"].is_null() {
                return answer["config"].clone();
            }
            let description = answer["error"]["description"].as_str().unwrap_or_default();
            let unknown = description.split_once("unknown field \"").and_then(|(_, rest)| rest.split('"').next());
            let left_out = unknown.and_then(|field| config.as_object_mut()?.remove(field));
            assert!(left_out.is_some(), "{config}: {answer}");
        }
    }

    /// Makes a stream of raw settings; what the server made of them.
    pub(crate) async fn create_raw(&self, name: &str, settings: &Value) -> Value {
        let config = serde_json::json!({ "name": name, "duplicate_window": 900_000_000_000_u64 });
        self.configured_as(&format!("STREAM.CREATE.{name}"), config, settings).await
    }

    /// Changes settings of a stream and leaves all others as they are.
    pub(crate) async fn update_raw(&self, name: &str, settings: &Value) -> Value {
        let config = self.api(&format!("STREAM.INFO.{name}"), &Value::Null).await["config"].clone();
        self.configured_as(&format!("STREAM.UPDATE.{name}"), config, settings).await
    }

    /// What is in hookgate's stream, oldest first; nothing if there is no stream.
    pub(crate) async fn events(&self) -> Vec<Event> {
        match self.stream(STREAM).await {
            Some(_) => self.events_of(STREAM).await,
            None => Vec::new(),
        }
    }

    /// What is in a stream, oldest first.
    pub(crate) async fn events_of(&self, name: &str) -> Vec<Event> {
        let stream = self.jetstream().await.get_stream(name).await.expect("the stream is there");
        let count = stream.cached_info().state.messages;
        if count == 0 {
            return Vec::new();
        }
        let reader = pull::Config { ack_policy: AckPolicy::None, memory_storage: true, ..pull::Config::default() };
        let reader = stream.create_consumer(reader).await.expect("the stream takes consumers");
        let count = usize::try_from(count).expect("so many fit into memory");
        let mut messages = Vec::with_capacity(count);
        while messages.len() < count {
            // A request for very many may end before all of them came.
            let wanted = (count - messages.len()).min(FETCHED);
            let fetched = reader.fetch().max_messages(wanted).expires(Duration::from_secs(10)).messages().await;
            let fetched: Vec<_> = fetched.expect("messages can be fetched").try_collect().await.expect("all come");
            assert!(!fetched.is_empty(), "{} of {count} messages of the stream came", messages.len());
            messages.extend(fetched);
        }
        messages.into_iter().map(|message| Event::from(message.message)).collect()
    }

    /// Whether this very process greets; false if it ended.
    async fn answers(&mut self) -> bool {
        let (port, mine) = (self.port.number, format!("\"server_name\":\"{}\"", name(&self.data)));
        let process = &mut self.process;
        eventually("nats-server answers", async || {
            if process.ended().is_some() {
                return Some(false);
            }
            let greet = async {
                let mut stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
                let mut greeting = vec![0; 4096];
                let length = stream.read(&mut greeting).await.ok()?;
                greeting.truncate(length);
                String::from_utf8(greeting).ok()
            };
            let greeting = tokio::time::timeout(Duration::from_secs(1), greet).await.ok()??;
            greeting.contains(&mine).then_some(true)
        })
        .await
    }
}

/// Three servers that know each other.
pub(crate) struct NatsCluster {
    pub(crate) servers: [NatsServer; 3],
    /// Where each one tells how it is.
    pub(crate) monitors: Vec<Port>,
    pub(crate) routes: Vec<Port>,
}

impl NatsCluster {
    /// With settings, and settings of `JetStream`, of each server.
    pub(crate) async fn start(more: &str, store: &'static str) -> Self {
        let reserve = || std::iter::repeat_with(Port::reserve).take(3).collect::<Vec<_>>();
        let (routes, monitors) = (reserve(), reserve());
        let all: Vec<_> = routes.iter().map(|port| format!("nats://127.0.0.1:{}", port.number)).collect();
        let configuration = |place: usize| {
            format!(
                "http: \"127.0.0.1:{}\"\ncluster {{ name: faults, listen: \"127.0.0.1:{}\", routes: [ {} ] }}\n{more}",
                monitors[place].number,
                routes[place].number,
                all.join(", ")
            )
        };
        let configurations: Vec<_> = (0..3).map(configuration).collect();
        let (first, second, third) = tokio::join!(
            NatsServer::storing(&configurations[0], store),
            NatsServer::storing(&configurations[1], store),
            NatsServer::storing(&configurations[2], store),
        );
        Self { servers: [first, second, third], monitors, routes }
    }
}

/// What the monitoring port of a server says.
pub(crate) async fn monitored(port: &Port, what: &str) -> Answer {
    let request = format!("GET /{what} HTTP/1.0\r\nHost: nats\r\n\r\n");
    let address = ([127, 0, 0, 1], port.number).into();
    let mut connection = Connection::open(address).await.expect("the server tells how it is");
    connection.send(request.as_bytes()).await.expect("the server reads");
    let mut answer = connection.answer().await.expect("the server tells how it is");
    // A long answer comes without a length, and ends with the connection.
    answer.body.extend(connection.closed().await.expect("the answer has an end"));
    answer
}

/// A name that no other server has, to be known by.
fn name(data: &TempDir) -> String {
    data.path().file_name().expect("a temporary folder has a name").to_string_lossy().into_owned()
}

/// What the server said.
fn log(data: &TempDir) -> String {
    std::fs::read_to_string(data.path().join("log")).unwrap_or_default()
}

fn config_file(data: &TempDir) -> PathBuf {
    data.path().join("nats.conf")
}

fn write_config(data: &TempDir, more: &str, text: &str) {
    // A name or a store from the command line alone would be gone with the first reload.
    let (name, store) = (name(data), data.path().display());
    let text = format!("server_name: \"{name}\"\njetstream {{ store_dir: \"{store}\"\n{more} }}\n{text}");
    std::fs::write(config_file(data), text).expect("the folder is ours");
}

fn launch(data: &TempDir, port: u16, mode: &Mode) -> Process {
    let log = data.path().join("log");
    let output = File::create(&log).expect("the folder is ours");
    let program = PROGRAM.with_borrow(|program| program.clone().map(Into::into));
    let program = program.unwrap_or_else(|| binary(SERVER, "nats-server"));
    Process::start(&program, |command| {
        command.args(["-a", "127.0.0.1", "-p", &port.to_string(), "-n", &name(data)]);
        if mode.jetstream && !mode.configured {
            command.arg("-js").arg("-sd").arg(data.path());
        }
        if mode.configured {
            command.arg("-c").arg(config_file(data));
        }
        if let Some((name, password)) = mode.login {
            command.args(["--user", name, "--pass", password]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(output);
    })
}

/// A message as a subscriber sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) subject: String,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) payload: String,
}

impl Event {
    /// The name of the claim that it announces.
    pub(crate) fn token(&self) -> &str {
        &self.headers["Nats-Msg-Id"]
    }

    pub(crate) fn entity_id(&self) -> String {
        let payload: Value = serde_json::from_str(&self.payload).expect("the payload is JSON");
        payload["entity_id"].as_str().expect("it names an entity").to_owned()
    }
}

impl From<async_nats::Message> for Event {
    fn from(message: async_nats::Message) -> Self {
        let headers =
            message.headers.iter().flat_map(HeaderMap::iter).flat_map(|(name, values)| {
                values.iter().map(move |value| (name.to_string(), value.as_str().to_owned()))
            });
        Self {
            subject: message.subject.to_string(),
            headers: headers.collect(),
            payload: String::from_utf8(message.payload.into()).expect("the payload is text"),
        }
    }
}
