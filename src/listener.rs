//! Accepts connections and limits their number and their time; warp's own server does neither.

mod heads;
mod lingering;

use std::{
    convert::Infallible, future::ready, io, net::SocketAddr, panic::AssertUnwindSafe, pin::pin, sync::Arc,
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
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::Instant,
};
use tokio_util::task::TaskTracker;
use tracing::{debug, error, info, warn};
use warp::reply::Response;

pub use self::lingering::{HungUp, LingerLimits};
use self::{
    heads::Ambiguous,
    lingering::{LingeringStream, Progress, hung_up},
};
use crate::{
    event::TokenSeed,
    failpoint,
    metrics::ConnectionMetrics,
    reply::{self, Refusal},
    shutdown::Phase,
    supervision::supervise,
};

/// Most connections that wait to be accepted. The system's own limit is `net.core.somaxconn`, 4096 by default. A
/// connection beyond is dropped, and its client tries again after a second.
const BACKLOG: u32 = 4096;
/// How long a connection over the limit may take to get its 503.
const REFUSE_WITHIN: Duration = Duration::from_secs(5);
/// Most connections over the limit that get their 503 at once; beyond, new ones wait in the kernel's queue.
const MAX_REFUSING: usize = 512;
/// The log says at most this often that connections are refused.
const SAY_EVERY: Duration = Duration::from_secs(10);
/// Pause after an error that lasts, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Header lines that hyper keeps on the stack. Setting a limit up to here would make hyper copy them twice per request.
const HEADERS_ON_STACK: usize = 100;
/// Smallest read buffer that hyper allows.
const MIN_BUFFER: usize = 8 * 1024;

/// Limits of a listener's connections.
#[derive(Debug, Clone)]
pub struct ConnectionLimits {
    /// Most open connections. One more is accepted, answered 503 and closed.
    pub max_connections: usize,
    /// The setting of that limit, for the log.
    pub max_connections_setting: &'static str,
    /// From accepting to the end of the first request's head.
    pub first_request_timeout: Duration,
    /// From a response to the end of the next request's head.
    pub header_read_timeout: Duration,
    /// Most bytes of a head.
    pub max_header_bytes: usize,
    /// Most lines of a head.
    pub max_headers: usize,
    /// How long a sender may take nothing of its answer.
    pub write_timeout: Duration,
    /// Limits for a body that arrives after its answer.
    pub linger: LingerLimits,
}

impl ConnectionLimits {
    /// The `write_timeout` in use. Only a sender that has stopped reading reaches it.
    pub const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

    #[cfg(test)]
    pub(crate) const fn for_tests() -> Self {
        let timeout = Duration::from_secs(10);
        Self {
            max_connections: 1,
            max_connections_setting: "the test",
            first_request_timeout: timeout,
            header_read_timeout: timeout,
            max_header_bytes: MIN_BUFFER,
            max_headers: 10,
            write_timeout: timeout,
            linger: LingerLimits { max_bytes: 1000, timeout },
        }
    }
}

/// An address could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("listen on {address} ({key}): {problem}")]
pub struct BindError {
    address: SocketAddr,
    key: &'static str,
    problem: io::Error,
}

/// Binds an address and returns the one in use: for port 0 the system chooses a port. `key` is the setting of the
/// address.
///
/// # Errors
/// If the address can't be bound. The error names address and key.
pub async fn bind(key: &'static str, address: SocketAddr) -> Result<(TcpListener, SocketAddr), BindError> {
    let bound = async {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        // A restart can bind the port at once, while old connections are in TIME_WAIT.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        let listener = socket.listen(BACKLOG)?;
        let address = listener.local_addr()?;
        Ok((listener, address))
    };
    bound.await.map_err(|problem| BindError { address, key, problem })
}

/// Accepts connections until the process closes. Does not wait for open ones: `connections` owns their tasks. Each connection has
/// the limits of the moment it begins, but for the number of connections, which is that of the start.
pub async fn serve<S>(
    listener: TcpListener,
    service: S,
    limits: impl Fn() -> ConnectionLimits + Send,
    phase: watch::Receiver<Phase>,
    connections: TaskTracker,
    metrics: ConnectionMetrics,
) where
    S: Service<Request<Incoming>, Response = Response, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    let name = listener.local_addr().map_or_else(|_| "a listener".to_owned(), |at| format!("the listener at {at}"));
    let max_connections = limits().max_connections;
    let mut acceptor = Acceptor {
        permits: Arc::new(Semaphore::new(max_connections)),
        refusing: Arc::new(Semaphore::new(refusing_beside(max_connections))),
        said: None,
        listener,
        service,
        limits,
        phase,
        connections,
        metrics,
    };
    supervise!(&name, acceptor.run());
}

/// Accepts connections. Keeps its state over a panic.
struct Acceptor<S, L> {
    listener: TcpListener,
    service: S,
    limits: L,
    phase: watch::Receiver<Phase>,
    connections: TaskTracker,
    metrics: ConnectionMetrics,
    /// One for each connection within the limit.
    permits: Arc<Semaphore>,
    /// One for each connection over the limit that is getting its 503.
    refusing: Arc<Semaphore>,
    /// The last time that the log said that connections are refused, and the trace id it used.
    said: Option<(Instant, TokenSeed)>,
}

impl<S, L> Acceptor<S, L>
where
    S: Service<Request<Incoming>, Response = Response, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send,
    L: Fn() -> ConnectionLimits + Send,
{
    /// Accepts until the process closes.
    async fn run(&mut self) {
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                _closing = self.phase.wait_for(|phase| *phase == Phase::Closing) => return,
            };
            failpoint::hit("in_accept");
            match accepted {
                Ok((stream, _peer)) => self.take(stream).await,
                Err(error) if is_about_one_connection(&error) => {}
                Err(error) => {
                    error!(%error, "cannot accept connections; trying again");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Serves a connection, or refuses it. Waits while too many are being refused.
    async fn take(&mut self, stream: TcpStream) {
        // Answers are one small write each.
        if let Err(error) = stream.set_nodelay(true) {
            debug!(%error, "connection is gone already");
        } else if let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() {
            self.serve(stream, permit);
        } else if let Ok(permit) = Arc::clone(&self.refusing).acquire_owned().await {
            self.refuse(stream, permit);
        }
    }

    fn serve(&self, stream: TcpStream, permit: OwnedSemaphorePermit) {
        let (service, limits, phase) = (self.service.clone(), (self.limits)(), self.phase.clone());
        let metrics = self.metrics.clone();
        self.connections.spawn(async move {
            let _open = metrics.opened();
            connection(stream, hung_up, service, &limits, phase, &metrics).await;
            drop(permit);
        });
    }

    fn refuse(&mut self, stream: TcpStream, permit: OwnedSemaphorePermit) {
        let trace_id = self.say_that_connections_are_refused();
        let (limits, metrics) = ((self.limits)(), self.metrics.clone());
        self.connections.spawn(async move {
            refuse(stream, &limits, metrics, trace_id).await;
            drop(permit);
        });
    }

    /// Returns the trace id in the log. All connections that are refused within 10 s share one.
    fn say_that_connections_are_refused(&mut self) -> TokenSeed {
        if let Some((at, trace_id)) = self.said
            && at.elapsed() < SAY_EVERY
        {
            return trace_id;
        }
        let trace_id = TokenSeed::now();
        self.said = Some((Instant::now(), trace_id));
        let ConnectionLimits { max_connections: limit, max_connections_setting: setting, .. } = (self.limits)();
        let code = Refusal::TooManyConnections { limit, setting }.status().1;
        warn!(limit, code, %trace_id, "connections over {setting} are answered 503; said at most every {SAY_EVERY:?}");
        trace_id
    }
}

/// Answers the first request of a connection over the limit.
async fn refuse(stream: TcpStream, limits: &ConnectionLimits, metrics: ConnectionMetrics, trace_id: TokenSeed) {
    let (limit, setting) = (limits.max_connections, limits.max_connections_setting);
    let service = hyper::service::service_fn(move |_request: Request<Incoming>| {
        let refusal = Refusal::TooManyConnections { limit, setting };
        let response = reply::last(refusal.response(trace_id));
        metrics.answered(response.status().as_u16(), refusal.shed());
        ready(Ok::<_, Infallible>(response))
    });
    let stream = LingeringStream::new(stream, hung_up, Arc::default(), limits);
    let told = builder(limits).keep_alive(false).serve_connection(TokioIo::new(stream), service);
    if tokio::time::timeout(REFUSE_WITHIN, told).await.is_err() {
        debug!("a connection over the limit did not wait for its answer");
    }
}

/// Most connections over the limit that are answered at once: an eighth of it, from 16 to `MAX_REFUSING`.
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
        // `LingeringStream` notices the end of a connection while a request is worked on.
        .half_close(true)
        // Buffers lie outside the budget, so they are as small as a head: hyper's default of 400 KiB is 400 MiB for
        // 1,000 connections. A body is read in pieces of this size.
        .max_buf_size(limits.max_header_bytes.max(MIN_BUFFER))
        .max_header_size(limits.max_header_bytes);
    if limits.max_headers > HEADERS_ON_STACK {
        builder.max_headers(limits.max_headers);
    }
    builder
}

/// Serves one connection until it ends, or until its sender hangs up.
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
    let progress = Arc::<Progress>::default();
    let stream = LingeringStream::new(stream, hung_up, Arc::clone(&progress), limits);
    let (ambiguous, max_headers) = (stream.ambiguous(), limits.max_headers);
    let answering = Arc::new(Answering { service, progress: Arc::clone(&progress), ambiguous, max_headers, metrics });
    let service = hyper::service::service_fn(move |request| answering.answer(request));
    let mut serving = pin!(builder(limits).serve_connection(TokioIo::new(stream), service));
    let mut first_head = pin!(tokio::time::sleep(limits.first_request_timeout));
    let (mut silent, mut open) = (true, true);
    loop {
        tokio::select! {
            ended = serving.as_mut() => return log_end(ended, metrics),
            () = first_head.as_mut(), if silent => {
                silent = progress.is_silent();
                if silent {
                    return debug!("closed a connection that asked nothing in time");
                }
            }
            _closing = phase.wait_for(|phase| *phase == Phase::Closing), if open => {
                open = false;
                serving.as_mut().graceful_shutdown();
            }
        }
    }
}

/// Answers the requests of one connection.
struct Answering<'a, S> {
    service: S,
    progress: Arc<Progress>,
    ambiguous: Ambiguous,
    max_headers: usize,
    metrics: &'a ConnectionMetrics,
}

impl<'a, S> Answering<'a, S>
where
    S: Service<Request<Incoming>, Response = Response, Error = Infallible>,
{
    fn answer(
        self: &Arc<Self>,
        request: Request<Incoming>,
    ) -> impl Future<Output = Result<Response, Infallible>> + use<'a, S> {
        let this = Arc::clone(self);
        let number = this.progress.begin();
        let problem = bad_head(&request, number, &this.ambiguous, this.max_headers);
        let chunked = request.headers().contains_key(TRANSFER_ENCODING);
        // Build the service's future here; passing it in would copy it.
        async move {
            this.progress.works_on(number);
            let response = match problem {
                Some(refusal) => this.refuse(&refusal),
                None => match AssertUnwindSafe(this.service.call(request)).catch_unwind().await {
                    Ok(Ok(response)) => response,
                    // EspoCRM 10 does not repeat a request whose connection closes without an answer.
                    Err(_panic) => {
                        this.refuse(&Refusal::Internal("the request panicked; the panic is logged before".to_owned()))
                    }
                },
            };
            this.progress.rests();
            // `heads` does not follow chunked bodies, so nothing may come after one.
            Ok(if chunked { reply::last(response) } else { response })
        }
    }

    /// Answers a request that has not reached a filter, or whose filter panicked.
    fn refuse(&self, refusal: &Refusal) -> Response {
        let ((code, error), trace_id) = (refusal.status(), TokenSeed::now());
        let status = code.as_u16();
        self.metrics.answered(status, None);
        if code.is_server_error() {
            error!(status, code = error, %trace_id, "request refused: {refusal}");
            return refusal.response(trace_id);
        }
        info!(status, code = error, "request refused: {refusal}");
        reply::last(refusal.response(trace_id))
    }
}

/// Counts and logs a head that hyper could not read.
fn log_end(ended: hyper::Result<()>, metrics: &ConnectionMetrics) {
    let Err(error) = ended else { return };
    if let Some(status) = answered_to(&error) {
        metrics.answered(status, None);
        info!(status, %error, "request refused: its head can't be read");
    } else {
        debug!(%error, "connection ended early");
    }
}

/// What is wrong with a head that hyper accepts: two readers may understand it differently, it has no path, or it is
/// over a limit. Boxed: the rare refusal would enlarge every request's future.
fn bad_head<B>(request: &Request<B>, number: u64, ambiguous: &Ambiguous, max_headers: usize) -> Option<Box<Refusal>> {
    if ambiguous.is(number) || is_chunked_twice(request.headers()) {
        return Some(Box::new(Refusal::LengthUnclear));
    }
    if request.uri().path_and_query().is_none() {
        return Some(Box::new(Refusal::NoPath));
    }
    let lines = request.headers().len();
    if lines > max_headers {
        return Some(Box::new(Refusal::TooManyHeaders { lines, limit: max_headers }));
    }
    let hosts = request.headers().get_all(HOST).iter().count();
    (hosts > 1 || hosts == 0 && request.version() > Version::HTTP_10).then(|| Box::new(Refusal::HostUnclear))
}

/// Whether the body is chunked twice, which RFC 9112 forbids. hyper decodes it once; a proxy may decode it twice.
fn is_chunked_twice(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(TRANSFER_ENCODING).iter();
    let codings = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    codings.filter(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"chunked")).count() > 1
}

/// The status that hyper has sent for a head that it could not read.
fn answered_to(error: &hyper::Error) -> Option<u16> {
    if error.is_parse_too_large() {
        return Some(431);
    }
    error.is_parse().then_some(400)
}

/// Whether the error is about one connection, so that the next one can be accepted at once.
fn is_about_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}
