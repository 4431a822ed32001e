//! Lines that operators search for stay as they are, and nothing of a record but its id gets into the log.

use serde_json::Value;

use crate::support::{Gate, World, batch, field};

/// The lines of the replaced step for a batch of two new ids.
const LINES: [&str; 6] = [
    "VMH Webhook Beteiligte Create empfangen",
    "Create Entity ID gefunden: entity-123",
    "Create Entity ID gefunden: entity-456",
    "2 neue IDs zur Create-Sync-Queue hinzugefügt",
    "Create-Event emittiert für ID: entity-123",
    "Create-Event emittiert für ID: entity-456",
];

/// The records of a whole JSON log.
async fn records(gate: &mut Gate) -> Vec<Value> {
    let parse = |line: &String| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in log: {line}"));
    gate.log().await.iter().map(parse).collect()
}

/// The German ones among them.
async fn german(gate: &mut Gate) -> Vec<Value> {
    let is_german = |record: &Value| LINES.contains(&record["message"].as_str().unwrap_or_default());
    records(gate).await.into_iter().filter(is_german).collect()
}

#[tokio::test]
async fn the_lines_of_the_replaced_step_in_json() {
    let world = World::start().await;
    let mut gate = world.gate("").await;
    gate.post(batch(["entity-123", "entity-456"])).await;

    let records = german(&mut gate).await;
    let messages: Vec<_> = records.iter().map(|record| record["message"].as_str().unwrap_or_default()).collect();
    assert_eq!(messages, LINES);
    let trace = world.nats.events().await[0].token()[..32].to_owned();
    for record in &records {
        let message = record["message"].as_str().unwrap_or_default();
        assert_eq!(record["level"], "INFO", "{record}");
        assert_eq!(record["route"], "vmh/beteiligte/create", "{record}");
        assert_eq!(record["trace_id"], trace, "{record}");
        let id = message.split_once("ID gefunden: ").or_else(|| message.split_once("für ID: ")).map(|(_, id)| id);
        assert_eq!(record["entity_id"].as_str(), id, "{record}");
        assert_eq!(record["target"] == "hookgate::entity", id.is_some(), "{record}");
    }
}

#[tokio::test]
async fn the_lines_of_the_replaced_step_as_text() {
    let world = World::start().await;
    let mut gate = world.gate("log.format = \"text\"").await;
    gate.post(batch(["entity-123", "entity-456"])).await;

    let log = gate.log().await;
    for line in LINES {
        let found: Vec<_> = log.iter().filter(|logged| logged.contains(line)).collect();
        let [found] = found.as_slice() else { panic!("{line:?} stands {} times in the log", found.len()) };
        assert!(found.contains(" INFO "), "{found}");
        assert_eq!(field(found, "route").as_deref(), Some("vmh/beteiligte/create"), "{found}");
        assert!(field(found, "trace_id").is_some_and(|trace| trace.len() == 32), "{found}");
        let id = line.split("ID gefunden: ").chain(line.split("für ID: ")).find(|part| part.starts_with("entity-"));
        assert_eq!(field(found, "entity_id").as_deref(), id, "{found}");
        assert!(!found.contains('\u{1b}'), "no colours in a file: {found}");
    }
}

#[tokio::test]
async fn label_and_action_fill_the_lines_of_other_routes() {
    let world = World::start().await;
    let routes = "[[routes]]\nflow = \"crm\"\nentity = \"account\"\naction = \"delete\"\nlabel = \"Konten, gelöscht\"\n\
                  [[routes]]\nflow = \"crm\"\nentity = \"contact\"\naction = \"create\"\n";
    let mut gate = world.gate(routes).await;
    gate.post_to("/crm/webhook/account/delete", batch(["a"])).await;
    gate.post_to("/crm/webhook/contact/create", "[]").await;
    let records = records(&mut gate).await;
    for line in [
        "Konten, gelöscht empfangen",
        "Delete Entity ID gefunden: a",
        "1 neue IDs zur Delete-Sync-Queue hinzugefügt",
        "Delete-Event emittiert für ID: a",
        "CRM Webhook Contact Create empfangen",
        "0 neue IDs zur Create-Sync-Queue hinzugefügt",
    ] {
        let count = records.iter().filter(|record| record["message"] == line).count();
        assert_eq!(count, 1, "{line}");
    }
}

#[tokio::test]
async fn the_lines_about_single_ids_can_be_silenced() {
    let world = World::start().await;
    let mut gate = world.gate("log.filter = \"info,hookgate::entity=warn\"").await;
    gate.post(batch(["entity-123", "entity-456"])).await;
    let messages: Vec<_> = german(&mut gate).await.into_iter().map(|record| record["message"].clone()).collect();
    assert_eq!(messages, [LINES[0], LINES[3]]);
}

#[tokio::test]
async fn one_event_is_one_line_whatever_an_id_holds() {
    let world = World::start().await;
    let mut gate = world.gate("").await;
    let ids = [r"a\u202eb", r"a\u2028b", r"a\u2066b\u2069", r#"a\"},{\"level\":\"ERROR"#, r"\ufeffa", r"\u0085"];
    let answer = gate.post(batch(ids)).await;
    assert_eq!((answer.counts(), answer.rejected()), ((5, 5), 1), "U+0085 is a control character");
    gate.post(batch([r"a\n{\u0022level\u0022:\u0022ERROR\u0022}"])).await;

    let log = gate.log().await.join("\n");
    for character in ['\u{202e}', '\u{2028}', '\u{2066}', '\u{2069}', '\u{feff}', '\u{85}'] {
        assert!(!log.contains(character), "{character:?} is in the log as it is");
    }
    assert!(log.contains("\\\\u{202e}"), "it is escaped");
    let errors: Vec<_> = records(&mut gate).await.into_iter().filter(|record| record["level"] == "ERROR").collect();
    assert_eq!(errors, Vec::<Value>::new(), "each line is a whole record");
}

#[tokio::test]
async fn one_event_is_one_line_of_text_too() {
    let world = World::start().await;
    let mut gate = world.gate("log.format = \"text\"").await;
    let id = r"a\u2028b\u202ec\u001b[31m";
    assert_eq!(gate.post(batch([id, r"x\u2028y\u202e"])).await.rejected(), 1);
    let log = gate.log().await.join("\n");
    for character in ['\u{202e}', '\u{2028}', '\u{1b}'] {
        assert!(!log.contains(character), "{character:?} is in the log as it is");
    }
    assert!(gate.log().await.iter().all(|line| line.starts_with("20")), "each line begins with a time:\n{log}");
}

/// Personal data that must not appear in a log.
const MARKER: &str = "GEHEIM-Mustermann";

#[tokio::test]
async fn nothing_of_a_record_but_its_id_is_logged_at_any_level() {
    let mut world = World::start().await;
    let settings = "log.filter = \"trace\"\nserver.request_deadline = \"1s\"\nserver.body_read_timeout = \"200ms\"";
    let mut gate = world.gate(settings).await;
    let post = async |body: &str, status: u16| {
        assert_eq!(gate.post(body.replace('@', MARKER)).await.status, status, "{body}");
    };
    post(r#"[{"id":"a","name":"@","@":{"@":["@"]}}]"#, 200).await;
    post(r#"[{"id":["@"]},{"id":"@\u0000"},{"id":"a","name":"@","id":"@"},"@",["@"],{"@":1}]"#, 200).await;
    post(r#"[{"id":"b","name":"@"}"#, 400).await;
    post(r#"[{"id":"b","name":"@" "@"}]"#, 400).await;
    post(r#"[{"id":"b","name":@}]"#, 400).await;
    post(r#"[{"id":"b","name":"@"}] @"#, 400).await;
    post(r#"[{"id":"b","name":"@\x"}]"#, 400).await;
    post("\"@\"", 400).await;
    post("@", 400).await;
    let with_query = gate.post_to(&format!("/vmh/webhook/beteiligte/create?name={MARKER}"), "[]").await;
    assert_eq!(with_query.status, 200);
    let slow = format!(
        "POST /vmh/webhook/beteiligte/create HTTP/1.1\r\nHost: x\r\nX-Name: {MARKER}\r\nContent-Length: 999\r\n\r\n{MARKER}"
    );
    assert_eq!(gate.exchange(slow.as_bytes()).await.status, 408);
    world.nats.kill();
    post(r#"[{"id":"b","name":"@"}]"#, 503).await;
    world.redis.kill();
    post(r#"[{"id":"c","name":"@"}]"#, 503).await;

    let lines: Vec<_> = gate.log().await.into_iter().filter(|line| line.contains(MARKER)).collect();
    assert_eq!(lines, Vec::<String>::new());
    assert!(
        records(&mut gate).await.iter().any(|record| record["level"] == "DEBUG" || record["level"] == "TRACE"),
        "the log was as talkative as it can be"
    );
}

#[tokio::test]
async fn the_first_line_says_which_hookgate_it_is() {
    let world = World::start().await;
    let mut gate = world.gate("").await;
    let log = gate.log().await;
    let first: serde_json::Value = serde_json::from_str(&log[0]).expect("a line is an object");
    assert_eq!((&first["message"], &first["level"]), (&"hookgate starts".into(), &"INFO".into()), "{first}");
    assert_eq!(first["version"], env!("CARGO_PKG_VERSION"));
    assert!(first["revision"].as_str().is_some_and(|revision| !revision.is_empty()), "{first}");
    let route = log.iter().find(|line| line.contains("\"message\":\"route\"")).expect("each route is said");
    assert!(route.contains("\"auth\":\"none\""), "{route}");
}
