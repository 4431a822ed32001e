//! No secret is printed, neither a good one nor a bad one.

use super::Trial;

const SECRET: &str = "geheim";

/// Both outputs of a command.
fn everything(trial: &Trial, arguments: &[&str]) -> String {
    let output = trial.run(arguments);
    assert!(output.status.success(), "{arguments:?}");
    String::from_utf8([output.stdout, output.stderr].concat()).expect("it is text")
}

#[test]
fn addresses_are_shown_without_their_credentials() {
    let trial = Trial::new(&[])
        .with("HOOKGATE__REDIS__URL", "redis://nutzer:geheim@redis:6380/1")
        .with("HOOKGATE__NATS__URL", "nats://nutzer:geheim@a:4222,nats://nutzer:geheim@b");
    for format in ["text", "json"] {
        let shown = everything(&trial, &["check", "--output", format]);
        assert!(shown.contains("redis://***@redis:6380/1"), "{shown}");
        assert!(shown.contains("nats://***@a:4222,nats://***@b"), "{shown}");
        assert!(!shown.contains(SECRET) && !shown.contains("nutzer"), "{shown}");
    }
    let trial =
        Trial::new(&[]).with("HOOKGATE__REDIS__URL", "redis://:ge%68eim@redis").with("HOOKGATE__NATS__URL", "geheim@a");
    let shown = everything(&trial, &["check"]);
    assert!(shown.contains("\"redis://***@redis\"") && shown.contains("\"***@a\""), "{shown}");
}

#[test]
fn files_of_secrets_are_named_and_not_shown() {
    let settings = "redis.password_file = \"one\"\nnats.user = \"u\"\nnats.password_file = \"two\"";
    let trial = Trial::new(&[("config/default.toml", settings), ("one", SECRET), ("two", SECRET)]);
    for command in ["check", "routes"] {
        for format in ["text", "json"] {
            assert!(!everything(&trial, &[command, "--output", format]).contains(SECRET), "{command}");
        }
    }
    assert!(everything(&trial, &["check"]).contains("password_file = \"one\""));
}

#[test]
fn no_complaint_repeats_a_secret() {
    for settings in [
        "redis.url = \"rediss://u:geheim@h#insecure\"",
        "redis.url = \"redis://u:geheim@h:port\"",
        "redis.url = \"redis://u:geheim@\"",
        "redis.url = \"redis://u:geheim\"",
        "redis.url = \"redis://:geheim\"",
        "redis.url = \"redis://u:x/geheim@h/x\"",
        "redis.url = redis://u:geheim@h",
        "redis.url = \"redis://u:geheim@h",
        "redis = \"redis://u:geheim@h\"",
        "redis = \"redis://u:ge heim,geheim@h\"",
        "redis = [\"redis://u:geheim@h\"]",
        "redis.password = \"geheim\"",
        "redis.url = \"redis://u:geheim@h\"\nredis.password_file = \"hookgate.toml\"",
        "redis.on_unavailable = \"redis://u:geheim@h\"",
        "nats.url = \"wss://u:geheim@h\"",
        "nats.url = \"nats://u:geheim@h:port\"",
        "nats.url = \"nats://u:x,geheim@h/x\"",
        "nats.url = \"nats://u:geheim,x@h\"",
        "nats.url = \"nats://geheim@h,nats://x@h\"",
        "nats.url = \"nats://u:geheim@h\"\nnats.user = \"u\"\nnats.password_file = \"hookgate.toml\"",
        "nats = \"u:geheim@h\"",
        "nats.token = \"geheim\"",
        "nats.stream = \"nats://geheim@h\"",
        "routes = \"nats://geheim@h\"",
    ] {
        let trial = Trial::new(&[("hookgate.toml", settings)]);
        let complaint = trial.complaint(&["check", "--config", "hookgate.toml"]);
        assert!(!complaint.contains(SECRET), "{settings}: {complaint}");
    }
    for (variable, text) in [
        ("HOOKGATE__REDIS", "redis://u:geheim@h"),
        ("HOOKGATE__REDIS__PASSWORD", SECRET),
        ("HOOKGATE__NATS__PASSWORD", SECRET),
        ("HOOKGATE__NATS__TOKEN", SECRET),
        ("HOOKGATE__NATS__DELIVERY", "nats://u:geheim@h"),
        ("HOOKGATE__SERVER__MAX_HEADERS", "redis://u:geheim@h"),
    ] {
        let complaint = Trial::new(&[]).with(variable, text).complaint(&["check"]);
        assert!(complaint.contains(variable) && !complaint.contains(SECRET), "{complaint}");
    }
}

#[test]
fn a_secret_that_can_not_be_read_is_named() {
    let keys = [
        ("", "redis.password_file"),
        ("nats.user = \"u\"\n", "nats.password_file"),
        ("", "nats.token_file"),
        ("", "nats.nkey_seed_file"),
        ("", "nats.credentials_file"),
    ];
    for (beside, key) in keys {
        for (file, problem) in [("nowhere", "No such file"), ("empty", "it is empty"), ("folder", "Is a directory")] {
            let settings = format!("{beside}{key} = \"{file}\"");
            let trial = Trial::new(&[("hookgate.toml", &settings), ("empty", "\n"), ("folder/x", "")]);
            let complaint = trial.complaint(&["check", "--config", "hookgate.toml"]);
            let named = format!("hookgate.toml: {key} = \"{file}\": read secret file: {problem}");
            assert!(complaint.contains(&named), "{complaint}");
        }
    }
    let trial = Trial::new(&[]).with("HOOKGATE__REDIS__PASSWORD_FILE", "/run/secrets/nowhere");
    let complaint = trial.complaint(&["check"]);
    let named = "environment variable HOOKGATE__REDIS__PASSWORD_FILE: redis.password_file = \"/run/secrets/nowhere\": ";
    assert!(complaint.contains(named), "{complaint}");
}

#[test]
fn there_is_one_way_to_log_in() {
    for (settings, words) in [
        (
            "redis.url = \"redis://u:p@h\"\nredis.password_file = \"secret\"",
            "redis.password_file = \"secret\": the url holds a password too; keep one",
        ),
        (
            "nats.url = \"nats://u:p@h\"\nnats.token_file = \"secret\"",
            "nats.url = \"nats://***@h\": there is more than one way to log in: one in nats.url",
        ),
        (
            "nats.user = \"u\"\nnats.password_file = \"secret\"\nnats.token_file = \"secret\"",
            "nats.token_file = \"secret\": nats.user logs in too; keep one",
        ),
        ("nats.url = \"nats://a@h,nats://b@h\"", "two addresses of nats.url have different credentials"),
    ] {
        let trial = Trial::new(&[("hookgate.toml", settings), ("secret", SECRET)]);
        let complaint = trial.complaint(&["check", "--config", "hookgate.toml"]);
        assert!(complaint.contains("hookgate.toml: ") && complaint.contains(words), "{complaint}");
    }
}

/// Printing settings while debugging prints no secret.
#[test]
fn debug_output_holds_no_secret() {
    use hookgate::settings::{AuthSecrets, Layers, Settings};

    let trial = Trial::with_secrets(&[("password", SECRET)]);
    let path = |name: &str| trial.path(name).display().to_string();
    let credentials = std::fs::read_to_string(trial.path("user.creds")).expect("the folder is ours");
    let seed_of_user = credentials.lines().find(|line| line.starts_with("SU")).expect("it holds a seed");
    let seed = std::fs::read_to_string(trial.path("user.nk")).expect("the folder is ours");
    for (login, secret) in [
        (format!("nats.user = \"u\"\nnats.password_file = \"{}\"", path("password")), SECRET),
        (format!("nats.token_file = \"{}\"", path("password")), SECRET),
        ("nats.url = \"nats://u:geheim@h\"".to_owned(), SECRET),
        (format!("nats.nkey_seed_file = \"{}\"", path("user.nk")), seed.as_str()),
        (format!("nats.credentials_file = \"{}\"", path("user.creds")), seed_of_user),
        (format!("redis.password_file = \"{}\"", path("password")), SECRET),
        ("redis.url = \"redis://u:geheim@h\"".to_owned(), SECRET),
    ] {
        let mut layers = Layers::default();
        layers.add_text("a test", &login);
        let configuration = layers.merge();
        let settings = Settings::check(&configuration, layers, AuthSecrets::Read).expect("it is good");
        let shown = format!("{settings:?}");
        assert!(!shown.contains(secret), "{login}: {shown}");
    }
}

/// A route whose senders may use either of two secrets.
const ROTATED: &str = r#"
[[routes]]
flow = "vmh"
entity = "a"
action = "create"
auth = [{ scheme = "bearer", secret_files = ["current", "previous"] }]
"#;

/// Before the first rotation there is no `previous`, and after one it may be deleted or emptied.
#[test]
fn a_secret_file_that_is_missing_beside_a_good_one_is_a_warning() {
    let missing: &[(&str, &str)] = &[("a.toml", ROTATED), ("current", SECRET)];
    let empty: &[(&str, &str)] = &[("a.toml", ROTATED), ("current", SECRET), ("previous", "\n")];
    let first: &[(&str, &str)] = &[("a.toml", ROTATED), ("previous", SECRET)];
    for (files, named) in [
        (missing, "secret file \"previous\": No such file"),
        (empty, "secret file \"previous\": it is empty"),
        (first, "secret file \"current\": No such file"),
    ] {
        let output = Trial::new(files).run(&["check", "--config", "a.toml"]);
        let said = String::from_utf8(output.stderr).expect("it is text");
        assert_eq!(output.status.code(), Some(0), "{said}");
        let warning = said.lines().find(|line| line.starts_with("hookgate: warning: ")).expect("there is one");
        for words in [named, "a.toml", "vmh/a/create", "is not accepted until the file holds one"] {
            assert!(warning.contains(words), "{words:?} not in: {warning}");
        }
    }
}

#[test]
fn without_any_good_secret_it_is_an_error_for_each_file() {
    let complaint = Trial::new(&[("a.toml", ROTATED), ("current", "")]).complaint(&["check", "--config", "a.toml"]);
    assert_eq!(complaint.lines().count(), 2, "{complaint}");
    for words in ["secret file \"current\": it is empty", "secret file \"previous\": No such file"] {
        assert!(complaint.contains(words), "{words:?} not in: {complaint}");
    }
    // Nor is a file that holds something else a missing one.
    let unfit = ROTATED.replace("bearer", "standard-webhooks");
    let trial = Trial::new(&[("a.toml", &unfit), ("current", "whsec_AAAA"), ("previous", "not base64")]);
    let complaint = trial.complaint(&["check", "--config", "a.toml"]);
    assert!(complaint.contains("\"previous\": is no secret of standard-webhooks"), "{complaint}");
}

/// An operator needs the others most when something is wrong.
#[test]
fn only_serve_and_check_need_the_secrets_of_auth() {
    let trial = Trial::new(&[("a.toml", ROTATED)]);
    for command in ["serve", "check"] {
        let complaint = trial.complaint(&[command, "--config", "a.toml"]);
        assert!(complaint.contains("secret file \"current\""), "{command}: {complaint}");
    }
    let unreachable = "redis.url = \"redis://127.0.0.1:1\"\nnats.url = \"nats://127.0.0.1:1\"\n";
    let trial = Trial::new(&[("a.toml", &format!("{unreachable}{ROTATED}"))]);
    for command in [&["routes"][..], &["doctor"], &["outbox", "count"], &["dead-letters", "list"], &["tail"]] {
        let output = trial.run(&[command, &["--config", "a.toml"]].concat());
        let said = String::from_utf8_lossy(&output.stderr);
        assert_ne!(output.status.code(), Some(2), "{command:?}: {said}");
        assert!(!said.contains("secret file"), "{command:?}: {said}");
    }
}
