//! A Redis of the test's own, with an append-only file as in production.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs::File,
    path::Path,
    process::Command,
    process::Stdio,
    time::Duration,
};

use redis::{AsyncConnectionConfig, AsyncTypedCommands, Client, aio::MultiplexedConnection};
use tempfile::TempDir;

use super::{
    certificates::Identity,
    eventually,
    process::{Port, Process, binary},
};

/// Ports to try, in case something that is no test takes one between looking and binding.
const ATTEMPTS: usize = 10;

/// How a server is started.
struct Mode {
    program: OsString,
    password: Option<&'static str>,
    environment: Vec<(&'static str, OsString)>,
    arguments: Vec<OsString>,
    /// The text of an ACL file.
    users: Option<String>,
    /// A second port, for TLS.
    tls: Option<Port>,
    /// A second port, for the other nodes of its cluster.
    bus: Option<Port>,
    /// The one that tests look into.
    database: u32,
}

impl Mode {
    fn usual() -> Self {
        Self {
            program: usual(),
            password: None,
            environment: Vec::new(),
            arguments: Vec::new(),
            users: None,
            tls: None,
            bus: None,
            database: 1,
        }
    }
}

/// A running server and its data.
pub(crate) struct RedisServer {
    process: Process,
    port: Port,
    mode: Mode,
    data: TempDir,
}

impl RedisServer {
    pub(crate) async fn start() -> Self {
        Self::start_as(Mode::usual()).await
    }

    /// One that wants a password.
    pub(crate) async fn with_password(password: &'static str) -> Self {
        Self::start_as(Mode { password: Some(password), ..Mode::usual() }).await
    }

    /// One that does not know a command, as older ones do not.
    pub(crate) async fn without(command: &str) -> Self {
        Self::start_as(Mode { arguments: vec!["--rename-command".into(), command.into(), "".into()], ..Mode::usual() })
            .await
    }

    /// Another program than usual, in an environment of its own.
    pub(crate) async fn of(program: OsString, environment: Vec<(&'static str, OsString)>) -> Self {
        Self::start_as(Mode { program, environment, ..Mode::usual() }).await
    }

    /// One that knows the users of an ACL file beside the one that everybody is.
    pub(crate) async fn with_users(acl: &Path) -> Self {
        Self::start_as(Mode { arguments: vec!["--aclfile".into(), acl.into()], ..Mode::usual() }).await
    }

    /// A Redis replica of another one, which follows it from the start.
    pub(crate) async fn replica_of(primary: u16) -> Self {
        let arguments = vec!["--replicaof".into(), "127.0.0.1".into(), primary.to_string().into()];
        Self::start_as(Mode { arguments, ..Mode::usual() }).await
    }

    /// A node of a cluster that knows no other yet. One that hears nothing of a node for so long takes it for dead.
    pub(crate) async fn cluster_node(patience: Duration) -> Self {
        let bus = Port::reserve();
        let mut arguments: Vec<OsString> = vec!["--cluster-enabled".into(), "yes".into()];
        arguments.extend(["--cluster-port".into(), bus.number.to_string().into()]);
        arguments.extend(["--cluster-node-timeout".into(), patience.as_millis().to_string().into()]);
        // To cut its links to the others.
        arguments.extend(["--enable-debug-command".into(), "local".into()]);
        // A slow machine must not keep a replica from being promoted.
        arguments.extend(["--cluster-replica-validity-factor".into(), "0".into()]);
        Self::start_as(Mode { arguments, bus: Some(bus), database: 0, ..Mode::usual() }).await
    }

    pub(crate) const fn port(&self) -> u16 {
        self.port.number
    }

    /// Where the other nodes of its cluster reach it.
    pub(crate) fn bus_port(&self) -> u16 {
        self.mode.bus.as_ref().expect("it is a node of a cluster").number
    }

    /// The same with the text of such a file, kept beside its data.
    pub(crate) async fn with_users_of(acl: &str) -> Self {
        Self::start_as(Mode { users: Some(acl.to_owned()), ..Mode::usual() }).await
    }

    /// One that speaks TLS on a port of its own, and wants to see a certificate there or not.
    pub(crate) async fn with_tls(ca: &Path, shows: &Identity, wants_certificate: bool) -> Self {
        let tls = Port::reserve();
        let mut arguments: Vec<OsString> = vec!["--tls-port".into(), tls.number.to_string().into()];
        arguments.extend(["--tls-ca-cert-file".into(), ca.into(), "--tls-cert-file".into(), shows.cert.clone().into()]);
        arguments.extend(["--tls-key-file".into(), shows.key.clone().into(), "--tls-auth-clients".into()]);
        arguments.push(if wants_certificate { "yes" } else { "no" }.into());
        Self::start_as(Mode { program: speaks_tls(), arguments, tls: Some(tls), ..Mode::usual() }).await
    }

    /// The same as a cluster of one node.
    pub(crate) async fn cluster_with_tls(ca: &Path, shows: &Identity) -> Self {
        let (tls, bus) = (Port::reserve(), Port::reserve());
        let mut arguments: Vec<OsString> = vec!["--tls-port".into(), tls.number.to_string().into()];
        arguments.extend(["--tls-ca-cert-file".into(), ca.into(), "--tls-cert-file".into(), shows.cert.clone().into()]);
        arguments.extend(["--tls-key-file".into(), shows.key.clone().into(), "--tls-auth-clients".into(), "no".into()]);
        arguments.extend(["--cluster-enabled".into(), "yes".into(), "--tls-cluster".into(), "yes".into()]);
        arguments.extend(["--cluster-port".into(), bus.number.to_string().into()]);
        let mode = Mode { arguments, tls: Some(tls), bus: Some(bus), database: 0, ..Mode::usual() };
        let server = Self::start_as(Mode { program: speaks_tls(), ..mode }).await;
        let mut connection = server.connection().await;
        let all = redis::cmd("CLUSTER").arg(&["ADDSLOTSRANGE", "0", "16383"]).exec_async(&mut connection).await;
        all.expect("it is alone");
        eventually("the cluster works", async || {
            let info = redis::cmd("CLUSTER").arg("INFO").query_async::<String>(&mut server.connection().await).await;
            info.is_ok_and(|info| info.contains("cluster_state:ok")).then_some(())
        })
        .await;
        server
    }

    async fn start_as(mut mode: Mode) -> Self {
        let mut data = tempfile::tempdir().expect("a temporary folder can be made");
        for _ in 0..ATTEMPTS {
            let port = Port::reserve();
            let mut server = Self { process: launch(&data, port.number, &mode), port, mode, data };
            if server.answers().await {
                return server;
            }
            Self { data, mode, .. } = server;
        }
        panic!("redis-server did not start on any of {ATTEMPTS} ports:\n{}", log(&data));
    }

    /// Starts it again after a kill, on the same port with the same data.
    pub(crate) async fn start_again(&mut self) {
        self.process = launch(&self.data, self.port.number, &self.mode);
        assert!(self.answers().await, "redis-server did not start again:\n{}", log(&self.data));
    }

    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    pub(crate) fn freeze(&self) {
        self.process.freeze();
    }

    /// Sets how many files and sockets it may have open, and says how many it was. Those that are open stay.
    pub(crate) fn limit_sockets(&self, most: &str) -> String {
        let prlimit = |arguments: &[&str]| {
            let run = Command::new("prlimit").arg(format!("--pid={}", self.process.id())).args(arguments).output();
            let run = run.unwrap_or_else(|error| panic!("prlimit can't be run (Debian: util-linux): {error}"));
            assert!(run.status.success(), "prlimit {arguments:?}: {}", String::from_utf8_lossy(&run.stderr));
            String::from_utf8_lossy(&run.stdout).trim().to_owned()
        };
        let before = prlimit(&["--nofile", "--output=SOFT", "--noheadings", "--raw"]);
        prlimit(&[&format!("--nofile={}:", most.trim_end_matches(':'))]);
        before
    }

    pub(crate) fn thaw(&self) {
        self.process.signal("CONT");
    }

    /// Where it keeps its data.
    pub(crate) fn folder(&self) -> &Path {
        self.data.path()
    }

    /// Without a database, as most people write it, and without the password.
    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port.number)
    }

    /// Where it speaks TLS.
    pub(crate) fn tls_url(&self) -> String {
        format!("rediss://127.0.0.1:{}", self.mode.tls.as_ref().expect("it was started with TLS").number)
    }

    /// A client for database 1, in a cluster 0.
    pub(crate) fn client(&self) -> Client {
        let login = self.mode.password.map_or_else(String::new, |password| format!(":{password}@"));
        let (port, database) = (self.port.number, self.mode.database);
        Client::open(format!("redis://{login}127.0.0.1:{port}/{database}")).expect("the address is well-formed")
    }

    /// A connection to that database.
    pub(crate) async fn connection(&self) -> MultiplexedConnection {
        // By itself the client waits for a second at most; a busy machine and its disk may take longer.
        let patience = Some(Duration::from_secs(10));
        let patient = AsyncConnectionConfig::new().set_connection_timeout(patience).set_response_timeout(patience);
        let connection = self.client().get_multiplexed_async_connection_with_config(&patient).await;
        connection.expect("Redis takes connections")
    }

    /// The ids of a pending SET.
    pub(crate) async fn pending(&self, key: &str) -> BTreeSet<String> {
        self.connection().await.smembers(key).await.expect("the key is a SET").into_iter().collect()
    }

    /// The same, if this server has the key now.
    pub(crate) async fn pending_here(&self, key: &str) -> Option<BTreeSet<String>> {
        Some(self.connection().await.smembers(key).await.ok()?.into_iter().collect())
    }

    /// The tokens of an outbox, by id.
    pub(crate) async fn outbox(&self, key: &str) -> BTreeMap<String, String> {
        self.connection().await.hgetall(key).await.expect("the key is a HASH").into_iter().collect()
    }

    /// Waits until every claim is settled, which happens in the background.
    pub(crate) async fn settled(&self, key: &str) {
        eventually("the outbox is empty", async || self.outbox(key).await.is_empty().then_some(())).await;
    }

    /// Waits until all that Redis has answered is in its append-only file, where a kill can't take it. Under
    /// `everysec` Redis puts a write off for up to two seconds while it syncs the one before.
    pub(crate) async fn written(&self) {
        eventually("the append-only file is written", async || {
            let info = redis::cmd("INFO").arg("persistence").query_async::<String>(&mut self.connection().await).await;
            info.expect("Redis says how it is").contains("aof_buffer_length:0\r\n").then_some(())
        })
        .await;
    }

    /// Releases an id, as a consumer does after processing it.
    pub(crate) async fn release(&self, key: &str, id: &str) {
        let removed = self.connection().await.srem(key, id).await.expect("the key is a SET");
        assert_eq!(removed, 1, "{id} was pending");
    }

    /// Whether this very process answers; false if it ended.
    async fn answers(&mut self) -> bool {
        let mine = format!("process_id:{}\r\n", self.process.id());
        let client = self.client();
        let process = &mut self.process;
        eventually("redis-server answers", async || {
            if process.ended().is_some() {
                return Some(false);
            }
            let ask = async {
                let mut connection = client.get_multiplexed_async_connection().await.ok()?;
                // Refused while the data is being read.
                connection.ping().await.ok()?;
                redis::cmd("INFO").arg("server").query_async::<String>(&mut connection).await.ok()
            };
            let info = tokio::time::timeout(Duration::from_secs(1), ask).await.ok()??;
            info.contains(&mine).then_some(true)
        })
        .await
    }
}

/// What the server said.
fn log(data: &TempDir) -> String {
    std::fs::read_to_string(data.path().join("log")).unwrap_or_default()
}

/// What the environment names, or what is installed.
fn usual() -> OsString {
    binary("HOOKGATE_REDIS_SERVER", "redis-server")
}

/// The same, unless the environment names one for this: not every build of Redis speaks TLS.
fn speaks_tls() -> OsString {
    binary("HOOKGATE_REDIS_TLS_SERVER", usual())
}

fn launch(data: &TempDir, port: u16, mode: &Mode) -> Process {
    let log = File::create(data.path().join("log")).expect("the folder is ours");
    Process::start(&mode.program, |command| {
        command.envs(mode.environment.iter().map(|(name, value)| (name, value)));
        command.args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", ""]);
        command.args(["--appendonly", "yes", "--appendfsync", "everysec", "--maxmemory-policy", "noeviction"]);
        command.arg("--dir").arg(data.path());
        if let Some(password) = mode.password {
            command.args(["--requirepass", password]);
        }
        command.args(&mode.arguments);
        if let Some(users) = &mode.users {
            let file = data.path().join("users.acl");
            std::fs::write(&file, users).expect("the folder is ours");
            command.arg("--aclfile").arg(file);
        }
        // An option that it does not know is said on the other pipe.
        let errors = log.try_clone().expect("a file can be shared");
        command.stdin(Stdio::null()).stdout(log).stderr(errors);
    })
}
