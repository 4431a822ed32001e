//! Accepts connections and bounds them in number and time; warp's own server does neither.

mod heads;
mod wire;

use std::{
    convert::Infallible,
    future::poll_fn,
    io,
    net::SocketAddr,
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::Poll,
    time::Duration,
};

use futures_util::FutureExt;
use hyper::{
    HeaderMap, Request, Version,
    body::Incoming,
    header::{HOST, TRANSFER_ENCODING},
    server::conn::http1,
    service::Service,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpSocket},
    sync::{Semaphore, watch},
    time::Instant,
};
use tokio_util::task::TaskTracker;
use tracing::{debug, error, info, warn};
use warp::reply::Response;

pub use self::wire::{HungUp, Unwanted};
use self::{
    heads::Ambiguous,
    wire::{Wire, hung_up},
};
use crate::{
    failpoint,
    http::{self, BadHead},
    metrics::ConnectionMetrics,
    shutdown::Phase,
    supervision::keep_on,
};

/// Connections that may wait to be accepted; the system has a limit of its own (`net.core.somaxconn`, 4096 by
/// default). One that finds no room tries again after a second.
const BACKLOG: u32 = 4096;
/// How long a connection over the limit may take to hear that it is one.
const REFUSE_WITHIN: Duration = Duration::from_secs(5);
/// Most connections over the limit that are being told so, an eighth of those within it; beyond, new ones wait in the
/// kernel's queue.
const MAX_REFUSING: usize = 512;
/// The log says at most this often that connections are refused.
const SAY_EVERY: Duration = Duration::from_secs(10);
/// Pause after an error that will not go away at once, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Most lines of a head for which hyper has room on the stack. It is not told of a lower limit, for then it would copy
/// that room twice for each request.
const HEADERS_ON_STACK: usize = 100;
/// Least room for what a connection sends; hyper takes no less.
const MIN_BUFFER: usize = 8 * 1024;

/// Limits of a listener's connections.
#[derive(Debug, Clone)]
pub struct ConnectionLimits {
    /// At once; one more is accepted, answered 503 and closed.
    pub max_connections: usize,
    /// From accepting to the end of the first request's head.
    pub first_request_timeout: Duration,
    /// From a response to the end of the next request's head.
    pub header_read_timeout: Duration,
    /// Of all lines of a head.
    pub max_header_bytes: usize,
    /// Lines of a head.
    pub max_headers: usize,
    /// Of a body that comes behind its answer.
    pub unwanted: Unwanted,
}

/// A bound address failed to be bound.
#[derive(Debug, thiserror::Error)]
#[error("listen on {address} ({key}): {problem}")]
pub struct BindError {
    address: SocketAddr,
    key: &'static str,
    problem: io::Error,
}

/// Binds an address, and says which one that is: the system chooses where the port is 0. `key` is where the
/// configuration has it.
///
/// # Errors
/// With the address and the key.
pub async fn bind(key: &'static str, address: SocketAddr) -> Result<(TcpListener, SocketAddr), BindError> {
    let bound = async {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        // As for any server: a port whose last connections are still being forgotten can be taken again.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        let listener = socket.listen(BACKLOG)?;
        let address = listener.local_addr()?;
        Ok((listener, address))
    };
    bound.await.map_err(|problem| BindError { address, key, problem })
}

/// Serves connections until the process closes; then waits for none of them. `connections` owns the tasks.
pub async fn serve<S>(
    listener: TcpListener,
    service: S,
    limits: ConnectionLimits,
    mut phase: watch::Receiver<Phase>,
    connections: TaskTracker,
    metrics: ConnectionMetrics,
) where
    S: Service<Request<Incoming>, Response = Response, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    let places = Arc::new(Semaphore::new(limits.max_connections));
    let refusing = Arc::new(Semaphore::new(refusing_beside(limits.max_connections)));
    let mut said: Option<Instant> = None;
    let mut accept = async |phase: &mut watch::Receiver<Phase>| loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _closing = phase.wait_for(|phase| *phase == Phase::Closing) => return,
        };
        failpoint::hit("in_accept");
        let stream = match accepted {
            Ok((stream, _peer)) => stream,
            Err(error) if is_about_one_connection(&error) => continue,
            Err(error) => {
                error!(%error, "cannot accept connections; trying again");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Answers are one small write each.
        if let Err(error) = stream.set_nodelay(true) {
            debug!(%error, "connection is gone already");
            continue;
        }
        if let Ok(place) = Arc::clone(&places).try_acquire_owned() {
            let (service, limits, phase) = (service.clone(), limits.clone(), phase.clone());
            let metrics = metrics.clone();
            connections.spawn(async move {
                let _open = metrics.opened();
                connection(stream, hung_up, service, &limits, phase, &metrics).await;
                drop(place);
            });
        } else if let Ok(place) = Arc::clone(&refusing).acquire_owned().await {
            if said.is_none_or(|at| at.elapsed() >= SAY_EVERY) {
                said = Some(Instant::now());
                warn!(
                    limit = limits.max_connections,
                    code = "too_many_connections",
                    "connections over server.max_connections are answered 503; said at most every {SAY_EVERY:?}"
                );
            }
            let (limits, metrics) = (limits.clone(), metrics.clone());
            connections.spawn(async move {
                let limit = limits.max_connections;
                let service = hyper::service::service_fn(move |_request: Request<Incoming>| {
                    metrics.refused();
                    std::future::ready(Ok::<_, Infallible>(http::too_many_connections(limit)))
                });
                let told = builder(&limits).keep_alive(false).serve_connection(
                    TokioIo::new(Wire::new(stream, hung_up, Arc::default(), limits.unwanted)),
                    service,
                );
                if tokio::time::timeout(REFUSE_WITHIN, told).await.is_err() {
                    debug!("a connection over the limit did not wait for its answer");
                }
                drop(place);
            });
        }
    };
    let name = listener.local_addr().map_or_else(|_| "a listener".to_owned(), |at| format!("the listener at {at}"));
    keep_on!(&name, accept(&mut phase));
}

/// Connections over a limit that are open at once.
#[must_use]
pub const fn refusing_beside(max_connections: usize) -> usize {
    match max_connections / 8 {
        0..16 => 16,
        16..MAX_REFUSING => max_connections / 8,
        _ => MAX_REFUSING,
    }
}

fn builder(limits: &ConnectionLimits) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_read_timeout)
        // `Wire` looks for the end of a connection while a request is worked on.
        .half_close(true)
        // No more room than for a head: hyper's own limit of 400 KiB would be 400 MiB for a thousand connections, on
        // nobody's account. A body is read in pieces of this size.
        .max_buf_size(limits.max_header_bytes.max(MIN_BUFFER))
        .max_header_size(limits.max_header_bytes);
    if limits.max_headers > HEADERS_ON_STACK {
        builder.max_headers(limits.max_headers);
    }
    builder
}

/// Serves one connection until it ends, or until `hung_up` says that nobody waits for an answer.
pub async fn connection<T, S>(
    stream: T,
    hung_up: HungUp<T>,
    service: S,
    limits: &ConnectionLimits,
    mut phase: watch::Receiver<Phase>,
    metrics: &ConnectionMetrics,
) where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Incoming>, Response = Response, Error = Infallible>,
{
    let at_work = Arc::new(AtomicU64::new(0));
    let wire = Wire::new(stream, hung_up, Arc::clone(&at_work), limits.unwanted);
    let requests = Arc::new(AtomicU64::new(0));
    let service = {
        let service = Arc::new(service);
        let (requests, ambiguous, max_headers) = (Arc::clone(&requests), wire.ambiguous(), limits.max_headers);
        hyper::service::service_fn(move |request| {
            let number = requests.fetch_add(1, Ordering::Relaxed);
            let problem = bad_head(&request, number, &ambiguous, max_headers);
            let chunked = request.headers().contains_key(TRANSFER_ENCODING);
            // What is made in here has its place in here; handed in, it would be copied, and have two.
            let (service, at_work) = (Arc::clone(&service), Arc::clone(&at_work));
            async move {
                at_work.store(number + 1, Ordering::Relaxed);
                let answer = match problem {
                    None => Ok(AssertUnwindSafe(service.call(request)).catch_unwind().await),
                    Some(problem) => Err(problem),
                };
                at_work.store(0, Ordering::Relaxed);
                let response = match answer {
                    Ok(Ok(Ok(answer))) => answer,
                    problem => {
                        let response = match problem {
                            Err(problem) => http::refuse_head(problem),
                            // The panic is in the log.
                            Ok(_panic) => http::internal_error(),
                        };
                        metrics.unreadable(response.status().as_u16());
                        response
                    }
                };
                // Where it ends is known to hyper alone: what comes behind it is not looked at (`heads`).
                Ok::<_, Infallible>(if chunked { http::last(response) } else { response })
            }
        })
    };
    let serving = builder(limits).serve_connection(TokioIo::new(wire), service);
    let mut serving = std::pin::pin!(serving);
    let first_head = tokio::time::sleep(limits.first_request_timeout);
    let mut first_head = std::pin::pin!(first_head);
    // Looked at no more once something was asked, which each turn of a connection would pay for.
    let silent =
        poll_fn(|cx| if requests.load(Ordering::Relaxed) == 0 { first_head.as_mut().poll(cx) } else { Poll::Pending });
    let mut silent = std::pin::pin!(silent);
    let mut open = true;
    loop {
        tokio::select! {
            ended = serving.as_mut() => {
                if let Err(error) = ended {
                    if let Some(status) = answered_to(&error) {
                        metrics.unreadable(status);
                        info!(status, %error, "request refused: its head can't be read");
                    } else {
                        debug!(%error, "connection ended early");
                    }
                }
                return;
            }
            () = silent.as_mut() => {
                debug!("closed a connection that asked nothing in time");
                return;
            }
            _closing = phase.wait_for(|phase| *phase == Phase::Closing), if open => {
                open = false;
                serving.as_mut().graceful_shutdown();
            }
        }
    }
}

/// What hyper serves nevertheless.
fn bad_head<B>(request: &Request<B>, number: u64, ambiguous: &Ambiguous, max_headers: usize) -> Option<BadHead> {
    if ambiguous.is(number) || is_chunked_twice(request.headers()) {
        return Some(BadHead::Length);
    }
    if request.uri().path_and_query().is_none() {
        return Some(BadHead::NoPath);
    }
    let lines = request.headers().len();
    if lines > max_headers {
        return Some(BadHead::TooManyHeaders { lines, limit: max_headers });
    }
    let hosts = request.headers().get_all(HOST).iter().count();
    (hosts > 1 || hosts == 0 && request.version() > Version::HTTP_10).then_some(BadHead::Host)
}

/// Whether the body of a body is in chunks, which RFC 9112 forbids: hyper undoes that once, others may do it twice.
fn is_chunked_twice(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(TRANSFER_ENCODING).iter();
    let codings = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    codings.filter(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"chunked")).count() > 1
}

/// What hyper has answered by itself to a head that it could not read.
fn answered_to(error: &hyper::Error) -> Option<u16> {
    if error.is_parse_too_large() {
        return Some(431);
    }
    error.is_parse().then_some(400)
}

/// Whether only the connection that was to be accepted is affected.
fn is_about_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}
