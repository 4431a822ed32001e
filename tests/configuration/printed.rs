//! What `check`, `routes` and `--help` print.

use std::time::Duration;

use hookgate::settings::sections::Span;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::Trial;

/// Much that differs from the defaults, every optional key but `nats.token_file`, and text that needs quoting.
const ALL: &str = r#"
server = { listen = "[::1]:1", max_body_bytes = 1, request_deadline = "1s", drain_delay = "0s", worker_threads = 2 }
redis = { url = "redis://h:1/2", username = "ü \"'\\", password_file = "secret", durability = "aof" }
nats = { url = "a,nats://b:1", user = "4711", password_file = "secret", on_unavailable = "accept", stream.max_age = "0s", monitoring_url = "http://h:8222", acks_stream = "A" }
instance = "other"
admin.token_file = "secret"
espocrm = { url = "https://crm", api_key_file = "secret", user = "u", password_file = "secret", ca_file = "c" }
outbox.relay_after = "1001ms"
log = { format = "text", filter = "warn,hookgate::entity=off" }
[[routes]]
flow = "f"
entity = "e"
action = "fieldUpdate"
path = "/%7Bx%7D"
subject = "a.b"
pending_key = "k"
label = "Größe \"x\" = 'y' # z"
while_pending = "coalesce"
release = "ack"
consumers = ["a-b"]
on_give_up = "keep"
redeliver_after = "1h"
max_redeliveries = 0
coalesce_max_wait = "1m"
espocrm_event = "CBeteiligte.update"
quarantine = true
"#;

fn printed(trial: &Trial, arguments: &[&str]) -> String {
    let output = trial.run(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("it is text")
}

#[test]
fn what_check_prints_prints_itself() {
    for settings in ["", ALL, super::EXAMPLE, include_str!("../../config/default.toml")] {
        let trial = Trial::new(&[("given.toml", settings), ("secret", "geheim")]);
        let text = printed(&trial, &["check", "--config", "given.toml"]);
        std::fs::write(trial.path("printed.toml"), &text).expect("the folder is ours");
        assert_eq!(printed(&trial, &["check", "--config", "printed.toml"]), text);
        let values: toml::Table = text.parse().expect("it is TOML");
        let values = serde_json::to_value(values).expect("all of it can be said in JSON");
        assert_eq!(trial.check(&["given.toml"]), values, "JSON says the same");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_time_that_is_printed_is_read_as_the_same(
        millis in 0..=Span::MAX.as_millis(),
        round in proptest::sample::select(&[1, 100, 1000, 60_000, 3_600_000, 86_400_000][..]),
    ) {
        let millis = u64::try_from(millis / round * round).expect("a hundred years are fewer milliseconds");
        let span = Span(Duration::from_millis(millis));
        prop_assert_eq!(String::from(span).parse(), Ok(span));
    }
}

#[test]
fn check_warns_of_routes_that_take_anything_and_says_valid() {
    let said = "hookgate: warning: route vmh/beteiligte/create takes webhooks from anybody who reaches it: it has no auth\nhookgate: the configuration is valid\n";
    assert_eq!(String::from_utf8_lossy(&Trial::new(&[]).run(&["check"]).stderr), said);
}

#[test]
fn check_says_what_an_answer_rests_on_where_webhooks_mark_ids() {
    let settings = "redis.durability = \"replica\"\n[[routes]]\nflow = \"a\"\nentity = \"b\"\naction = \"update\"\nwhile_pending = \"coalesce\"\n";
    let said = Trial::new(&[("one.toml", settings)]).run(&["check", "--config", "one.toml"]).stderr;
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(said.contains("note: route a/b/update has while_pending = \"coalesce\": a webhook for a pending id is answered 200 once a Redis replica has it"), "{said}");
}

#[test]
fn routes_prints_what_follows_from_the_words() {
    let text = "\
ROUTE                  PATH                            SUBJECT                PENDING KEY                   AUTH
vmh/beteiligte/create  /vmh/webhook/beteiligte/create  vmh.beteiligte.create  vmh:beteiligte:create_pending  none
";
    let text = text.replace("PENDING KEY                   AUTH", "PENDING KEY                    AUTH");
    let trial = Trial::new(&[]);
    assert_eq!(printed(&trial, &["routes"]), text);
    assert_eq!(printed(&trial, &["--output", "text", "routes"]), text);
    let row = json!({
        "route": "vmh/beteiligte/create",
        "path": "/vmh/webhook/beteiligte/create",
        "subject": "vmh.beteiligte.create",
        "pending_key": "vmh:beteiligte:create_pending",
        "auth": [],
        "label": "VMH Webhook Beteiligte Create"
    });
    assert_eq!(lines(&printed(&trial, &["routes", "--output", "json"])), [row]);
}

/// An object a line.
fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).expect("each line is an object")).collect()
}

#[test]
fn routes_come_in_the_order_of_the_configuration_and_say_what_they_ask() {
    let route = |entity: &str, auth: &str| {
        format!("[[routes]]\nflow = \"f\"\nentity = \"{entity}\"\naction = \"create\"\nauth = [{auth}]\n")
    };
    let bearer = "{ scheme = \"bearer\", secret_files = [\"nowhere\"] }";
    let both = format!("{{ scheme = \"espocrm\", id = \"1\", secret_files = [\"nowhere\"] }}, {bearer}");
    let settings = [route("z", bearer), route("a", ""), route("m", &both)].concat();
    let trial = Trial::new(&[("config/default.toml", &settings)]);
    let rows = lines(&printed(&trial, &["routes", "--output", "json"]));
    let seen: Vec<_> = rows.iter().map(|row| (row["route"].clone(), row["auth"].clone())).collect();
    let expected =
        [("f/z/create", json!(["bearer"])), ("f/a/create", json!([])), ("f/m/create", json!(["espocrm", "bearer"]))];
    assert_eq!(seen, expected.map(|(route, auth)| (json!(route), auth)));
    let text = printed(&trial, &["routes"]);
    let ends: Vec<_> = text.lines().map(|line| line.rsplit("  ").next().expect("it has columns")).collect();
    assert_eq!(ends, ["AUTH", "bearer", "none", "espocrm, bearer"]);
}

#[test]
fn check_prints_one_object_for_programs() {
    assert_eq!(lines(&printed(&Trial::new(&[]), &["check", "--output", "json"])).len(), 1);
}

/// As in `hookgate check 2>&1 | head -1`.
#[test]
fn a_standard_error_that_nobody_reads_is_no_reason_to_fail() {
    let (reader, writer) = std::io::pipe().expect("there are pipes");
    drop(reader);
    let trial = Trial::new(&[]);
    let checked = std::process::Command::new(env!("CARGO_BIN_EXE_hookgate"))
        .current_dir(trial.path("."))
        .arg("check")
        .stderr(writer)
        .output();
    assert!(checked.expect("hookgate starts").status.success());
}

/// The first thing that a new user does.
#[test]
fn init_prints_a_configuration_that_is_valid() {
    // Not even a bad configuration keeps it from that.
    let trial = Trial::new(&[("config/default.toml", "this is no TOML")]);
    let text = printed(&trial, &["init"]);
    std::fs::write(trial.path("hookgate.toml"), &text).expect("the folder is ours");
    trial.check(&["hookgate.toml"]);
    let commented = text.lines().filter(|line| line.starts_with("# ") && line.contains(" = "));
    let all = commented.map(|line| &line[2..]).collect::<Vec<_>>().join("\n");
    assert!(text.contains("[[routes]]") && all.contains("auth = ") && all.contains("password_file = "), "{text}");
}

/// What editors complete from: it knows each key of the example, and no other.
#[test]
fn the_schema_is_that_of_the_example() {
    let text = printed(&Trial::new(&[]), &["config-schema"]);
    assert_eq!(text, include_str!("../../config/schema.json"), "hookgate config-schema > config/schema.json");
    let schema: Value = serde_json::from_str(&text).expect("it is JSON");
    let properties = |table: &Value| {
        let reference = table["$ref"].as_str().or_else(|| table["allOf"][0]["$ref"].as_str());
        let table = reference.and_then(|name| schema.pointer(name.trim_start_matches('#'))).unwrap_or(table);
        table["properties"].clone()
    };
    for (key, _) in super::leaves() {
        let mut table = properties(&schema);
        for name in key.split('.') {
            let found = table.get(name).unwrap_or_else(|| panic!("{key} is not in the schema: {table}"));
            table = properties(found);
        }
    }
    assert_eq!(schema["additionalProperties"], false, "a key that is misspelt is marked");
}

#[test]
fn completions_and_manual_page_name_the_commands() {
    let trial = Trial::new(&[("config/default.toml", "this is no TOML")]);
    for shell in ["bash", "zsh", "fish"] {
        let text = printed(&trial, &["completions", shell]);
        assert!(text.contains("hookgate") && text.contains("dead-letters"), "{shell}: {text}");
    }
    let page = printed(&trial, &["man"]);
    assert!(page.contains(".TH hookgate 1") && page.contains("dead") && page.contains("doctor"), "{page}");
}

/// A script can't answer a question.
#[test]
fn what_can_not_be_undone_needs_yes_where_nobody_can_be_asked() {
    let trial = Trial::new(&[]);
    let complaint = trial.complaint(&["dead-letters", "purge"]);
    assert_eq!(complaint, "hookgate: drop all dead letters? There is nobody to ask; say --yes\n");
}

#[test]
fn help_and_version_need_no_configuration() {
    let trial = Trial::new(&[("config/default.toml", "this is no TOML")]);
    let help = printed(&trial, &["--help"]);
    assert!(help.contains("HOOKGATE__REDIS__URL"), "a variable as it is written: {help}");
    assert!(help.contains("\nExamples:\n  hookgate init > hookgate.toml"), "{help}");
    let (_, list) = help.split_once("\nCommands:\n").expect("there is a list");
    let (list, _) = list.split_once("\n\n").expect("something follows it");
    let names: Vec<_> = list.lines().filter_map(|line| line.split_ascii_whitespace().next()).collect();
    assert_eq!(
        names,
        [
            "serve",
            "check",
            "routes",
            "tail",
            "send",
            "doctor",
            "outbox",
            "pending",
            "dead-letters",
            "why",
            "quarantine",
            "reconcile",
            "consumers",
            "init",
            "config-schema",
            "completions",
            "man",
            "help"
        ]
    );
    for name in &names[..names.len() - 1] {
        let help = printed(&trial, &[name, "--help"]);
        assert!(help.contains("Usage: hookgate") && help.contains("\nExample"), "{name}: {help}");
    }
    assert_eq!(printed(&trial, &["--version"]), concat!("hookgate ", env!("CARGO_PKG_VERSION"), "\n"));
}
