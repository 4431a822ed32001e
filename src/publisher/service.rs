//! A service of NATS (`nats micro ls`, `info`, `stats`): requests come in, and each is answered by one replica.

use std::{fmt, future::Future, sync::Arc, time::Duration};

use async_nats::service::{ServiceExt, error};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, info, warn};

use super::servers::Servers;

/// Requests that are answered at the same time.
const AT_ONCE: usize = 64;
/// Between two attempts to begin.
const PAUSE: Duration = Duration::from_secs(5);

/// Why a request was not fulfilled: code and text of the service error.
pub struct ServiceError {
    /// As a status of HTTP.
    pub code: u16,
    /// For the caller.
    pub text: String,
}

/// Answers requests to `<instance>.<endpoint>` until it is told to stop. Runs on a connection of its own: what the server denies it
/// says nothing of the events.
pub async fn serve<F>(
    servers: Servers,
    instance: String,
    endpoint: &'static str,
    description: &'static str,
    stop: CancellationToken,
    answer: impl Fn(Bytes) -> F + Send + Sync + Clone + 'static,
) where
    F: Future<Output = Result<Vec<u8>, ServiceError>> + Send + 'static,
{
    let mut said = false;
    while !stop.is_cancelled() {
        let problem = match begin(&servers, &instance, endpoint, description, &stop, &answer).await {
            Ok(()) => return,
            Err(problem) => problem,
        };
        if !said {
            warn!(service = instance, endpoint, %problem, "the service can't be offered yet; it is tried again");
            said = true;
        }
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            () = stop.cancelled() => {}
        }
    }
}

async fn begin<F>(
    servers: &Servers,
    instance: &str,
    endpoint: &str,
    description: &str,
    stop: &CancellationToken,
    answer: &(impl Fn(Bytes) -> F + Send + Sync + Clone + 'static),
) -> Result<(), String>
where
    F: Future<Output = Result<Vec<u8>, ServiceError>> + Send + 'static,
{
    let words = |error: &dyn fmt::Display| error.to_string();
    let options = servers.options("hookgate service");
    let client = options.connect(servers.addresses.as_slice()).await.map_err(|error| words(&error))?;
    let service = client
        .service_builder()
        .description(description)
        .queue_group(instance)
        .start(instance, env!("CARGO_PKG_VERSION"))
        .await
        .map_err(|error| words(&error))?;
    let mut requests = service.group(instance).endpoint(endpoint).await.map_err(|error| words(&error))?;
    info!(service = instance, subject = %format_args!("{instance}.{endpoint}"), "service is offered");
    let (places, tasks) = (Arc::new(Semaphore::new(AT_ONCE)), TaskTracker::new());
    loop {
        let request = tokio::select! {
            request = requests.next() => request,
            () = stop.cancelled() => None,
        };
        let Some(request) = request else { break };
        let place = Arc::clone(&places).acquire_owned().await;
        let work = answer(request.message.payload.clone());
        tasks.spawn(async move {
            let _place = place;
            let answer = work.await.map(Into::into);
            let answer = answer.map_err(|ServiceError { code, text }| error::Error { status: text, code: code.into() });
            if let Err(error) = request.respond(answer).await {
                debug!(%error, "a request to the service was not answered");
            }
        });
    }
    tasks.close();
    tasks.wait().await;
    let stopped = service.stop().await;
    let flushed = client.flush().await;
    debug!(?stopped, ?flushed, "service ended");
    if stop.is_cancelled() { Ok(()) } else { Err("the connection ended".to_owned()) }
}
