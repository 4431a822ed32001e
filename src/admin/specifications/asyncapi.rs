//! The events, as `AsyncAPI` 3.

use serde_json::{Map, Value, json};

use super::{Specifications, info, is_plain};
use crate::route::Route;

/// The JSON Schema of an event's payload, of whatever route. `AsyncAPI` reads it as draft 7, which it is, too.
#[must_use]
pub fn event_schema() -> Value {
    json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Event of hookgate",
        "description": "One message says that something happened to one record. Ignore members that you do not know.",
        "type": "object",
        "required": ["entity_id", "action", "source", "timestamp"],
        "properties": {
            "entity_id": {
                "description": "The id as the sender wrote it: at most 255 bytes, without control characters. An integer comes as its digits.",
                "type": "string",
                "minLength": 1,
                "maxLength": 255,
                "examples": ["entity-123"],
            },
            "action": {
                "description": "What happened to the record: the action of the route.",
                "type": "string",
                "pattern": "^[A-Za-z0-9_-]{1,64}$",
                "examples": ["create"],
            },
            "source": { "const": "webhook" },
            "timestamp": {
                "description": "When the id was claimed, in UTC with milliseconds.",
                "type": "string",
                "format": "date-time",
                "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\\.[0-9]{3}Z$",
                "examples": ["2026-02-07T10:00:00.123Z"],
            },
        },
    })
}

impl Specifications {
    /// The `AsyncAPI` document of all routes.
    #[must_use]
    pub fn asyncapi(&self) -> Value {
        let (mut channels, mut operations) = (Map::new(), Map::new());
        for route in self.routes.routes().iter().filter(|route| is_plain(route.subject())) {
            let name = route.name().replace('/', ".");
            let channel = json!({ "$ref": format!("#/channels/{name}") });
            let message = json!({ "$ref": format!("#/channels/{name}/messages/event") });
            operations.insert(
                name.clone(),
                json!({
                    "action": "send",
                    "channel": channel,
                    "messages": [message],
                    "summary": "hookgate publishes one event for each claim.",
                }),
            );
            channels.insert(name, self::channel(route));
        }
        json!({
            "asyncapi": "3.0.0",
            "info": info(
                "What hookgate publishes on NATS. Under nats.delivery = \"jetstream\", the default, a stream keeps the events: \
                 consume them with a durable consumer. docs/consumers.md in the source has one that works.",
            ),
            "defaultContentType": "application/json",
            "channels": channels,
            "operations": operations,
            "components": { "schemas": { "Event": event_schema() } },
        })
    }
}

fn channel(route: &Route) -> Value {
    json!({
        "address": route.subject(),
        "title": route.label(),
        "description": format!("Events of {route}, whose webhook is {}.", route.path()),
        "messages": { "event": {
            "name": "event",
            "contentType": "application/json",
            "headers": {
                "type": "object",
                "required": ["Nats-Msg-Id", "traceparent", "Hookgate-Route"],
                "properties": {
                    "Nats-Msg-Id": {
                        "description": "The token of the claim. An event that is published again carries it again, so remember it where processing must not run twice.",
                        "type": "string",
                        "pattern": "^[0-9a-f]{32}-[0-9]+$",
                    },
                    "traceparent": {
                        "description": "W3C trace context. The trace id is that of the request.",
                        "type": "string",
                        "pattern": "^00-[0-9a-f]{32}-[0-9a-f]{16}-01$",
                    },
                    "Hookgate-Route": { "type": "string", "const": route.name() },
                },
            },
            "correlationId": { "location": "$message.header#/Nats-Msg-Id" },
            "payload": { "allOf": [
                { "$ref": "#/components/schemas/Event" },
                { "properties": { "action": { "const": route.action() } } },
            ] },
        } },
    })
}
