//! An HTTP server that answers what a test wants it to, with TLS or without.

use std::{convert::Infallible, sync::Arc};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    task::JoinSet,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    },
};

use super::Identity;

type Handler = Arc<dyn Fn(Request<Bytes>) -> Response<Bytes> + Send + Sync>;

/// A server on a free port of this machine, until it is dropped.
pub(crate) struct HttpServer {
    url: String,
    _connections: JoinSet<()>,
}

impl HttpServer {
    /// Starts to answer.
    pub(crate) async fn start(
        tls: Option<&Identity>,
        handler: impl Fn(Request<Bytes>) -> Response<Bytes> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("there is a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let acceptor = tls.map(acceptor);
        let url = format!("{}://localhost:{port}", if tls.is_some() { "https" } else { "http" });
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, acceptor, Arc::new(handler)));
        Self { url, _connections: tasks }
    }

    /// Scheme, host and port.
    pub(crate) fn url(&self) -> String {
        self.url.clone()
    }
}

async fn accept(listener: TcpListener, acceptor: Option<TlsAcceptor>, handler: Handler) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { return };
        let (acceptor, handler) = (acceptor.clone(), Arc::clone(&handler));
        connections.spawn(async move {
            match acceptor {
                None => serve(stream, handler).await,
                Some(acceptor) => {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        serve(stream, handler).await;
                    }
                }
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, handler: Handler) {
    let service = service_fn(move |request: Request<Incoming>| {
        let handler = Arc::clone(&handler);
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
            Ok::<_, Infallible>(handler(Request::from_parts(head, body)).map(Full::new))
        }
    });
    // A client that goes away is no failure of the test.
    let _ended = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

fn acceptor(identity: &Identity) -> TlsAcceptor {
    let chain = CertificateDer::pem_file_iter(&identity.cert).expect("the file is there");
    let chain: Vec<_> = chain.collect::<Result<_, _>>().expect("it is PEM");
    let key = PrivateKeyDer::from_pem_file(&identity.key).expect("it is a key");
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).expect("they fit");
    TlsAcceptor::from(Arc::new(config))
}
