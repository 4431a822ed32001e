//! The pending store for a command of the operator: opened once, waited for, and closed with the command.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, bail};
use hookgate::{
    metrics::Metrics,
    pending::redis::Redis,
    pipeline::PendingStore,
    readiness::Contact,
    settings::{PendingBackend, Settings},
};
use tokio::sync::watch;

/// How long a command waits for a store.
const PATIENCE: Duration = Duration::from_secs(5);

/// Runs a command to its end.
pub(super) fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    let outcome = runtime.block_on(work);
    runtime.shutdown_background();
    outcome
}

/// The Redis of the configuration.
pub(super) async fn open(settings: &Settings) -> anyhow::Result<Arc<Redis>> {
    let PendingBackend::Redis(access) = &settings.pending else {
        bail!(
            "redis.url is \"memory:\": claims are in the memory of the serving process, where no command can see them"
        );
    };
    let (metrics, _) = Metrics::new(&settings.routes, &[]);
    let redis = Redis::open(access, settings.claims, &settings.routes, metrics.redis());
    up("Redis", redis.contact()).await?;
    Ok(Arc::new(redis))
}

/// Waits until a store can be worked with; says so if it takes no writes now.
pub(super) async fn up(name: &str, mut contact: watch::Receiver<Contact>) -> anyhow::Result<()> {
    let ended = tokio::time::timeout(PATIENCE, async {
        contact.wait_for(|now| !matches!(now, Contact::Unreachable(_))).await.map(|now| now.clone())
    });
    match ended.await {
        Ok(Ok(Contact::Up)) => Ok(()),
        Ok(Ok(Contact::NoWrites(problem))) => {
            eprintln!("hookgate: {name} takes no writes now: {problem}");
            Ok(())
        }
        Ok(Ok(other)) => bail!("{name}: {}", other.problem().unwrap_or_default()),
        Ok(Err(_)) => bail!("{name}: the connection ended"),
        Err(_elapsed) => bail!("{name}: {}", contact.borrow().problem().unwrap_or("no answer")),
    }
}
