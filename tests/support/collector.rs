//! A collector that takes spans as OTLP over HTTP and keeps them.

use std::{
    collections::BTreeMap,
    io::{Error, Result},
    sync::{Arc, Mutex, PoisonError},
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{KeyValue, any_value::Value},
    trace::v1::Span as Wire,
};
use prost::Message;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use super::eventually;

/// A span, with its ids in hex digits as they stand in a `traceparent`.
#[derive(Debug, Clone)]
pub(crate) struct Span {
    pub(crate) name: String,
    /// As OTLP numbers them: 1 internal, 2 server, 3 client, 4 producer.
    pub(crate) kind: i32,
    pub(crate) trace: String,
    pub(crate) id: String,
    /// Empty for the first of a trace.
    pub(crate) parent: String,
    pub(crate) attributes: BTreeMap<String, String>,
    /// Trace and span of each.
    pub(crate) links: Vec<(String, String)>,
    /// The message of a status that is an error.
    pub(crate) error: Option<String>,
    /// Nanoseconds of the beginning and the end.
    pub(crate) time: (u64, u64),
    /// What the process says of itself.
    pub(crate) resource: BTreeMap<String, String>,
}

/// A running collector, until it is dropped.
pub(crate) struct Collector {
    address: std::net::SocketAddr,
    spans: Arc<Mutex<Vec<Span>>>,
    _tasks: JoinSet<()>,
}

impl Collector {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
        let address = listener.local_addr().expect("it is bound");
        let spans = Arc::<Mutex<Vec<Span>>>::default();
        let kept = Arc::clone(&spans);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let kept = Arc::clone(&kept);
                // It ends with the exporter's end of the connection.
                connections.spawn(async move { drop(serve(stream, &kept).await) });
            }
        });
        Self { address, spans, _tasks: tasks }
    }

    /// What makes hookgate send spans here, as TOML.
    pub(crate) fn settings(&self) -> String {
        format!("tracing.otlp_endpoint = \"http://{}\"\n", self.address)
    }

    /// All spans so far.
    pub(crate) fn spans(&self) -> Vec<Span> {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until there are so many.
    pub(crate) async fn wait(&self, count: usize) -> Vec<Span> {
        eventually(&format!("the collector has {count} spans"), async || {
            Some(self.spans()).filter(|spans| spans.len() >= count)
        })
        .await
    }
}

async fn serve(mut stream: TcpStream, kept: &Mutex<Vec<Span>>) -> Result<()> {
    let mut unread = Vec::new();
    loop {
        let end = loop {
            if let Some(end) = unread.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            if stream.read_buf(&mut unread).await? == 0 {
                return Ok(());
            }
        };
        let head = String::from_utf8(unread.drain(..end).collect()).map_err(Error::other)?.to_ascii_lowercase();
        assert!(head.starts_with("post /v1/traces http/1.1\r\n"), "{head}");
        assert!(head.contains("content-type: application/x-protobuf\r\n"), "{head}");
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("it has a length");
        let length: usize = length.trim().parse().expect("it is a number");
        while unread.len() < length {
            stream.read_buf(&mut unread).await?;
        }
        let body: Vec<u8> = unread.drain(..length).collect();
        let request = ExportTraceServiceRequest::decode(body.as_slice()).expect("it is OTLP");
        kept.lock().unwrap_or_else(PoisonError::into_inner).extend(read(request));
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 0\r\n\r\n")
            .await?;
    }
}

fn read(request: ExportTraceServiceRequest) -> Vec<Span> {
    let mut spans = Vec::new();
    for resource in request.resource_spans {
        let about = attributes(&resource.resource.expect("the process says who it is").attributes);
        for scope in resource.scope_spans {
            assert_eq!(scope.scope.expect("there is one").name, "hookgate");
            spans.extend(scope.spans.into_iter().map(|span| from_wire(span, &about)));
        }
    }
    spans
}

fn from_wire(span: Wire, resource: &BTreeMap<String, String>) -> Span {
    let status = span.status.unwrap_or_default();
    Span {
        name: span.name,
        kind: span.kind,
        trace: hex(&span.trace_id),
        id: hex(&span.span_id),
        parent: hex(&span.parent_span_id),
        attributes: attributes(&span.attributes),
        links: span.links.iter().map(|link| (hex(&link.trace_id), hex(&link.span_id))).collect(),
        error: (status.code == 2).then_some(status.message),
        time: (span.start_time_unix_nano, span.end_time_unix_nano),
        resource: resource.clone(),
    }
}

fn attributes(pairs: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |pair: &KeyValue| match pair.value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        other => panic!("{} is {other:?}", pair.key),
    };
    pairs.iter().map(|pair| (pair.key.clone(), text(pair))).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}
