//! The user of the component `reconcile`: it brings back what the CRM gave up on, and may do nothing else.

use std::time::{Duration, SystemTime};

use redis::AsyncTypedCommands;

use super::{
    files::{Access, Acl, Permissions},
    system,
};
use crate::support::{EspoCrm, Event, OUTBOX, PENDING, World, run};

const ROUTE: &str = "[[routes]]\nflow = \"vmh\"\nentity = \"beteiligte\"\naction = \"create\"\nespocrm_event = \"CBeteiligte.create\"\n";

/// What the job of the component does: one item is delivered, one is missing, and one is pending without an event.
async fn bring_back(world: &World, access: &Access) -> Result<(), String> {
    let crm = EspoCrm::start().await;
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let mut connection = world.redis.connection().await;
    connection.sadd(PENDING, "left").await.expect("the tests may");
    let before = SystemTime::now() - Duration::from_secs(3600);
    for id in ["first", "missing", "left"] {
        crm.state().add_failed("CBeteiligte.create", id, before);
    }
    let settings = format!("{}{}{}{ROUTE}", world.settings(), access.settings("1h"), crm.as_admin(folder.path()));
    let ran = tokio::task::spawn_blocking(move || run(&settings, &["reconcile", "--failed", "--clear"]));
    let ran = ran.await.expect("it does not panic");
    if ran.code != Some(0) {
        return Err(format!("{}{}", ran.printed, ran.remarks));
    }
    let ids: Vec<_> = world.nats.events().await.iter().map(Event::entity_id).collect();
    if ids != ["first", "missing", "left"] && ids != ["first", "left", "missing"] {
        return Err(format!("{ids:?} are in the stream"));
    }
    if !world.redis.outbox(OUTBOX).await.is_empty() || !crm.state().failed().is_empty() {
        return Err("something is not settled, or not cleared".to_owned());
    }
    Ok(())
}

#[tokio::test]
async fn the_job_that_reconciles_needs_no_more_and_no_less() {
    let (acl, permissions) = (Acl::reconcile(), Permissions::reconcile());
    let (world, access) = system(&acl, &permissions).await;
    bring_back(&world, &access).await.expect("all is brought back");
    let mut spare = Vec::new();
    for chunk in acl.grants().chunks(4) {
        let tried = chunk.iter().map(async |word| {
            let (world, access) = system(&acl.without(word), &permissions).await;
            (word, bring_back(&world, &access).await)
        });
        for (word, outcome) in futures_util::future::join_all(tried).await {
            if outcome.is_ok() {
                spare.push(*word);
            }
        }
    }
    let subjects = permissions.grants();
    for (place, subject) in subjects.iter().enumerate() {
        let (world, access) = system(&acl, &permissions.without(place)).await;
        if bring_back(&world, &access).await.is_ok() {
            spare.push(*subject);
        }
    }
    assert!(spare.is_empty(), "nothing fails without {spare:?}");
}
