//! The pending store for a command of the operator: opened once, waited for, and closed with the command.

use std::time::Duration;

use anyhow::{Context, bail};
use hookgate::{app::operator::OperatorStore, readiness::Contact, settings::Settings};
use tokio::sync::watch;

use super::tell;

/// How long a command waits for a store.
const PATIENCE: Duration = Duration::from_secs(5);

/// Runs a command to its end.
pub(super) fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    let outcome = runtime.block_on(work);
    runtime.shutdown_background();
    outcome
}

/// The store of the configuration, once it can be worked with.
pub(super) async fn open(settings: &Settings) -> anyhow::Result<OperatorStore> {
    let store = OperatorStore::open(settings)?;
    up("Redis", store.contact.clone()).await?;
    Ok(store)
}

/// Waits until a store can be worked with; says so if it takes no writes now.
pub(super) async fn up(name: &str, mut contact: watch::Receiver<Contact>) -> anyhow::Result<()> {
    let ended = tokio::time::timeout(PATIENCE, async {
        contact.wait_for(|now| !matches!(now, Contact::Unreachable(_))).await.map(|now| now.clone())
    });
    match ended.await {
        Ok(Ok(Contact::Up)) => Ok(()),
        Ok(Ok(Contact::NoWrites(problem))) => {
            tell(&format!("hookgate: {name} takes no writes now: {problem}"));
            Ok(())
        }
        Ok(Ok(other)) => bail!("{}", other.problem().unwrap_or_default()),
        Ok(Err(_)) => bail!("{name}: the connection ended"),
        Err(_elapsed) => bail!("{}", contact.borrow().problem().unwrap_or("no answer")),
    }
}
