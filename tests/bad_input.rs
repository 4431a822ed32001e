//! Bad input harms nobody. The sender gets the right answer or a closed connection, nothing is claimed that should not
//! be, the process lives, its memory comes back, and the next honest request is served.
//!
//! The table of cases is in `bad_input/`: name, request, expected answer, and why.

mod bodies;
mod case;
mod framing;
mod signatures;

use std::{collections::BTreeSet, panic::AssertUnwindSafe};

use futures_util::FutureExt;
use hookgate::batch::EntityId;

use self::case::{Case, Site};
use crate::support::{PATH, PENDING, World, batch, eventually};

/// How much more memory than before the table hookgate may hold after a case. Allocators keep some.
const MEMORY: usize = 48 << 20;

/// So that no case gets lost.
const CASES: usize = 160;

#[tokio::test]
async fn every_bad_input_is_answered_as_it_should_be() {
    let world = World::start().await;
    let mut site = Site::start(&world).await;
    let cases: Vec<Case> = [framing::cases(), signatures::cases(), bodies::cases()].concat();
    assert_eq!(cases.len(), CASES, "cases in the table");
    let names: BTreeSet<_> = cases.iter().map(|case| case.name).collect();
    assert_eq!(names.len(), CASES, "each case has a name of its own");

    site.honest("before").await;
    let memory = site.gate.resident_bytes() + MEMORY;
    let mut failed = Vec::new();
    for (index, case) in cases.iter().enumerate() {
        let what = case.name;
        let before = world.redis.pending(PENDING).await;
        site.prepare(case).await;
        // All cases are tried before the test fails.
        let Ok(claims) = AssertUnwindSafe(site.ask(case)).catch_unwind().await else {
            failed.push(what);
            continue;
        };
        assert!(site.gate.ended().is_none(), "{what}: it is alive");
        eventually(&format!("{what}: memory is back"), async || (site.gate.resident_bytes() < memory).then_some(()))
            .await;
        if !claims {
            assert_eq!(world.redis.pending(PENDING).await, before, "{what}: nothing was claimed");
        }
        site.honest(&format!("honest-{index}")).await;
    }
    assert_eq!(failed, [""; 0], "cases that went wrong; each has said above how");
    let subjects: BTreeSet<_> = world.nats.events().await.into_iter().map(|event| event.subject).collect();
    assert!(subjects.iter().all(|subject| site.subjects().contains(&subject.as_str())), "{subjects:?}");
    for id in world.redis.pending(PENDING).await {
        assert!(EntityId::parse(&id).is_some(), "{id:?} is a valid id");
    }
    for line in site.gate.log().await {
        let record: serde_json::Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("one line each: {line}"));
        assert_ne!(record["level"], "ERROR", "{line}");
        assert!(!line.contains("forged") && !line.contains(bodies::NAME), "{line}");
    }
}

/// The body is larger than one read, so that an answer before it shows.
#[tokio::test]
async fn only_a_body_that_will_be_read_is_asked_for() {
    let world = World::start().await;
    let site = Site::start(&world).await;
    let large = batch((0..2000).map(|index| format!("large-{index}")));
    for (path, length, status) in [
        (PATH, large.len(), 200),
        (PATH, 3 << 20, 413),
        ("/elsewhere", large.len(), 404),
        (case::SIGNED, large.len(), 401),
    ] {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
        );
        let mut connection = site.connect().await;
        connection.send(head.as_bytes()).await.expect("hookgate reads");
        let first = connection.answer().await.expect("hookgate answers");
        if status == 200 {
            assert_eq!(first.status, 100, "{path}");
            connection.send(large.as_bytes()).await.expect("hookgate reads");
            assert_eq!(connection.answer().await.expect("hookgate answers").status, 200, "{path}");
        } else {
            assert_eq!(first.status, status, "{path}, {length}: before the body, and without asking for it");
        }
    }
}
