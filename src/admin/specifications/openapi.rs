//! The HTTP side, as `OpenAPI` 3.1: the webhooks and the admin address.

use serde_json::{Map, Value, json};
use warp::http::StatusCode;

use super::{Specifications, info, is_plain, schema_of};
use crate::{
    admin::{Readiness, pending_ids::Problem, status::Status},
    metrics::Exposition,
    reply::{REFUSALS, Received, Refused},
    route::Route,
};

impl Specifications {
    /// The `OpenAPI` document of all routes and of the admin address.
    #[must_use]
    pub fn openapi(&self) -> Value {
        let mut paths = admin_paths();
        paths.insert("/v1/pending/{flow}/{entity}/{action}/{id}".to_owned(), pending_id());
        for route in self.routes.routes().iter().filter(|route| is_plain(route.path())) {
            paths.insert(route.path().to_owned(), self.webhook(route));
        }
        json!({
            "openapi": "3.1.0",
            "info": info(
                "Webhooks come in on server.listen; everything tagged \"admin\" is on admin.listen and never behind the ingress. \
                 Each status code is chosen for what the sender does with it. Every answer comes within server.request_deadline.",
            ),
            "servers": [{ "url": "/", "description": "The address that this document comes from: admin.listen." }],
            "tags": [
                { "name": "webhooks", "description": "For senders, on server.listen." },
                { "name": "admin", "description": "For operators, on admin.listen." },
            ],
            "paths": paths,
            "components": {
                "schemas": self.schemas(),
                "responses": responses(),
                "securitySchemes": security_schemes(),
            },
        })
    }

    fn webhook(&self, route: &Route) -> Value {
        let schemes: Vec<_> = self.verifiers.of(route).schemes().collect();
        let mut responses = Map::new();
        responses.insert("200".to_owned(), received());
        for (status, _) in REFUSALS {
            if status != StatusCode::UNAUTHORIZED || !schemes.is_empty() {
                responses.insert(status.as_str().to_owned(), refused(status));
            }
        }
        let mut post = json!({
            "operationId": route.name().replace('/', "."),
            "tags": ["webhooks"],
            "summary": route.label(),
            "description": format!("Claims each id and publishes an event for each new one on {}.", route.subject()),
            "requestBody": {
                "required": true,
                "description": "The Content-Type is not looked at. A body of more than server.max_body_bytes is refused.",
                "content": { "application/json": {
                    "schema": { "$ref": "#/components/schemas/Batch" },
                    "examples": { "batch": { "value": [{ "id": "entity-123" }, { "id": 124, "name": "not looked at" }] } },
                } },
            },
            "responses": responses,
        });
        if !schemes.is_empty() {
            post["security"] = schemes.into_iter().flat_map(requirements).collect();
        }
        let server = json!({
            "url": "http://{host}",
            "description": "server.listen, or what stands before it.",
            "variables": { "host": { "default": format!("localhost:{}", self.port) } },
        });
        json!({ "servers": [server], "post": post })
    }

    fn schemas(&self) -> Value {
        json!({
            "Batch": {
                "description": "Records, or a single one. A retry may hold other records than the first try did.",
                "type": ["array", "object"],
                "items": { "anyOf": [
                    { "$ref": "#/components/schemas/Record" },
                    { "description": "Anything else is rejected: it becomes a dead letter, and the others go on." },
                ] },
            },
            "Record": {
                "description": "Other members than the id are neither looked at nor logged.",
                "type": "object",
                "required": ["id"],
                "properties": { "id": {
                    "description": "1 to 255 bytes without control characters, or an integer.",
                    "type": ["string", "integer"],
                    "minLength": 1,
                    "maxLength": 255,
                } },
            },
            "Received": schema_of::<Received<'_>>(),
            "Readiness": schema_of::<Readiness<'_>>(),
            "Status": schema_of::<Status>(),
            "Story": self.story,
            "Released": self.released,
            "Problem": schema_of::<Problem<'_>>(),
        })
    }
}

/// What satisfies a scheme: one of these.
fn requirements(scheme: &str) -> Vec<Value> {
    match scheme {
        // Either header is enough.
        "espocrm" => vec![json!({ "espocrm": [] }), json!({ "espocrm_until_11": [] })],
        "standard-webhooks" => vec![json!({
            "standard-webhooks": [], "standard-webhooks_id": [], "standard-webhooks_timestamp": [],
        })],
        other => vec![json!({ other: [] })],
    }
}

fn security_schemes() -> Value {
    let header = |name: &str, description: &str| json!({ "type": "apiKey", "in": "header", "name": name, "description": description });
    json!({
        "espocrm": header("Signature", "From EspoCRM 9: base64 of the webhook's id, a colon, and the HMAC-SHA256 of the body in hex digits."),
        "espocrm_until_11": header("X-Signature", "Up to EspoCRM 10: base64 of the webhook's id, a colon, and the HMAC-SHA256 of the body."),
        "github": header("X-Hub-Signature-256", "sha256= and the HMAC-SHA256 of the body in hex digits."),
        "standard-webhooks": header("webhook-signature", "https://www.standardwebhooks.com: v1, and base64 of the HMAC-SHA256 of id, timestamp and body, joined by dots."),
        "standard-webhooks_id": header("webhook-id", "The id of the message."),
        "standard-webhooks_timestamp": header("webhook-timestamp", "Seconds since 1970, at most 5 minutes off."),
        "bearer": { "type": "http", "scheme": "bearer", "description": "The secret itself." },
        "operator": { "type": "http", "scheme": "bearer", "description": "What is in admin.token_file." },
    })
}

fn received() -> Value {
    let example = json!({ "status": "received", "action": "create", "new_ids_count": 2, "total_ids_in_batch": 2 });
    json!({
        "description": "Every valid id is claimed, and its event is acknowledged by NATS. Under nats.on_unavailable = \"accept\": or in the outbox.",
        "content": { "application/json": {
            "schema": { "$ref": "#/components/schemas/Received" },
            "examples": { "received": { "value": example } },
        } },
    })
}

fn refused(status: StatusCode) -> Value {
    json!({ "$ref": format!("#/components/responses/{}", status.as_str()) })
}

/// Every answer but the 200, with its codes.
fn responses() -> Value {
    let mut responses = Map::new();
    for (status, _) in REFUSALS {
        let codes: Vec<_> = REFUSALS.iter().filter(|(other, _)| *other == status).map(|(_, code)| *code).collect();
        let mut schema = schema_of::<Refused<'_>>();
        schema["properties"]["error"]["enum"] = json!(codes);
        let (description, header) = match status {
            StatusCode::BAD_REQUEST => (
                "The body can never be processed, or the head is ambiguous. To what is no HTTP at all the body is empty.",
                None,
            ),
            StatusCode::UNAUTHORIZED => (
                "The signature is missing or wrong.",
                Some(("WWW-Authenticate", "A scheme that the webhook asks for.")),
            ),
            StatusCode::NOT_FOUND => ("No webhook is served at this path.", None),
            StatusCode::METHOD_NOT_ALLOWED => ("To any other method.", Some(("Allow", "POST"))),
            StatusCode::REQUEST_TIMEOUT => ("The body did not arrive in time.", None),
            StatusCode::PAYLOAD_TOO_LARGE => ("The body has more than server.max_body_bytes.", None),
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => {
                ("The head has more lines or bytes than it may. If it has more bytes, the body is empty.", None)
            }
            _ => {
                schema["required"].as_array_mut().expect("some members are required").push("trace_id".into());
                (
                    "Nothing is wrong with the request: send it again.",
                    Some(("Retry-After", "Seconds after which a sender may come back.")),
                )
            }
        };
        let mut response =
            json!({ "description": description, "content": { "application/json": { "schema": schema } } });
        if let Some((name, description)) = header {
            let schema = if name == "Retry-After" { json!({ "type": "integer" }) } else { json!({ "type": "string" }) };
            response["headers"] = json!({ name: { "description": description, "required": true, "schema": schema } });
        }
        responses.insert(status.as_str().to_owned(), response);
    }
    responses.into()
}

fn admin_paths() -> Map<String, Value> {
    let json_of = |schema: Value| json!({ "application/json": { "schema": schema } });
    let text = |kind: &str| json!({ kind: { "schema": { "type": "string" } } });
    let document = || json_of(json!({ "type": "object" }));
    let readiness = json!({ "$ref": "#/components/schemas/Readiness" });
    let unready = json!({ "anyOf": [&readiness, refused_schema()] });
    let mut paths = Map::new();
    let mut get = |path: &str, summary: &str, content: Value, unavailable: Value| {
        let operation = json!({
            "operationId": format!("admin.{}", path.trim_start_matches('/').replace(['/', '.'], "_")),
            "tags": ["admin"],
            "summary": summary,
            "responses": {
                "200": { "description": "As of now.", "content": content },
                "405": {
                    "description": "To any other method than GET and HEAD.",
                    "headers": { "Allow": { "required": true, "schema": { "type": "string" } } },
                    "content": text("text/plain"),
                },
                "503": unavailable,
            },
        });
        paths.insert(path.to_owned(), json!({ "get": operation }));
    };
    let crowded = || refused(StatusCode::SERVICE_UNAVAILABLE);
    get("/", "A page that shows the status to a person", text("text/html"), crowded());
    get("/livez", "Whether the process works", text("text/plain"), crowded());
    get(
        "/readyz",
        "Whether the process may get traffic, and what is known of both stores",
        json_of(readiness),
        json!({ "description": "Not now.", "content": json_of(unready) }),
    );
    get("/metrics", "OpenMetrics", text(Exposition::CONTENT_TYPE), crowded());
    let status = json!({ "$ref": "#/components/schemas/Status" });
    get("/v1/status", "What the process knows of itself, its stores and its webhooks", json_of(status), crowded());
    get("/openapi.json", "This document", document(), crowded());
    get("/asyncapi.json", "The events, as AsyncAPI", document(), crowded());
    paths
}

/// The text of a token (src/event.rs).
const TOKEN: &str = "^[0-9a-f]{12}7[0-9a-f]{3}[89ab][0-9a-f]{15}-(0|[1-9][0-9]{0,8})$";

/// One pending id: its story and its release.
fn pending_id() -> Value {
    let segment = |name: &str, description: &str, pattern: &str| {
        json!({
            "name": name, "in": "path", "required": true, "description": description,
            "schema": { "type": "string", "minLength": 1, "maxLength": 255, "pattern": pattern },
        })
    };
    let word = "^[A-Za-z0-9_-]+$";
    let json_of = |schema: Value| json!({ "application/json": { "schema": schema } });
    let schema = |name: &str| json!({ "$ref": format!("#/components/schemas/{name}") });
    let operation = |name: &str, summary: &str, answer: &str| {
        let problem = |description: &str| json!({ "description": description, "content": json_of(schema("Problem")) });
        let mut unauthorized = problem("Not with the token of admin.token_file.");
        let challenge = json!({ "required": true, "schema": { "type": "string" } });
        unauthorized["headers"] = json!({ "WWW-Authenticate": challenge });
        let unavailable = json!({ "anyOf": [schema("Problem"), refused_schema()] });
        json!({
            "operationId": name,
            "tags": ["admin"],
            "summary": summary,
            "security": [{ "operator": [] }],
            "responses": {
                "200": { "description": "As of now.", "content": json_of(schema(answer)) },
                "400": problem("The path names no id, or what is behind the question mark is not token=TOKEN."),
                "401": unauthorized,
                "404": problem("There is no such route, or admin.token_file is not set."),
                "503": { "description": "A store or the token can't be read now.", "content": json_of(unavailable) },
            },
        })
    };
    let mut delete = operation("admin.release", "Releases the id", "Released");
    delete["parameters"] = json!([{
        "name": "token", "in": "query", "required": false, "schema": { "type": "string", "pattern": TOKEN },
        "description": "Nats-Msg-Id of an event: only the claim that it stands for is released.",
    }]);
    json!({
        "parameters": [
            segment("flow", "Flow of the route.", word),
            segment("entity", "Its entity.", word),
            segment("action", "Its action.", word),
            segment("id", "The id, percent-encoded; at most 255 bytes.", r"^[^\x00-\x1f\x7f-\x9f]+$"),
        ],
        "get": operation("admin.why", "What is known of the id", "Story"),
        "delete": delete,
    })
}

/// The body of a 503 for a connection above `server.max_connections`.
fn refused_schema() -> Value {
    json!({ "$ref": "#/components/responses/503/content/application~1json/schema" })
}
