//! The floor: what warp, hyper and tokio take to read a webhook, parse it and answer, with nothing behind it.
//!
//! The limits are of hookgate's kind (requests in flight, size, time to read), the ids of the records are
//! collected and everything else is skipped; no store, no metrics, no log. `floor ADDRESS [THREADS]`, where 0, the
//! default, is as many as there are cores; up to two are tokio's current-thread runtime, as in hookgate. Its allocator
//! is hookgate's too.

use std::{
    borrow::Cow, convert::Infallible, net::SocketAddr, num::NonZero, process::ExitCode, sync::Arc, time::Duration,
};

use bytes::{Buf, Bytes};
use futures_util::{Stream, StreamExt};
use hyper::server::conn::http1;
use hyper_util::{rt::TokioIo, rt::TokioTimer, service::TowerToHyperService};
use mimalloc::MiMalloc;
use serde::{Deserialize, Serialize};
use tokio::{
    net::TcpListener,
    sync::Semaphore,
    time::{Instant, timeout_at},
};
use tokio_util::task::TaskTracker;
use warp::{
    Filter, Rejection, Reply,
    http::{HeaderValue, StatusCode, header},
    reply::Response,
};

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

const MAX_BODY_BYTES: usize = 16 * 1024 * 1024;
const MAX_IN_FLIGHT: usize = 1024;
const BODY_READ_TIMEOUT: Duration = Duration::from_secs(5);

/// What is read of a record.
#[derive(Deserialize)]
struct Record<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
}

/// The answer, in hookgate's words.
#[derive(Serialize)]
struct Received {
    status: &'static str,
    action: &'static str,
    new_ids_count: usize,
    total_ids_in_batch: usize,
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

fn answer(body: &[u8]) -> Response {
    let Ok(records) = serde_json::from_slice::<Vec<Record<'_>>>(body) else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    // Counted by their bytes, so that the ids have been looked at.
    let valid = records.iter().filter(|record| (1..=255).contains(&record.id.len())).count();
    let received =
        Received { status: "received", action: "create", new_ids_count: valid, total_ids_in_batch: records.len() };
    let mut response = serde_json::to_vec(&received).expect("strings and numbers always serialize").into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn webhook() -> impl Filter<Extract = (Response,), Error = Rejection> + Clone {
    let places = Arc::new(Semaphore::new(MAX_IN_FLIGHT));
    warp::path!("vmh" / "webhook" / "beteiligte" / "create")
        .and(warp::post())
        .and(warp::header::optional::<u64>(header::CONTENT_LENGTH.as_str()))
        .and(warp::body::stream())
        .then(move |length, body| {
            let places = Arc::clone(&places);
            async move {
                let Ok(_place) = places.try_acquire() else {
                    return StatusCode::SERVICE_UNAVAILABLE.into_response();
                };
                match read(length, body).await {
                    Some(body) => answer(&body),
                    None => StatusCode::PAYLOAD_TOO_LARGE.into_response(),
                }
            }
        })
}

async fn serve(address: SocketAddr) -> std::io::Result<Infallible> {
    let listener = TcpListener::bind(address).await?;
    let service = TowerToHyperService::new(warp::service(webhook()));
    let connections = TaskTracker::new();
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new());
    loop {
        let (stream, _) = listener.accept().await?;
        connections.spawn(http.serve_connection(TokioIo::new(stream), service.clone()));
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let address = arguments.first().and_then(|address| address.parse().ok());
    let threads = arguments.get(1).map_or(Ok(0), |threads| threads.parse());
    let (Some(address), Ok(threads)) = (address, threads) else {
        eprintln!("usage: floor ADDRESS [THREADS]");
        return ExitCode::from(2);
    };
    let threads = NonZero::new(threads).or_else(|| std::thread::available_parallelism().ok()).map_or(1, NonZero::get);
    let mut runtime = match threads {
        1 | 2 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    runtime.worker_threads(threads);
    let ended = runtime.enable_all().build().and_then(|runtime| runtime.block_on(serve(address)));
    let Err(error) = ended;
    eprintln!("floor: serve on {address}: {error}");
    ExitCode::FAILURE
}
