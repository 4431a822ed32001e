//! One request to an HTTP server, bounded in time and in the size of its answer. Follows no redirect, uses no proxy, knows
//! nothing of what is asked.

use std::{error::Error, time::Duration};

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};

use crate::tls::{self, TlsFileError, TlsFiles};

/// What a request may take.
#[derive(Debug, Clone, Copy)]
pub struct RequestLimits {
    /// Until there is a connection.
    pub connect: Duration,
    /// From the start to the last byte of the answer.
    pub total: Duration,
    /// Longest answer that is read.
    pub max_answer_bytes: usize,
}

/// Sends requests over HTTP or HTTPS.
#[derive(Debug, Clone)]
pub struct HttpClient {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    limits: RequestLimits,
    /// The section of the settings whose keys errors name, if there is one.
    section: Option<&'static str>,
}

/// Why a request got no answer that can be used.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// It can't be reached, broke off, or its certificate is not trusted.
    #[error("ask {uri}: {problem}{}", .advice.as_ref().map_or_else(String::new, |advice| format!("; {advice}")))]
    Failed {
        /// What was asked, without its query.
        uri: String,
        /// What the libraries say, from the outermost cause to the innermost.
        problem: String,
        /// What to do, if that is known.
        advice: Option<String>,
    },
    /// It took too long.
    #[error("ask {uri}: no answer within {limit:?}; check that the address is right and that the server is well")]
    NoAnswer {
        /// What was asked, without its query.
        uri: String,
        /// The limit.
        limit: Duration,
    },
    /// The answer is too long.
    #[error(
        "ask {uri}: the answer is longer than {limit} bytes, which is no answer that was asked for; check the address"
    )]
    TooLong {
        /// What was asked, without its query.
        uri: String,
        /// The limit.
        limit: usize,
    },
}

impl HttpClient {
    /// A client that trusts `files`, or without a `ca_file` the system's authorities.
    ///
    /// # Errors
    /// If `ca_file` can't be used.
    pub fn new(files: &TlsFiles, limits: RequestLimits, section: Option<&'static str>) -> Result<Self, TlsFileError> {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(limits.connect));
        let https = HttpsConnectorBuilder::new().with_tls_config(files.client_config()?);
        let connector = https.https_or_http().enable_http1().wrap_connector(tcp);
        Ok(Self { client: Client::builder(TokioExecutor::new()).build(connector), limits, section })
    }

    /// Sends a request and reads its answer to the end.
    ///
    /// # Errors
    /// If there is no whole answer within the limits. Any status is an answer.
    pub async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let uri = without_query(request.uri());
        let RequestLimits { total, max_answer_bytes, .. } = self.limits;
        let exchange = async {
            let answer =
                self.client.request(request.map(Full::new)).await.map_err(|error| self.failed(&uri, &error))?;
            let (head, body) = answer.into_parts();
            let body = Limited::new(body, max_answer_bytes).collect().await.map_err(|error| {
                if error.is::<LengthLimitError>() {
                    HttpError::TooLong { uri: uri.clone(), limit: max_answer_bytes }
                } else {
                    self.failed(&uri, &*error)
                }
            })?;
            Ok(Response::from_parts(head, body.to_bytes()))
        };
        let late = |_elapsed| Err(HttpError::NoAnswer { uri: uri.clone(), limit: total });
        tokio::time::timeout(total, exchange).await.unwrap_or_else(late)
    }

    fn failed(&self, uri: &str, error: &(dyn Error + 'static)) -> HttpError {
        let problem = causes(error);
        let advice = self.section.and_then(|section| tls::advice(section, &problem));
        HttpError::Failed { uri: uri.to_owned(), problem, advice }
    }
}

/// An error and what caused it, each once.
fn causes(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let said = next.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = next.source();
    }
    text
}

/// A query can hold what is nobody's business.
fn without_query(uri: &Uri) -> String {
    let (scheme, host) = (uri.scheme_str().unwrap_or("http"), uri.authority().map_or("", |host| host.as_str()));
    crate::redaction::without_credentials(&format!("{scheme}://{host}{}", uri.path()))
}
