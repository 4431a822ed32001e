//! Which layer wins, how a variable is read, and the resulting values.

use std::time::Duration;

use hookgate::settings::{AuthSecrets, ClaimsIn, DeliveryMode, Layers, RedisAddress, RedisServers, Settings};
use serde_json::json;

use super::Trial;

const ROUTES: &str = r#"[{"flow":"a","entity":"b","action":"create"},{"flow":"a","entity":"b","action":"delete"}]"#;

#[test]
fn the_order_of_the_files_counts_and_the_environment_comes_last() {
    let files = [
        ("first.toml", "[server]\nmax_headers = 10\nmax_in_flight = 11\nmax_connections = 12"),
        ("second.toml", "server.max_headers = 20\nserver.max_in_flight = 21"),
    ];
    let seen = |trial: &Trial, files: &[&str]| {
        let server = trial.check(files)["server"].clone();
        ["max_header_bytes", "max_connections", "max_in_flight", "max_headers"].map(|key| server[key].clone())
    };
    let trial = Trial::new(&files);
    assert_eq!(seen(&trial, &[]), [16384, 8192, 1024, 64], "built-in defaults");
    assert_eq!(seen(&trial, &["first.toml"]), [16384, 12, 11, 10]);
    assert_eq!(seen(&trial, &["first.toml", "second.toml"]), [16384, 12, 21, 20]);
    assert_eq!(seen(&trial, &["second.toml", "first.toml"]), [16384, 12, 11, 10]);
    let trial = trial.with("HOOKGATE__SERVER__MAX_HEADERS", "30");
    assert_eq!(seen(&trial, &["first.toml", "second.toml"]), [16384, 12, 21, 30]);
    assert_eq!(seen(&trial, &[]), [16384, 8192, 1024, 30]);
}

#[test]
fn nothing_is_left_of_a_list_that_a_later_layer_has_too() {
    let route = "[[routes]]\nflow = \"x\"\nentity = \"y\"\naction = \"create\"\n";
    let trial = Trial::new(&[
        ("first.toml", &format!("{route}label = \"first\"")),
        ("second.toml", &format!("{route}path = \"/second\"")),
        ("third.toml", "nats.ack_timeout = \"3s\""),
    ]);
    let files = ["first.toml", "second.toml", "third.toml"];
    let words = |settings: serde_json::Value| {
        let routes = settings["routes"].as_array().expect("routes are a list").clone();
        let word = |route: &serde_json::Value, key: &str| route[key].as_str().unwrap_or_default().to_owned();
        routes
            .iter()
            .map(|route| ["flow", "entity", "action", "path", "label"].map(|key| word(route, key)).join(" "))
            .collect::<Vec<_>>()
    };
    assert_eq!(words(trial.check(&files)), ["x y create /second "], "a file without routes changes nothing");
    assert_eq!(words(trial.check(&["third.toml"])), ["vmh beteiligte create  "], "the default");
    assert_eq!(words(trial.with("HOOKGATE__ROUTES", ROUTES).check(&files)), ["a b create  ", "a b delete  "]);
}

#[test]
fn each_kind_of_value_can_come_from_a_variable() {
    for (variable, text, key, expected) in [
        ("HOOKGATE__SERVER__LISTEN", "127.0.0.1:8080", "/server/listen", json!("127.0.0.1:8080")),
        ("HOOKGATE__SERVER__MAX_HEADERS", "100", "/server/max_headers", json!(100)),
        ("HOOKGATE__SERVER__WORKER_THREADS", "0", "/server/worker_threads", json!(0)),
        ("HOOKGATE__SERVER__DRAIN_DELAY", "0s", "/server/drain_delay", json!("0s")),
        ("HOOKGATE__SERVER__REQUEST_DEADLINE", "3.5s", "/server/request_deadline", json!("3500ms")),
        ("HOOKGATE__SERVER__HEADER_READ_TIMEOUT", "1m 30s", "/server/header_read_timeout", json!("90s")),
        ("HOOKGATE__REDIS__URL", "redis://redis/3", "/redis/url", json!("redis://redis/3")),
        ("HOOKGATE__REDIS__PASSWORD_FILE", "12345", "/redis/password_file", json!("12345")),
        ("HOOKGATE__REDIS__PASSWORD_FILE", "true", "/redis/password_file", json!("true")),
        ("HOOKGATE__REDIS__ON_UNAVAILABLE", "reject", "/redis/on_unavailable", json!("reject")),
        ("HOOKGATE__NATS__URL", "nats://a,nats://b:4223", "/nats/url", json!("nats://a,nats://b:4223")),
        ("HOOKGATE__NATS__STREAM__NAME", "0815", "/nats/stream/name", json!("0815")),
        ("HOOKGATE__NATS__STREAM__REPLICAS", "3", "/nats/stream/replicas", json!(3)),
        ("HOOKGATE__NATS__STREAM__CREATE", "false", "/nats/stream/create", json!(false)),
        ("HOOKGATE__LOG__FILTER", "info,hookgate::entity=warn", "/log/filter", json!("info,hookgate::entity=warn")),
        ("HOOKGATE__ROUTES", ROUTES, "/routes/1/action", json!("delete")),
    ] {
        let trial = Trial::new(&[("12345", "secret"), ("true", "secret")]).with(variable, text);
        assert_eq!(trial.check(&[]).pointer(key), Some(&expected), "{variable}={text}");
    }
    let user = Trial::new(&[("12345", "secret")])
        .with("HOOKGATE__NATS__USER", "4711")
        .with("HOOKGATE__NATS__PASSWORD_FILE", "12345");
    assert_eq!(user.check(&[])["nats"]["user"], "4711");
}

/// Kubernetes makes the first ones for a service called hookgate.
#[test]
fn variables_without_two_underscores_are_none_of_ours() {
    let mut trial = Trial::new(&[]);
    let before = trial.check(&[]);
    for name in [
        "HOOKGATE_PORT",
        "HOOKGATE_PORT_3000_TCP_ADDR",
        "HOOKGATE_SERVICE_HOST",
        "HOOKGATE",
        "HOOKGATE_",
        "HOOKGATE_SERVER_LISTEN",
        "XHOOKGATE__SERVER__LISTEN",
        "SERVER__LISTEN",
    ] {
        trial = trial.with(name, "tcp://10.0.0.1:3000");
    }
    assert_eq!(trial.check(&[]), before);
}

/// Kubernetes makes variables of the same family for each service whose name begins with hookgate.
#[test]
fn a_key_with_wrong_underscores_is_warned_about_with_the_right_spelling() {
    for (name, right) in [
        ("HOOKGATE_REDIS_URL", "HOOKGATE__REDIS__URL"),
        ("HOOKGATE_REDIS__URL", "HOOKGATE__REDIS__URL"),
        ("HOOKGATE_REDIS_PASSWORD_FILE", "HOOKGATE__REDIS__PASSWORD_FILE"),
        ("HOOKGATE_DEAD_LETTERS_MAX_AGE", "HOOKGATE__DEAD_LETTERS__MAX_AGE"),
        ("HOOKGATE_NATS_STREAM_DUPLICATE_WINDOW", "HOOKGATE__NATS__STREAM__DUPLICATE_WINDOW"),
        ("HOOKGATE_SERVER_MAX_HEADERS", "HOOKGATE__SERVER__MAX_HEADERS"),
        ("HOOKGATE_NATS_STREAM_CREATE", "HOOKGATE__NATS__STREAM__CREATE"),
        ("HOOKGATE_LOG_FORMAT", "HOOKGATE__LOG__FORMAT"),
        ("HOOKGATE_ROUTES", "HOOKGATE__ROUTES"),
    ] {
        let output = Trial::new(&[]).with(name, "1").run(&["routes"]);
        let said = String::from_utf8(output.stderr).expect("it is text");
        assert_eq!(output.status.code(), Some(0), "{said}");
        let expected = format!("hookgate: warning: environment variable {name} has no effect: the key is {right}\n");
        assert_eq!(said, expected);
    }
    // One with two underscores is ours, so it is an error.
    let complaint = Trial::new(&[]).with("HOOKGATE__REDIS_URL", "redis://h").complaint(&["check"]);
    assert!(complaint.contains("HOOKGATE__REDIS_URL: ") && complaint.contains("HOOKGATE__REDIS__URL"), "{complaint}");
    for name in [
        "HOOKGATE_SERVICE_HOST",
        "HOOKGATE_SERVICE_PORT",
        "HOOKGATE_SERVICE_PORT_ADMIN",
        "HOOKGATE_PORT",
        "HOOKGATE_PORT_3000_TCP",
        "HOOKGATE_PORT_3000_TCP_ADDR",
        "HOOKGATE_ADMIN_SERVICE_HOST",
        "HOOKGATE_ADMIN_PORT_9090_TCP_PROTO",
        "HOOKGATE_REDIS_SERVICE_PORT",
        "HOOKGATE_REDIS_PORT",
        "HOOKGATE_NATS_PORT_4222_TCP",
        "HOOKGATE_",
        "HOOKGATE",
    ] {
        let said = Trial::new(&[]).with(name, "tcp://10.0.0.1:3000").run(&["routes"]).stderr;
        assert_eq!(String::from_utf8_lossy(&said), "", "{name}");
    }
}

#[test]
fn files_can_be_named_by_the_environment() {
    let files = [
        ("one.toml", "server.max_headers = 10\nserver.max_in_flight = 11"),
        ("two.toml", "server.max_headers = 20"),
        ("config/default.toml", "server.max_in_flight = 77"),
    ];
    let seen = |trial: &Trial, named: &[&str]| {
        let server = trial.check(named)["server"].clone();
        ["max_headers", "max_in_flight"].map(|key| server[key].clone())
    };
    let both = Trial::new(&files).with("HOOKGATE_CONFIG", "one.toml:two.toml");
    assert_eq!(seen(&both, &[]), [20, 11], "later ones win");
    assert_eq!(seen(&both, &["one.toml"]), [10, 11], "--config counts more");
    assert_eq!(seen(&both.with("HOOKGATE__SERVER__MAX_HEADERS", "30"), &[]), [30, 11], "variables come last");
    assert_eq!(seen(&Trial::new(&files).with("HOOKGATE_CONFIG", ""), &[]), [64, 77], "as if it was not there");
    let complaint = Trial::new(&files).with("HOOKGATE_CONFIG", "one.toml:nowhere.toml").complaint(&["check"]);
    assert!(complaint.contains("read configuration file \"nowhere.toml\": No such file"), "{complaint}");
}

fn settings(text: &str) -> Settings {
    let mut layers = Layers::default();
    layers.add_text("test", text);
    let configuration = layers.merge();
    Settings::check(&configuration, layers, AuthSecrets::Read).expect("it makes sense")
}

fn redis_address(text: &str) -> RedisAddress {
    match settings(text).claims_in {
        ClaimsIn::Redis(address) => address,
        ClaimsIn::Memory => panic!("{text} is no Redis"),
    }
}

#[test]
fn claims_are_in_database_1_unless_the_address_says_otherwise() {
    assert_eq!(redis_address("").database, 1);
    for (url, database) in [
        ("redis://h", 1),
        ("redis://h/", 1),
        ("redis://h:6380", 1),
        ("redis://[::1]", 1),
        ("redis://u:p@h", 1),
        ("redis://h/0", 0),
        ("redis://h:6380/1", 1),
        ("redis://h/7", 7),
    ] {
        assert_eq!(redis_address(&format!("redis.url = \"{url}\"")).database, database, "{url}");
    }
    assert!(matches!(settings("redis.url = \"memory:\"").claims_in, ClaimsIn::Memory));
}

#[test]
fn a_password_comes_from_its_file_without_the_line_break() {
    let trial = Trial::new(&[("password", " ge heim\r\n")]);
    let path = toml::Value::from(trial.path("password").display().to_string());
    let login = |text: &str| {
        let RedisAddress { username, password, .. } = redis_address(text);
        (username, password.map(|password| String::from_utf8_lossy(password.bytes()).into_owned()))
    };
    let both = |name: &str, password: &str| (Some(name.to_owned()), Some(password.to_owned()));
    let in_a_file = format!("redis.username = \"u\"\nredis.password_file = {path}");
    assert_eq!(login(&in_a_file), both("u", " ge heim"));
    assert_eq!(login("redis.url = \"redis://u%40x:ge%2Fheim+@h\""), both("u@x", "ge/heim+"), "or from the address");
    assert_eq!(login("redis.url = \"redis://:p@h\""), (None, Some("p".to_owned())));
}

#[test]
fn the_address_of_redis_is_taken_apart() {
    for (url, host, port) in
        [("redis://h", "h", 6379), ("redis://[::1]:1/2", "::1", 1), ("redis://10.0.0.1", "10.0.0.1", 6379)]
    {
        let address = redis_address(&format!("redis.url = \"{url}\""));
        let RedisServers::One(server) = &address.servers else { panic!("{url} is one server") };
        assert_eq!(*server, (host.to_owned(), port), "{url}");
        assert!(address.tls.is_none());
    }
}

#[test]
fn the_addresses_of_sentinels_and_clusters_are_taken_apart() {
    let servers = |url: &str| {
        let address = redis_address(&format!("redis.url = \"{url}\""));
        (address.servers, address.database)
    };
    let at = |host: &str, port| (host.to_owned(), port);
    let (found, database) = servers("redis+sentinel://a,b:1,[::1]:2/main/3");
    let RedisServers::Sentinel(sentinels) = found else { panic!("they are sentinels") };
    assert_eq!(sentinels.addresses, [at("a", 26_379), at("b", 1), at("::1", 2)]);
    assert_eq!((sentinels.service.as_str(), database), ("main", 3));
    assert_eq!(servers("redis+sentinel://a/main").1, 1, "as with one server");
    for url in ["redis+cluster://a,b:1", "redis+cluster://a,b:1/", "redis+cluster://a,b:1/0"] {
        let (found, database) = servers(url);
        let RedisServers::Cluster(nodes) = found else { panic!("{url} is a cluster") };
        assert_eq!((nodes, database), (vec![at("a", 6379), at("b", 1)], 0), "{url}");
    }
    let address = redis_address("redis.url = \"redis+sentinel://u:p%2Fq@a,b/main\"");
    assert_eq!((address.username.as_deref(), address.password.is_some()), (Some("u"), true));
    let RedisServers::Sentinel(sentinels) = address.servers else { panic!("they are sentinels") };
    assert!(sentinels.username.is_none() && sentinels.password.is_none(), "the login is for Redis");
}

#[test]
fn what_is_written_is_what_is_used() {
    let Settings { request_deadline, drain_delay, relay_after, delivery, stream, .. } = settings(
        r#"
        server.request_deadline = "3.5s"
        server.drain_delay = "0s"
        outbox.relay_after = "4s"
        nats.stream = { name = "S", create = false, replicas = 5, max_age = "0s", duplicate_window = "1h" }
        "#,
    );
    assert_eq!(request_deadline, Duration::from_millis(3500));
    assert_eq!((drain_delay, relay_after), (Duration::ZERO, Duration::from_secs(4)));
    assert_eq!(delivery, DeliveryMode::Jetstream, "the default");
    assert_eq!((stream.name.as_str(), stream.create, stream.replicas), ("S", false, 5));
    assert_eq!((stream.max_age.0, stream.duplicate_window.0), (Duration::ZERO, Duration::from_secs(3600)));
    assert_eq!(settings("nats.delivery = \"core\"").delivery, DeliveryMode::Core);
}
