//! What a warp server does for a webhook whatever comes of it: accept, read, parse, answer.
//!
//! The limits are of hookgate's kind (requests in flight, size, time to read), the ids of the records are
//! collected and everything else is skipped; no metrics, no log.

use std::{borrow::Cow, convert::Infallible, net::SocketAddr, num::NonZero, sync::Arc, time::Duration};

use bytes::{Buf, Bytes};
use futures_util::{Stream, StreamExt};
use hyper::server::conn::http1;
use hyper_util::{rt::TokioIo, rt::TokioTimer, service::TowerToHyperService};
use serde::{Deserialize, Serialize};
use tokio::{
    net::TcpListener,
    runtime::{Builder, Runtime},
    sync::Semaphore,
    time::{Instant, timeout_at},
};
use tokio_util::task::TaskTracker;
use warp::{
    Filter, Rejection, Reply,
    http::{HeaderValue, StatusCode, header},
    reply::Response,
};

const MAX_BODY_BYTES: usize = 16 * 1024 * 1024;
const MAX_IN_FLIGHT: usize = 1024;
const BODY_READ_TIMEOUT: Duration = Duration::from_secs(5);

/// What is read of a record.
#[derive(Deserialize)]
pub struct Record<'a> {
    /// Its id.
    #[serde(borrow)]
    pub id: Cow<'a, str>,
}

/// The answer, in hookgate's words.
#[derive(Serialize)]
struct Received {
    status: &'static str,
    action: &'static str,
    new_ids_count: usize,
    total_ids_in_batch: usize,
}

/// The records of a body.
///
/// # Errors
/// The answer, if it is none.
pub fn records(body: &[u8]) -> Result<Vec<Record<'_>>, StatusCode> {
    serde_json::from_slice(body).map_err(|_not_json| StatusCode::BAD_REQUEST)
}

/// The answer to a batch.
///
/// # Panics
/// Never: strings and numbers always serialize.
#[must_use]
pub fn received(new: usize, total: usize) -> Response {
    let received = Received { status: "received", action: "create", new_ids_count: new, total_ids_in_batch: total };
    let mut response = serde_json::to_vec(&received).expect("strings and numbers always serialize").into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

async fn read(length: Option<u64>, body: impl Stream<Item = Result<impl Buf, warp::Error>>) -> Option<Bytes> {
    let announced = usize::try_from(length.unwrap_or_default()).ok().filter(|length| *length <= MAX_BODY_BYTES)?;
    let until = Instant::now() + BODY_READ_TIMEOUT;
    let mut body = std::pin::pin!(body);
    let mut bytes = Vec::with_capacity(announced);
    while let Some(chunk) = timeout_at(until, body.next()).await.ok()? {
        let mut chunk = chunk.ok()?;
        if bytes.len() + chunk.remaining() > MAX_BODY_BYTES {
            return None;
        }
        while chunk.has_remaining() {
            let part = chunk.chunk();
            bytes.extend_from_slice(part);
            let length = part.len();
            chunk.advance(length);
        }
    }
    Some(bytes.into())
}

fn webhook<F>(
    answer: impl Fn(Bytes) -> F + Clone + Send + Sync + 'static,
) -> impl Filter<Extract = (Response,), Error = Rejection> + Clone
where
    F: Future<Output = Response> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(MAX_IN_FLIGHT));
    warp::path!("vmh" / "webhook" / "beteiligte" / "create")
        .and(warp::post())
        .and(warp::header::optional::<u64>(header::CONTENT_LENGTH.as_str()))
        .and(warp::body::stream())
        .then(move |length, body| {
            let (places, answer) = (Arc::clone(&places), answer.clone());
            async move {
                let Ok(_place) = places.try_acquire() else {
                    return StatusCode::SERVICE_UNAVAILABLE.into_response();
                };
                match read(length, body).await {
                    Some(body) => answer(body).await,
                    None => StatusCode::PAYLOAD_TOO_LARGE.into_response(),
                }
            }
        })
}

/// Serves for good; `answer` makes of a body what is answered.
///
/// # Errors
/// If it can't listen, or accept, any more.
pub async fn serve<F>(
    address: SocketAddr,
    answer: impl Fn(Bytes) -> F + Clone + Send + Sync + 'static,
) -> std::io::Result<Infallible>
where
    F: Future<Output = Response> + Send + 'static,
{
    let listener = TcpListener::bind(address).await?;
    let service = TowerToHyperService::new(warp::service(webhook(answer)));
    let connections = TaskTracker::new();
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new());
    loop {
        let (stream, _) = listener.accept().await?;
        connections.spawn(http.serve_connection(TokioIo::new(stream), service.clone()));
    }
}

/// The runtime that hookgate takes for so many threads; 0 is as many as there are cores. Up to two, one of them serves.
///
/// # Errors
/// If the system does not give what it needs.
pub fn runtime(threads: usize) -> std::io::Result<Runtime> {
    let threads = NonZero::new(threads).or_else(|| std::thread::available_parallelism().ok()).map_or(1, NonZero::get);
    let mut runtime = match threads {
        1 | 2 => Builder::new_current_thread(),
        _ => Builder::new_multi_thread(),
    };
    runtime.worker_threads(threads).enable_all().build()
}
