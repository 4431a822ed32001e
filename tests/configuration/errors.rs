//! Each mistake ends with exit code 2, nothing on standard output, and one line: source, key, value, what is wrong, and what
//! is allowed.

use super::Trial;

/// The one line about a file called `hookgate.toml`, which has to say each of the words.
#[track_caller]
fn refused(settings: &str, words: &[&str]) {
    refused_by(&Trial::new(&[("hookgate.toml", settings)]), "hookgate.toml", words);
}

#[track_caller]
fn refused_by(trial: &Trial, file: &str, words: &[&str]) {
    let complaint = trial.complaint(&["check", "--config", file]);
    assert_eq!(complaint.trim_end().lines().count(), 1, "{complaint}");
    assert!(complaint.starts_with("hookgate: configuration: "), "{complaint}");
    let missing: Vec<_> = words.iter().filter(|word| !complaint.contains(**word)).collect();
    assert!(missing.is_empty(), "{missing:?} not in: {complaint}");
}

/// A route, with more keys.
fn route(entity: &str, action: &str, more: &str) -> String {
    format!("[[routes]]\nflow = \"vmh\"\nentity = \"{entity}\"\naction = \"{action}\"\n{more}\n")
}

#[test]
fn unknown_keys() {
    for (settings, line, key) in [
        ("\n[severs]\nlisten = 1", 2, "severs"),
        ("server.lisen = \"0.0.0.0:1\"", 1, "server.lisen"),
        ("[server]\nmax_headers = 10\nmax_body = 10", 3, "server.max_body"),
        ("[nats]\nstream.nam = \"X\"", 2, "nats.stream.nam"),
        ("[nats.stream]\nsubjects = []", 2, "nats.stream.subjects"),
    ] {
        let field = key.rsplit('.').next().expect("a key has a last part");
        refused(settings, &[&format!("hookgate.toml, line {line}: {key}: unknown field `{field}`, expected ")]);
    }
    let misspelt = route("a", "create", "") + &route("b", "create", "whilepending = \"skip\"");
    refused(
        &misspelt,
        &["hookgate.toml, line 10: routes[1].whilepending: unknown field `whilepending`, expected one of"],
    );
}

#[test]
fn wrong_types() {
    for (settings, key, words) in [
        ("server.max_headers = \"many\"", "server.max_headers = \"many\"", "expected a whole number"),
        ("server.max_headers = -1", "server.max_headers = -1", "expected a whole number that is not negative"),
        ("server.max_headers = 1.5", "server.max_headers = 1.5", "floating point"),
        ("server.max_in_flight = 4294967296", "server.max_in_flight = 4294967296", "expected a whole number"),
        ("server.listen = 3000", "server.listen = 3000", "expected socket address"),
        ("server.listen = \"localhost\"", "server.listen = \"localhost\"", "write an IP address and a port"),
        ("server.drain_delay = \"8\"", "server.drain_delay = \"8\"", "is not a time (time unit needed"),
        ("server.drain_delay = 8", "server.drain_delay = 8", "expected a time in quotes with its unit"),
        ("server.drain_delay = \"soon\"", "server.drain_delay = \"soon\"", "write 500ms, 8s, 15m or 7d"),
        ("server.drain_delay = \"1us\"", "server.drain_delay = \"1us\"", "finer than a millisecond"),
        ("server.drain_delay = \"101years\"", "server.drain_delay = \"101years\"", "more than 36500d"),
        ("nats.stream.create = \"yes\"", "nats.stream.create = \"yes\"", "expected true or false"),
        ("nats.delivery = \"stream\"", "nats.delivery = \"stream\"", "expected `jetstream` or `core`"),
        ("redis.on_unavailable = \"fail\"", "redis.on_unavailable = \"fail\"", "expected `publish` or `reject`"),
        ("nats.on_unavailable = \"publish\"", "nats.on_unavailable = \"publish\"", "expected `reject` or `accept`"),
        ("redis.durability = \"disk\"", "redis.durability = \"disk\"", "expected one of `none`, `replica`, `aof`"),
        ("redis.url = 6379", "redis.url = 6379", "expected a string"),
        ("redis.password_file = 1", "redis.password_file = 1", "expected path string"),
        // A table may not be given as a list of its values.
        ("redis = [\"redis://h\"]", "redis = [\"redis://h\"]", "expected a table"),
        ("nats.stream = \"X\"", "nats.stream = \"X\"", "expected a table"),
        ("routes = { flow = \"a\" }", "routes = { flow = \"a\" }", "expected a list"),
        ("routes = [\"a\"]", "routes[0] = \"a\"", "expected a table"),
        ("routes = [{ flow = \"a\", entity = \"b\" }]", "routes[0]", "missing field `action`"),
    ] {
        refused(settings, &[&format!("hookgate.toml, line 1: {key}: "), words]);
    }
}

#[test]
fn bad_syntax_and_missing_files() {
    for (settings, line) in [
        ("[server", 1),
        ("\nserver.max_headers =", 2),
        ("log.filter = \"a\"\nlog.filter = \"b\"", 2),
        ("[log]\nfilter = info", 2),
    ] {
        refused(settings, &[&format!("hookgate.toml, line {line}: ")]);
    }
    let trial = Trial::new(&[("folder.toml/x", "")]);
    std::fs::write(trial.path("latin.toml"), b"log.filter = \"\xfc\"").expect("the folder is ours");
    refused_by(&trial, "nowhere.toml", &["read configuration file \"nowhere.toml\": No such file"]);
    refused_by(&trial, "folder.toml", &["read configuration file \"folder.toml\": Is a directory"]);
    refused_by(&trial, "latin.toml", &["\"latin.toml\"", "valid UTF-8"]);
    let trial = Trial::new(&[("config/default.toml", "server.max_headers = x"), ("good.toml", "")]);
    assert!(trial.complaint(&["check"]).contains("config/default.toml, line 1: "));
    trial.check(&["good.toml"]);
}

#[test]
fn variables() {
    for (variable, text, words) in [
        ("HOOKGATE__SERVER__MAX_HEADERS", "many", "server.max_headers = \"many\": invalid type"),
        ("HOOKGATE__SERVER__MAX_HEADERS", "-5", "server.max_headers = \"-5\": invalid value: integer `-5`"),
        ("HOOKGATE__SERVER__MAX_HEADERS", "", "server.max_headers = \"\": invalid type"),
        ("HOOKGATE__SERVER__MAX_HEADERS", "2", "server.max_headers = 2: is not between 8 and 1000"),
        ("HOOKGATE__SERVER__REQUEST_DEADLINE", "8", "server.request_deadline = \"8\": \"8\" is not a time"),
        ("HOOKGATE__NATS__STREAM__CREATE", "yes", "nats.stream.create = \"yes\": invalid type"),
        ("HOOKGATE__NATS__DELIVERY", "cor", "nats.delivery = \"cor\": unknown variant `cor`, expected `jetstream` or"),
        ("HOOKGATE__SERVER__LISEN", "x", "server.lisen: unknown field `lisen`, expected one of `listen`"),
        ("HOOKGATE__SERVR__LISTEN", "x", "servr: unknown field `servr`, expected one of `instance`, `server`"),
        ("HOOKGATE__SERVER", "x", "server = \"x\": invalid type: string \"x\", expected a table"),
        ("HOOKGATE__REDIS", "redis://h", "redis = \"redis://h\": invalid type"),
        ("HOOKGATE__SERVER__LISTEN__PORT", "1", "server.listen: invalid type: map, expected socket address"),
        ("HOOKGATE__ROUTES", "vmh", "routes = \"vmh\": invalid type: string \"vmh\", expected a list"),
        ("HOOKGATE__ROUTES", "[{\"flow\":\"a\"", "routes: not a list of tables in JSON: EOF"),
        (
            "HOOKGATE__ROUTES",
            "[{\"flow\":1,\"entity\":\"b\",\"action\":\"c\"}]",
            "routes[0].flow = 1: invalid type: integer `1`, expected a string",
        ),
        ("HOOKGATE__ROUTES", "[{\"flow\":\"a\",\"entity\":\"b\"}]", "routes[0]: missing field `action`"),
        (
            "HOOKGATE__ROUTES",
            "[{\"flow\":\"a\",\"entity\":\"b\",\"action\":\"c\",\"x\":1}]",
            "routes[0].x: unknown field `x`",
        ),
        ("HOOKGATE__ROUTES", "[]", "no route is configured: add a [[routes]] table"),
        ("HOOKGATE__ROUTES__0__FLOW", "a", "routes: invalid type: map, expected a list"),
    ] {
        let trial = Trial::new(&[("hookgate.toml", "server.max_headers = 10")]).with(variable, text);
        refused_by(&trial, "hookgate.toml", &[&format!("environment variable {variable}: {words}")]);
    }
}

#[test]
fn bad_routes() {
    let long_subject = format!("subject = \"{}\"", "x".repeat(256));
    for (keys, words) in [
        ("subject = \"vmh. x\"", "subject \"vmh. x\" has a blank at byte 4; allowed: visible ASCII"),
        ("subject = \"vmh.*\"", "subject \"vmh.*\" has '*' at byte 4"),
        ("subject = \"vmh.>\"", "subject \"vmh.>\" has '>' at byte 4"),
        ("subject = \"vmh..x\"", "subject \"vmh..x\" has an empty token"),
        ("subject = \"vmh.x.\"", "subject \"vmh.x.\" has an empty token"),
        ("subject = \"\"", "subject \"\" has an empty token"),
        ("subject = \"vmh.ü\"", "subject \"vmh.ü\" has 'ü' at byte 4"),
        ("subject = \"$SYS.x\"", "subject \"$SYS.x\" belongs to NATS itself"),
        ("subject = \"_INBOX.x\"", "subject \"_INBOX.x\" belongs to NATS itself"),
        (&long_subject, "is 256 bytes long; at most 255 are allowed"),
        ("path = \"vmh/x\"", "path \"vmh/x\" does not begin with '/'"),
        ("path = \"\"", "path \"\" does not begin with '/'"),
        ("path = \"/a b\"", "path \"/a b\" has a blank at byte 2"),
        ("path = \"/a?b\"", "path \"/a?b\" has '?' at byte 2"),
        ("path = \"/ä\"", "path \"/ä\" has 'ä' at byte 1"),
        ("pending_key = \"\"", "pending_key \"\" is 0 bytes long"),
        ("pending_key = \"a b\"", "pending_key \"a b\" has a blank at byte 1"),
        ("pending_key = \"{a}\"", "pending_key \"{a}\" has '{' at byte 0"),
        ("pending_key = \"hookgate:x\"", "pending_key \"hookgate:x\" begins like the keys that hookgate has once"),
        ("label = \"\"", "label \"\" is empty"),
        ("label = \"a\\nb\"", "label \"a\\nb\" has '\\n' at byte 1"),
        ("while_pending = \"coalesce\"", "while_pending = \"coalesce\" with redis.durability = \"none\""),
        ("while_pending = \"coalesce\"\njournal = false", "while_pending = \"coalesce\" with journal = false"),
        ("release = \"ack\"", "release = \"ack\" without consumers"),
        ("release = \"ack\"\nconsumers = [\"a\"]\njournal = false", "release = \"ack\" with journal = false"),
        ("consumers = [\"a.b\"]", "consumers has \"a.b\", which is no name of a consumer"),
        ("consumers = [\"a\", \"a\"]", "consumers has \"a\" twice"),
        ("redeliver_after = \"1h\"\njournal = false", "redeliver_after with journal = false"),
        ("redeliver_after = \"0s\"", "redeliver_after = \"0s\": every pending id"),
        ("coalesce_max_wait = \"0s\"", "coalesce_max_wait = \"0s\": a mark has to wait"),
    ] {
        refused(&route("a", "create", keys), &["hookgate.toml: route \"vmh/a/create\": ", words]);
    }
    for word in ["", "a b", "a.b", "a/b", "a:b", "ä", "a*", "{a}", &"x".repeat(65)] {
        let named = format!("hookgate.toml: route \"vmh/{word}/create\": entity {word:?} ");
        refused(&route(word, "create", ""), &[&named]);
    }
    let later = "line 5: routes[0].while_pending = \"later\": unknown variant `later`";
    refused(&route("a", "create", "while_pending = \"later\""), &[later]);
}

#[test]
fn routes_that_clash_with_the_instance() {
    let second = |route: &str| format!("instance = \"second\"\n{route}");
    let key = second(&route("a", "create", "pending_key = \"second:x\""));
    refused(&key, &["route \"vmh/a/create\": pending_key \"second:x\" begins like the keys that hookgate has once"]);
    let flow = second(&route("a", "create", "").replace("vmh", "second"));
    refused(&flow, &["route \"second/a/create\": flow \"second\" is also the instance"]);
    let near = second(&route("a", "create", "pending_key = \"secondary:x\""));
    Trial::new(&[("good.toml", &near)]).check(&["good.toml"]);
}

#[test]
fn routes_that_clash() {
    let both = |first: &str, second: &str| route("a", "create", first) + &route("b", "create", second);
    let same = |words: &str| {
        format!("hookgate.toml: routes \"vmh/a/create\" and \"vmh/b/create\" have the same {words}; give one of them")
    };
    refused(&both("path = \"/x\"", "path = \"/x\""), &[&same("path \"/x\"")]);
    refused(&both("pending_key = \"x\"", "pending_key = \"x\""), &[&same("pending_key \"x\"")]);
    let default = both("", "pending_key = \"vmh:a:create_pending\"");
    refused(&default, &[&same("pending_key \"vmh:a:create_pending\"")]);
    let twice = route("a", "create", "") + &route("a", "create", "");
    refused(&twice, &["routes \"vmh/a/create\" and \"vmh/a/create\" have the same path"]);
    // Two routes may publish to one subject: an event says which action it is of.
    Trial::new(&[("good.toml", &both("subject = \"x\"", "subject = \"x\""))]).check(&["good.toml"]);
}

#[test]
fn values_that_make_no_sense() {
    for key in [
        "server.first_request_timeout",
        "server.header_read_timeout",
        "server.body_read_timeout",
        "redis.timeout",
        "nats.ack_timeout",
        "nats.stream.duplicate_window",
        "dead_letters.max_age",
    ] {
        let named = format!("hookgate.toml: {key} = \"0s\": has to be longer than nothing");
        refused(&format!("{key} = \"0s\""), &[&named]);
    }
    for (key, value, words) in [
        ("server.request_deadline", "\"100ms\"", "is too short to claim, publish and answer; at least 1s"),
        ("server.max_body_bytes", "0", "is not between 1 and 1073741824"),
        ("server.max_buffered_bytes", "5", "is below server.max_body_bytes (built-in default: 16777216)"),
        (
            "server.max_buffered_bytes",
            "67108863",
            "is below 4 times server.max_body_bytes (built-in default: 16777216)",
        ),
        ("redis.timeout", "\"7600ms\"", "leaves less than 500ms of server.request_deadline (built-in default: \"8s\")"),
        ("dead_letters.max_item_bytes", "8388609", "is not between 1 and 8388608"),
        ("server.worker_threads", "513", "is not between 0 and 512"),
        ("outbox.max_entries", "0", "is not between 1 and"),
        ("outbox.relay_after", "\"8s\"", "is not above server.request_deadline (built-in default: \"8s\")"),
        ("dead_letters.max_bytes", "1", "is below dead_letters.max_item_bytes (built-in default: 65536)"),
        ("redis.durability", "\"aof\"", "changes nothing unless nats.on_unavailable is \"accept\""),
        (
            "redis.url",
            "\"http://h\"",
            "this version of hookgate knows redis://host:port/db, redis+sentinel://host:port,host:port/service/db, redis+cluster://host:port,host:port, each with rediss for TLS, and memory:",
        ),
        ("redis.url", "\"\"", "this version of hookgate knows"),
        ("redis.url", "\"redis://h/x\"", "is not the address of a Redis server (the database is a number"),
        (
            "redis.url",
            "\"redis://\"",
            "is not the address of a Redis server (it names no host); write redis://host:6379/1",
        ),
        ("redis.username", "\"u\"", "needs redis.password_file beside it"),
        ("redis.url", "\"redis+sentinel://h\"", "it names no service, which is what the sentinels call the primary"),
        ("redis.url", "\"redis+sentinel://h/main/x\"", "the database is a number"),
        ("redis.url", "\"redis+sentinel://h,/main\"", "it names no host"),
        ("redis.url", "\"redis+sentinel://h,h:26379/main\"", "it names h:26379 twice"),
        ("redis.url", "\"redis+cluster://h:1,h:2/1\"", "a cluster has no database but 0, and this says 1"),
        ("redis.url", "\"redis+cluster://\"", "is not the address of a Redis Cluster (it names no host)"),
        ("redis.url", "\"rediss+cluster://h#insecure\"", "certificates are always checked"),
        (
            "redis.sentinel_username",
            "\"u\"",
            "has no effect without sentinels; redis.url is \"redis://127.0.0.1:6379/1\", not redis+sentinel://",
        ),
        ("redis.sentinel_password_file", "\"f\"", "has no effect without sentinels"),
        ("redis.wait_replicas", "0", "is not between 1 and 100"),
        ("redis.wait_replicas", "2", "changes nothing unless redis.durability is \"replica\""),
        ("redis.url", "\"rediss://h#insecure\"", "certificates are always checked"),
        ("redis.url", "\"redis://h?x=1\"", "it has something behind a ?"),
        ("redis.url", "\"redis://0.0.0.0\"", "it names no host, but any address"),
        (
            "nats.url",
            "\"wss://h\"",
            "\"wss://h\" is not the address of a NATS server (hookgate speaks nats:// and tls://",
        ),
        ("nats.url", "\"nats://a,,nats://b\"", "\"\" is not the address of a NATS server"),
        ("nats.url", "\"nats://h/x\"", "it has something behind the port"),
        ("nats.user", "\"u\"", "needs nats.password_file beside it"),
        ("nats.password_file", "\"hookgate.toml\"", "needs nats.user beside it"),
        (
            "admin.replicas",
            "\"hookgate-replicas\"",
            "is no name with a port; write a name that resolves to all replicas",
        ),
        ("nats.stream.name", "\"a b\"", "is no name of a stream"),
        ("nats.stream.replicas", "6", "is not between 1 and 5"),
        ("nats.stream.max_age", "\"5m\"", "is shorter than nats.stream.duplicate_window"),
        ("log.filter", "\"=x=\"", "invalid filter directive; write levels"),
        ("log.filter", "\"inof\"", "\"inof\" is neither a level nor a target of hookgate; write levels (off, error"),
        ("log.filter", "\"info,hookgat\"", "\"hookgat\" is neither a level nor a target of hookgate"),
        ("log.filter", "\"hyper=debug\"", "it names neither a level nor a target of hookgate, so hookgate would log"),
        ("log.filter", "\"\"", "it names neither a level nor a target of hookgate"),
    ] {
        let named = format!("hookgate: configuration: hookgate.toml: {key} = {value}: ");
        refused(&format!("{key} = {value}"), &[&named, words]);
    }
    // The key to change may be another than the one that is set.
    let both = ["built-in default: server.max_buffered_bytes", "server.max_body_bytes (hookgate.toml: 268435456)"];
    refused("server.max_body_bytes = 268435456", &both);
}

#[test]
fn filters_that_say_something_of_hookgate() {
    for filter in
        ["info", "WARN", "off", "hookgate", "hookgate=debug", "hookgate::entity=warn,error", "warn,hyper=debug"]
    {
        Trial::new(&[]).with("HOOKGATE__LOG__FILTER", filter).check(&[]);
    }
}

/// One run, one report.
#[test]
fn all_mistakes_are_reported_at_once() {
    let first = r#"
colour = "red"
[server]
max_headers = 1
max_in_flight = "many"
lisen = "0.0.0.0:1"
[redis]
url = "postgres://u:geheim@h"
password_file = "/nowhere/at-all"
[log]
filter = "inof"
[[routes]]
flow = "a b"
entity = "b"
action = "create"
[[routes]]
flow = 1
entity = "b"
[[routes]]
flow = "c"
entity = "b"
action = "create"
whilepending = "skip"
auth = [{ scheme = "bearer", secret_files = ["/nowhere/secret"] }, { scheme = "hmac", secret_files = ["x"] }]
"#;
    let second = "[outbox]\nrelay_after = \"1s\"\n[nats\n";
    let trial = Trial::new(&[("first.toml", first), ("second.toml", second)])
        .with("HOOKGATE__NATS__STREAM__REPLICAS", "9")
        .with("HOOKGATE__NATS__DELIVERY", "cor");
    let complaint = trial.complaint(&["serve", "--config", "first.toml", "--config", "second.toml"]);
    let lines: Vec<_> = complaint.lines().collect();
    let expected = [
        "first.toml, line 2: colour: unknown field",
        "first.toml, line 5: server.max_in_flight = \"many\": ",
        "first.toml, line 6: server.lisen: unknown field",
        "first.toml, line 17: routes[1].flow = 1: invalid type",
        "routes[1]: missing field `action`",
        "first.toml, line 23: routes[2].whilepending: unknown field",
        "first.toml, line 24: routes[2].auth[1].scheme = \"hmac\": unknown variant",
        "second.toml, line 3: ",
        "environment variable HOOKGATE__NATS__DELIVERY: nats.delivery = \"cor\": unknown variant",
        "first.toml: server.max_headers = 1: is not between",
        "first.toml: redis.url = \"postgres://***@h\": ",
        "first.toml: redis.password_file = \"/nowhere/at-all\": read secret file",
        "first.toml: log.filter = \"inof\": ",
        "first.toml: route \"a b/b/create\": flow \"a b\" has a blank",
        "first.toml: route \"c/b/create\": auth: secret file \"/nowhere/secret\": No such file",
        "environment variable HOOKGATE__NATS__STREAM__REPLICAS: nats.stream.replicas = 9: ",
    ];
    for words in expected {
        let found = lines.iter().filter(|line| line.contains(words)).count();
        assert_eq!(found, 1, "{words:?} in\n{complaint}");
    }
    assert!(lines.iter().all(|line| line.starts_with("hookgate: configuration: ")), "{complaint}");
    assert_eq!(lines.len(), expected.len(), "and nothing follows from another mistake\n{complaint}");
}

/// A value that can't be read is compared with nothing: its default was never meant.
#[test]
fn what_follows_from_another_mistake_is_left_out() {
    for settings in [
        "server.request_deadline = 5\nredis.timeout = \"9s\"",
        "redis.url = 1\nredis.ca_file = \"ca.pem\"",
        "nats.on_unavailable = \"acept\"\nredis.durability = \"aof\"",
        "nats.user = 1\nnats.password_file = \"secret\"",
        "server.max_body_bytes = \"1\"\nserver.max_buffered_bytes = 10",
        "routes = [{ flow = \"a\", entity = \"b\" }]",
        "routes = [{ flow = \"a\", entity = \"b\", action = \"c.d\" }]",
        "routes = \"a\"",
    ] {
        let trial = Trial::with_secrets(&[("hookgate.toml", settings)]);
        let complaint = trial.complaint(&["check", "--config", "hookgate.toml"]);
        assert_eq!(complaint.lines().count(), 1, "{settings}\n{complaint}");
    }
}

#[test]
fn files_of_tls_and_logins() {
    for (settings, words) in [
        (
            "redis.ca_file = \"ca.pem\"",
            "redis.ca_file = \"ca.pem\": has no effect without TLS; write rediss:// in redis.url",
        ),
        ("redis.client_cert_file = \"cert.pem\"", "redis.client_cert_file = \"cert.pem\": needs redis.client_key_file"),
        (
            "nats.client_key_file = \"key.pem\"",
            "nats.client_key_file = \"key.pem\": needs nats.client_cert_file beside it",
        ),
        ("nats.ca_file = \"nowhere\"", "nats.ca_file = \"nowhere\": read file: No such file"),
        ("nats.ca_file = \"secret\"", "nats.ca_file = \"secret\": it holds no certificate in PEM"),
        (
            "nats.client_cert_file = \"cert.pem\"\nnats.client_key_file = \"secret\"",
            "nats.client_key_file = \"secret\": it holds no private key in PEM",
        ),
        (
            "nats.client_cert_file = \"ca.pem\"\nnats.client_key_file = \"key.pem\"",
            "nats.client_key_file = \"key.pem\": it does not fit client_cert_file",
        ),
        ("nats.nkey_seed_file = \"secret\"", "nats.nkey_seed_file = \"secret\": read secret file: it holds no seed"),
        (
            "nats.credentials_file = \"secret\"",
            "nats.credentials_file = \"secret\": read secret file: it holds no credentials",
        ),
        (
            "nats.token_file = \"secret\"\nnats.credentials_file = \"user.creds\"",
            "nats.credentials_file = \"user.creds\": nats.token_file logs in too; keep one",
        ),
        (
            "nats.url = \"nats://u:p@h\"\nnats.nkey_seed_file = \"user.nk\"",
            "nats.url = \"nats://***@h\": there is more than one way to log in",
        ),
    ] {
        let trial = Trial::with_secrets(&[("hookgate.toml", settings)]);
        refused_by(&trial, "hookgate.toml", &["hookgate.toml: ", words]);
    }
}

/// As in an image from scratch.
#[test]
fn tls_without_an_authority_to_trust() {
    for (settings, words) in [
        ("redis.url = \"rediss://h\"", "redis.url = \"rediss://h\": TLS needs redis.ca_file"),
        ("nats.url = \"tls://h\"", "nats.url = \"tls://h\": TLS needs nats.ca_file"),
    ] {
        let trial = Trial::new(&[("hookgate.toml", settings), ("empty", "")]).with("SSL_CERT_FILE", "empty");
        refused_by(&trial, "hookgate.toml", &["hookgate.toml: ", words]);
    }
}

#[test]
fn no_command_starts_with_a_bad_configuration() {
    let trial = Trial::new(&[("config/default.toml", "server.listen = \"nowhere\"")]);
    let commands: [&[&str]; 8] = [
        &[],
        &["serve"],
        &["check"],
        &["routes"],
        &["tail"],
        &["doctor"],
        &["outbox", "count"],
        &["dead-letters", "list"],
    ];
    for command in commands {
        let complaint = trial.complaint(command);
        assert!(complaint.contains("config/default.toml, line 1: server.listen = \"nowhere\": "), "{complaint}");
    }
}

#[test]
fn wrong_usage() {
    let trial = Trial::new(&[]);
    for arguments in [
        &["frobnicate"][..],
        &["--frobnicate"],
        &["check", "--output", "xml"],
        &["check", "extra"],
        &["--config"],
        &["outbox"],
    ] {
        let complaint = trial.complaint(arguments);
        let wrong = arguments.last().expect("there are some");
        assert!(complaint.contains(wrong) && complaint.contains("--help"), "{complaint}");
    }
}
