//! `/openapi.json` and `/asyncapi.json` say what is really served and published. `tests/openapi/run` goes on from here,
//! with validators and with made-up requests.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::support::{Gate, PATH, SUBJECT, World, batch};

async fn document(gate: &Gate, path: &str) -> Value {
    let answer = gate.probe(path).await;
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")));
    answer.json()
}

fn names(object: &Value) -> BTreeSet<&str> {
    object.as_object().expect("it is an object").keys().map(String::as_str).collect()
}

fn required(schema: &Value) -> BTreeSet<&str> {
    schema["required"].as_array().expect("it is a list").iter().filter_map(Value::as_str).collect()
}

#[tokio::test]
async fn openapi_says_what_is_served() {
    let world = World::start().await;
    let gate = world.gate("").await;
    let document = document(&gate, "/openapi.json").await;
    let received = &document["components"]["schemas"]["Received"];
    assert_eq!(names(&gate.post(batch(["a"])).await.json()), required(received));
    assert_eq!(names(&gate.post("[{}]").await.json()), names(&received["properties"]));
    for (path, operations) in document["paths"].as_object().expect("it is an object") {
        if let Some(post) = operations.get("post") {
            assert_eq!((path.as_str(), post["operationId"].as_str()), (PATH, Some("vmh.beteiligte.create")));
        } else if !path.contains('{') {
            let answer = gate.probe(path).await;
            let content = &operations["get"]["responses"]["200"]["content"];
            let kind = answer.header("content-type").unwrap_or_default();
            let described = names(content).into_iter().any(|documented| kind.starts_with(documented));
            assert!(answer.status == 200 && described, "{path}: {kind} is not in {content}");
        }
    }
}

#[tokio::test]
async fn openapi_says_what_is_told_of_an_id() {
    let world = World::start().await;
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let file = folder.path().join("token");
    std::fs::write(&file, "s3cret").expect("it is ours");
    let gate = world.gate(&format!("admin.token_file = {file:?}")).await;
    gate.deliver(batch(["a"])).await;
    let document = document(&gate, "/openapi.json").await;
    let operations = &document["paths"]["/v1/pending/{flow}/{entity}/{action}/{id}"];
    for (method, operation, id, status, schema) in [
        ("GET", "get", "a", 200, "Story"),
        ("DELETE", "delete", "a", 200, "Released"),
        ("GET", "get", "%zz", 400, "Problem"),
        ("DELETE", "delete", "a?x", 400, "Problem"),
    ] {
        let path = format!("/v1/pending/vmh/beteiligte/create/{id}");
        let answer = gate.operate(method, &path, "s3cret").await;
        assert_eq!(answer.status, status, "{method} {path}");
        let described =
            &operations[operation]["responses"][status.to_string()]["content"]["application/json"]["schema"];
        assert_eq!(described["$ref"], format!("#/components/schemas/{schema}"));
        let schema = &document["components"]["schemas"][schema];
        assert_eq!(names(&answer.json()), names(&schema["properties"]), "{method} {path}");
    }
}

#[tokio::test]
async fn asyncapi_says_what_is_published() {
    let world = World::start().await;
    let gate = world.gate("").await;
    assert_eq!(gate.post(batch(["a"])).await.counts(), (1, 1));
    let document = document(&gate, "/asyncapi.json").await;
    let channel = &document["channels"]["vmh.beteiligte.create"];
    assert_eq!(channel["address"], SUBJECT);
    let event = world.nats.events().await.pop().expect("it is published");
    let headers: BTreeSet<_> = event.headers.keys().map(String::as_str).collect();
    assert_eq!(headers, required(&channel["messages"]["event"]["headers"]));
    let payload: Value = serde_json::from_str(&event.payload).expect("it is JSON");
    let schema = &document["components"]["schemas"]["Event"];
    assert_eq!((names(&payload), names(&payload)), (required(schema), names(&schema["properties"])));
}
