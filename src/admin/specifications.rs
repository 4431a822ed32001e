//! `/openapi.json` and `/asyncapi.json`: what is served and published, for programs. Made from the routes that are in
//! force and from the types and tables of the code; tests compare the rest with real answers and events.

mod asyncapi;
mod openapi;

use std::sync::Arc;

use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::{Value, json};

pub use self::asyncapi::event_schema;
use crate::{route::RouteTable, signature::Verifiers};

/// What both documents are made from.
#[derive(Debug, Clone)]
pub struct Specifications {
    routes: Arc<RouteTable>,
    verifiers: Arc<Verifiers>,
    /// Where webhooks come in.
    port: u16,
    /// Schemas of an id's story, and of what its release led to.
    story: Value,
    released: Value,
}

impl Specifications {
    /// Of these webhooks, which come in on this port; and of ids whose story is an `S`, and their release an `R`.
    #[must_use]
    pub fn new<S: JsonSchema, R: JsonSchema>(routes: &Arc<RouteTable>, verifiers: &Arc<Verifiers>, port: u16) -> Self {
        Self {
            routes: Arc::clone(routes),
            verifiers: Arc::clone(verifiers),
            port,
            story: schema_of::<S>(),
            released: schema_of::<R>(),
        }
    }
}

/// What both documents say of themselves.
fn info(description: &str) -> Value {
    json!({
        "title": "hookgate",
        "version": crate::metrics::VERSION,
        "description": description,
        "license": { "name": "MIT OR Apache-2.0" },
    })
}

/// Whether both formats can say this path or subject. They take what stands in braces for a parameter.
fn is_plain(text: &str) -> bool {
    !text.contains(['{', '}'])
}

/// The schema of an answer, in one piece.
fn schema_of<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::draft2020_12().for_serialize().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    settings.into_generator().into_root_schema_for::<T>().to_value()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        route::{Route, RouteSpec},
        signature::{Scheme, Secret, Verifier},
    };

    fn route(entity: &str, path: Option<&str>) -> Route {
        Route::new(&RouteSpec { flow: "vmh", entity, action: "create", path, ..RouteSpec::default() })
            .expect("it is a valid route")
    }

    fn specifications() -> Specifications {
        let routes = vec![route("open", None), route("signed", Some("/signed")), route("brace", Some("/{brace}"))];
        let scheme = Scheme::EspoCrm { id: "65f0c1d2e3a4b5c6d".to_owned() };
        let secrets = tokio::sync::watch::channel(Arc::from([Secret::from("key")])).1;
        let verifiers = routes.iter().map(|route| {
            let entries = if route.entity() == "signed" { vec![(scheme.clone(), secrets.clone())] } else { Vec::new() };
            (route.name().to_owned(), Verifier::new(entries))
        });
        let verifiers = Verifiers::new(verifiers);
        Specifications::new::<(), ()>(
            &Arc::new(RouteTable::new(routes).expect("they differ")),
            &Arc::new(verifiers),
            3000,
        )
    }

    #[test]
    fn openapi_has_every_webhook_that_it_can_say() {
        let document = specifications().openapi();
        let paths = document["paths"].as_object().expect("paths are an object");
        let webhooks: Vec<_> =
            paths.iter().filter(|(_, path)| path.get("post").is_some()).map(|(path, _)| path.as_str()).collect();
        assert_eq!(webhooks, ["/signed", "/vmh/webhook/open/create"]);
        assert!(
            !document.to_string().contains("65f0c1d2e3a4b5c6d"),
            "what a sender has to know beside its secret stays hidden"
        );
    }

    #[test]
    fn openapi_has_every_refusal() {
        let document = specifications().openapi();
        let responses = &document["paths"]["/signed"]["post"]["responses"];
        for (status, code) in crate::reply::REFUSALS {
            let reference = responses[status.as_str()]["$ref"].as_str().unwrap_or_else(|| panic!("no answer {status}"));
            let response = document.pointer(reference.trim_start_matches('#')).expect("it refers to a response");
            let codes = &response["content"]["application/json"]["schema"]["properties"]["error"]["enum"];
            assert!(codes.as_array().is_some_and(|codes| codes.contains(&json!(code))), "{status} {code}: {response}");
        }
        let statuses: std::collections::BTreeSet<_> =
            crate::reply::REFUSALS.iter().map(|(status, _)| status.as_str()).chain(["200"]).collect();
        let documented = responses.as_object().expect("responses are an object").keys().map(String::as_str);
        assert!(documented.eq(statuses), "{responses}");
    }

    #[test]
    fn only_a_webhook_that_asks_for_a_signature_has_a_401() {
        let document = specifications().openapi();
        let post = |path: &str| document["paths"][path]["post"].clone();
        let open = post("/vmh/webhook/open/create");
        assert!(open["responses"].get("401").is_none() && open.get("security").is_none(), "{open}");
        assert_eq!(post("/signed")["security"], json!([{ "espocrm": [] }, { "espocrm_until_11": [] }]));
    }

    #[test]
    fn the_schema_of_the_event_is_the_one_in_the_docs() {
        let file: Value = serde_json::from_str(include_str!("../../docs/event.schema.json")).expect("it is JSON");
        assert_eq!(file, event_schema(), "docs/event.schema.json should be:\n{:#}", event_schema());
    }

    #[test]
    fn asyncapi_has_every_event() {
        let document = specifications().asyncapi();
        for entity in ["open", "signed", "brace"] {
            let channel = &document["channels"][format!("vmh.{entity}.create")];
            assert_eq!(channel["address"], json!(format!("vmh.{entity}.create")));
            let headers = &channel["messages"]["event"]["headers"]["properties"];
            assert_eq!(headers["Hookgate-Route"]["const"], json!(format!("vmh/{entity}/create")));
        }
    }
}
