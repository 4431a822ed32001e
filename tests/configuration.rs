//! The binary reads its configuration in layers, and each complaint says where the mistake is.

mod errors;
mod example;
mod layers;
mod printed;
mod secrets;

use std::{
    path::PathBuf,
    process::{Command, Output},
};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::{Authority, Holds, Operator};

const EXAMPLE: &str = include_str!("../config/example.toml");

/// A folder with files, and what hookgate says of them.
struct Trial {
    folder: TempDir,
    environment: Vec<(String, String)>,
}

impl Trial {
    fn new(files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        for (name, text) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().expect("it is in a folder")).expect("the folder is ours");
            std::fs::write(path, text).expect("the folder is ours");
        }
        Self { folder, environment: Vec::new() }
    }

    /// With a good file for each key that names one.
    fn with_secrets(files: &[(&str, &str)]) -> Self {
        let this = Self::new(files);
        let authority = Authority::new();
        let identity = authority.sign("client", "hookgate", Holds::Now);
        for (name, from) in [("ca.pem", authority.ca()), ("cert.pem", identity.cert), ("key.pem", identity.key)] {
            std::fs::copy(from, this.path(name)).expect("the folder is ours");
        }
        let seed = nkeys::KeyPair::new_user().seed().expect("it is a whole pair");
        let credentials = Operator::new().credentials(Ok(std::time::Duration::from_secs(60)));
        for (name, text) in [("secret", "word"), ("user.nk", &seed), ("user.creds", &credentials)] {
            std::fs::write(this.path(name), text).expect("the folder is ours");
        }
        this
    }

    fn with(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hookgate"));
        command.args(arguments).current_dir(self.folder.path());
        command.env_clear().envs(self.environment.iter().cloned());
        command.output().expect("hookgate starts")
    }

    /// What is in force.
    fn check(&self, files: &[&str]) -> Value {
        let mut arguments = vec!["check", "--output", "json"];
        arguments.extend(files.iter().flat_map(|file| ["--config", file]));
        let output = self.run(&arguments);
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("it is JSON")
    }

    /// The complaint about it.
    fn complaint(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let complaint = String::from_utf8(output.stderr).expect("it is text");
        assert_eq!(output.status.code(), Some(2), "{complaint}");
        assert!(output.stdout.is_empty(), "nothing on standard output");
        complaint
    }
}

#[test]
fn later_layers_win_and_lists_are_replaced_whole() {
    let trial = Trial::new(&[
        ("a.toml", "server.max_in_flight = 1\nserver.max_connections = 2\nnats.stream = { name = \"A\", replicas = 3 }\n[[routes]]\nflow = \"a\"\nentity = \"a\"\naction = \"a\"\n[[routes]]\nflow = \"a\"\nentity = \"b\"\naction = \"c\"\n"),
        ("b.toml", "server.max_connections = 3\nnats.stream.replicas = 5\n[[routes]]\nflow = \"b\"\nentity = \"b\"\naction = \"b\"\n"),
    ])
    .with("HOOKGATE__SERVER__MAX_IN_FLIGHT", "7")
    .with("HOOKGATE__NATS__STREAM__CREATE", "false")
    // Kubernetes makes such variables for a service named hookgate.
    .with("HOOKGATE_PORT", "tcp://10.0.0.1:80");
    let now = trial.check(&["a.toml", "b.toml"]);
    assert_eq!(now["server"]["max_in_flight"], 7);
    assert_eq!(now["server"]["max_connections"], 3);
    assert_eq!(now["server"]["request_deadline"], "8s");
    assert_eq!(now["nats"]["stream"]["name"], "A");
    assert_eq!(now["nats"]["stream"]["replicas"], 5);
    assert_eq!(now["nats"]["stream"]["create"], false);
    assert_eq!(now["routes"].as_array().map(Vec::len), Some(1));
    assert_eq!(now["routes"][0]["flow"], "b");
}

#[test]
fn the_default_file_is_read_if_no_other_is_named() {
    let trial = Trial::new(&[("config/default.toml", "server.max_headers = 33"), ("other.toml", "")]);
    assert_eq!(trial.check(&[])["server"]["max_headers"], 33);
    assert_eq!(trial.check(&["other.toml"])["server"]["max_headers"], 64);
    assert_eq!(Trial::new(&[]).check(&[])["routes"][0]["entity"], "beteiligte");
}

#[test]
fn the_key_decides_how_a_variable_is_read() {
    let trial = Trial::new(&[("12345", "word")])
        .with("HOOKGATE__REDIS__PASSWORD_FILE", "12345")
        .with("HOOKGATE__REDIS__TIMEOUT", "250ms")
        .with("HOOKGATE__SERVER__WORKER_THREADS", "2")
        .with("HOOKGATE__ROUTES", r#"[{"flow":"x","entity":"y","action":"z"}]"#);
    let now = trial.check(&[]);
    assert_eq!(now["redis"]["password_file"], "12345");
    assert_eq!(now["redis"]["timeout"], "250ms");
    assert_eq!(now["server"]["worker_threads"], 2);
    assert_eq!(now["routes"][0]["action"], "z");
}

#[test]
fn what_check_prints_is_a_configuration_of_the_same_meaning() {
    let trial = Trial::new(&[("example.toml", EXAMPLE)]);
    let printed = trial.run(&["check", "--config", "example.toml"]).stdout;
    std::fs::write(trial.path("printed.toml"), &printed).expect("the folder is ours");
    assert_eq!(trial.check(&["example.toml"]), trial.check(&["printed.toml"]));
}

#[test]
fn no_password_is_ever_shown() {
    let trial = Trial::new(&[])
        .with("HOOKGATE__REDIS__URL", "redis://user:geheim@localhost/1")
        .with("HOOKGATE__NATS__URL", "nats://user:geheim@one,nats://user:geheim@two");
    let shown = trial.check(&[]).to_string();
    assert!(shown.contains("***@localhost") && !shown.contains("geheim"), "{shown}");
    for address in ["http://user:geheim@host", "redis://user:geheim@host/x", "redis://user:geheim@:x"] {
        let complaint = Trial::new(&[]).with("HOOKGATE__REDIS__URL", address).complaint(&["check"]);
        assert!(complaint.contains("redis.url") && !complaint.contains("geheim"), "{complaint}");
    }
    for address in ["http://user:geheim@host", "nats://user:geheim@host/x", "nats://a:geheim@one,nats://b:geheim@two"] {
        let complaint = Trial::new(&[]).with("HOOKGATE__NATS__URL", address).complaint(&["check"]);
        assert!(complaint.contains("nats.url") && !complaint.contains("geheim"), "{complaint}");
    }
}

/// TOML, and what the complaint has to name.
const WRONG: &[(&str, &[&str])] = &[
    ("colour = 1", &["colour"]),
    ("[server]\nlisten_on = \"x\"", &["line 2", "listen_on"]),
    ("[[routes]]\nflow = \"a\"\nentity = \"b\"\naction = \"c\"\nsubjekt = \"x\"", &["line 5", "subjekt"]),
    ("[server]\n\nmax_in_flight = \"many\"", &["line 3", "max_in_flight", "many"]),
    ("server.listen = \"nowhere\"", &["listen"]),
    ("[server\n", &["line 1"]),
    ("server.request_deadline = \"8\"", &["request_deadline", "8"]),
    ("server.request_deadline = \"100ms\"", &["server.request_deadline", "100ms", "at least"]),
    ("server.max_buffered_bytes = 100", &["server.max_buffered_bytes", "100"]),
    ("server.max_in_flight = 0", &["server.max_in_flight", "0"]),
    ("redis.timeout = \"0s\"", &["redis.timeout"]),
    ("redis.url = \"postgres://x\"", &["redis.url", "postgres://x"]),
    ("redis.password_file = \"/nowhere/at/all\"", &["redis.password_file", "/nowhere/at/all"]),
    ("redis.username = \"u\"", &["redis.username", "redis.password_file"]),
    ("redis.durability = \"aof\"", &["redis.durability", "nats.on_unavailable"]),
    ("nats.url = \"wss://x\"", &["nats.url", "wss://x"]),
    ("nats.user = \"u\"", &["nats.user", "nats.password_file"]),
    ("nats.stream.name = \"a b\"", &["nats.stream.name", "a b"]),
    ("nats.stream.max_age = \"1m\"", &["nats.stream.max_age", "duplicate_window"]),
    ("outbox.relay_after = \"1s\"", &["outbox.relay_after", "server.request_deadline"]),
    ("log.filter = \"info,=,\"", &["log.filter"]),
    ("log.format = \"xml\"", &["format", "xml"]),
    ("routes = []", &["routes"]),
    ("routes = [{ flow = \"a\", entity = \"b\" }]", &["action"]),
    ("routes = [{ flow = \"a b\", entity = \"b\", action = \"c\" }]", &["flow", "a b", "blank at byte 1"]),
    ("routes = [{ flow = \"a\", entity = \"b\", action = \"c\", subject = \"vmh. x\" }]", &["subject", "vmh. x"]),
    ("routes = [{ flow = \"a\", entity = \"b\", action = \"c\", subject = \"a.>\" }]", &["subject", "a.>"]),
    ("routes = [{ flow = \"a\", entity = \"b\", action = \"c\", subject = \"a..b\" }]", &["subject", "a..b"]),
    ("routes = [{ flow = \"a\", entity = \"b\", action = \"c\", subject = \"$SYS.x\" }]", &["subject", "$SYS.x"]),
    ("routes = [{ flow = \"a\", entity = \"b\", action = \"c\", path = \"x\" }]", &["path", "\"x\""]),
    ("routes = [{ flow = \"a\", entity = \"b\", action = \"c\", pending_key = \"{x}\" }]", &["pending_key", "{x}"]),
    ("instance = \"a b\"", &["instance", "a b"]),
    ("instance = \"\"", &["instance"]),
    ("nats.acks_stream = \"a.b\"", &["nats.acks_stream", "a.b"]),
    ("quarantine.max_age = \"0s\"", &["quarantine.max_age"]),
    ("routes = [{ flow = \"hookgate\", entity = \"b\", action = \"c\" }]", &["hookgate/b/c", "instance"]),
    ("routes = [{ flow = \"a\", entity = \"b\", action = \"c\", release = \"later\" }]", &["release", "later"]),
    (
        "routes = [{ flow = \"a\", entity = \"b\", action = \"c\", while_pending = \"coalesce\" }]",
        &["a/b/c", "coalesce"],
    ),
    (
        "routes = [{ flow = \"a\", entity = \"b\", action = \"c\" }, { flow = \"a\", entity = \"b\", action = \"d\", path = \"/a/webhook/b/c\" }]",
        &["a/b/c", "a/b/d", "path", "/a/webhook/b/c"],
    ),
    (
        "routes = [{ flow = \"a\", entity = \"b\", action = \"c\" }, { flow = \"a\", entity = \"b\", action = \"d\", pending_key = \"a:b:c_pending\" }]",
        &["a/b/c", "a/b/d", "pending_key", "a:b:c_pending"],
    ),
    (
        "routes = [{ flow = \"a\", entity = \"b\", action = \"c\" }, { flow = \"a\", entity = \"b\", action = \"c\", path = \"/x\", pending_key = \"x\" }]",
        &["a/b/c", "name"],
    ),
];

#[test]
fn each_mistake_is_named_with_its_source() {
    for (text, named) in WRONG {
        let complaint = Trial::new(&[("wrong.toml", text)]).complaint(&["--config", "wrong.toml"]);
        for part in named.iter().chain(&["wrong.toml"]) {
            assert!(complaint.contains(part), "{text}\n{complaint}should name {part:?}");
        }
    }
    for (name, value) in [
        ("HOOKGATE__SERVER__LISTEN_ON", "x"),
        ("HOOKGATE__SERVER__MAX_IN_FLIGHT", "many"),
        ("HOOKGATE__REDIS__TIMEOUT", "5"),
        ("HOOKGATE__ROUTES", "{}"),
        ("HOOKGATE__REDIS__URL", "ftp://x"),
    ] {
        let complaint = Trial::new(&[]).with(name, value).complaint(&["serve"]);
        assert!(complaint.contains(name) && complaint.contains(value), "{name}={value}: {complaint}");
    }
    let complaint = Trial::new(&[]).complaint(&["check", "--config", "missing.toml"]);
    assert!(complaint.contains("missing.toml"), "{complaint}");
}

#[test]
fn routes_are_listed_for_people_and_programs() {
    let trial = Trial::new(&[("example.toml", EXAMPLE)]);
    let text = String::from_utf8(trial.run(&["routes", "--config", "example.toml"]).stdout).expect("it is text");
    for part in ["vmh/beteiligte/update", "  /hooks/calls  ", "sales.calls.new", "sales:calls:pending"] {
        assert!(text.contains(part), "{part} is in {text}");
    }
    let json = trial.run(&["routes", "--config", "example.toml", "--output", "json"]).stdout;
    let text = String::from_utf8(json).expect("it is text");
    let rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("it is JSON")).collect();
    assert_eq!(rows[2]["subject"], "vmh.beteiligte.delete");
    assert_eq!(rows[3]["pending_key"], "sales:lead:create_pending");
    assert_eq!(rows[3]["label"], "SALES Webhook Lead Create");
}

#[test]
fn the_command_line_explains_itself() {
    let trial = Trial::new(&[]);
    let help = String::from_utf8(trial.run(&["--help"]).stdout).expect("it is text");
    for command in ["serve", "check", "routes", "tail", "outbox", "dead-letters", "doctor", "--config", "--output"] {
        assert!(help.contains(command), "{command} is in --help");
    }
    let version = String::from_utf8(trial.run(&["--version"]).stdout).expect("it is text");
    assert_eq!(version.trim(), concat!("hookgate ", env!("CARGO_PKG_VERSION")));
    assert!(trial.complaint(&["fly"]).contains("fly"));
}

/// The leaves of the example but for routes: dotted key and value; those in comments too.
fn leaves() -> Vec<(String, toml::Value)> {
    let optional = |line: &&str| {
        let keys =
            ["# user", "# sentinel_user", "# otlp", "# url = ", "# monitoring_url", "# acks_stream", "# replicas"];
        line.starts_with("# ") && line.contains("_file = ") || keys.iter().any(|key| line.starts_with(key))
    };
    let uncommented: String = EXAMPLE.lines().map(|line| if optional(&line) { &line[2..] } else { line }).fold(
        String::new(),
        |mut all, line| {
            all.push_str(line);
            all.push('\n');
            all
        },
    );
    let table: toml::Table = uncommented.parse().expect("the example is TOML with its optional keys");
    let mut found = Vec::new();
    collect("", &toml::Value::Table(table), &mut found);
    found
}

fn collect(prefix: &str, value: &toml::Value, found: &mut Vec<(String, toml::Value)>) {
    match value {
        toml::Value::Table(table) => {
            for (key, value) in table {
                let dotted = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                collect(&dotted, value, found);
            }
        }
        toml::Value::Array(_) => {}
        leaf => found.push((prefix.to_owned(), leaf.clone())),
    }
}

/// Another good value for a key.
fn other(key: &str, value: &toml::Value) -> String {
    match (key, value) {
        ("redis.url", _) => "\"memory:\"".to_owned(),
        ("nats.url", _) => "\"nats://other:4222\"".to_owned(),
        ("redis.on_unavailable", _) => "\"reject\"".to_owned(),
        ("nats.on_unavailable", _) => "\"accept\"".to_owned(),
        ("redis.durability", _) => "\"replica\"".to_owned(),
        ("nats.delivery", _) => "\"core\"".to_owned(),
        ("espocrm.url" | "nats.monitoring_url", _) => "\"http://other\"".to_owned(),
        ("instance" | "nats.acks_stream", _) => "\"other\"".to_owned(),
        ("log.format", _) => "\"text\"".to_owned(),
        ("log.filter", _) => "\"warn\"".to_owned(),
        ("tracing.otlp_endpoint", _) => "\"http://other:4318\"".to_owned(),
        ("admin.replicas", _) => "\"others:9090\"".to_owned(),
        (_, toml::Value::Integer(number)) => (number + 1).to_string(),
        (_, toml::Value::Boolean(flag)) => (!flag).to_string(),
        (key, _) if key.ends_with(".listen") => "\"127.0.0.1:1\"".to_owned(),
        (key, _) if key.ends_with(".ca_file") => "\"ca.pem\"".to_owned(),
        (key, _) if key.ends_with("_cert_file") => "\"cert.pem\"".to_owned(),
        (key, _) if key.ends_with("_key_file") => "\"key.pem\"".to_owned(),
        ("nats.nkey_seed_file", _) => "\"user.nk\"".to_owned(),
        ("nats.credentials_file", _) => "\"user.creds\"".to_owned(),
        (key, _) if key.ends_with("_file") => "\"secret\"".to_owned(),
        (key, _) if key.ends_with("name") || key.ends_with("user") => "\"Other\"".to_owned(),
        // Times; long enough for every rule between them.
        ("outbox.relay_after", _) => "\"11s\"".to_owned(),
        ("redis.timeout", _) => "\"700ms\"".to_owned(),
        ("nats.stream.max_age" | "dead_letters.max_age" | "quarantine.max_age", _) => "\"9d\"".to_owned(),
        _ => "\"9s\"".to_owned(),
    }
}

/// Keys that only make sense beside others.
fn company(key: &str) -> &'static str {
    match key {
        "redis.username" => "redis.password_file = \"secret\"\n",
        "redis.durability" => "nats.on_unavailable = \"accept\"\n",
        "redis.wait_replicas" => "redis.durability = \"replica\"\nnats.on_unavailable = \"accept\"\n",
        "redis.sentinel_username" => {
            "redis.url = \"redis+sentinel://h/s\"\nredis.sentinel_password_file = \"secret\"\n"
        }
        "redis.sentinel_password_file" => "redis.url = \"redis+sentinel://h/s\"\n",
        "nats.user" => "nats.password_file = \"secret\"\n",
        "nats.password_file" => "nats.user = \"u\"\n",
        "redis.ca_file" => "redis.url = \"rediss://h\"\n",
        "redis.client_cert_file" => {
            "redis.url = \"rediss://h\"\nredis.ca_file = \"ca.pem\"\nredis.client_key_file = \"key.pem\"\n"
        }
        "redis.client_key_file" => {
            "redis.url = \"rediss://h\"\nredis.ca_file = \"ca.pem\"\nredis.client_cert_file = \"cert.pem\"\n"
        }
        "nats.client_cert_file" => "nats.ca_file = \"ca.pem\"\nnats.client_key_file = \"key.pem\"\n",
        "nats.client_key_file" => "nats.ca_file = \"ca.pem\"\nnats.client_cert_file = \"cert.pem\"\n",
        _ => "",
    }
}

#[test]
fn each_key_of_the_example_is_read_and_no_key_is_missing() {
    let default = Trial::new(&[]).check(&[]);
    for (key, value) in leaves() {
        let changed = other(&key, &value);
        let text = format!("{}{key} = {changed}\n", company(&key));
        let trial = Trial::with_secrets(&[("one.toml", &text)]);
        let now = trial.check(&["one.toml"]);
        let pointer = format!("/{}", key.replace('.', "/"));
        let read = now.pointer(&pointer).unwrap_or_else(|| panic!("{key} is in what check prints"));
        assert_eq!(read.to_string(), changed, "{key} is read");
        assert_ne!(default.pointer(&pointer), Some(read), "{key} differs from the default");
        let misspelt = Trial::new(&[("one.toml", &format!("{key}x = {changed}\n"))]);
        assert!(misspelt.complaint(&["check", "--config", "one.toml"]).contains("unknown field"), "{key}x");
    }
    let example = Trial::new(&[("example.toml", EXAMPLE)]).check(&["example.toml"]);
    let (mut mine, mut built_in) = (example.clone(), default);
    for settings in [&mut mine, &mut built_in] {
        settings.as_object_mut().expect("it is an object").remove("routes");
    }
    assert_eq!(mine, built_in, "the example shows the defaults, all of them");
}
