//! Sends spans to the collector, in batches, in the background. At shutdown it sends what is left.

use std::{sync::Arc, sync::atomic::Ordering, time::Duration};

use bytes::Bytes;
use futures_util::{FutureExt, future::BoxFuture};
use http::{Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{ExporterBuildError, Protocol, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::{
    Resource,
    trace::{SpanData, SpanExporter},
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout, timeout_at},
};
use tokio_util::task::TaskTracker;
use tracing::{info, warn};
use url::Url;

use super::{Queue, Tracer};
use crate::shutdown::Phase;

/// Most spans that wait to be sent; more are dropped.
const MAX_QUEUED: usize = 8192;
/// Most spans in one request to the collector.
const TOGETHER: usize = 512;
/// How long the first span of a batch waits for others.
const GATHER: Duration = Duration::from_secs(1);
/// Time-out of one request to the collector.
const EXPORT_WITHIN: Duration = Duration::from_secs(2);
/// Longest answer of the collector that is read.
const MAX_ANSWER: usize = 64 * 1024;

/// The address of a collector that speaks OTLP over HTTP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collector(Url);

/// The address can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}; write http://collector:4318 (OTLP over HTTP; the path /v1/traces is added)")]
pub struct CollectorError(String);

impl Collector {
    /// Reads an address such as `http://collector:4318`.
    ///
    /// # Errors
    /// If it is not an http URL, or has credentials, a query or a fragment.
    pub fn parse(address: &str) -> Result<Self, CollectorError> {
        let wrong = |problem: &str| CollectorError(problem.to_owned());
        let mut url = Url::parse(address).map_err(|error| CollectorError(format!("is no address ({error})")))?;
        match url.scheme() {
            "http" => {}
            "https" => return Err(wrong("TLS to the collector is not supported: use one beside hookgate")),
            _ => return Err(wrong("is not http")),
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(wrong("holds credentials, which would not be sent"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(wrong("has something behind the path"));
        }
        let path = format!("{}/v1/traces", url.path().trim_end_matches('/'));
        url.set_path(&path);
        Ok(Self(url))
    }

    /// Starts the task that sends spans, until the process closes.
    ///
    /// # Errors
    /// If the client can't be set up at all.
    pub fn start(&self, phase: watch::Receiver<Phase>, tasks: &TaskTracker) -> Result<Tracer, ExporterBuildError> {
        let mut exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_http_client(Http(Client::builder(TokioExecutor::new()).build_http()))
            .with_endpoint(self.0.as_str())
            .with_protocol(Protocol::HttpBinary)
            .with_timeout(EXPORT_WITHIN)
            .build()?;
        let instance = uuid::Uuid::now_v7().to_string();
        let resource = Resource::builder_empty()
            .with_attributes([
                KeyValue::new("service.name", "hookgate"),
                KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
                KeyValue::new("service.instance.id", instance),
            ])
            .build();
        exporter.set_resource(&resource);
        let (spans, queued) = mpsc::channel(MAX_QUEUED);
        let scope = InstrumentationScope::builder("hookgate").with_version(env!("CARGO_PKG_VERSION")).build();
        let queue = Arc::new(Queue { spans, dropped: 0.into(), scope });
        let sender = Sender { exporter, queue: Arc::downgrade(&queue), collector: self.clone(), failing: false };
        tasks.spawn(sender.run(queued, phase));
        Ok(Tracer(Some(queue)))
    }
}

/// Sends the exporter's requests, which [`Sender`] limits in time.
#[derive(Debug)]
struct Http(Client<HttpConnector, Full<Bytes>>);

impl HttpClient for Http {
    fn send_bytes<'a, 'b>(&'a self, request: Request<Bytes>) -> BoxFuture<'b, Result<Response<Bytes>, HttpError>>
    where
        'a: 'b,
        Self: 'b,
    {
        async move {
            let (head, body) = self.0.request(request.map(Full::new)).await?.into_parts();
            let body = Limited::new(body, MAX_ANSWER).collect().await?;
            Ok(Response::from_parts(head, body.to_bytes()))
        }
        .boxed()
    }
}

struct Sender {
    exporter: opentelemetry_otlp::SpanExporter,
    queue: std::sync::Weak<Queue>,
    collector: Collector,
    failing: bool,
}

impl Sender {
    async fn run(mut self, mut queued: mpsc::Receiver<SpanData>, mut phase: watch::Receiver<Phase>) {
        let mut batch = Vec::with_capacity(TOGETHER);
        loop {
            tokio::select! {
                received = queued.recv_many(&mut batch, TOGETHER) => if received == 0 { return },
                _leaving = phase.wait_for(|phase| *phase >= Phase::Flushing), if !queued.is_closed() => {
                    queued.close();
                    continue;
                }
            }
            let until = Instant::now() + GATHER;
            while batch.len() < TOGETHER && !queued.is_closed() {
                let room = TOGETHER - batch.len();
                tokio::select! {
                    more = timeout_at(until, queued.recv_many(&mut batch, room)) => if matches!(more, Err(_) | Ok(0)) { break },
                    _leaving = phase.wait_for(|phase| *phase >= Phase::Flushing) => queued.close(),
                }
            }
            self.export(std::mem::replace(&mut batch, Vec::with_capacity(TOGETHER))).await;
        }
    }

    /// Sends a batch. Spans that the collector does not take are lost; the log says so once.
    async fn export(&mut self, batch: Vec<SpanData>) {
        let spans = batch.len();
        let outcome = match timeout(EXPORT_WITHIN, self.exporter.export(batch)).await {
            Ok(outcome) => outcome.map_err(|error| error.to_string()),
            Err(_elapsed) => Err(format!("no answer within {EXPORT_WITHIN:?}")),
        };
        let collector = self.collector.0.as_str();
        match &outcome {
            Ok(()) if self.failing => info!(collector, "the collector takes spans again"),
            Err(error) if !self.failing => {
                warn!(collector, spans, %error, "spans are lost: the collector (tracing.otlp_endpoint) does not take them");
            }
            _ => {}
        }
        self.failing = outcome.is_err();
        let dropped = self.queue.upgrade().map_or(0, |queue| queue.dropped.swap(0, Ordering::Relaxed));
        if dropped > 0 {
            warn!(dropped, "spans are lost: they come faster than the collector takes them");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Collector;

    #[test]
    fn an_address_gets_the_path_of_traces() {
        let path = |address| Collector::parse(address).map(|collector| collector.0.to_string());
        assert_eq!(path("http://collector:4318").as_deref(), Ok("http://collector:4318/v1/traces"));
        assert_eq!(path("http://collector:4318/").as_deref(), Ok("http://collector:4318/v1/traces"));
        assert_eq!(path("http://[::1]:4318/otlp/").as_deref(), Ok("http://[::1]:4318/otlp/v1/traces"));
        for bad in ["", "collector:4318", "https://c:4318", "grpc://c:4317", "http://u:p@c:4318", "http://c/?a=b"] {
            assert!(path(bad).is_err(), "{bad}");
        }
    }
}
