//! `/v1/pending/{flow}/{entity}/{action}/{id}`: one id's story and its release, for who shows the token of the operators.

use std::{path::PathBuf, sync::Arc};

use futures_util::future::BoxFuture;
use serde::Serialize;
use sha2::{Digest, Sha256};
use tracing::warn;
use warp::{
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    reply::Response,
};

use super::json;
use crate::{
    batch::EntityId,
    route::{Route, RouteTable},
    secrets,
};

/// What the path begins with.
pub(super) const PREFIX: &str = "/v1/pending/";

/// Tells the story of an id on a route, in JSON.
pub type Why = Arc<dyn Fn(Arc<Route>, String) -> BoxFuture<'static, serde_json::Value> + Send + Sync>;

/// Releases an id of a route, by the text of a token if there is one, and says what happened, in JSON.
pub type ReleaseId = Arc<
    dyn Fn(Arc<Route>, String, Option<String>) -> BoxFuture<'static, Result<serde_json::Value, NotReleased>>
        + Send
        + Sync,
>;

/// Why nothing was released.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotReleased {
    /// What was named as a token is none.
    BadToken(String),
    /// The store did not do it.
    Store(String),
}

/// What is behind these paths.
#[derive(Clone)]
pub struct PendingIds {
    /// File with the operators' token, read for each request; without it nothing is here.
    pub token_file: Option<PathBuf>,
    /// The routes.
    pub routes: Arc<RouteTable>,
    /// Tells stories; `None` where claims are in memory.
    pub why: Option<Why>,
    /// Releases ids; `None` where claims are in memory.
    pub release: Option<ReleaseId>,
}

/// An id of a route, as a path names it.
pub(super) struct PendingId {
    pub(super) route: Arc<Route>,
    pub(super) id: String,
}

#[derive(Serialize, schemars::JsonSchema)]
pub(super) struct Problem<'a> {
    status: &'static str,
    error: &'static str,
    message: &'a str,
}

fn problem(status: StatusCode, error: &'static str, message: &str) -> Response {
    json(status, &Problem { status: "error", error, message })
}

fn in_memory() -> Response {
    problem(StatusCode::SERVICE_UNAVAILABLE, "in_memory", "redis.url is \"memory:\": there is no journal")
}

impl PendingIds {
    /// Answers a request whose path begins with [`PREFIX`].
    pub(super) async fn answer(&self, method: &Method, path: &str, query: &str, headers: &HeaderMap) -> Response {
        if let Err(refusal) = self.let_in(headers) {
            return *refusal;
        }
        let PendingId { route, id } = match self.find(path) {
            Ok(found) => found,
            Err(refusal) => return *refusal,
        };
        match *method {
            Method::GET | Method::HEAD => match &self.why {
                Some(why) => json(StatusCode::OK, &why(route, id).await),
                None => in_memory(),
            },
            Method::DELETE => self.release(route, id, query).await,
            _ => {
                let mut response = problem(
                    StatusCode::METHOD_NOT_ALLOWED,
                    "method_not_allowed",
                    "GET or HEAD tell of it, DELETE releases it",
                );
                response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD, DELETE"));
                response
            }
        }
    }

    async fn release(&self, route: Arc<Route>, id: String, query: &str) -> Response {
        // What is not understood must not release more than was meant.
        let token = match query.split_once('=') {
            None if query.is_empty() => None,
            Some(("token", token)) if !token.contains('&') => Some(token.to_owned()),
            _ => {
                return problem(StatusCode::BAD_REQUEST, "bad_query", "write ?token=TOKEN, or nothing behind the id");
            }
        };
        let Some(release) = &self.release else { return in_memory() };
        match release(route, id, token).await {
            Ok(report) => json(StatusCode::OK, &report),
            Err(NotReleased::BadToken(text)) => problem(StatusCode::BAD_REQUEST, "bad_token", &text),
            Err(NotReleased::Store(text)) => {
                problem(StatusCode::SERVICE_UNAVAILABLE, "pending_store_unavailable", &text)
            }
        }
    }

    /// Whether a request shows the token.
    fn let_in(&self, headers: &HeaderMap) -> Result<(), Box<Response>> {
        let Some(file) = &self.token_file else {
            let text = "set admin.token_file to look at single ids";
            return Err(Box::new(problem(StatusCode::NOT_FOUND, "not_found", text)));
        };
        let token = secrets::text(file).map_err(|error| {
            warn!(file = %file.display(), %error, "the token of the operators can't be read (admin.token_file)");
            problem(StatusCode::SERVICE_UNAVAILABLE, "no_token", "admin.token_file can't be read; the log says why")
        })?;
        let shown = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
        let shown = shown.and_then(|value| value.split_at_checked(7));
        let shown =
            shown.filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"bearer ")).map(|(_, shown)| shown.trim_ascii());
        // Digests take the same time to compare, whatever was shown.
        if shown.is_some_and(|shown| Sha256::digest(shown) == Sha256::digest(token.as_bytes())) {
            return Ok(());
        }
        let text = "show the token of admin.token_file: Authorization: Bearer TOKEN";
        let mut response = problem(StatusCode::UNAUTHORIZED, "unauthorized", text);
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        Err(Box::new(response))
    }

    fn find(&self, path: &str) -> Result<PendingId, Box<Response>> {
        let rest = path.strip_prefix(PREFIX).unwrap_or_default();
        let mut words = rest.splitn(4, '/');
        let name = words.by_ref().take(3).collect::<Vec<_>>().join("/");
        let id = words.next().filter(|id| !id.contains('/')).and_then(decoded);
        let id = id.filter(|id| EntityId::parse(id).is_some()).ok_or_else(|| {
            let text = "write /v1/pending/FLOW/ENTITY/ACTION/ID, the id percent-encoded";
            problem(StatusCode::BAD_REQUEST, "bad_path", text)
        })?;
        let route = self.routes.routes().iter().find(|route| route.name() == name);
        let unknown = || problem(StatusCode::NOT_FOUND, "unknown_route", "there is no such route; see /v1/status");
        Ok(PendingId { route: Arc::clone(route.ok_or_else(unknown)?), id })
    }
}

/// A segment of a path, decoded once; `None` if it is not UTF-8 or wrongly encoded.
fn decoded(segment: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(if byte == b'%' {
            let mut digit = || char::from(rest.next()?).to_digit(16);
            u8::try_from(digit()? * 16 + digit()?).ok()?
        } else {
            byte
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::decoded;

    #[test]
    fn a_segment_is_decoded_once() {
        for (segment, expected) in [
            ("a", Some("a")),
            ("a%2Fb", Some("a/b")),
            ("a+b", Some("a+b")),
            ("%252F", Some("%2F")),
            ("%C3%BC", Some("ü")),
            ("%", None),
            ("%2", None),
            ("%zz", None),
            ("%+1", None),
            ("%FF", None),
        ] {
            assert_eq!(decoded(segment).as_deref(), expected, "{segment}");
        }
    }
}
